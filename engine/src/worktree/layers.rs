//! The layers of a branch: what makes a snapshot and a fork cost the same for any number of changes.
//!
//! What a branch has changed lies in a line of layers, of which the newest, the head, takes its
//! changes. [`Worktree::seal`] ends the head and begins the next one: one record in the outbox, and a
//! copy of the overlay, which shares everything. The drain turns sealed layers into rows later. Reading
//! does not know of layers: it asks the overlay, which has all of them in one.
//!
//! A fork begins with the copy. Until the layer that it lies on is drained, it needs the branch that
//! it comes from: its [`Origin`]. What is synced in the fork is worth nothing without that layer, so
//! a sync of the fork syncs the outbox of its origin as well, and a drain drains it first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::Worktree;
use super::changes::Changes;
use super::drain::Moved;
use super::plain::is_of_base;
use crate::base::Base;
use crate::error::{Error, Result};
use crate::id::{BranchNumber, Ino, LayerNumber, Sequence};
use crate::overlay::{Difference, Dirty, Overlay, Put};
use crate::store::{Head, SnapshotRecord, Store};

/// Is told of files that are to leave the content of the base, and may refuse.
pub type Agree<'a> = &'a dyn Fn(&[Ino]) -> Result<()>;

/// The layers of a branch, as far as they are not drained.
#[derive(Debug)]
pub(super) struct Layers {
    /// Takes the changes.
    pub(super) head: LayerNumber,
    /// The layer below it.
    pub(super) below: Option<LayerNumber>,
    /// Whether the head has changes.
    pub(super) used: bool,
    /// The record that sealed the layer below the head; none if that was done by another branch or
    /// by an earlier process.
    pub(super) sealed_at: Sequence,
    /// The layer below the one that was sealed then.
    pub(super) sealed_below: Option<LayerNumber>,
    /// Layers that are not drained, the oldest first.
    pub(super) sealed: Vec<Sealed>,
    /// Whether the store says of the branch that it stands elsewhere.
    pub(super) moved: bool,
}

/// A sealed layer that is not drained.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) layer: LayerNumber,
    pub(super) below: Option<LayerNumber>,
    /// Everything as it is in this layer.
    pub(super) overlay: Overlay,
    /// What has changed in it since the drain before.
    pub(super) dirty: Dirty,
}

/// An immutable point of a branch: everything in it, at one moment.
#[derive(Debug)]
pub struct Point {
    /// The branch whose outbox sealed it.
    pub branch: BranchNumber,
    /// The layer; without one it is the bare base.
    pub layer: Option<LayerNumber>,
    /// The layer below that one.
    pub(crate) below: Option<LayerNumber>,
    /// What of that branch's outbox has to be durable for it.
    pub through: Sequence,
    /// The highest number that a new inode has had.
    pub last_new: u64,
    pub(super) changes: Changes,
}

/// What a fork needs until the layer that it lies on is drained.
pub(super) struct Origin {
    worktree: Arc<Worktree>,
    through: Sequence,
}

/// Who depends on whom among the worktrees of this process.
#[derive(Default)]
pub(super) struct Kin {
    /// Leaf lock.
    origin: Mutex<Option<Arc<Origin>>>,
    /// Leaf lock.
    forks: Mutex<Vec<Weak<Worktree>>>,
}

impl Layers {
    pub(super) fn new(head: Head) -> Self {
        Self {
            head: head.layer,
            below: head.below,
            used: head.used,
            sealed_at: Sequence::NONE,
            sealed_below: None,
            sealed: Vec::new(),
            moved: false,
        }
    }

    pub(super) fn any_sealed(&self) -> bool {
        !self.sealed.is_empty()
    }

    /// Whether a drain has something to do with them.
    pub(super) fn is_dirty(&self) -> bool {
        self.any_sealed() || self.moved
    }

    /// Ends the head with what `overlay` is now; `next` takes what follows record `at`.
    pub(super) fn seal(&mut self, overlay: &mut Overlay, next: LayerNumber, at: Sequence) {
        let dirty = overlay.take_dirty();
        let (layer, below) = (self.head, self.below);
        self.sealed.push(Sealed { layer, below, overlay: overlay.copy(), dirty });
        (self.head, self.below) = (next, Some(layer));
        (self.used, self.sealed_at, self.sealed_below) = (false, at, below);
    }
}

impl Layers {
    /// Goes on in layer `next`, which lies on `on`, a layer that is drained.
    pub(super) fn stand(&mut self, next: LayerNumber, on: Option<LayerNumber>) {
        (self.head, self.below, self.used) = (next, on, false);
        (self.sealed_at, self.sealed_below) = (Sequence::NONE, None);
        self.moved = true;
    }
}

impl Point {
    /// The point that `snapshot` is, on `base`.
    ///
    /// # Errors
    /// What reading the store meets; [`crate::Error::Corrupt`] for a layer that is not drained.
    pub fn of(store: &Store, base: &Base, snapshot: &SnapshotRecord) -> Result<Self> {
        let mut overlay = match snapshot.layer {
            Some(layer) => store.layer(layer)?,
            None => Overlay::default(),
        };
        overlay.load_last_new(snapshot.last_new);
        Ok(Self {
            branch: snapshot.branch,
            layer: snapshot.layer,
            below: None,
            through: Sequence::NONE,
            last_new: snapshot.last_new,
            changes: Changes::of(base, overlay),
        })
    }

    /// Where a branch stands that begins here.
    pub(super) fn head_of(&self, branch: BranchNumber) -> Head {
        Head {
            layer: LayerNumber::first_of(branch),
            below: self.layer,
            drained: Sequence::NONE,
            used: false,
        }
    }
}

impl Worktree {
    /// The branch as it is now, for ever. What changes later goes into a new layer; where nothing has
    /// changed since the last call, the layer is the same.
    ///
    /// It survives the death of this process if a fork or snapshot that names it does
    /// ([`crate::store::Batch::name_point`]), and a crash of the machine after [`Worktree::sync`].
    ///
    /// # Errors
    /// As every change; [`crate::Error::ReadOnly`] for a worktree without a branch of its own.
    pub fn seal(&self) -> Result<Point> {
        let live = self.live()?;
        let mut record = live.log();
        let used = live.layers().used;
        if used {
            let next = self.clean.contents.store().new_layer_number();
            record.clear();
            Put::Seal(next).encode(&mut record);
            let sealed = live.outbox.append(&record, &[])?;
            let mut overlay = live.changes.write();
            live.layers().seal(&mut overlay, next, sealed.sequence);
            drop(overlay);
            live.set_dirty(true);
        }
        let changes = live.changes.copy();
        let last_new = changes.read().last_new();
        let layers = live.layers();
        Ok(Point {
            branch: live.branch,
            layer: layers.below,
            below: layers.sealed_below,
            through: layers.sealed_at,
            last_new,
            changes,
        })
    }

    /// Whether something has changed since the last [`Worktree::seal`] of the branch, or since it began.
    pub fn is_changed_since_seal(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.layers().used)
    }

    /// The layer of the last [`Worktree::seal`], on which the branch stands; none for one that stands on its
    /// bare base.
    pub fn stands_on(&self) -> Option<LayerNumber> {
        self.live.as_ref().and_then(|live| live.layers().below)
    }

    /// Makes everything as it is at `to`, whose layer is drained, and returns what differs from before. What
    /// was changed since the last [`Worktree::seal`] is gone then; numbers of inodes are not given again.
    ///
    /// A snapshot or a branch that stands on the layer is to keep it in the store meanwhile.
    ///
    /// # Errors
    /// [`Error::NoSuch`] for a point whose layer nothing has kept: nothing is changed then. As every change, and as
    /// [`Worktree::drain`].
    pub fn restore(&self, to: &Point) -> Result<Difference> {
        self.restore_if(to, None)
    }

    /// As [`Worktree::restore`], unless `agree` refuses when it is told of the files that have the content of the
    /// base and are to have another: nothing is changed then. It is called under the lock that keeps other changes out.
    ///
    /// # Errors
    /// As [`Worktree::restore`], and what `agree` returns.
    pub fn restore_if(&self, to: &Point, agree: Option<Agree<'_>>) -> Result<Difference> {
        let live = self.live()?;
        self.drain()?;
        let store = self.clean.contents.store();
        if let Some(layer) = to.layer
            && !store.has_layer(layer)?
        {
            return Err(Error::NoSuch { kind: "layer", name: layer.to_string() });
        }
        let next = store.new_layer_number();
        let difference = {
            let mut record = live.log();
            if let Some(agree) = agree {
                agree(&leave_base(&live.changes.read(), &to.changes.read()))?;
            }
            record.clear();
            Put::Stand(next, to.layer).encode(&mut record);
            live.outbox.append(&record, &[])?;
            let mut overlay = live.changes.write();
            let mut restored = to.changes.read().copy();
            restored.load_last_new(restored.last_new().max(overlay.last_new()));
            let difference = Difference::between(&overlay, &restored);
            *overlay = restored;
            for &ino in &difference.inodes {
                match overlay.node(ino) {
                    Some(_) => live.changes.touch(ino),
                    None => live.changes.untouch(ino),
                }
            }
            live.layers().stand(next, to.layer);
            drop(overlay);
            live.set_dirty(true);
            difference
        };
        self.sweep_orphans()?;
        // Whoever stands on the layer is on record when this returns.
        self.drain()?;
        let mut batch = self.clean.contents.store().batch()?;
        batch.sweep_layers()?;
        batch.commit()?;
        Ok(difference)
    }

    /// Notes that `fork` has begun at `point` of this worktree.
    pub(super) fn adopt(self: &Arc<Self>, fork: &Arc<Self>, point: &Point) {
        let waits = self.live.as_ref().is_some_and(|live| live.layers().any_sealed());
        if waits || self.kin.origin().is_some() {
            let origin = Origin { worktree: Arc::clone(self), through: point.through };
            fork.kin.set_origin(Some(Arc::new(origin)));
            // So that a drain comes, which lets go of it.
            if let Some(live) = &fork.live {
                live.set_dirty(true);
            }
        }
        self.kin.add_fork(fork);
    }

    /// Makes what this worktree lies on durable.
    pub(super) fn sync_origin(&self) -> Result<()> {
        let Some(origin) = self.kin.origin() else { return Ok(()) };
        origin.worktree.sync_origin()?;
        let live = origin.worktree.live()?;
        live.outbox.sync(origin.through)
    }

    /// Drains what this worktree lies on.
    pub(super) fn drain_origin(&self) -> Result<()> {
        let Some(origin) = self.kin.origin() else { return Ok(()) };
        origin.worktree.drain()?;
        self.kin.set_origin(None);
        Ok(())
    }

    /// Tells the forks, and theirs, where bytes lie now that were in the outbox.
    pub(super) fn settle_forks(&self, moved: &[Moved]) {
        for fork in self.kin.forks() {
            if let Some(live) = &fork.live {
                live.settle(moved);
            }
            fork.settle_forks(moved);
        }
    }

    /// Lets those forks go that need nothing of the outbox beyond record `drained`.
    pub(super) fn release_forks(&self, drained: Sequence) {
        for fork in self.kin.forks() {
            let mut origin = fork.kin.lock_origin();
            if origin.as_ref().is_some_and(|origin| origin.through <= drained) {
                *origin = None;
            }
        }
    }
}

/// The files that have the content of the base in `before` and another in `after`.
fn leave_base(before: &Overlay, after: &Overlay) -> Vec<Ino> {
    let mut inodes = Difference::between(before, after).inodes;
    inodes.retain(|&ino| is_of_base(before, ino) && !is_of_base(after, ino));
    inodes
}

impl Kin {
    fn origin(&self) -> Option<Arc<Origin>> {
        self.lock_origin().clone()
    }

    fn set_origin(&self, origin: Option<Arc<Origin>>) {
        *self.lock_origin() = origin;
    }

    fn lock_origin(&self) -> MutexGuard<'_, Option<Arc<Origin>>> {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_fork(&self, fork: &Arc<Worktree>) {
        let mut forks = self.lock_forks();
        forks.retain(|fork| fork.strong_count() > 0);
        forks.push(Arc::downgrade(fork));
    }

    fn forks(&self) -> Vec<Arc<Worktree>> {
        self.lock_forks().iter().filter_map(Weak::upgrade).collect()
    }

    fn lock_forks(&self) -> MutexGuard<'_, Vec<Weak<Worktree>>> {
        self.forks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
