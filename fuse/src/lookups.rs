//! How many references the kernel holds to each inode.
//!
//! With OPEN declined, nobody tells us when a file is closed: an inode without names lives until the
//! kernel has forgotten it. Each entry that a reply names adds a reference (LOOKUP, the replies that
//! make an entry, and all that READDIRPLUS lists but `.` and `..`), and FORGET gives some back. The
//! count is exact, since the kernel forgets on its own what it did not take of a reply.
//!
//! A read-only worktree loses no inode, so it needs no counts.
//!
//! Numbers are consecutive where names are listed, so counts lie in pages, one byte each: about 1.2 bytes
//! for each inode that the kernel knows after it has listed a tree, and 300 for one that it knows alone.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agentfs_engine::Ino;

/// Tables among which the pages are distributed, so that threads seldom wait for each other.
const SHARDS: usize = 64;
/// Inodes of a page.
const PAGE_INODES: usize = 256;
/// Stands in a page for a count that is elsewhere, being this or larger.
const MANY: u8 = u8::MAX;

/// The references of a session.
#[derive(Debug)]
pub(crate) struct Lookups {
    /// The locks of the worktree are taken under one of these, when the last reference goes.
    shards: [Mutex<Shard>; SHARDS],
}

type Table<T> = HashMap<u64, T, BuildHasherDefault<Spread>>;

#[derive(Debug)]
struct Shard {
    /// By the number of its first inode divided by that of a page's inodes. None is without counts.
    pages: Table<Box<Page>>,
    /// Counts that do not fit into a byte, by inode.
    many: Table<u32>,
}

/// References to inodes with consecutive numbers.
#[derive(Debug)]
struct Page {
    counts: [u8; PAGE_INODES],
    /// How many of them are not zero.
    used: u16,
}

impl Page {
    const EMPTY: Self = Self { counts: [0; PAGE_INODES], used: 0 };
}

/// The page of an inode and its place there.
fn place(ino: Ino) -> (u64, usize) {
    (ino.0 / PAGE_INODES as u64, (ino.0 % PAGE_INODES as u64) as usize)
}

/// Numbers are ours and mostly consecutive: one multiplication spreads them well enough.
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
        Self { shards: [const { Mutex::new(Shard::EMPTY) }; SHARDS] }
    }
}

impl Shard {
    const EMPTY: Self = Self {
        pages: HashMap::with_hasher(BuildHasherDefault::new()),
        many: HashMap::with_hasher(BuildHasherDefault::new()),
    };

    /// The references to `ino`.
    fn get(&self, ino: Ino) -> u32 {
        let (number, at) = place(ino);
        match self.pages.get(&number).map_or(0, |page| page.counts[at]) {
            MANY => self.many.get(&ino.0).copied().unwrap_or(u32::MAX),
            count => count.into(),
        }
    }

    /// Makes the references to `ino` as many as `count`.
    fn set(&mut self, ino: Ino, count: u32) {
        let (number, at) = place(ino);
        let page = self.pages.entry(number).or_insert_with(|| Box::new(Page::EMPTY));
        let stored = u8::try_from(count).unwrap_or(MANY);
        if stored == MANY {
            self.many.insert(ino.0, count);
        } else if page.counts[at] == MANY {
            self.many.remove(&ino.0);
            give_room_back(&mut self.many);
        }
        page.used += u16::from(stored > 0);
        page.used -= u16::from(page.counts[at] > 0);
        page.counts[at] = stored;
        if page.used == 0 {
            self.pages.remove(&number);
            give_room_back(&mut self.pages);
        }
    }
}

/// A cache of the kernel that is dropped as a whole leaves a large table nearly empty.
fn give_room_back<T>(table: &mut Table<T>) {
    if table.len() < table.capacity() / 8 {
        let room = table.len() * 2;
        table.shrink_to(room);
    }
}

impl Lookups {
    /// One more reference: a reply is going to name `ino`.
    pub(crate) fn count(&self, ino: Ino) {
        let mut shard = self.shard(ino);
        let (number, at) = place(ino);
        match shard.pages.get_mut(&number).map(|page| &mut page.counts[at]) {
            // What happens for each name of a listing, but the first of a page.
            Some(count) if (1..MANY - 1).contains(count) => *count += 1,
            _ => {
                let count = shard.get(ino).saturating_add(1);
                shard.set(ino, count);
            }
        }
    }

    /// The kernel has given `references` back. With the last one goes what `release` ends; no new
    /// reference is counted before that has returned. Returns how many of them it never had.
    #[must_use]
    pub(crate) fn forget(&self, ino: Ino, references: u64, release: impl FnOnce()) -> u64 {
        let mut shard = self.shard(ino);
        let count = shard.get(ino);
        // A count that reached its end is not known any more: the inode stays until the session ends.
        match count {
            0 => return references,
            u32::MAX => return 0,
            _ => {}
        }
        let left = u64::from(count).saturating_sub(references) as u32;
        shard.set(ino, left);
        if left == 0 {
            release();
        }
        references.saturating_sub(count.into())
    }

    /// Calls `release` if there are no references to `ino`; no new one is counted before that has returned.
    pub(crate) fn unless_referenced(&self, ino: Ino, release: impl FnOnce()) {
        let shard = self.shard(ino);
        if shard.get(ino) == 0 {
            release();
        }
    }

    /// The session has ended, and with it all references.
    pub(crate) fn forget_all(&self, mut release: impl FnMut(Ino)) {
        for shard in &self.shards {
            let forgotten = std::mem::replace(&mut *lock(shard), Shard::EMPTY);
            for (number, page) in forgotten.pages {
                let first = number * PAGE_INODES as u64;
                let counted = page.counts.iter().enumerate().filter(|(_, count)| **count > 0);
                counted.for_each(|(at, _)| release(Ino(first + at as u64)));
            }
        }
    }

    fn shard(&self, ino: Ino) -> MutexGuard<'_, Shard> {
        lock(&self.shards[place(ino).0 as usize % SHARDS])
    }

    /// The references to `ino`.
    #[cfg(test)]
    pub(crate) fn of(&self, ino: Ino) -> u32 {
        self.shard(ino).get(ino)
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
        lookups.shard(Ino(9)).set(Ino(9), u32::MAX - 1);
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
    fn counts_are_those_of_a_plain_table() {
        let lookups = Lookups::default();
        let mut model = HashMap::new();
        let mut seed = 7_u64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let first = [0, PAGE_INODES as u64 - 3, 1 << 32, u64::MAX - 5];
        for _ in 0..200_000 {
            let ino = Ino(first[random(4) as usize] + random(6));
            let count = model.entry(ino).or_insert(0_u64);
            // So that many of them go beyond a byte, and all come back to nothing at times.
            if random(500) > 0 {
                lookups.count(ino);
                *count += 1;
            } else {
                let references =
                    if random(3) == 0 { *count + random(3) } else { random(*count + 1) };
                let mut released = false;
                let excess = lookups.forget(ino, references, || released = true);
                let left = count.saturating_sub(references);
                assert_eq!(
                    (excess, released),
                    (references.saturating_sub(*count), *count > 0 && left == 0)
                );
                *count = left;
            }
            assert_eq!(u64::from(lookups.of(ino)), *count);
        }
        assert!(model.values().any(|count| *count > MANY.into()));
        let mut all = Vec::new();
        lookups.forget_all(|ino| all.push(ino));
        all.sort_unstable();
        let mut counted: Vec<_> = model.into_iter().filter(|it| it.1 > 0).map(|it| it.0).collect();
        counted.sort_unstable();
        assert_eq!(all, counted);
    }

    #[test]
    fn a_listed_inode_takes_little_more_than_a_byte_and_a_forgotten_one_nothing() {
        let lookups = Lookups::default();
        let numbers = || (0..1_000_000).map(Ino);
        numbers().for_each(|ino| lookups.count(ino));
        // A table has at most two places for an entry and a byte beside each.
        let of_page = size_of::<Page>() + 2 * (size_of::<(u64, Box<Page>)>() + 1);
        let pages: usize = lookups.shards.iter().map(|shard| lock(shard).pages.len()).sum();
        assert!(of_page * pages < 1_200_000, "{} bytes", of_page * pages);
        numbers().for_each(|ino| lookups.count(ino));
        numbers().for_each(|ino| assert_eq!(lookups.forget(ino, 2, || ()), 0));
        for shard in &lookups.shards {
            let shard = lock(shard);
            assert!(shard.pages.is_empty() && shard.pages.capacity() + shard.many.capacity() < 100);
        }
    }
}
