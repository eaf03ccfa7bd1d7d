//! One atomic, durable change of a store.

use std::path::Path;
use std::sync::{Arc, MutexGuard};

use super::append::{Appender, Tail};
use super::collector::Item;
use super::database::{Changes, Database, Snapshot};
use super::records::{Record, branch_key, worktree_key};
use super::segment::RecordHeader;
use super::tables::{
    At, META_TAIL, Object, Place, Table, adds_up, content_key, encode_manifest, encode_stored,
    encode_subtree, git_tree_key, oid_key, seal,
};
use super::turn::Turn;
use super::{
    Branch, Core, Repository, Stored, WorktreeRecord, WriteState, count, read::empty_content,
};
use crate::content::{Encoding, PreparedChunk, PreparedContent, StreamedContent};
use crate::encoding::Encoder;
use crate::error::{Error, Result};
use crate::id::GitOid;
use crate::limits::{WRITER_BATCH_BYTES, WRITER_BATCH_PAYLOAD_BYTES};
use crate::tree::{EncodedTree, Subtree};

/// Payloads up to this many bytes are stored in the database, beside their place. With 100,000
/// files of 50 to 1,450 bytes and a border of 0, 256, 512 and 1,024 bytes, importing took 3.1, 2.6,
/// 3.1 and 4.3 s of processor time, reading one file 6.9, 5.6, 6.0 and 7.9 us, and the database file
/// had 135, 135, 270 and 270 MB.
const INLINE_BYTES_MAX: usize = 256;

/// What an entry costs in memory beside its key and value, about.
const CHANGE_BYTES: usize = 128;

/// Changes that become visible and durable together when [`Batch::commit`] returns, or not at all.
/// What is stored already is not stored again. Dropping it forgets the changes.
///
/// What it has not yet written is held in memory: commit every few ten megabytes.
#[derive(Debug)]
pub struct Batch<'s> {
    core: &'s Core,
    state: MutexGuard<'s, WriteState>,
    /// The durable end of the segments.
    start: Tail,
    changes: Changes,
    /// Memory that the changes take, about.
    bytes: usize,
    chunks_healed: u64,
    trees_healed: u64,
    /// An append failed: committing would leave references to what is not stored.
    broken: bool,
    /// Dropped last.
    _turn: Turn<'s>,
}

impl<'s> Batch<'s> {
    /// Begins a batch when its `turn` has come.
    pub(super) fn begin(core: &'s Core, turn: Turn<'s>) -> Result<Self> {
        turn.wait();
        let mut state = core.lock_state();
        if state.failed.is_some() {
            // What was wrong may be over: a full disk, most of all.
            core.reopen(&mut state).map_err(|error| match error {
                full if full.is_full() => full,
                error => Error::Poisoned { path: core.dir.clone(), why: error.to_string() },
            })?;
        }
        let start = state.appender.tail();
        let changes = Changes::new();
        Ok(Self {
            core,
            state,
            start,
            changes,
            bytes: 0,
            chunks_healed: 0,
            trees_healed: 0,
            broken: false,
            _turn: turn,
        })
    }

    /// Whether it is large enough to be committed.
    pub(super) fn is_full(&self) -> bool {
        let payload = self.state.appender.appended();
        self.bytes >= WRITER_BATCH_BYTES || payload >= WRITER_BATCH_PAYLOAD_BYTES
    }

    /// Stores a content: its chunks and, unless it is one chunk, its manifest.
    ///
    /// # Errors
    /// What writing meets.
    pub fn put_content(&mut self, content: &PreparedContent) -> Result<()> {
        for chunk in &content.chunks {
            self.put_chunk(chunk)?;
        }
        self.put_manifest(&content.manifest())
    }

    /// Stores a chunk.
    ///
    /// # Errors
    /// What writing meets.
    pub fn put_chunk(&mut self, chunk: &PreparedChunk) -> Result<()> {
        if self.knows(Table::Chunks, chunk.id.as_bytes())? {
            return Ok(());
        }
        self.put_object(Object::Chunk(chunk.id), chunk.encoding, chunk.raw_len, &chunk.stored)
    }

    /// Replaces what is stored of a chunk, to heal a damaged one.
    ///
    /// # Errors
    /// What writing meets.
    pub fn replace_chunk(&mut self, chunk: &PreparedChunk) -> Result<()> {
        self.chunks_healed += 1;
        self.put_object(Object::Chunk(chunk.id), chunk.encoding, chunk.raw_len, &chunk.stored)
    }

    /// Records of which chunks a content consists. They must be in the store or in this batch.
    /// A content of one chunk, or none, needs no record.
    ///
    /// # Errors
    /// [`Error::Refused`] if the chunks do not make up the content, [`Error::MissingChunk`] if one
    /// of them is not there.
    pub fn put_manifest(&mut self, content: &StreamedContent) -> Result<()> {
        let fits = adds_up(content)
            && match content.chunks.as_slice() {
                [] => content.id == empty_content(),
                [(only, _)] => content.id == (*only).into(),
                _ => true,
            };
        if !fits {
            return Err(Error::Refused(format!(
                "a manifest whose chunks do not make up content {}",
                content.id
            )));
        }
        for (chunk, _) in &content.chunks {
            if !self.knows(Table::Chunks, chunk.as_bytes())? {
                return Err(Error::MissingChunk(*chunk));
            }
        }
        if content.chunks.len() > 1 {
            self.core.collector.put(Item::Manifest(content.id));
            self.put_sealed(
                Table::Manifests,
                content.id.as_bytes().to_vec(),
                encode_manifest(content),
            );
        }
        Ok(())
    }

    /// Stores a directory object.
    ///
    /// # Errors
    /// What writing meets.
    pub fn put_tree(&mut self, tree: &EncodedTree) -> Result<()> {
        let object = Object::Tree(tree.subtree.id);
        if self.knows(Table::Trees, object.id())? {
            return Ok(());
        }
        self.put_object(object, Encoding::Raw, tree.bytes.len() as u32, &tree.bytes)
    }

    /// Replaces what is stored of a directory object, to heal a damaged one. Its subtrees must be
    /// in the store or in this batch.
    ///
    /// # Errors
    /// What writing meets.
    pub fn replace_tree(&mut self, tree: &EncodedTree) -> Result<()> {
        self.trees_healed += 1;
        let object = Object::Tree(tree.subtree.id);
        self.put_object(object, Encoding::Raw, tree.bytes.len() as u32, &tree.bytes)
    }

    /// Writes an object that is whole to a new record; `bytes` are those that its id is the hash of.
    ///
    /// # Errors
    /// What writing meets.
    pub(crate) fn rewrite(&mut self, object: Object, bytes: &[u8]) -> Result<()> {
        let (encoding, stored) = match object {
            Object::Chunk(_) => Encoder::default().encode(bytes),
            Object::Tree(_) => (Encoding::Raw, bytes.to_vec()),
        };
        self.put_object(object, encoding, bytes.len() as u32, &stored)
    }

    /// Records that git blob `oid` is the content `stored`, in both directions.
    pub fn map_blob(&mut self, oid: &GitOid, stored: Stored) {
        let key = oid_key(oid);
        self.put_sealed(Table::Contents, content_key(&stored.id, oid.kind()), key.clone());
        self.put_sealed(Table::Blobs, key, encode_stored(&stored));
    }

    /// Records that git tree `oid` became `subtree` under the conversion context `context`, unless
    /// that is not in the store any more.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn map_tree(&mut self, oid: &GitOid, context: &[u8; 32], subtree: &Subtree) -> Result<()> {
        if self.knows(Table::Trees, subtree.id.as_bytes())? {
            self.put_tree_entry(oid, context, subtree);
        }
        Ok(())
    }

    fn put_tree_entry(&mut self, oid: &GitOid, context: &[u8; 32], subtree: &Subtree) {
        self.put_sealed(Table::GitTrees, git_tree_key(oid, context), encode_subtree(subtree));
    }

    /// Adds a repository or replaces that of the same name.
    pub fn put_repository(&mut self, repository: &Repository) {
        self.put_sealed(Table::Repositories, repository.key(), repository.encode());
    }

    /// Removes a repository; removing none is no error.
    pub fn remove_repository(&mut self, name: &str) {
        self.change(Table::Repositories, name.as_bytes().to_vec(), None);
    }

    /// Adds a branch or replaces that of the same name.
    pub fn put_branch(&mut self, branch: &Branch) {
        self.put_sealed(Table::Branches, branch.key(), branch.encode());
    }

    /// Removes a branch; removing none is no error.
    pub fn remove_branch(&mut self, repository: &str, name: &str) {
        self.change(Table::Branches, branch_key(repository, name), None);
    }

    /// Adds a worktree or replaces that at the same directory.
    pub fn put_worktree(&mut self, worktree: &WorktreeRecord) {
        self.put_sealed(Table::Worktrees, worktree.key(), worktree.encode());
    }

    /// Removes a worktree; removing none is no error.
    pub fn remove_worktree(&mut self, dir: &Path) {
        self.change(Table::Worktrees, worktree_key(dir), None);
    }

    /// Makes the changes durable, then visible.
    ///
    /// # Errors
    /// What writing meets. Whether the changes then are in the store or not, they are so all
    /// together.
    pub fn commit(mut self) -> Result<()> {
        if self.broken {
            return Err(Error::Poisoned {
                path: self.core.dir.clone(),
                why: "this batch is incomplete".into(),
            });
        }
        if self.changes.is_empty() && self.state.appender.tail() == self.start {
            return Ok(());
        }
        let result = self.write();
        if result.is_err() {
            // Nobody knows now what is on disk. The last durable state says how to go on; if it
            // cannot be had, the state remembers that, and later batches are refused.
            if let Err(error) = self.core.reopen(&mut self.state) {
                tracing::error!(%error, "the store failed and cannot be opened again");
            }
        }
        // Nothing is left to take back.
        self.start = self.state.appender.tail();
        result
    }

    fn write(&mut self) -> Result<()> {
        let WriteState { database, appender, .. } = &mut *self.state;
        let counters = &self.core.counters;
        appender.sync()?;
        count(&counters.syncs, std::mem::take(&mut appender.syncs));
        count(&counters.bytes_written, std::mem::take(&mut appender.written));
        let tail = appender.tail();
        if tail != self.start {
            let sealed = seal(META_TAIL, tail.encode());
            self.changes.entry(Table::Meta).or_default().insert(META_TAIL.to_vec(), Some(sealed));
        }
        let database: &Database = database.as_ref().ok_or_else(|| Error::Poisoned {
            path: self.core.dir.clone(),
            why: "its database is closed".into(),
        })?;
        database.apply(&self.changes)?;
        self.core.snapshot.store(Arc::new(database.snapshot()?));
        count(&counters.commits, 1);
        count(&counters.chunks_healed, self.chunks_healed);
        count(&counters.trees_healed, self.trees_healed);
        Ok(())
    }

    /// The keys of `table` that begin with `prefix`, without those of this batch.
    pub(super) fn keys(&self, table: Table, prefix: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut keys = Vec::new();
        self.core.snapshot.load().scan(table, prefix, |key, _| {
            keys.push(key.to_vec());
            Ok(())
        })?;
        Ok(keys)
    }

    /// The state before this batch.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.core.snapshot.load_full()
    }

    /// Whether this batch removes `key`.
    pub(super) fn removes(&self, table: Table, key: &[u8]) -> bool {
        self.changes.get(&table).and_then(|changes| changes.get(key)).is_some_and(Option::is_none)
    }

    /// Whether `key` is there, for who is about to refer to it.
    pub(super) fn knows(&self, table: Table, key: &[u8]) -> Result<bool> {
        if let Some(change) = self.changes.get(&table).and_then(|changes| changes.get(key)) {
            return Ok(change.is_some());
        }
        let found = self.core.snapshot.load().contains(table, key)?;
        // What is condemned is not there for who would refer to it.
        Ok(found && Item::of(table, key).is_none_or(|item| self.core.collector.found(item)))
    }

    fn put_object(
        &mut self,
        object: Object,
        encoding: Encoding,
        raw_len: u32,
        stored: &[u8],
    ) -> Result<()> {
        if u64::from(raw_len) > object.limit() || stored.len() > raw_len as usize {
            return Err(Error::TooLarge {
                what: format!("{object} of {raw_len} bytes, stored in {}", stored.len()),
                limit: object.limit(),
            });
        }
        if stored.len() > INLINE_BYTES_MAX {
            let header = RecordHeader::new(object, encoding, raw_len, stored);
            return self.put_record(object, &header, stored);
        }
        self.put_place(object, &Place { encoding, raw_len, at: At::Inline(stored) });
        Ok(())
    }

    /// Appends a record and states that the object lies there.
    pub(super) fn put_record(
        &mut self,
        object: Object,
        header: &RecordHeader,
        stored: &[u8],
    ) -> Result<()> {
        let appended = self.state.appender.append(header, stored);
        self.note_append(appended.is_ok());
        let at = At::Segment(appended?);
        self.put_place(object, &Place { encoding: header.encoding, raw_len: header.raw_len, at });
        Ok(())
    }

    fn put_place(&mut self, object: Object, place: &Place<'_>) {
        self.core.collector.put(match object {
            Object::Chunk(id) => Item::Chunk(id),
            Object::Tree(id) => Item::Tree(id),
        });
        self.change(object.table(), object.id().to_vec(), Some(place.encode()));
    }

    pub(super) fn appender(&mut self) -> &mut Appender {
        &mut self.state.appender
    }

    /// Notes whether an append was complete: otherwise nothing of this batch can be committed.
    pub(super) fn note_append(&mut self, complete: bool) {
        self.broken |= !complete;
    }

    pub(super) fn put_sealed(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        let sealed = seal(&key, value);
        self.change(table, key, Some(sealed));
    }

    pub(super) fn change(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.bytes += CHANGE_BYTES + key.len() + value.as_ref().map_or(0, Vec::len);
        self.changes.entry(table).or_default().insert(key, value);
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.state.appender.rewind(self.start) {
            tracing::error!(%error, "an abandoned batch cannot be taken back");
            self.state.failed = Some(error.to_string());
        }
    }
}
