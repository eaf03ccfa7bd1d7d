//! The entries of a directory that a branch has added or hidden.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use crate::id::Ino;

/// What a changed directory says of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is this inode, listed at this position.
    Added(Ino, u64),
    /// There is no such entry, though the base has one.
    Hidden,
}

/// What differs from the directory of the base, if there is one.
///
/// A listing goes on by position. Positions of added entries only ever grow, so a reader neither
/// misses nor repeats an entry that is there all the time, whatever others add and remove.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Added entries by position.
    added: BTreeMap<u64, (Box<[u8]>, Ino)>,
    /// Their positions by name.
    positions: HashTable<u64>,
    hasher: RandomState,
    /// Names of the base that are not to be seen.
    hidden: HashSet<Box<[u8]>>,
    /// The position of the next added entry.
    next: u64,
}

impl Directory {
    /// Looks a name up; `None` leaves it to the base.
    pub fn find(&self, name: &[u8]) -> Option<Known> {
        if let Some(&position) = self.position(name)
            && let Some(&(_, ino)) = self.added.get(&position)
        {
            return Some(Known::Added(ino, position));
        }
        self.hidden.contains(name).then_some(Known::Hidden)
    }

    /// The added entries from `position` on: position, name, inode.
    pub fn added_from(&self, position: u64) -> impl Iterator<Item = (u64, &[u8], Ino)> {
        self.added.range(position..).map(|(&position, (name, ino))| (position, &**name, *ino))
    }

    /// Number of added entries.
    pub fn added(&self) -> usize {
        self.added.len()
    }

    /// The hidden names, in no order.
    pub fn hidden(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.hidden.iter().map(|name| &**name)
    }

    /// The position that the next added entry is to have.
    pub fn next_position(&self) -> u64 {
        self.next
    }

    /// Adds an entry, or gives it another inode or position.
    pub fn add(&mut self, name: &[u8], ino: Ino, position: u64) {
        self.remove_added(name);
        let hasher = &self.hasher;
        let added = &mut self.added;
        added.insert(position, (name.into(), ino));
        self.positions.insert_unique(hasher.hash_one(name), position, |position| {
            added.get(position).map_or(0, |(name, _)| hasher.hash_one(&**name))
        });
        self.next = self.next.max(position.saturating_add(1));
    }

    /// Hides the entry of the base.
    pub fn hide(&mut self, name: &[u8]) {
        self.hidden.insert(name.into());
    }

    /// Removes an added entry; removing none is no error.
    pub fn remove_added(&mut self, name: &[u8]) {
        let hash = self.hasher.hash_one(name);
        let added = &mut self.added;
        let is_it = |position: &u64| added.get(position).is_some_and(|(other, _)| **other == *name);
        if let Ok(found) = self.positions.find_entry(hash, is_it) {
            let (position, _) = found.remove();
            added.remove(&position);
        }
    }

    fn position(&self, name: &[u8]) -> Option<&u64> {
        self.positions.find(self.hasher.hash_one(name), |position| {
            self.added.get(position).is_some_and(|(other, _)| **other == *name)
        })
    }
}
