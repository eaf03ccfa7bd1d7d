//! Garbage collection: what nothing can reach any more is removed, and the room is given back.
//!
//! 1. *Begin*: what is in the store at this moment can be removed, nothing else. Whoever finds some of
//!    it from now on marks it ([`crate::store::Hold`] and the store's collector say how).
//! 2. *Mark* everything that branches, snapshots, layers and what is in memory lead to.
//! 3. *Condemn* the rest when nothing is left to be followed and nobody holds what he found before 1.
//! 4. *Sweep*, in small transactions, whatever refers before what it refers to. So a crash at any
//!    point leaves garbage, and nothing that refers to what is gone.
//! 5. *Compact*: segment files of which little is left are emptied and removed.
//!
//! What git has can be made again, so the base of a commit is kept as long as a branch or a snapshot
//! has it, and no longer.
//!
//! Nothing else waits, beside for one small transaction at a time.

mod mark;
mod segments;
mod sweep;
#[cfg(test)]
mod tests;
mod usage;

use std::sync::Arc;

use crate::error::Result;
use crate::progress::{Cancel, Phase, Progress};
use crate::store::{Branch, Candidates, InUse, Snapshot, SnapshotRecord, Store, Table, Upkeep};
use mark::Marker;

pub use usage::{Usage, usage};

/// A number of things and the bytes that they take as they are stored, keys included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.bytes += other.bytes;
    }
}

/// Things of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Chunks.
    pub chunks: Amount,
    /// Directory objects.
    pub trees: Amount,
    /// Lists of the chunks of contents.
    pub manifests: Amount,
    /// Entries of the git map.
    pub mapped: Amount,
}

impl Amounts {
    /// All of them together.
    pub fn total(&self) -> Amount {
        let mut total = self.chunks;
        [self.trees, self.manifests, self.mapped].into_iter().for_each(|one| total += one);
        total
    }
}

/// What a collection has done, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// What stays.
    pub kept: Amounts,
    /// What nothing reaches, and was removed.
    pub freed: Amounts,
    /// Layers on which nothing stood.
    pub layers: u64,
    /// Segment files that were removed, with their bytes.
    pub segments: Amount,
    /// What was moved out of them.
    pub moved: Amount,
    /// Plain files of the cache that were removed, since nothing leads to their contents.
    pub files: Amount,
    /// Segment files that could not be emptied, since something in them is damaged.
    pub damaged_segments: u64,
}

/// A collection that has begun.
pub struct Collection<'s> {
    store: &'s Arc<Store>,
    _upkeep: &'s Upkeep<'s>,
    /// What was there when it began; taken when it is marked.
    start: Option<Start>,
    /// Holds from this number on are younger.
    first_hold: u64,
    layers: u64,
    dry_run: bool,
}

/// The store when a collection began, and what was in memory.
struct Start {
    snapshot: Arc<Snapshot>,
    chunks: Vec<Arc<dyn InUse>>,
    trees: Vec<crate::TreeId>,
}

impl Drop for Collection<'_> {
    fn drop(&mut self) {
        self.store.core().collector().end();
    }
}

impl<'s> Collection<'s> {
    /// Begins a collection, which is quick. Whatever was sealed of a branch is on record at this
    /// moment, or not needed: the caller sees to that. With `dry_run` nothing is removed later.
    ///
    /// # Errors
    /// What reading and writing the store meet.
    pub fn begin(store: &'s Arc<Store>, upkeep: &'s Upkeep<'s>, dry_run: bool) -> Result<Self> {
        let mut layers = 0;
        if !dry_run {
            let mut batch = store.batch()?;
            layers = batch.sweep_layers()?;
            batch.commit()?;
        }
        let core = store.core();
        let batch = store.batch()?;
        let first_hold = core.collector().begin()?;
        let collection = Self {
            store,
            _upkeep: upkeep,
            start: Some(Start {
                snapshot: core.snapshot(),
                chunks: store.in_use(),
                trees: store.nodes().live(),
            }),
            first_hold,
            layers,
            dry_run,
        };
        drop(batch);
        Ok(collection)
    }

    /// Does the rest. Ended early, by an error, by `cancel` or by a crash, it leaves some garbage.
    ///
    /// # Errors
    /// Of what is needed, whatever cannot be read: nothing is removed then, since nobody can tell what that needs in turn.
    /// What writing the store meets; cancellation.
    pub fn run(mut self, progress: &dyn Progress, cancel: &Cancel) -> Result<GcReport> {
        let core = self.store.core();
        let Some(start) = self.start.take() else { return Ok(GcReport::default()) };
        let candidates = Arc::new(Candidates::read(&start.snapshot)?);
        core.collector().mark(&candidates);
        let total = candidates.chunks.len() + candidates.trees.len() + candidates.manifests.len();
        progress.begin(Phase::Mark, Some(total as u64), None);
        let marked = self.mark(start, &candidates, progress, cancel);
        progress.end(Phase::Mark);
        marked?;
        let mut report = GcReport { layers: self.layers, ..GcReport::default() };
        sweep::measure(&core.snapshot(), &candidates, &mut report, cancel)?;
        if self.dry_run {
            segments::foresee(self.store, &candidates, &mut report)?;
            report.files = files(self.store, &candidates, true)?;
            return Ok(report);
        }
        let garbage = report.freed.total();
        progress.begin(Phase::Sweep, Some(garbage.count), Some(garbage.bytes));
        let swept = sweep::sweep(self.store, &candidates, &report, progress, cancel);
        progress.end(Phase::Sweep);
        report.freed = swept?;
        progress.begin(Phase::Compact, None, None);
        let compacted = segments::compact(self.store, &mut report, progress, cancel);
        progress.end(Phase::Compact);
        compacted?;
        report.files = files(self.store, &candidates, false)?;
        Ok(report)
    }

    fn mark(
        &self,
        start: Start,
        candidates: &Arc<Candidates>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        let core = self.store.core();
        let mut marker = Marker::new(self.store, candidates, progress, cancel);
        marker.roots(&roots(&start.snapshot)?);
        marker.memory(&start.trees, &start.chunks);
        marker.layers(&start.snapshot)?;
        // The database uses the room of what is no longer looked at.
        drop(start);
        let mut settled = false;
        loop {
            marker.follow()?;
            if !core.collector().is_released(self.first_hold, WAIT) {
                cancel.check()?;
                continue;
            }
            // What those have who held something is on record by now, or in memory.
            if !settled {
                marker.memory(&self.store.nodes().live(), &self.store.in_use());
                settled = true;
                continue;
            }
            let batch = self.store.batch()?;
            marker.roots(&roots(&core.snapshot())?);
            if !marker.is_done() {
                drop(batch);
                continue;
            }
            if self.dry_run || core.collector().condemn() {
                return Ok(());
            }
        }
    }
}

/// Removes the plain files of contents that are not kept, or, `dry`, counts them.
fn files(store: &Store, candidates: &Candidates, dry: bool) -> Result<Amount> {
    let wanted = |id| match dry {
        true => Ok(!candidates.is_content_unmarked(&id)),
        false => Ok(store.core().size_of(id)?.is_some()),
    };
    let (count, bytes) = store.files().collect(&wanted, dry)?;
    Ok(Amount { count, bytes })
}

/// How long a collection waits before it looks again whether it is cancelled.
const WAIT: std::time::Duration = std::time::Duration::from_millis(20);

/// The directory objects of all branches and snapshots.
fn roots(snapshot: &Snapshot) -> Result<Vec<crate::TreeId>> {
    let mut roots = Vec::new();
    for branch in crate::store::records_of::<Branch>(snapshot, Table::Branches)? {
        roots.push(branch.root);
    }
    for one in crate::store::records_of::<SnapshotRecord>(snapshot, Table::Snapshots)? {
        roots.push(one.root);
    }
    Ok(roots)
}
