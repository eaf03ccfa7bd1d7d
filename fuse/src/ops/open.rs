//! How files are opened and closed.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Weak;

use agentfs_engine::Ino;
use rustix::io::Errno;

use super::Ops;
use crate::counters::Message;
use crate::passthrough::{Handle, PASSED_BYTES_MIN, Passthrough, Way};

/// How a file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What its close is told by.
    pub handle: u64,
    /// Whether the kernel keeps the file's pages.
    pub keep_pages: bool,
    /// The number of the backing that it is read from, past us.
    pub backing: Option<u32>,
}

/// Ends an open for writing that nobody else ends.
pub(super) struct Writing<'a>(&'a Passthrough, Ino);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.closed(self.1, Handle::Plain);
    }
}

impl Ops {
    /// From now on large files are read past us, over this device.
    ///
    /// # Errors
    /// As [`Passthrough::new`].
    pub(crate) fn pass_through(&self, device: Weak<OwnedFd>) -> io::Result<()> {
        let passthrough = Passthrough::new(device, !self.worktree.is_read_only())?;
        let _ = self.passthrough.set(passthrough);
        Ok(())
    }

    /// What is read past us, where something is.
    pub(crate) fn passthrough(&self) -> Option<&Passthrough> {
        self.passthrough.get()
    }

    /// OPEN with the flags of open(2).
    ///
    /// # Errors
    /// `ENOSYS` where the kernel is to open without asking from now on; `ETXTBSY` for writing while somebody reads the
    /// file past us.
    pub fn open(&self, ino: Ino, flags: u32) -> Result<Opened, Errno> {
        let Some(passthrough) = self.passthrough.get() else {
            self.counters.count(Message::Open);
            if self.levers.no_open {
                return Err(Errno::NOSYS);
            }
            let keep_pages = self.levers.keep_cache;
            return Ok(Opened { handle: 0, keep_pages, backing: None });
        };
        let keep_pages = self.levers.keep_cache;
        let opened = self.run(Message::Open, ino, || {
            if !self.may_pass(ino) {
                return Ok(Ok(Opened { handle: 0, keep_pages, backing: None }));
            }
            let plain = Opened { handle: Handle::Plain as u64, keep_pages, backing: None };
            if flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32 {
                return Ok(passthrough.open_to_write(ino).map(|()| plain));
            }
            let make = || match self.worktree.plain_file(ino) {
                Ok(file) => file,
                // Whoever reads it is told.
                Err(error) => {
                    self.report(Message::Open, ino, &error);
                    None
                }
            };
            Ok(Ok(match passthrough.open_to_read(ino, make) {
                Way::Plain => plain,
                Way::Passed(id) => {
                    let handle = Handle::Passed as u64;
                    Opened { handle, keep_pages: false, backing: Some(id) }
                }
            }))
        })??;
        if opened.backing.is_some() {
            self.counters.passed();
        }
        Ok(opened)
    }

    /// RELEASE of what [`Ops::open`] has opened.
    pub fn close(&self, ino: Ino, handle: u64) {
        self.counters.count(Message::Release);
        let handle = [Handle::Plain, Handle::Passed].into_iter().find(|one| *one as u64 == handle);
        if let (Some(passthrough), Some(handle)) = (self.passthrough.get(), handle) {
            passthrough.closed(ino, handle);
        }
    }

    /// Keeps a file from being read past us while its size is changed.
    pub(super) fn writing(&self, ino: Ino) -> Result<Option<Writing<'_>>, Errno> {
        let Some(passthrough) = self.passthrough.get().filter(|_| self.may_pass(ino)) else {
            return Ok(None);
        };
        passthrough.open_to_write(ino)?;
        Ok(Some(Writing(passthrough, ino)))
    }

    /// Whether a file is one that could ever be read past us. What a branch makes of it does not count: an open that
    /// was begun before is to be known later.
    fn may_pass(&self, ino: Ino) -> bool {
        self.worktree.base_file_bytes(ino).is_some_and(|bytes| bytes >= PASSED_BYTES_MIN)
    }
}
