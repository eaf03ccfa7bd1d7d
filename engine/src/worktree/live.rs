//! The writable part of a worktree: the outbox that every change goes through, and its drain.
//!
//! Changes are made one at a time, each under the lock `log`: it reads the overlay, appends one
//! record to the outbox, and applies to the overlay what the record says. So the order of the log is
//! the order of the changes, and what is acknowledged at any moment is a prefix of it.
//!
//! Changes go into the head, the newest of the branch's layers ([`super::layers`]).
//!
//! Locks, in this order: the drain's; `log`; the outbox's own, or the overlay's, or the layers', or
//! the drainer's.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::changes::Changes;
use super::drain::Moved;
use super::layers::{Layers, Point};
use crate::base::Base;
use crate::error::Result;
use crate::id::{BranchNumber, Sequence};
use crate::outbox::{Outbox, OutboxCounters};
use crate::overlay::{Next, Overlay};
use crate::storage::Storage;
use crate::store::{Claim, Store};

/// The writable part of a worktree.
pub(super) struct Live {
    pub(super) branch: BranchNumber,
    /// Keeps others from the outbox.
    _claim: Claim,
    pub(super) outbox: Arc<Outbox>,
    /// What the worktree shows of it.
    pub(super) changes: Arc<Changes>,
    /// Held by the one change that is being made; the buffer is for its record.
    log: Mutex<Vec<u8>>,
    /// Leaf lock, changed under the log.
    pub(super) layers: Mutex<Layers>,
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
        let (mut overlay, head) = store.head(branch)?;
        let mut layers = Layers::new(head);
        let outbox = Outbox::open(storage, outbox, head.drained, &mut |record| {
            match overlay.replay(record.head, record.body, record.body_len)? {
                Next::Changed => layers.used = true,
                Next::Sealed(next) => layers.seal(&mut overlay, next, record.sequence),
                Next::Stands(next, on) => {
                    let highest = overlay.last_new();
                    overlay = on.map_or_else(|| Ok(Overlay::default()), |on| store.layer(on))?;
                    overlay.load_last_new(overlay.last_new().max(highest));
                    layers.stand(next, on);
                }
            }
            Ok(())
        })?;
        let changes = Changes::of(base, overlay);
        Ok(Self::with(claim, branch, outbox, changes, layers, head.drained))
    }

    /// Begins branch `branch`, whose outbox is to be in the directory `outbox` of `storage`, where
    /// `point` is.
    ///
    /// # Errors
    /// [`crate::Error::BranchInUse`], and what writing the outbox meets.
    pub(super) fn fork(
        store: &Store,
        point: &Point,
        branch: BranchNumber,
        storage: Arc<dyn Storage>,
        outbox: &Path,
    ) -> Result<Self> {
        let claim = store.claim(branch)?;
        let head = point.head_of(branch);
        let outbox = Outbox::open(storage, outbox, head.drained, &mut |record| {
            let what = format!("record {} of the outbox of a new branch", record.sequence);
            Err(crate::Error::corrupt(what, "there should be none"))
        })?;
        let changes = point.changes.copy();
        Ok(Self::with(claim, branch, outbox, changes, Layers::new(head), head.drained))
    }

    fn with(
        claim: Claim,
        branch: BranchNumber,
        outbox: Arc<Outbox>,
        changes: Changes,
        layers: Layers,
        drained: Sequence,
    ) -> Self {
        let dirty = changes.read().is_dirty() || layers.is_dirty();
        Self {
            branch,
            _claim: claim,
            outbox,
            dirty: AtomicBool::new(dirty),
            on_dirty: OnceLock::new(),
            changes: Arc::new(changes),
            log: Mutex::default(),
            layers: Mutex::new(layers),
            draining: Mutex::new(DrainState { drains: 0, drained }),
        }
    }

    /// The layers. The caller holds the log if it changes them.
    pub(super) fn layers(&self) -> MutexGuard<'_, Layers> {
        // None of its methods panics between two changes.
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes where the bytes of drained files lie now.
    pub(super) fn settle(&self, moved: &[Moved]) {
        for (ino, before, after) in moved {
            self.changes.write().settle(*ino, before, after);
        }
        for sealed in &mut self.layers().sealed {
            for (ino, before, after) in moved {
                sealed.overlay.settle(*ino, before, after);
            }
        }
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
        let overlay = self.changes.read();
        BranchState {
            inodes: overlay.nodes().len() as u64,
            dirty: self.is_dirty(),
            outbox_bytes: self.outbox.bytes(),
            outbox: self.outbox.counters(),
            failure: self.outbox.failure(),
        }
    }
}
