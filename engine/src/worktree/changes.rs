//! What a worktree shows beside its base: an overlay, and which inodes of the base it may know.
//!
//! Readers take the overlay's lock, which is held for memory operations only: never while a file is
//! read or written. Reading what was never changed takes none: a bitmap says so.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

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
/// set. Changes lie close to each other, so that a copy, which each fork takes two of, costs little of what a tree has.
#[derive(Debug)]
struct Touched(Box<[OnceLock<Box<Block>>]>);

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
        let last = Ino::FIRST.0 + u64::from(base.entries());
        Self((0..=last / BLOCK_INODES).map(|_| OnceLock::new()).collect())
    }

    fn copy(&self) -> Self {
        let word = |word: &AtomicU64| AtomicU64::new(word.load(Ordering::Acquire));
        let copy = |block: &OnceLock<Box<Block>>| match block.get() {
            Some(block) => OnceLock::from(Box::new(std::array::from_fn(|at| word(&block[at])))),
            None => OnceLock::new(),
        };
        Self(self.0.iter().map(copy).collect())
    }

    /// The block of `ino`; none for the numbers beyond the base, which are the overlay's.
    fn block(&self, ino: Ino) -> Option<&OnceLock<Box<Block>>> {
        self.0.get(usize::try_from(ino.0 / BLOCK_INODES).ok()?)
    }

    fn get(&self, ino: Ino) -> bool {
        // Acquire: who sees the bit sees, through the overlay's lock, at least the change that set
        // it.
        self.block(ino).is_none_or(|block| {
            let bit = |block: &Block| word(block, ino).load(Ordering::Acquire) & bit(ino) != 0;
            block.get().is_some_and(|block| bit(block))
        })
    }

    /// Who still sees the bit finds nothing in the overlay, and asks the base.
    fn clear(&self, ino: Ino) {
        if let Some(block) = self.block(ino).and_then(OnceLock::get) {
            word(block, ino).fetch_and(!bit(ino), Ordering::Release);
        }
    }

    fn set(&self, ino: Ino) {
        if let Some(block) = self.block(ino) {
            let block = block.get_or_init(|| Box::new([const { AtomicU64::new(0) }; _]));
            word(block, ino).fetch_or(bit(ino), Ordering::Release);
        }
    }
}

fn word(block: &Block, ino: Ino) -> &AtomicU64 {
    &block[(ino.0 % BLOCK_INODES / 64) as usize]
}

fn bit(ino: Ino) -> u64 {
    1 << (ino.0 % 64)
}
