//! What a worktree shows beside its base: an overlay, and which inodes of the base it may know.
//!
//! Readers take the overlay's lock, which is held for memory operations only: never while a file is
//! read or written. Reading what was never changed takes none: a bitmap says so.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use arc_swap::ArcSwapOption;

use crate::base::Base;
use crate::id::{ChunkId, Ino};
use crate::overlay::{Body, Overlay, Source};
use crate::store::InUse;

/// What has changed relative to a base.
#[derive(Debug)]
pub(super) struct Changes {
    overlay: RwLock<Overlay>,
    touched: Touched,
}

/// Inodes whose bits lie together.
const BLOCK_INODES: u64 = 4096;

/// Which inodes of the base have to be looked up in the overlay: one bit for each, in blocks that are there where one is
/// set. A block belongs to all copies until one of them changes it, so that a copy, of which each fork takes two, costs
/// little of what a tree has and what has changed in it. Bits are set and cleared under the overlay's lock for writing,
/// and copies made under it.
#[derive(Debug)]
struct Touched(Box<[ArcSwapOption<Block>]>);

type Block = [AtomicU64; (BLOCK_INODES / 64) as usize];

impl Changes {
    /// Those of `overlay` relative to `base`.
    pub(super) fn of(base: &Base, overlay: Overlay) -> Self {
        let touched = Touched::new(base);
        for (ino, _) in overlay.nodes() {
            touched.set(ino);
        }
        Self { overlay: RwLock::new(overlay), touched }
    }

    /// The same, to go on from here. It shares everything that both have.
    pub(super) fn copy(&self) -> Self {
        let overlay = self.read();
        // Under the lock: a bit is set under it.
        let touched = self.touched.copy();
        Self { overlay: RwLock::new(overlay.copy()), touched }
    }

    /// Whether the overlay may know something of `ino`.
    pub(super) fn is_touched(&self, ino: Ino) -> bool {
        self.touched.get(ino)
    }

    pub(super) fn touch(&self, ino: Ino) {
        self.touched.set(ino);
    }

    /// The overlay, whose lock the caller has for writing, knows nothing of `ino` any more.
    pub(super) fn untouch(&self, ino: Ino) {
        self.touched.clear(ino);
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Overlay> {
        // Applying a change does not panic; if it did, what it left is memory-safe and the log has
        // the truth.
        self.overlay.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Overlay> {
        self.overlay.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InUse for Changes {
    fn chunks(&self, visit: &mut dyn FnMut(ChunkId)) {
        let overlay = self.read().copy();
        for (_, node) in overlay.nodes() {
            let Body::File(extents) = &node.body else { continue };
            for (_, extent) in extents.iter() {
                if let Source::Chunk(id, _) = extent.source {
                    visit(id);
                }
            }
        }
    }
}

impl Touched {
    fn new(base: &Base) -> Self {
        Self::with_last(Ino::FIRST.0 + u64::from(base.entries()))
    }

    fn with_last(last: u64) -> Self {
        Self((0..=last / BLOCK_INODES).map(|_| ArcSwapOption::empty()).collect())
    }

    fn copy(&self) -> Self {
        Self(self.0.iter().map(|block| ArcSwapOption::new(block.load_full())).collect())
    }

    /// The block of `ino`; none for the numbers beyond the base, which are the overlay's.
    fn block(&self, ino: Ino) -> Option<&ArcSwapOption<Block>> {
        self.0.get(usize::try_from(ino.0 / BLOCK_INODES).ok()?)
    }

    fn get(&self, ino: Ino) -> bool {
        // Acquire: who sees the bit sees, through the overlay's lock, at least the change that set
        // it.
        self.block(ino).is_none_or(|block| {
            let block = block.load();
            block
                .as_ref()
                .is_some_and(|block| word(block, ino).load(Ordering::Acquire) & bit(ino) != 0)
        })
    }

    /// Who still sees the bit finds nothing in the overlay, and asks the base.
    fn clear(&self, ino: Ino) {
        if self.block(ino).is_some() && self.get(ino) {
            self.own(ino, |word| word.fetch_and(!bit(ino), Ordering::Release));
        }
    }

    fn set(&self, ino: Ino) {
        if !self.get(ino) {
            self.own(ino, |word| word.fetch_or(bit(ino), Ordering::Release));
        }
    }

    /// Changes the word of `ino` in a block that no copy has. Readers see all of the change or nothing of it.
    fn own(&self, ino: Ino, change: impl FnOnce(&AtomicU64) -> u64) {
        let Some(block) = self.block(ino) else { return };
        let now = block.load();
        match &*now {
            Some(own) if Arc::strong_count(own) == 1 => {
                change(word(own, ino));
            }
            shared => {
                let before = |at: usize| {
                    shared.as_ref().map_or(0, |block| block[at].load(Ordering::Acquire))
                };
                let own: Block = std::array::from_fn(|at| AtomicU64::new(before(at)));
                change(word(&own, ino));
                block.store(Some(Arc::new(own)));
            }
        }
    }
}

fn word(block: &Block, ino: Ino) -> &AtomicU64 {
    &block[(ino.0 % BLOCK_INODES / 64) as usize]
}

fn bit(ino: Ino) -> u64 {
    1 << (ino.0 % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn copies_do_not_see_each_other(
            steps in prop::collection::vec((0..4_usize, 0..3 * BLOCK_INODES, 0..3_u8), 0..200),
        ) {
            let last = 3 * BLOCK_INODES - 1;
            let mut all = vec![(Touched::with_last(last), BTreeSet::new())];
            for (which, number, step) in steps {
                let (which, ino) = (which % all.len(), Ino(number));
                let (touched, model) = &mut all[which];
                match step {
                    0 => {
                        touched.set(ino);
                        model.insert(number);
                    }
                    1 => {
                        touched.clear(ino);
                        model.remove(&number);
                    }
                    _ => {
                        let copy = (touched.copy(), model.clone());
                        all.push(copy);
                    }
                }
            }
            for (touched, model) in &all {
                let found: BTreeSet<_> = (0..=last).filter(|number| touched.get(Ino(*number))).collect();
                prop_assert_eq!(&found, model);
                prop_assert!(touched.get(Ino(last + 1)), "what is beyond is the overlay's");
            }
        }
    }
}
