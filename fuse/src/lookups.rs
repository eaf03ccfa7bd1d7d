//! How many references the kernel holds to each inode.
//!
//! With OPEN declined, nobody tells us when a file is closed: an inode without names lives until the
//! kernel has forgotten it. Each entry that a reply names adds a reference (LOOKUP, the replies that
//! make an entry, and all that READDIRPLUS lists but `.` and `..`), and FORGET gives some back. The
//! count is exact, since the kernel forgets on its own what it did not take of a reply.
//!
//! A read-only worktree loses no inode, so it needs no counts.
//!
//! A count takes 13 bytes in tables that are between seven sixteenths and seven eighths full: 15 to
//! 30 bytes for each inode that the kernel knows.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agentfs_engine::Ino;

/// Tables among which the inodes are distributed, so that threads seldom wait for each other.
const SHARDS: usize = 64;

/// The references of a session.
#[derive(Debug)]
pub(crate) struct Lookups {
    /// The locks of the worktree are taken under one of these, when the last reference goes.
    shards: [Mutex<Shard>; SHARDS],
}

type Shard = HashMap<Key, u32, BuildHasherDefault<Spread>>;

/// An inode number in two halves, whose alignment wastes no room beside the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key([u32; 2]);

impl From<Ino> for Key {
    fn from(ino: Ino) -> Self {
        Self([ino.0 as u32, (ino.0 >> 32) as u32])
    }
}

impl Key {
    fn ino(self) -> Ino {
        Ino(u64::from(self.0[1]) << 32 | u64::from(self.0[0]))
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.ino().0);
    }
}

/// Inode numbers are ours and mostly consecutive: one multiplication spreads them well enough.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The golden ratio. The low bits of the product depend on few bits of the number: the table
        // takes low and high ones.
        let product = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }
}

impl Default for Lookups {
    fn default() -> Self {
        Self {
            shards: [const { Mutex::new(HashMap::with_hasher(BuildHasherDefault::new())) }; SHARDS],
        }
    }
}

impl Lookups {
    /// One more reference: a reply is going to name `ino`.
    pub(crate) fn count(&self, ino: Ino) {
        let mut shard = self.shard(ino);
        let count = shard.entry(ino.into()).or_insert(0);
        *count = count.saturating_add(1);
    }

    /// The kernel has given `references` back. With the last one goes what `release` ends; no new
    /// reference is counted before that has returned. Returns how many of them it never had.
    #[must_use]
    pub(crate) fn forget(&self, ino: Ino, references: u64, release: impl FnOnce()) -> u64 {
        let mut shard = self.shard(ino);
        let Some(count) = shard.get_mut(&ino.into()) else {
            return references;
        };
        // A count that reached its end is not known any more: the inode stays until the session ends.
        if *count == u32::MAX {
            return 0;
        }
        let excess = references.saturating_sub((*count).into());
        *count = u64::from(*count).saturating_sub(references) as u32;
        if *count == 0 {
            shard.remove(&ino.into());
            // A cache of the kernel that is dropped as a whole leaves a large table nearly empty.
            if shard.len() < shard.capacity() / 8 {
                let room = shard.len() * 2;
                shard.shrink_to(room);
            }
            release();
        }
        excess
    }

    /// The session has ended, and with it all references.
    pub(crate) fn forget_all(&self, mut release: impl FnMut(Ino)) {
        for shard in &self.shards {
            let forgotten = std::mem::take(&mut *lock(shard));
            forgotten.into_keys().for_each(|key| release(key.ino()));
        }
    }

    fn shard(&self, ino: Ino) -> MutexGuard<'_, Shard> {
        lock(&self.shards[ino.0 as usize % SHARDS])
    }

    /// The references to `ino`.
    #[cfg(test)]
    pub(crate) fn of(&self, ino: Ino) -> u32 {
        self.shard(ino).get(&ino.into()).copied().unwrap_or(0)
    }
}

/// A table is whole at every point where a panic is possible.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn the_last_reference_releases_and_no_other() {
        let lookups = Lookups::default();
        let forget = |references| {
            let mut released = false;
            let excess = lookups.forget(Ino(7), references, || released = true);
            (released, excess)
        };
        assert_eq!(forget(1), (false, 1));
        for _ in 0..5 {
            lookups.count(Ino(7));
        }
        lookups.count(Ino(7 + SHARDS as u64));
        assert_eq!(forget(2), (false, 0));
        assert_eq!(lookups.of(Ino(7)), 3);
        assert_eq!(forget(3), (true, 0));
        assert_eq!(forget(1), (false, 1));
        assert_eq!(lookups.of(Ino(7 + SHARDS as u64)), 1);
        lookups.count(Ino(7));
        assert_eq!(forget(u64::MAX), (true, u64::MAX - 1));
    }

    #[test]
    fn large_numbers_are_told_apart() {
        let lookups = Lookups::default();
        let numbers = [5, 1 << 32, (1 << 32) + 5, u64::MAX, u64::MAX - (1 << 32)].map(Ino);
        for (index, ino) in numbers.into_iter().enumerate() {
            (0..=index).for_each(|_| lookups.count(ino));
        }
        for (index, ino) in numbers.into_iter().enumerate() {
            assert_eq!(lookups.of(ino), index as u32 + 1);
        }
        let mut all = Vec::new();
        lookups.forget_all(|ino| all.push(ino));
        all.sort_unstable();
        let mut expected = numbers;
        expected.sort_unstable();
        assert_eq!(all, expected);
        lookups.forget_all(|ino| panic!("{ino} was forgotten before"));
    }

    #[test]
    fn a_count_that_is_not_known_any_more_releases_only_with_the_session() {
        let lookups = Lookups::default();
        lookups.count(Ino(9));
        *lookups.shard(Ino(9)).get_mut(&Ino(9).into()).unwrap() = u32::MAX - 1;
        lookups.count(Ino(9));
        lookups.count(Ino(9));
        assert_eq!(lookups.forget(Ino(9), u64::MAX, || panic!("released")), 0);
        let mut all = Vec::new();
        lookups.forget_all(|ino| all.push(ino));
        assert_eq!(all, [Ino(9)]);
    }

    #[test]
    fn what_threads_count_and_forget_cancels_out() {
        let lookups = Lookups::default();
        let released = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..20_000 {
                        let ino = Ino(2 + round % 300);
                        lookups.count(ino);
                        lookups.count(ino);
                        let release = || _ = released.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(lookups.forget(ino, 2, release), 0);
                    }
                });
            }
        });
        assert!(released.into_inner() >= 300);
        lookups.forget_all(|ino| panic!("{ino} is still counted"));
    }

    #[test]
    fn a_count_takes_as_much_as_its_documentation_says() {
        assert_eq!(size_of::<(Key, u32)>() + 1, 13);
        // A table that was large gives its room back.
        let lookups = Lookups::default();
        let numbers = || (0..100_000).map(|n| Ino(n * SHARDS as u64));
        numbers().for_each(|ino| lookups.count(ino));
        assert!(lookups.shard(Ino(0)).capacity() >= 100_000);
        numbers().for_each(|ino| assert_eq!(lookups.forget(ino, 1, || ()), 0));
        assert!(lookups.shard(Ino(0)).capacity() < 100);
    }
}
