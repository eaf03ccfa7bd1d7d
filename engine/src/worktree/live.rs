//! The writable part of a worktree: the overlay, and the outbox that every change goes through.
//!
//! Changes are made one at a time, each under the lock `log`: it reads the overlay, appends one
//! record to the outbox, and applies to the overlay what the record says. So the order of the log is
//! the order of the changes, and what is acknowledged at any moment is a prefix of it. Readers take
//! the overlay's lock, which is held for memory operations only: never while a file is read or
//! written.
//!
//! Locks, in this order: the drain's; `log`; the outbox's own, or the overlay's, or the drainer's.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use crate::base::Base;
use crate::error::Result;
use crate::id::{BranchNumber, Ino, Sequence};
use crate::outbox::{Outbox, OutboxCounters};
use crate::overlay::Overlay;
use crate::storage::Storage;
use crate::store::{Claim, Store};

/// The writable part of a worktree.
pub(super) struct Live {
    pub(super) branch: BranchNumber,
    /// Keeps others from the outbox.
    _claim: Claim,
    pub(super) outbox: Arc<Outbox>,
    overlay: RwLock<Overlay>,
    /// Held by the one change that is being made; the buffer is for its record.
    log: Mutex<Vec<u8>>,
    touched: Touched,
    /// Whether something waits for a drain.
    dirty: AtomicBool,
    /// Called when that becomes so.
    on_dirty: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Held by the one drain that runs.
    pub(super) draining: Mutex<DrainState>,
}

/// What the drains of a worktree have done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainState {
    /// Drains that wrote something.
    pub drains: u64,
    /// The last record that is drained.
    pub drained: Sequence,
}

/// How a writable branch fares.
#[derive(Clone, Debug)]
pub struct BranchState {
    /// Inodes that differ from the base.
    pub inodes: u64,
    /// Bytes of the outbox.
    pub outbox_bytes: u64,
    /// What the outbox has done.
    pub outbox: OutboxCounters,
    /// Whether something waits for a drain.
    pub dirty: bool,
    /// The error after which no change is taken any more.
    pub failure: Option<String>,
}

/// Which inodes of the base have to be looked up in the overlay: one bit for each.
struct Touched(Box<[AtomicU64]>);

impl Live {
    /// Opens branch `branch`, whose outbox is in the directory `outbox` of `storage`.
    ///
    /// # Errors
    /// [`crate::Error::BranchInUse`], and what reading the store and the outbox meets.
    pub(super) fn open(
        base: &Base,
        store: &Store,
        branch: BranchNumber,
        storage: Arc<dyn Storage>,
        outbox: &Path,
    ) -> Result<Self> {
        let claim = store.claim(branch)?;
        let (mut overlay, drained) = store.overlay(branch)?;
        let outbox = Outbox::open(storage, outbox, drained, &mut |record| {
            overlay.replay(record.head, record.body, record.body_len)
        })?;
        let touched = Touched::new(base);
        for (ino, _) in overlay.nodes() {
            touched.set(ino);
        }
        Ok(Self {
            branch,
            _claim: claim,
            outbox,
            dirty: AtomicBool::new(overlay.is_dirty()),
            on_dirty: OnceLock::new(),
            overlay: RwLock::new(overlay),
            log: Mutex::default(),
            touched,
            draining: Mutex::new(DrainState { drains: 0, drained }),
        })
    }

    /// Whether the overlay may know something of `ino`.
    pub(super) fn is_touched(&self, ino: Ino) -> bool {
        self.touched.get(ino)
    }

    pub(super) fn touch(&self, ino: Ino) {
        self.touched.set(ino);
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Overlay> {
        // Applying a change does not panic; if it did, what it left is memory-safe and the log has
        // the truth.
        self.overlay.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Overlay> {
        self.overlay.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something waits for a drain.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Relaxed)
    }

    /// States whether something waits for a drain. The caller holds the log.
    pub(super) fn set_dirty(&self, dirty: bool) {
        let before = self.dirty.swap(dirty, Ordering::Relaxed);
        if dirty
            && !before
            && let Some(on_dirty) = self.on_dirty.get()
        {
            on_dirty();
        }
    }

    pub(super) fn on_dirty(&self, notify: Box<dyn Fn() + Send + Sync>) {
        // Whoever was first goes on being told.
        let _ = self.on_dirty.set(notify);
    }

    /// Waits for the turn to make a change.
    pub(super) fn log(&self) -> MutexGuard<'_, Vec<u8>> {
        // The buffer is cleared before it is used.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> BranchState {
        let overlay = self.read();
        BranchState {
            inodes: overlay.nodes().len() as u64,
            dirty: self.is_dirty(),
            outbox_bytes: self.outbox.bytes(),
            outbox: self.outbox.counters(),
            failure: self.outbox.failure(),
        }
    }
}

impl Touched {
    fn new(base: &Base) -> Self {
        let last = Ino::FIRST.0 + u64::from(base.entries());
        Self((0..=last / 64).map(|_| AtomicU64::new(0)).collect())
    }

    fn word(&self, ino: Ino) -> Option<(&AtomicU64, u64)> {
        let word = self.0.get(usize::try_from(ino.0 / 64).ok()?)?;
        Some((word, 1 << (ino.0 % 64)))
    }

    fn get(&self, ino: Ino) -> bool {
        // Acquire: who sees the bit sees, through the overlay's lock, at least the change that set
        // it. Numbers beyond the base are the overlay's.
        self.word(ino).is_none_or(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    fn set(&self, ino: Ino) {
        if let Some((word, bit)) = self.word(ino) {
            word.fetch_or(bit, Ordering::Release);
        }
    }
}
