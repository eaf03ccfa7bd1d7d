//! What a garbage collection and those who write at the same time must know of each other.
//!
//! The collection decides about what is in the store at one moment, its *beginning*: these are its
//! candidates, a bit for each. What is written later is none of them. While it marks, whoever finds a
//! candidate there, and may refer to it from now on, marks it too. When everything is marked that
//! can be reached, the rest is *condemned*, all at once: from then on it is not there for anybody who
//! would refer to it, and who stores it again stores it anew, which marks it. So nothing refers to
//! what is about to be removed.
//!
//! What was found or written before the beginning, and is not on record yet, is covered by a
//! [`Hold`]: nothing is condemned before those have ended that are older than the collection.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::database::Snapshot;
use super::tables::Table;
use crate::error::{Error, Result};
use crate::id::{ChunkId, ContentId, TreeId};

/// What a collection decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    Chunk(ChunkId),
    Tree(TreeId),
    Manifest(ContentId),
}

impl Item {
    /// The entry `key` of `table`; `None` for other tables and for what is no digest.
    pub(super) fn of(table: Table, key: &[u8]) -> Option<Self> {
        let id = key.try_into().ok()?;
        Some(match table {
            Table::Chunks => Self::Chunk(ChunkId::new(id)),
            Table::Trees => Self::Tree(TreeId::new(id)),
            Table::Manifests => Self::Manifest(ContentId::new(id)),
            _ => return None,
        })
    }
}

/// The candidates of one table: 8 bytes and a bit for each.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// The first bytes of the keys, ascending. Keys that share them share a mark.
    keys: Vec<u64>,
    bits: Vec<AtomicU64>,
}

impl Marks {
    fn read(snapshot: &Snapshot, table: Table) -> Result<Self> {
        let mut keys = Vec::new();
        snapshot.scan(table, b"", |key, _| {
            keys.push(prefix(key));
            Ok(())
        })?;
        if snapshot.len(table)? != keys.len() as u64 {
            let what = format!("the table {}", table.name());
            return Err(Error::corrupt(what, "some of its entries cannot be read"));
        }
        keys.sort_unstable();
        let bits = (0..keys.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { keys, bits })
    }

    /// Number of candidates.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The place of a candidate; `None` for what is none.
    pub(crate) fn position(&self, id: &[u8]) -> Option<usize> {
        let key = prefix(id);
        let at = self.keys.partition_point(|one| *one < key);
        (self.keys.get(at) == Some(&key)).then_some(at)
    }

    /// Marks a candidate; whether it was not marked before. `None` for what is no candidate.
    pub(crate) fn mark(&self, id: &[u8]) -> Option<bool> {
        let at = self.position(id)?;
        let bit = 1 << (at % 64);
        Some(self.bits[at / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }

    /// Whether it is a candidate without a mark.
    pub(crate) fn is_unmarked(&self, id: &[u8]) -> bool {
        self.position(id)
            .is_some_and(|at| self.bits[at / 64].load(Ordering::Relaxed) & (1 << (at % 64)) == 0)
    }
}

/// Digests are as good as random, so their first bytes tell them apart.
fn prefix(key: &[u8]) -> u64 {
    key.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// All candidates of a collection.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    pub(crate) chunks: Marks,
    pub(crate) trees: Marks,
    pub(crate) manifests: Marks,
}

impl Candidates {
    /// Everything in `snapshot`.
    ///
    /// # Errors
    /// What reading the database meets.
    pub(crate) fn read(snapshot: &Snapshot) -> Result<Self> {
        Ok(Self {
            chunks: Marks::read(snapshot, Table::Chunks)?,
            trees: Marks::read(snapshot, Table::Trees)?,
            manifests: Marks::read(snapshot, Table::Manifests)?,
        })
    }

    fn of<'a>(&'a self, item: &'a Item) -> (&'a Marks, &'a [u8; 32]) {
        match item {
            Item::Chunk(id) => (&self.chunks, id.as_bytes()),
            Item::Tree(id) => (&self.trees, id.as_bytes()),
            Item::Manifest(id) => (&self.manifests, id.as_bytes()),
        }
    }

    /// As [`Marks::mark`].
    pub(crate) fn mark(&self, item: &Item) -> Option<bool> {
        let (marks, id) = self.of(item);
        marks.mark(id)
    }

    /// As [`Marks::is_unmarked`].
    pub(crate) fn is_unmarked(&self, item: &Item) -> bool {
        let (marks, id) = self.of(item);
        marks.is_unmarked(id)
    }

    /// Whether `content` is a candidate, as a chunk or as a manifest, and neither is marked.
    pub(crate) fn is_content_unmarked(&self, content: &ContentId) -> bool {
        let id = content.as_bytes();
        let (chunk, manifest) = (self.chunks.position(id), self.manifests.position(id));
        (chunk.is_some() || manifest.is_some())
            && (chunk.is_none() || self.chunks.is_unmarked(id))
            && (manifest.is_none() || self.manifests.is_unmarked(id))
    }
}

/// What others tell a collection, and what it tells them.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    /// Whether there is a collection. Set and read under `state` by all to whom it matters.
    active: AtomicBool,
    /// Leaf lock.
    state: Mutex<State>,
    /// A hold has ended.
    released: Condvar,
    /// Makes it deaf, so that a test can show that it notices that.
    #[cfg(test)]
    pub(crate) deaf: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// Found by others, and still to be followed to what it needs.
    found: Vec<Item>,
    /// The numbers of the holds that live.
    holds: BTreeSet<u64>,
    next_hold: u64,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Idle,
    /// The candidates are being read.
    Beginning,
    Marking(Arc<Candidates>),
    Sweeping(Arc<Candidates>),
}

/// What is found in the store, or put into it, while this lives is not taken for garbage before it
/// is dropped. Whoever refers to such things later than in the batch that puts them holds one until
/// the record is committed by which they can be reached.
#[derive(Debug)]
pub struct Hold {
    collector: Arc<Collector>,
    number: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.collector.lock().holds.remove(&self.number);
        self.collector.released.notify_all();
    }
}

impl Collector {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hold(self: &Arc<Self>) -> Hold {
        let mut state = self.lock();
        let number = state.next_hold;
        state.next_hold += 1;
        state.holds.insert(number);
        Hold { collector: Arc::clone(self), number }
    }

    /// Begins a collection of what is there now; the number of the first hold that is younger. The caller has the turn to
    /// write.
    pub(crate) fn begin(&self) -> Result<u64> {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Idle) {
            return Err(Error::Refused("a second garbage collection at a time".into()));
        }
        state.phase = Phase::Beginning;
        state.found.clear();
        self.active.store(true, Ordering::Release);
        Ok(state.next_hold)
    }

    /// States what the candidates are.
    pub(crate) fn mark(&self, candidates: &Arc<Candidates>) {
        let mut state = self.lock();
        state.phase = Phase::Marking(Arc::clone(candidates));
        state.found.retain(|item| candidates.mark(item).unwrap_or(false));
    }

    /// Takes what others have found.
    pub(crate) fn take_found(&self) -> Vec<Item> {
        std::mem::take(&mut self.lock().found)
    }

    /// Whether no hold lives that is older than number `first`; waits a moment for that.
    pub(crate) fn is_released(&self, first: u64, limit: Duration) -> bool {
        let state = self.lock();
        let older = |state: &mut State| state.holds.range(..first).next().is_some();
        let waited = self.released.wait_timeout_while(state, limit, older);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.holds.range(..first).next().is_none()
    }

    /// Condemns what is not marked, unless something was found that is not followed yet. The caller
    /// has the turn to write.
    pub(crate) fn condemn(&self) -> bool {
        let mut state = self.lock();
        if !state.found.is_empty() {
            return false;
        }
        match std::mem::take(&mut state.phase) {
            Phase::Marking(candidates) => state.phase = Phase::Sweeping(candidates),
            other => state.phase = other,
        }
        true
    }

    /// Ends a collection: what is left is there for everybody again.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.phase = Phase::Idle;
        state.found = Vec::new();
        self.active.store(false, Ordering::Release);
    }

    /// Notes that somebody has found `item` in the database; whether it is there for who would refer
    /// to it.
    pub(super) fn found(&self, item: Item) -> bool {
        self.meet(item, false)
    }

    /// Notes that `item` is put into the database.
    pub(super) fn put(&self, item: Item) {
        self.meet(item, true);
    }

    fn meet(&self, item: Item, put: bool) -> bool {
        #[cfg(test)]
        if self.deaf.load(Ordering::Relaxed) {
            return true;
        }
        if !self.active.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.lock();
        match &state.phase {
            Phase::Idle => {}
            Phase::Beginning => state.found.push(item),
            Phase::Marking(candidates) => {
                // A chunk needs nothing else.
                if candidates.mark(&item) == Some(true) && !matches!(item, Item::Chunk(_)) {
                    state.found.push(item);
                }
            }
            Phase::Sweeping(candidates) if put => drop(candidates.mark(&item)),
            Phase::Sweeping(candidates) => return !candidates.is_unmarked(&item),
        }
        true
    }

    /// As [`Collector::found`] of a content, which is a chunk or a manifest.
    pub(super) fn found_content(&self, id: ContentId) -> bool {
        if !self.active.load(Ordering::Acquire) {
            return true;
        }
        if let Phase::Sweeping(candidates) = &self.lock().phase {
            return !candidates.is_content_unmarked(&id);
        }
        // Not condemned between the two: then the second one says so.
        self.found(Item::Chunk(id.into())) & self.found(Item::Manifest(id))
    }
}
