//! The chunk store: redb is the authority, append-only segment files hold the larger payloads.
//!
//! Order of a write (*must*: otherwise a crash loses or invents data):
//!
//! 1. payloads are appended to segments, and the segments synced;
//! 2. one redb transaction names their places, and the new tail of the segments, and is durable;
//! 3. the new state becomes visible to readers.
//!
//! So nothing references what is not stored, and whatever lies beyond the recorded tail after a
//! crash belongs to no transaction and is cut off.
//!
//! Locks: the one batch that lives has its turn and holds the state of writing. Below that are only
//! leaves: the background writer's queue, the caches. Readers take no lock to find a place: they
//! load the current snapshot.

mod append;
mod batch;
mod cache;
mod claim;
mod collector;
#[cfg(test)]
mod crash_tests;
mod database;
mod entries;
mod files;
mod fold;
mod held;
mod in_use;
mod layers;
mod line;
mod loading;
mod open;
mod read;
mod records;
mod renew;
mod segment;
mod sweep;
mod tables;
#[cfg(test)]
mod tests;
mod turn;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;

pub use batch::Batch;
pub(crate) use claim::Claim;
use claim::Claims;
pub use collector::Hold;
pub(crate) use collector::{Candidates, Collector, Item, Marks};
pub use files::{KeptFile, PlainFile};
pub use in_use::Upkeep;
pub use records::{Branch, KeptGit, Repository, SnapshotReason, SnapshotRecord, WorktreeRecord};
pub use tables::Object;
pub use writer::{Session, WriteItem, Writer};

pub(crate) use database::Snapshot;
pub(crate) use entries::{
    BAD_KEY, blob_of, check_content, chunk_of, git_tree_of, manifest_of, tree_of,
};
pub(crate) use in_use::InUse;
pub(crate) use layers::Head;
pub(crate) use line::{
    ALL_INODES, Layer, Line, Row, decode_head, drained_of, line_of, number_of, rows_of,
    visit_inodes,
};
pub(crate) use open::tail_of;
pub(crate) use read::{decode_verified, empty_content};
pub(crate) use records::Record;
pub(crate) use renew::is_made_again;
pub(crate) use segment::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, Segments, check_header};
pub(crate) use sweep::{Moved, bytes_of, is_garbage, locate, record_bytes};
pub(crate) use tables::{
    At, Extent, Place, Table, content_key, corrupt_entry, decode_manifest, decode_stored,
    decode_subtree, oid_from_key, oid_key, unseal,
};

use crate::base::NodeCache;
use crate::content::StreamedContent;
use crate::error::{Error, Result};
use crate::id::{ChunkId, ContentId, GitOid, TreeId};
use crate::storage::{Disk, File, Storage};
use crate::tree::{Subtree, Tree};
use append::Appender;
use cache::Cache;
use database::Database;
use files::PlainFiles;
use turn::Turns;

/// How often, and at what intervals, a read asks for a failed database to be opened anew.
const RENEWAL_TRIES: u32 = 100;
const RENEWAL_PAUSE: Duration = Duration::from_millis(5);

/// The format of the store that this code reads and writes.
pub const STORE_FORMAT: u32 = 2;

/// A content that the store holds, as the git map knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The content.
    pub id: ContentId,
    /// Its size in bytes.
    pub size: u64,
}

/// What a store has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounters {
    /// Chunks read from disk, each of which was verified.
    pub chunks_read: u64,
    /// Chunks that did not pass the verification.
    pub chunks_bad: u64,
    /// Chunks replaced because they were damaged.
    pub chunks_healed: u64,
    /// Directory objects replaced because they were damaged.
    pub trees_healed: u64,
    /// Reads of a chunk served from the cache of verified chunks.
    pub cache_hits: u64,
    /// Stored bytes read from segments and database values.
    pub bytes_read: u64,
    /// Bytes written to segments and to the database file.
    pub bytes_written: u64,
    /// Durable transactions.
    pub commits: u64,
    /// Synchronisations of files and directories, those of the database included.
    pub syncs: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    chunks_read: AtomicU64,
    chunks_bad: AtomicU64,
    chunks_healed: AtomicU64,
    trees_healed: AtomicU64,
    cache_hits: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    commits: AtomicU64,
    syncs: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStatistics {
    /// Chunks.
    pub chunks: u64,
    /// Directory objects.
    pub trees: u64,
    /// Contents of more than one chunk.
    pub manifests: u64,
    /// Git blobs whose content is known.
    pub blobs: u64,
    /// Layers of changes.
    pub layers: u64,
    /// Bytes of chunks and trees as they are stored.
    pub stored_bytes: u64,
    /// Bytes of chunks and trees before compression.
    pub raw_bytes: u64,
    /// Bytes of the segment files.
    pub segment_bytes: u64,
    /// Bytes that the database file takes on the device.
    pub database_bytes: u64,
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    // The writer's thread uses the core: it is dropped, and so ended, first.
    writer: Writer,
    core: Arc<Core>,
    nodes: NodeCache,
    /// The last number that a branch, a layer or a snapshot was given.
    last_number: AtomicU64,
    claims: Arc<Claims>,
    files: Arc<PlainFiles>,
    /// Leaf lock.
    in_use: Mutex<Vec<Weak<dyn InUse>>>,
}

/// What batches, readers and the background writer share.
#[derive(Debug)]
pub(crate) struct Core {
    dir: PathBuf,
    segments: Arc<Segments>,
    snapshot: ArcSwap<Snapshot>,
    turns: Turns,
    state: Mutex<WriteState>,
    chunks: Cache<ChunkId, Vec<u8>>,
    manifests: Cache<ContentId, read::Manifest>,
    counters: Arc<Counters>,
    /// What writers and a garbage collection must know of each other.
    collector: Arc<Collector>,
    /// Held during a check or a garbage collection.
    upkeep: Mutex<()>,
    /// Keeps other processes out.
    _lock: Arc<dyn File>,
}

/// What only the one batch that lives may touch.
#[derive(Debug)]
struct WriteState {
    /// `None` after it failed and could not be opened again.
    database: Option<Database>,
    appender: Appender,
    /// Why no more writes are taken.
    failed: Option<String>,
}

impl Store {
    /// Opens the store in `dir`, creating it if there is none.
    ///
    /// # Errors
    /// [`Error::UnknownFormat`], [`Error::InUse`], [`Error::Corrupt`] or [`Error::Database`] for a
    /// damaged database file, [`Error::Io`].
    pub fn open(dir: &Path) -> Result<Arc<Self>> {
        Self::open_on(Arc::new(Disk), dir)
    }

    /// Opens the store in `dir` of another storage.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(storage: Arc<dyn Storage>, dir: &Path) -> Result<Arc<Self>> {
        let core = Arc::new(open::open(storage, dir)?);
        let files = PlainFiles::open(dir)?;
        let writer = Writer::start(Arc::clone(&core))?;
        // The clock alone makes numbers unique. A record that cannot be read is a check's to report.
        let known = core.scan_sealed(Table::Branches, b"", Branch::decode).unwrap_or_default();
        let highest = known.iter().map(|branch| branch.number.0).max();
        let last_number = AtomicU64::new(highest.unwrap_or_default());
        Ok(Arc::new(Self {
            writer,
            core,
            nodes: NodeCache::default(),
            last_number,
            claims: Arc::default(),
            files,
            in_use: Mutex::default(),
        }))
    }

    /// The directory of the store.
    pub fn dir(&self) -> &Path {
        &self.core.dir
    }

    /// Takes branch `branch` for one who writes its outbox, until the claim is dropped.
    ///
    /// # Errors
    /// [`Error::BranchInUse`] while somebody else has it.
    pub(crate) fn claim(&self, branch: crate::BranchNumber) -> Result<Claim> {
        Claims::take(&self.claims, branch).ok_or(Error::BranchInUse(branch))
    }

    /// The directory objects in memory.
    pub fn nodes(&self) -> &NodeCache {
        &self.nodes
    }

    /// Loads directory object `id`, verified and decoded.
    ///
    /// # Errors
    /// [`Error::MissingTree`], [`Error::Corrupt`], or what reading meets.
    pub fn tree(&self, id: TreeId) -> Result<Tree> {
        self.core.tree(id)
    }

    /// The content that git blob `oid` became, if it is stored.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn content_of(&self, oid: &GitOid) -> Result<Option<Stored>> {
        let found = self.core.sealed(Table::Blobs, &tables::oid_key(oid), decode_stored)?;
        Ok(found.filter(|stored| self.core.collector.found_content(stored.id)))
    }

    /// The git blob that `content` was made from without conversion, if it is known.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn oid_of(&self, content: ContentId) -> Result<Option<GitOid>> {
        self.core
            .scan_sealed(Table::Contents, content.as_bytes(), oid_from_key)
            .map(|mut oids| oids.pop())
    }

    /// The directory object that git tree `oid` became under the conversion context `context`.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn tree_of(&self, oid: &GitOid, context: &[u8; 32]) -> Result<Option<Subtree>> {
        let key = tables::git_tree_key(oid, context);
        let found = self.core.sealed(Table::GitTrees, &key, decode_subtree)?;
        Ok(found.filter(|subtree| self.core.collector.found(Item::Tree(subtree.id))))
    }

    /// Whether content `id` is stored.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn has_content(&self, id: ContentId) -> Result<bool> {
        Ok(self.core.size_of(id)?.is_some() && self.core.collector.found_content(id))
    }

    /// The chunks of content `id` in order, each with its number of bytes, if it is stored.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn chunks_of(&self, id: ContentId) -> Result<Option<Vec<(ChunkId, u32)>>> {
        let chunks = self.core.chunks_of(id)?;
        Ok(chunks.filter(|_| self.core.collector.found_content(id)))
    }

    /// Keeps what is found in the store, or put into it, from now on from being taken for garbage.
    /// To be held by who refers to it later than in the same batch.
    pub fn hold(&self) -> Hold {
        self.core.collector.hold()
    }

    /// Reads content `id` from `offset` into `out`; returns the number of bytes, which is less
    /// than asked only at the end of the content. Every chunk is verified when it is read from
    /// disk.
    ///
    /// # Errors
    /// [`Error::MissingContent`], [`Error::MissingChunk`], [`Error::Corrupt`] naming the chunk and
    /// its place, or what reading meets. `out` then holds nothing of use.
    pub fn read_at(&self, id: ContentId, offset: u64, out: &mut [u8]) -> Result<usize> {
        self.core.read_at(id, offset, out)
    }

    /// Starts a batch. Waits while another one lives; do not hold one for long, and never two in
    /// one thread.
    ///
    /// # Errors
    /// [`Error::Poisoned`] if an earlier write failed and the database could not be opened again.
    pub fn batch(&self) -> Result<Batch<'_>> {
        let turn = self.core.turns.join();
        // The background writer may be waiting for more to put into its batch.
        self.writer.wake();
        Batch::begin(&self.core, turn)
    }

    /// The background writer.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// What this store has done since it was opened.
    pub fn counters(&self) -> StoreCounters {
        let counters = &self.core.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreCounters {
            chunks_read: get(&counters.chunks_read),
            chunks_bad: get(&counters.chunks_bad),
            chunks_healed: get(&counters.chunks_healed),
            trees_healed: get(&counters.trees_healed),
            cache_hits: get(&counters.cache_hits),
            bytes_read: get(&counters.bytes_read),
            bytes_written: get(&counters.bytes_written),
            commits: get(&counters.commits),
            syncs: get(&counters.syncs),
        }
    }

    /// What the store holds. Its cost grows with the number of chunks.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn statistics(&self) -> Result<StoreStatistics> {
        self.core.read(statistics).map(|mut statistics| {
            statistics.segment_bytes =
                self.core.segments.all().map(|(_, file)| file.len().unwrap_or(0)).sum();
            let database = self.core.dir.join(open::DATABASE_FILE);
            let file = self.core.segments.storage().open(&database, false);
            statistics.database_bytes = file.and_then(|file| file.allocated()).unwrap_or(0);
            statistics
        })
    }

    /// All repositories, by name.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn repositories(&self) -> Result<Vec<Repository>> {
        self.core.scan_sealed(Table::Repositories, b"", Record::decode)
    }

    /// The repository called `name`.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn repository(&self, name: &str) -> Result<Option<Repository>> {
        self.core.sealed(Table::Repositories, name.as_bytes(), Record::decode)
    }

    /// All branches, by repository and name.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn branches(&self) -> Result<Vec<Branch>> {
        self.core.scan_sealed(Table::Branches, b"", Record::decode)
    }

    /// Branch `name` of `repository`.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn branch(&self, repository: &str, name: &str) -> Result<Option<Branch>> {
        self.core.sealed(Table::Branches, &records::branch_key(repository, name), Record::decode)
    }

    /// All worktrees, by directory.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn worktrees(&self) -> Result<Vec<WorktreeRecord>> {
        self.core.scan_sealed(Table::Worktrees, b"", Record::decode)
    }

    /// The worktree at `dir`.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn worktree(&self, dir: &Path) -> Result<Option<WorktreeRecord>> {
        self.core.sealed(Table::Worktrees, &records::worktree_key(dir), Record::decode)
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }
}

impl Core {
    pub(crate) fn segments(&self) -> &Segments {
        &self.segments
    }

    pub(crate) fn collector(&self) -> &Collector {
        &self.collector
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Reads from the current snapshot. After an I/O error redb answers nothing any more, so the
    /// database is then opened anew, and the read tried once more.
    fn read<T>(&self, mut with: impl FnMut(&Snapshot) -> Result<T>) -> Result<T> {
        let snapshot = self.snapshot.load();
        match with(&snapshot) {
            Err(Error::Database { .. }) if self.is_renewed(&snapshot) => {
                with(&self.snapshot.load())
            }
            result => result,
        }
    }

    /// Whether there is, or could be made, another snapshot instead of the failed `snapshot`.
    fn is_renewed(&self, snapshot: &Arc<Snapshot>) -> bool {
        // Whoever holds the state is most likely about to open the database anew. It could also be
        // this thread, with a batch of its own, so the wait has an end.
        for _ in 0..RENEWAL_TRIES {
            let state = match self.state.try_lock() {
                Ok(state) => Some(state),
                Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            };
            if !Arc::ptr_eq(snapshot, &self.snapshot.load()) {
                return true;
            }
            if let Some(mut state) = state {
                return self.reopen(&mut state).is_ok();
            }
            std::thread::sleep(RENEWAL_PAUSE);
        }
        false
    }

    /// Opens the database anew after it failed, at the state of the last durable transaction.
    fn reopen(&self, state: &mut WriteState) -> Result<()> {
        state.database = None;
        let result = open::open_database(&self.segments, &self.dir, &self.counters, false);
        match result {
            Ok((database, snapshot, appender)) => {
                self.snapshot.store(Arc::new(snapshot));
                *state = WriteState { database: Some(database), appender, failed: None };
                Ok(())
            }
            Err(error) => {
                state.failed = Some(error.to_string());
                Err(error)
            }
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, WriteState> {
        // A batch whose thread panics is dropped like any other and leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sealed value of `key`, decoded.
    fn sealed<T>(
        &self,
        table: Table,
        key: &[u8],
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>> {
        self.read(|snapshot| {
            snapshot.get(table, key, |sealed| decode_sealed(table, key, sealed, &decode))
        })
    }

    /// The sealed values of all keys that begin with `prefix`, decoded.
    fn scan_sealed<T>(
        &self,
        table: Table,
        prefix: &[u8],
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        self.read(|snapshot| {
            let mut values = Vec::new();
            snapshot.scan(table, prefix, |key, sealed| {
                values.push(decode_sealed(table, key, sealed, &decode)?);
                Ok(())
            })?;
            Ok(values)
        })
    }

    fn manifest(&self, id: ContentId) -> Result<Option<StreamedContent>> {
        self.sealed(Table::Manifests, id.as_bytes(), |value| decode_manifest(id, value))
    }

    /// The size of content `id`, if it is stored.
    pub(crate) fn size_of(&self, id: ContentId) -> Result<Option<u64>> {
        if id == read::empty_content() {
            return Ok(Some(0));
        }
        match self.single_size(id)? {
            Some(size) => Ok(Some(size)),
            None => Ok(self.manifest(id)?.map(|manifest| manifest.size)),
        }
    }

    /// The chunks of content `id`, if it is stored.
    fn chunks_of(&self, id: ContentId) -> Result<Option<Vec<(ChunkId, u32)>>> {
        if id == read::empty_content() {
            return Ok(Some(Vec::new()));
        }
        match self.single_size(id)? {
            // A chunk is no longer than that.
            Some(size) => Ok(Some(vec![(id.into(), size as u32)])),
            None => Ok(self.manifest(id)?.map(|manifest| manifest.chunks)),
        }
    }

    /// The size of content `id`, if it is stored as one chunk.
    fn single_size(&self, id: ContentId) -> Result<Option<u64>> {
        let object = Object::Chunk(id.into());
        self.read(|snapshot| {
            snapshot.get(Table::Chunks, id.as_bytes(), |value| {
                Ok(u64::from(Place::decode(&object, value)?.raw_len))
            })
        })
    }
}

/// The records of a table.
///
/// # Errors
/// What reading the database meets, [`Error::Corrupt`] for one that cannot be.
pub(crate) fn records_of<R: Record>(snapshot: &Snapshot, table: Table) -> Result<Vec<R>> {
    let mut records = Vec::new();
    snapshot.scan(table, b"", |key, sealed| {
        records.push(decode_sealed(table, key, sealed, R::decode)?);
        Ok(())
    })?;
    Ok(records)
}

pub(crate) fn decode_sealed<T>(
    table: Table,
    key: &[u8],
    sealed: &[u8],
    decode: impl Fn(&[u8]) -> Option<T>,
) -> Result<T> {
    decode(unseal(table, key, sealed)?)
        .ok_or_else(|| tables::corrupt_entry(table, key, "its fields are impossible"))
}

fn statistics(snapshot: &Snapshot) -> Result<StoreStatistics> {
    let mut statistics = StoreStatistics {
        chunks: snapshot.len(Table::Chunks)?,
        trees: snapshot.len(Table::Trees)?,
        manifests: snapshot.len(Table::Manifests)?,
        blobs: snapshot.len(Table::Blobs)?,
        layers: snapshot.len(Table::Layers)?,
        ..StoreStatistics::default()
    };
    type MakeObject = fn([u8; 32]) -> Object;
    let kinds: [(Table, MakeObject); 2] = [
        (Table::Chunks, |id| Object::Chunk(ChunkId::new(id))),
        (Table::Trees, |id| Object::Tree(TreeId::new(id))),
    ];
    for (table, object) in kinds {
        snapshot.scan(table, b"", |key, value| {
            let id = key
                .try_into()
                .map_err(|_| tables::corrupt_entry(table, key, "its key is no digest"))?;
            let place = Place::decode(&object(id), value)?;
            statistics.stored_bytes += place.stored_len();
            statistics.raw_bytes += u64::from(place.raw_len);
            Ok(())
        })?;
    }
    Ok(statistics)
}
