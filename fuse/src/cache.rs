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
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The levers, on unless switched off.
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
                Self { $($name: true,)* read_ahead_kib: 1024 }
            }
        }
    };
}

levers! {
    /// Entries and attributes live without expiry: a warm lookup or `stat` sends nothing.
    lasting_entries,
    /// A name that is not there is remembered as well.
    negative_entries,
    /// OPEN is answered ENOSYS once and never sent again, nor is RELEASE; pages stay over opens.
    no_open,
    /// The same for OPENDIR and RELEASEDIR; listings stay in the page cache.
    no_opendir,
    /// The same for FLUSH, which each close sends otherwise.
    no_flush,
    /// The same for the extended attribute operations: a read-only worktree has none.
    no_xattr,
    /// The same for LSEEK: without holes the kernel finds data and holes from the size alone.
    no_lseek,
    /// Where OPEN is not refused, its reply keeps the file's pages.
    keep_cache,
    /// Where OPENDIR is not refused, its reply keeps the listing.
    cache_listings,
    /// Link targets stay in the page cache.
    cache_symlinks,
    /// Directories are listed with attributes, so that a listing spares a LOOKUP for each entry.
    readdirplus,
    /// Lookups and listings of one directory need not wait for each other.
    parallel_dirops,
    /// Pages go only when told to, not when a changed time is noticed.
    explicit_invalidation,
    /// The kernel does not ask for `security.capability` before each write.
    killpriv,
    /// The kernel checks permission bits itself instead of asking with ACCESS. Always on for a mount
    /// that other users may enter.
    default_permissions,
    /// [`crate::Mounted::warm`] fills the kernel's caches before they are asked.
    prewarm,
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
    fn every_lever_is_on_by_default_and_switches_alone() {
        let default = Levers::default();
        assert!(default.positions().all(|(_, on)| on));
        for name in LEVERS {
            let mut levers = default.clone();
            assert!(levers.switch(name, false));
            let off: Vec<_> = levers.positions().filter(|(_, on)| !on).collect();
            assert_eq!(off, [(*name, false)]);
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
