//! The operations, independent of the transport that carries them.
//!
//! Requests come in as plain values, replies go out as plain values or an errno. Every operation is
//! counted, every failure is translated in one place, and a panic ends in `EIO` for its caller.
//!
//! Whether a worktree can be written is its own to say: a read-only one answers `EROFS` to whatever
//! would change it, also on a mount that the kernel thinks writable.

mod open;
mod read;
mod write;
mod xattr;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use agentfs_engine::worktree::{Attributes, GIT_FILE_NAME, Worktree};
use agentfs_engine::{Ino, Result as EngineResult};
use rustix::io::Errno;
pub use xattr::XattrReply;

use crate::cache::Levers;
use crate::counters::{Counters, Message};
use crate::errno::{Reports, errno_of};
use crate::lookups::Lookups;
use crate::passthrough::Passthrough;

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
    /// What the kernel refers to, where an inode can lose its names.
    lookups: Option<Lookups>,
    /// What is read past us, where something is.
    passthrough: OnceLock<Passthrough>,
}

impl Ops {
    /// The operations of `worktree`, with the replies that `levers` ask for.
    pub fn new(worktree: Arc<Worktree>, levers: Levers) -> Self {
        let lookups = (!worktree.is_read_only()).then(Lookups::default);
        let (counters, reports) = (Counters::default(), Reports::default());
        let passthrough = OnceLock::new();
        Self { worktree, levers, counters, reports, lookups, passthrough }
    }

    /// What the kernel is told to remember.
    pub fn levers(&self) -> &Levers {
        &self.levers
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// OPENDIR: whether the kernel keeps the listing.
    ///
    /// # Errors
    /// `ENOSYS` where the kernel is to open without asking from now on.
    pub fn open_directory(&self) -> Result<bool, Errno> {
        self.counters.count(Message::Opendir);
        if self.levers.no_opendir { Err(Errno::NOSYS) } else { Ok(self.levers.cache_listings) }
    }

    /// FLUSH: there is nothing to flush.
    ///
    /// # Errors
    /// `ENOSYS` where the kernel is not to ask again.
    pub fn flush(&self) -> Result<(), Errno> {
        self.counters.count(Message::Flush);
        if self.levers.no_flush { Err(Errno::NOSYS) } else { Ok(()) }
    }

    /// FORGET: the kernel gives back `references` to `ino`. With the last one an inode without names
    /// goes.
    pub fn forget(&self, ino: Ino, references: u64) {
        self.counters.count(Message::Forget);
        if let Some(lookups) = &self.lookups {
            let excess = lookups.forget(ino, references, || self.release(ino));
            if excess > 0 {
                self.counters.failed();
                let why = format_args!("{excess} of {references} references were never given");
                self.report(Message::Forget, ino, &why);
            }
        }
    }

    /// `ino` has lost its names without the kernel's doing: it goes now unless the kernel refers to it, else
    /// when that is over.
    pub(crate) fn unnamed(&self, ino: Ino) {
        if let Some(lookups) = &self.lookups {
            lookups.unless_referenced(ino, || self.release(ino));
        }
    }

    /// The session has ended: the kernel refers to nothing any more.
    pub(crate) fn forget_all(&self) {
        if let Some(lookups) = &self.lookups {
            lookups.forget_all(|ino| self.release(ino));
        }
        if let Some(passthrough) = self.passthrough.get() {
            passthrough.end();
        }
    }

    fn release(&self, ino: Ino) {
        if let Some(passthrough) = self.passthrough.get() {
            passthrough.forgotten(ino);
        }
        // Nobody waits for an answer.
        let _ = self.guarded(Message::Forget, ino, || {
            self.worktree.release(ino);
            Ok(())
        });
    }

    /// The kernel is going to be told of this entry.
    fn referenced(&self, attributes: Attributes) -> Attributes {
        if let Some(lookups) = &self.lookups {
            lookups.count(attributes.ino);
        }
        attributes
    }

    /// How many references the kernel holds to `ino`.
    #[cfg(test)]
    pub(crate) fn references(&self, ino: Ino) -> u32 {
        self.lookups.as_ref().map_or(0, |lookups| lookups.of(ino))
    }

    /// What succeeds by doing nothing.
    pub fn done(&self, message: Message) {
        self.counters.count(message);
    }

    /// What no file system of this kind has, or the kernel does better: `ENOSYS`, which it
    /// remembers. ACCESS is among them: with or without asking, permission bits decide. So is STATX,
    /// which asks for a time of birth, and INTERRUPT: it comes for every signal, also one that ends
    /// nothing, and a read that ended early for it would be an I/O error to its program.
    pub fn unsupported(&self, message: Message) -> Errno {
        self.counters.count(message);
        Errno::NOSYS
    }

    /// A message that cannot be understood, of the operation with this number. It is logged once.
    pub(crate) fn malformed(&self, opcode: u32, why: &dyn fmt::Display) {
        self.counters.count(Message::Unknown);
        self.counters.failed();
        self.reports.report(format_args!("a message of operation {opcode} is not understood"), why);
    }

    /// IOCTL: `ENOTTY`, at once. The kernel cannot be told to stop asking, and some programs ask at
    /// each open whether the file is a terminal.
    pub fn ioctl(&self) -> Errno {
        self.counters.count(Message::Ioctl);
        Errno::NOTTY
    }

    /// Counts and performs one operation.
    fn run<T>(
        &self,
        message: Message,
        ino: Ino,
        operation: impl FnOnce() -> EngineResult<T>,
    ) -> Result<T, Errno> {
        self.counters.count(message);
        let start = Instant::now();
        let result = self.guarded(message, ino, operation);
        self.counters.took(message, start.elapsed());
        result
    }

    /// Performs one operation and translates how it failed.
    ///
    /// A panic in it may have left a reply half-written, which is thrown away, but no state of the
    /// worktree: what that shares between threads is immutable or behind locks whose users cope with
    /// a panic.
    fn guarded<T>(
        &self,
        message: Message,
        ino: Ino,
        operation: impl FnOnce() -> EngineResult<T>,
    ) -> Result<T, Errno> {
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
