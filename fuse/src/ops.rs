//! The operations, independent of the transport that carries them.
//!
//! Requests come in as plain values, replies go out as plain values or an errno. Every operation is
//! counted, every failure is translated in one place, and a panic ends in `EIO` for its caller.
//!
//! The worktree is read-only: whatever would change it is answered `EROFS`, also on a mount that the
//! kernel thinks writable.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use agentfs_engine::limits::NAME_BYTES_MAX;
use agentfs_engine::worktree::{Attributes, DirectoryEntry, FsStatistics, GIT_FILE_NAME, Worktree};
use agentfs_engine::{Ino, Result as EngineResult};
use rustix::io::Errno;

use crate::cache::Levers;
use crate::counters::{Counters, Message};
use crate::errno::{Reports, errno_of};

/// What a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The entry.
    Entry(Attributes),
    /// Nothing, and the kernel may remember that.
    Nothing,
}

/// One worktree's operations.
pub struct Ops {
    worktree: Arc<Worktree>,
    levers: Levers,
    counters: Counters,
    reports: Reports,
}

impl Ops {
    /// The operations of `worktree`, with the replies that `levers` ask for.
    pub fn new(worktree: Arc<Worktree>, levers: Levers) -> Self {
        Self { worktree, levers, counters: Counters::default(), reports: Reports::default() }
    }

    /// What the kernel is told to remember.
    pub fn levers(&self) -> &Levers {
        &self.levers
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// LOOKUP.
    ///
    /// # Errors
    /// `ENAMETOOLONG`, `ENOTDIR`; `ENOENT` only where the kernel must not remember it.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Found, Errno> {
        let found = self.run(Message::Lookup, parent, || {
            if name.len() > NAME_BYTES_MAX {
                return Ok(Err(Errno::NAMETOOLONG));
            }
            self.worktree.lookup(parent, name).map(Ok)
        })??;
        match found {
            Some(attributes) => Ok(Found::Entry(attributes)),
            None if self.levers.negative_entries => Ok(Found::Nothing),
            None => Err(Errno::NOENT),
        }
    }

    /// GETATTR.
    ///
    /// # Errors
    /// `ESTALE` for an inode that does not exist.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        self.run(Message::Getattr, ino, || self.worktree.attributes(ino))
    }

    /// READLINK.
    ///
    /// # Errors
    /// `EINVAL` for what is no symbolic link, `EIO` for a target that cannot be read.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        self.run(Message::Readlink, ino, || self.worktree.read_link(ino))
    }

    /// OPEN: whether the kernel keeps the file's pages.
    ///
    /// # Errors
    /// `ENOSYS` where the kernel is to open without asking from now on.
    pub fn open(&self) -> Result<bool, Errno> {
        self.counters.count(Message::Open);
        if self.levers.no_open { Err(Errno::NOSYS) } else { Ok(self.levers.keep_cache) }
    }

    /// OPENDIR: whether the kernel keeps the listing.
    ///
    /// # Errors
    /// `ENOSYS` where the kernel is to open without asking from now on.
    pub fn open_directory(&self) -> Result<bool, Errno> {
        self.counters.count(Message::Opendir);
        if self.levers.no_opendir { Err(Errno::NOSYS) } else { Ok(self.levers.cache_listings) }
    }

    /// READ into `out`; returns the number of bytes, fewer than asked for only at the end.
    ///
    /// # Errors
    /// `EIO` for content that is damaged or gone and cannot be rebuilt.
    pub fn read(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<usize, Errno> {
        let len = self.run(Message::Read, ino, || self.worktree.read(ino, offset, out))?;
        self.counters.read(len);
        Ok(len)
    }

    /// READDIR, or READDIRPLUS `with_attributes`, from `cookie` on. `take` returns whether the entry
    /// still fitted into the reply.
    ///
    /// # Errors
    /// `ENOTDIR`, or `EIO` for a directory object that cannot be read. The kernel must then be told
    /// the error and none of the entries.
    pub fn read_directory(
        &self,
        ino: Ino,
        cookie: u64,
        with_attributes: bool,
        take: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let kind = if with_attributes { Message::Readdirplus } else { Message::Readdir };
        let mut listed = 0;
        let result = self.run(kind, ino, || {
            self.worktree.read_directory(ino, cookie, with_attributes, &mut |entry| {
                let taken = take(entry);
                listed += u64::from(taken);
                taken
            })
        });
        self.counters.listed(listed);
        result
    }

    /// STATFS.
    ///
    /// # Errors
    /// `EIO` if the file system of the store does not answer.
    pub fn statistics(&self) -> Result<FsStatistics, Errno> {
        self.run(Message::Statfs, Ino::ROOT, || self.worktree.statistics())
    }

    /// LSEEK to data or to a hole. No file has a hole, except the one that each has at its end.
    ///
    /// # Errors
    /// `ENXIO` from the end of the file on, `EINVAL` for another kind of seek, `ENOSYS` where the
    /// kernel is to find out by itself from now on.
    pub fn seek(&self, ino: Ino, offset: i64, whence: i32) -> Result<i64, Errno> {
        let attributes = self.run(Message::Lseek, ino, || {
            if self.levers.no_lseek {
                return Ok(Err(Errno::NOSYS));
            }
            self.worktree.attributes(ino).map(Ok)
        })??;
        let size = i64::try_from(attributes.size).unwrap_or(i64::MAX);
        if offset < 0 || offset >= size {
            return Err(Errno::NXIO);
        }
        match whence {
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(size),
            _ => Err(Errno::INVAL),
        }
    }

    /// GETXATTR, LISTXATTR and their like: this kind of file system has none.
    pub fn no_xattr(&self, message: Message) -> Errno {
        self.counters.count(message);
        if self.levers.no_xattr { Errno::NOSYS } else { Errno::OPNOTSUPP }
    }

    /// FLUSH: there is nothing to flush.
    ///
    /// # Errors
    /// `ENOSYS` where the kernel is not to ask again.
    pub fn flush(&self) -> Result<(), Errno> {
        self.counters.count(Message::Flush);
        if self.levers.no_flush { Err(Errno::NOSYS) } else { Ok(()) }
    }

    /// What succeeds by doing nothing: RELEASE, FORGET, FSYNC of what cannot change.
    pub fn done(&self, message: Message) {
        self.counters.count(message);
    }

    /// What would change the worktree: `EROFS`.
    pub fn read_only(&self, message: Message) -> Errno {
        self.counters.count(message);
        Errno::ROFS
    }

    /// What no file system of this kind has, or the kernel does better: `ENOSYS`, which it
    /// remembers. ACCESS is among them: with or without asking, permission bits decide.
    pub fn unsupported(&self, message: Message) -> Errno {
        self.counters.count(message);
        Errno::NOSYS
    }

    /// IOCTL: `ENOTTY`, at once. The kernel cannot be told to stop asking, and some programs ask at
    /// each open whether the file is a terminal.
    pub fn ioctl(&self) -> Errno {
        self.counters.count(Message::Ioctl);
        Errno::NOTTY
    }

    /// The whole of a regular file of at most `limit` bytes, to be pushed into the kernel's cache.
    /// `None` if it is larger or cannot be read: the READ that asks for it will say why.
    pub(crate) fn content(&self, ino: Ino, limit: u64) -> Option<Vec<u8>> {
        let read = || -> EngineResult<_> {
            let size = self.worktree.attributes(ino)?.size;
            if size > limit {
                return Ok(None);
            }
            let mut content = vec![0; size as usize];
            let len = self.worktree.read(ino, 0, &mut content)?;
            Ok((len == content.len()).then_some(content))
        };
        catch_unwind(AssertUnwindSafe(read)).ok().and_then(EngineResult::ok).flatten()
    }

    /// Counts and performs one operation.
    ///
    /// A panic in it may have left a reply half-written, which is thrown away, but no state of the
    /// worktree: what that shares between threads is immutable or behind locks whose users cope with
    /// a panic.
    fn run<T>(
        &self,
        message: Message,
        ino: Ino,
        operation: impl FnOnce() -> EngineResult<T>,
    ) -> Result<T, Errno> {
        self.counters.count(message);
        match catch_unwind(AssertUnwindSafe(operation)) {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => {
                let errno = errno_of(&error);
                self.counters.failed();
                if errno == Errno::IO {
                    self.report(message, ino, &error);
                }
                Err(errno)
            }
            Err(panic) => {
                self.counters.failed();
                self.counters.panicked();
                self.report(message, ino, &format_args!("panic: {}", panic_text(&*panic)));
                Err(Errno::IO)
            }
        }
    }

    fn report(&self, message: Message, ino: Ino, why: &dyn fmt::Display) {
        let path = match ino {
            Ino::GIT_FILE => Some(GIT_FILE_NAME.to_vec()),
            // The path may lead through the very directory object that is damaged.
            _ => catch_unwind(AssertUnwindSafe(|| self.worktree.base().path(ino).ok()))
                .ok()
                .flatten(),
        };
        let name = message.name();
        match path.as_deref() {
            Some(b"") => self.reports.report(format_args!("{name} of the root"), why),
            Some(path) => {
                let path = String::from_utf8_lossy(path);
                self.reports.report(format_args!("{name} of {path:?}"), why);
            }
            None => self.reports.report(format_args!("{name} of inode {ino}"), why),
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without words")
}
