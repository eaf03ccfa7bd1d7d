//! What the kernel is told without being asked: that something it remembers is not so any more, or
//! what it will ask for.
//!
//! The kernel takes its own locks to obey, among them those under which it waits for an answer of
//! ours. So nothing here may be called by what serves a request, nor under a lock that serving takes.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use agentfs_engine::Ino;
use rustix::io::Errno;

use crate::protocol::{OUT_HEADER_BYTES, Writer};

const INVAL_INODE: u32 = 2;
const INVAL_ENTRY: u32 = 3;
const STORE: u32 = 4;
const DELETE: u32 = 6;

/// Something that the kernel remembers and that is not so any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale<'a> {
    /// The attributes of an inode.
    Attributes(Ino),
    /// Attributes and all content of a file, the target of a link, or the listing of a directory.
    Content(Ino),
    /// What a name in a directory stands for, be it nothing.
    Entry {
        /// The directory.
        parent: Ino,
        /// The name.
        name: &'a [u8],
    },
    /// A name that is gone, with the inode it stood for. Who watches the directory is told.
    Deleted {
        /// The directory.
        parent: Ino,
        /// What the name stood for.
        ino: Ino,
        /// The name.
        name: &'a [u8],
    },
}

/// Talks to the kernel. It keeps the device open.
#[derive(Clone)]
pub(crate) struct Notifier(Arc<OwnedFd>);

impl Notifier {
    pub(crate) fn new(device: Arc<OwnedFd>) -> Self {
        Self(device)
    }

    /// Has the kernel forget something. That it does not know it is as good.
    pub(crate) fn forget(&self, stale: Stale<'_>) -> rustix::io::Result<()> {
        let mut fields = [0; 24];
        let mut out = Writer::new(&mut fields);
        let (code, name) = match stale {
            Stale::Attributes(ino) | Stale::Content(ino) => {
                out.u64(ino.0);
                // From here on in bytes of the content; a negative number leaves the content alone.
                let from = if matches!(stale, Stale::Content(_)) { 0 } else { -1_i64 };
                out.u64(from as u64);
                out.u64(0);
                (INVAL_INODE, None)
            }
            Stale::Entry { parent, name } => {
                out.u64(parent.0);
                out.u32(name.len() as u32);
                out.u32(0);
                (INVAL_ENTRY, Some(name))
            }
            Stale::Deleted { parent, ino, name } => {
                out.u64(parent.0);
                out.u64(ino.0);
                out.u32(name.len() as u32);
                out.u32(0);
                (DELETE, Some(name))
            }
        };
        let len = out.len();
        let sent = match name {
            None => self.send(code, &[&fields[..len]]),
            // The kernel looks for a NUL behind it.
            Some(name) => self.send(code, &[&fields[..len], name, b"\0"]),
        };
        match sent {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Puts `data` into the page cache, as the content of `ino` from `offset` on.
    pub(crate) fn store(&self, ino: Ino, offset: u64, data: &[u8]) -> rustix::io::Result<()> {
        let mut fields = [0; 24];
        let mut out = Writer::new(&mut fields);
        out.u64(ino.0);
        out.u64(offset);
        out.u32(u32::try_from(data.len()).map_err(|_| Errno::TOOBIG)?);
        out.u32(0);
        self.send(STORE, &[&fields, data])
    }

    /// Sends a notification, which has a code where a reply has an error.
    fn send(&self, code: u32, parts: &[&[u8]]) -> rustix::io::Result<()> {
        let len = OUT_HEADER_BYTES + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut header = [0; OUT_HEADER_BYTES];
        let mut out = Writer::new(&mut header);
        out.u32(u32::try_from(len).map_err(|_| Errno::TOOBIG)?);
        out.u32(code);
        out.u64(0);
        let mut slices = vec![IoSlice::new(&header)];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        rustix::io::writev(&*self.0, &slices).map(|_| ())
    }
}
