//! For how long what is not told to have changed is as in the base.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};

use crate::id::Ino;

/// Names of a generation that have come and gone, after which the next one begins.
const DEPARTED_MAX: usize = 4096;

/// A time in which everything that differs from the base, or has differed from it at any moment, can be told
/// from the overlay and this. What an overlay forgets without it: names that it was given and that were
/// removed again, and which of those that it hides have stood for a directory meanwhile. What it cannot tell: which of the names below a directory once were others, when a directory of the base
/// has come into the place of another one.
#[derive(Debug)]
pub(crate) struct Generation {
    number: u64,
    /// Names in directories of the base that have come and gone, or have been those of directories.
    departed: BTreeSet<(Ino, Box<[u8]>)>,
    /// Whether a directory of the base is somewhere else than there, where that is known.
    moved: Option<bool>,
}

impl Default for Generation {
    fn default() -> Self {
        Self::new(Some(false))
    }
}

impl Generation {
    /// The next one; `moved` says whether a directory of the base is somewhere else already, if that is known.
    pub(crate) fn new(moved: Option<bool>) -> Self {
        // The system's random numbers, as far as the standard library shows them.
        let number = RandomState::new().hash_one(0);
        Self { number, departed: BTreeSet::new(), moved }
    }

    /// One that was interrupted and goes on: nothing has changed meanwhile.
    pub(crate) fn resume(number: u64, departed: BTreeSet<(Ino, Box<[u8]>)>) -> Self {
        Self { number, departed, moved: None }
    }

    /// Its number, which is random: no other one has it, in whatever process.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The names that have come and gone, with their directories.
    pub(crate) fn departed(&self) -> &BTreeSet<(Ino, Box<[u8]>)> {
        &self.departed
    }

    /// A name is removed of which the overlay will not know any more what it was.
    pub(super) fn depart(&mut self, dir: Ino, name: &[u8]) {
        // What a branch has made itself is told with all that is below.
        if dir.is_new() {
            return;
        }
        if self.departed.len() >= DEPARTED_MAX {
            *self = Self::new(self.moved);
        }
        self.departed.insert((dir, name.into()));
    }

    /// Whether a directory of the base is somewhere else than there; `look` finds it out where it is not known.
    pub(super) fn has_moved(&mut self, look: impl FnOnce() -> bool) -> bool {
        *self.moved.get_or_insert_with(look)
    }
}
