//! How many messages of each kind the kernel sent, and what was done for them.
//!
//! `forget` counts inodes and not messages, of which one can hold many.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agentfs_engine::latency::Latency;

macro_rules! messages {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A kind of message between the kernel and a session.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Message {
            $(#[doc = concat!("`", $name, "`.")] $(#[$doc])* $variant,)*
        }

        impl Message {
            /// Every kind, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its name, as counters and log lines show it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

messages! {
    Init = "init",
    Lookup = "lookup",
    Forget = "forget",
    Getattr = "getattr",
    Setattr = "setattr",
    Readlink = "readlink",
    Open = "open",
    Read = "read",
    Write = "write",
    Flush = "flush",
    Release = "release",
    Fsync = "fsync",
    Opendir = "opendir",
    Readdir = "readdir",
    Readdirplus = "readdirplus",
    Releasedir = "releasedir",
    Fsyncdir = "fsyncdir",
    Statfs = "statfs",
    Access = "access",
    Lseek = "lseek",
    Ioctl = "ioctl",
    Poll = "poll",
    Bmap = "bmap",
    Getlk = "getlk",
    Setlk = "setlk",
    Getxattr = "getxattr",
    Listxattr = "listxattr",
    Setxattr = "setxattr",
    Removexattr = "removexattr",
    Mknod = "mknod",
    Mkdir = "mkdir",
    Create = "create",
    Symlink = "symlink",
    Link = "link",
    Unlink = "unlink",
    Rmdir = "rmdir",
    Rename = "rename",
    Fallocate = "fallocate",
    CopyFileRange = "copy_file_range",
    Tmpfile = "tmpfile",
    Statx = "statx",
    Syncfs = "syncfs",
    Interrupt = "interrupt",
    Destroy = "destroy",
    /// Any other: refused, after which the kernel does without.
    Unknown = "unknown",
}

const MESSAGES: usize = Message::ALL.len();

/// Counts since the session began. They are read while they move: each is exact, a set of them is
/// not a moment.
#[derive(Debug)]
pub struct Counters {
    messages: [AtomicU64; MESSAGES],
    /// Of the kinds that came.
    latencies: [OnceLock<Box<Latency>>; MESSAGES],
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    entries_listed: AtomicU64,
    files_pushed: AtomicU64,
    bytes_pushed: AtomicU64,
    errors: AtomicU64,
    panics: AtomicU64,
    files_passed: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            messages: [const { AtomicU64::new(0) }; MESSAGES],
            latencies: [const { OnceLock::new() }; MESSAGES],
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            entries_listed: AtomicU64::new(0),
            files_pushed: AtomicU64::new(0),
            bytes_pushed: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            files_passed: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// How many messages of this kind came.
    pub fn of(&self, message: Message) -> u64 {
        self.messages[message as usize].load(Ordering::Relaxed)
    }

    /// How many messages came that the kernel sends for what a program does: all but the first and the
    /// last one and the forgets, which it sends on its own.
    pub fn requests(&self) -> u64 {
        let own = [Message::Init, Message::Destroy, Message::Forget];
        Message::ALL.iter().filter(|kind| !own.contains(kind)).map(|kind| self.of(*kind)).sum()
    }

    /// Every count with its name: the messages, then the bytes that READ returned and that WRITE and
    /// COPY_FILE_RANGE put into files, the entries listed, what was pushed into the page cache unasked, the operations that failed, and the opens of files that the kernel reads past us.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let others = [
            ("bytes_read", &self.bytes_read),
            ("bytes_written", &self.bytes_written),
            ("entries_listed", &self.entries_listed),
            ("files_pushed", &self.files_pushed),
            ("bytes_pushed", &self.bytes_pushed),
            ("errors", &self.errors),
            ("panics", &self.panics),
            ("files_passed", &self.files_passed),
        ];
        let messages = Message::ALL.iter().map(|kind| (kind.name(), self.of(*kind)));
        let others = others.map(|(name, count)| (name, count.load(Ordering::Relaxed)));
        messages.chain(others).collect()
    }

    /// How long those took of each kind that are more than an answer, from when they were read until they were
    /// answered: as [`Latency::snapshot`] has it.
    pub fn latencies(&self) -> Vec<(&'static str, Vec<(u64, u64)>)> {
        let of = |kind: &Message| {
            let latency = self.latencies[*kind as usize].get()?;
            Some((kind.name(), latency.snapshot()))
        };
        Message::ALL.iter().filter_map(of).collect()
    }

    pub(crate) fn took(&self, message: Message, took: Duration) {
        self.latencies[message as usize].get_or_init(Box::default).record(took);
    }

    pub(crate) fn count(&self, message: Message) {
        add(&self.messages[message as usize], 1);
    }

    pub(crate) fn read(&self, bytes: usize) {
        add(&self.bytes_read, bytes as u64);
    }

    pub(crate) fn wrote(&self, bytes: u64) {
        add(&self.bytes_written, bytes);
    }

    pub(crate) fn listed(&self, entries: u64) {
        add(&self.entries_listed, entries);
    }

    pub(crate) fn pushed(&self, bytes: usize) {
        add(&self.files_pushed, 1);
        add(&self.bytes_pushed, bytes as u64);
    }

    pub(crate) fn failed(&self) {
        add(&self.errors, 1);
    }

    /// A file was opened that is read past us.
    pub(crate) fn passed(&self) {
        add(&self.files_passed, 1);
    }

    pub(crate) fn panicked(&self) {
        add(&self.panics, 1);
    }
}

fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_kind_has_its_own_count_and_name() {
        let counters = Counters::default();
        for (index, kind) in Message::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, index);
            for _ in 0..=index {
                counters.count(*kind);
            }
        }
        for (index, kind) in Message::ALL.iter().enumerate() {
            assert_eq!(counters.of(*kind), index as u64 + 1);
        }
        let snapshot = counters.snapshot();
        let names: HashSet<_> = snapshot.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), snapshot.len());
    }

    #[test]
    fn what_the_kernel_sends_on_its_own_is_no_request() {
        let counters = Counters::default();
        for kind in [Message::Init, Message::Destroy, Message::Forget] {
            counters.count(kind);
        }
        assert_eq!(counters.requests(), 0);
        counters.count(Message::Getattr);
        assert_eq!(counters.requests(), 1);
    }
}
