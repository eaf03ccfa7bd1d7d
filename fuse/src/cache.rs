//! What the kernel is told to remember, lever by lever.
//!
//! The daemon is the only writer of a worktree, so whatever it once told the kernel stays true until
//! it says otherwise. Each lever makes the kernel rely on that in one more place. Each can be
//! switched off alone, to measure what it buys and to rescue a mount from a kernel where it hurts.

use std::time::Duration;

/// How long the kernel may keep what never changes behind its back. The kernel clamps it to what
/// its clock can hold; a larger number would wrap in its signed seconds.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// How long it may keep it when told not to rely on us: what libfuse takes unless told otherwise.
const BRIEFLY: Duration = Duration::from_secs(1);

macro_rules! levers {
    ($($(#[$doc:meta])* $name:ident = $on:literal,)*) => {
        /// The levers.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Levers {
            $($(#[$doc])* pub $name: bool,)*
            /// Read-ahead of the mount in KiB, where this process may set it; 0 leaves the kernel's
            /// 128. With 1024, a sequential read takes an eighth of the READ messages, each as long
            /// as one may be; measured, it is 1.4 times as fast. More buys nothing.
            pub read_ahead_kib: u32,
        }

        /// The names of the levers that are on or off.
        pub const LEVERS: &[&str] = &[$(stringify!($name)),*];

        impl Levers {
            /// Nothing but what every FUSE file system has.
            pub const fn none() -> Self {
                Self { $($name: false,)* read_ahead_kib: 0 }
            }

            /// Every lever with its position.
            pub fn positions(&self) -> impl Iterator<Item = (&'static str, bool)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }

            /// Switches a lever by its name; false if there is none of that name.
            #[must_use]
            pub fn switch(&mut self, name: &str, on: bool) -> bool {
                match name {
                    $(stringify!($name) => self.$name = on,)*
                    _ => return false,
                }
                true
            }
        }

        impl Default for Levers {
            fn default() -> Self {
                Self { $($name: $on,)* read_ahead_kib: 1024 }
            }
        }
    };
}

levers! {
    /// Entries and attributes live without expiry: a warm lookup or `stat` sends nothing.
    lasting_entries = true,
    /// A name that is not there is remembered as well.
    negative_entries = true,
    /// OPEN is answered ENOSYS once and never sent again, nor is RELEASE; pages stay over opens.
    no_open = true,
    /// The same for OPENDIR and RELEASEDIR; listings stay in the page cache.
    no_opendir = true,
    /// The same for FLUSH, which each close sends otherwise.
    no_flush = true,
    /// CREATE is answered ENOSYS once: a file is made by MKNOD and opened without asking, which spares
    /// the RELEASE of each file that was made. Needs `no_open`.
    no_create = true,
    /// On a bare base the same for the extended attribute operations: it has none.
    no_xattr = true,
    /// On a bare base the same for LSEEK: without holes the kernel finds data and holes from
    /// the size alone.
    no_lseek = true,
    /// Where OPEN is not refused, its reply keeps the file's pages.
    keep_cache = true,
    /// Where OPENDIR is not refused, its reply keeps the listing.
    cache_listings = true,
    /// Link targets stay in the page cache.
    cache_symlinks = true,
    /// Directories are listed with attributes, so that a listing spares a LOOKUP for each entry.
    readdirplus = true,
    /// Lookups and listings of one directory need not wait for each other.
    parallel_dirops = true,
    /// Pages go only when told to, not when a changed time is noticed.
    explicit_invalidation = true,
    /// The kernel does not ask for `security.capability` before each write.
    killpriv = true,
    /// The kernel checks permission bits itself instead of asking with ACCESS. Always on for a mount
    /// that other users may enter.
    default_permissions = true,
    /// [`crate::Mounted::warm`] fills the kernel's caches before they are asked.
    prewarm = true,
    /// The kernel keeps what is written and sends it when the file is synced, the page is old or memory
    /// is short. Many small writes become few messages. What was written and not synced is lost with
    /// the machine; a full store is noticed late; a part of a page is read before it is written; each
    /// close, also of a file that was only read, makes the next `stat` ask. Size and times of a file
    /// are the kernel's to say as long as it knows the file, so nobody else may change one. Off by
    /// default: without it what is acknowledged is in the outbox.
    writeback_cache = false,
    /// Large files that a branch has not changed are read from plain files of the store's cache, without asking
    /// us, and through one page cache for all mounts. Takes the place of `no_open`, `no_create` and
    /// `writeback_cache`, with which the kernel does not have it, so every open and close of any file sends a
    /// message; and who wants to write a large file is refused while another reads it. Off by default
    /// for both.
    passthrough = false,
    /// Requests come over io_uring instead of `/dev/fuse`, where the kernel has that switched on: one
    /// system call for each, on the processor of the one who asks. Off by default: on two processors it was
    /// faster where the other one was idle, and slower where that was busy; and a daemon that is killed can
    /// leave a mount that hangs (`docs/ARCHITECTURE.md`).
    io_uring = false,
}

impl Levers {
    /// How long a reply may be relied on.
    pub(crate) const fn ttl(&self) -> Duration {
        if self.lasting_entries { FOREVER } else { BRIEFLY }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lever_but_three_is_on_by_default_and_switches_alone() {
        let default: Vec<_> = Levers::default().positions().collect();
        for (name, on) in &default {
            assert_eq!(*on, !matches!(*name, "writeback_cache" | "passthrough" | "io_uring"));
            let mut levers = Levers::default();
            assert!(levers.switch(name, !on));
            let mut expected = default.clone();
            expected.iter_mut().filter(|(other, _)| other == name).for_each(|(_, on)| *on = !*on);
            assert_eq!(levers.positions().collect::<Vec<_>>(), expected);
        }
        assert!(!Levers::default().switch("no_such_lever", true));
        assert!(Levers::none().positions().all(|(_, on)| !on));
    }

    #[test]
    fn replies_last_forever_or_briefly() {
        assert_eq!(Levers::default().ttl(), FOREVER);
        assert_eq!(Levers::none().ttl(), BRIEFLY);
        // The kernel's time64_t.
        assert!(i64::try_from(FOREVER.as_secs()).is_ok());
    }
}
