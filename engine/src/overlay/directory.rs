//! The entries of a directory that a branch has added or hidden.

use std::sync::Arc;

use imbl::OrdMap;

use crate::id::Ino;

/// What a changed directory says of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is this inode, listed at this position.
    Added(Ino, u64),
    /// There is no such entry, though the base has one.
    Hidden,
}

/// What differs from the directory of the base, if there is one. A copy shares what both have.
///
/// A listing goes on by position. Positions of added entries only ever grow, so a reader neither
/// misses nor repeats an entry that is there all the time, whatever others add and remove.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directory {
    names: OrdMap<Arc<[u8]>, Known>,
    /// Added entries by position.
    added: OrdMap<u64, (Arc<[u8]>, Ino)>,
    /// The position of the next added entry.
    next: u64,
}

impl Directory {
    /// Looks a name up; `None` leaves it to the base.
    pub fn find(&self, name: &[u8]) -> Option<Known> {
        self.names.get(name).copied()
    }

    /// The added entries from `position` on: position, name, inode.
    pub fn added_from(&self, position: u64) -> impl Iterator<Item = (u64, &[u8], Ino)> {
        let entries = self.added.range::<_, u64>(position..);
        entries.map(|(&position, (name, ino))| (position, &**name, *ino))
    }

    /// Number of added entries.
    pub fn added(&self) -> usize {
        self.added.len()
    }

    /// Every name of which it says something, in order.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.keys().map(|name| &**name)
    }

    /// The entries of the base that are hidden, in order.
    pub fn hidden(&self) -> impl Iterator<Item = &[u8]> {
        let hidden = self.names.iter().filter(|(_, known)| **known == Known::Hidden);
        hidden.map(|(name, _)| &**name)
    }

    /// The position that the next added entry is to have.
    pub fn next_position(&self) -> u64 {
        self.next
    }

    /// Adds an entry, or gives it another inode or position.
    pub fn add(&mut self, name: &[u8], ino: Ino, position: u64) {
        let name: Arc<[u8]> = name.into();
        let before = self.names.insert(Arc::clone(&name), Known::Added(ino, position));
        if let Some(Known::Added(_, before)) = before {
            self.added.remove(&before);
        }
        self.added.insert(position, (name, ino));
        self.next = self.next.max(position.saturating_add(1));
    }

    /// Hides the entry of the base.
    pub fn hide(&mut self, name: &[u8]) {
        self.leave(name);
        self.names.insert(name.into(), Known::Hidden);
    }

    /// Leaves a name to the base.
    pub fn leave(&mut self, name: &[u8]) {
        if let Some(Known::Added(_, position)) = self.names.remove(name) {
            self.added.remove(&position);
        }
    }
}
