//! Verifies everything in a store. It only reads: repair is another matter.
//!
//! Chunks are read in the order in which they lie in the segments, by all cores, and each is
//! decompressed once: its blake3 and, where it is a whole git blob, the object id are computed in
//! the same pass. Contents of several chunks are hashed chunk by chunk, one content a thread.

mod branch;
mod finding;
mod index;
mod overlay;
#[cfg(test)]
mod renewal_tests;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

pub use finding::Finding;

use crate::content::StreamedContent;
use crate::encoding::{Decoder, check_lengths};
use crate::error::{Error, Result};
use crate::id::{ChunkId, ContentId, GitOid, HashKind, TreeId};
use crate::progress::{Cancel, Phase, Progress};
use crate::store::{
    At, Branch, Object, Place, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, Segments, Snapshot,
    SnapshotRecord, Store, Stored, Table, WorktreeRecord, check_header, decode_sealed,
    decode_stored, decode_verified, empty_content, oid_key, tail_of,
};
use crate::tree::{Subtree, Tree};
use index::Index;

/// What the check needs to know of git, which this crate does not.
pub trait GitVerifier: Send + Sync {
    /// A hasher for a blob of `size` bytes.
    fn blob_hasher(&self, kind: HashKind, size: u64) -> Box<dyn BlobHasher>;

    /// The git object id of the tree that `tree` was made from; `None` if it cannot be told.
    fn tree_oid(&self, tree: &Tree) -> Option<GitOid>;
}

/// Computes the git object id of one blob.
pub trait BlobHasher {
    /// Adds the next bytes.
    fn update(&mut self, bytes: &[u8]);

    /// The object id.
    fn finish(self: Box<Self>) -> GitOid;
}

/// What a check saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Chunks verified.
    pub chunks: u64,
    /// Directory objects verified.
    pub trees: u64,
    /// Contents verified: those of one chunk and those of several.
    pub contents: u64,
    /// Entries of the git map, for blobs and trees, whose object id was recomputed.
    pub mapped: u64,
    /// Bytes of content hashed.
    pub bytes: u64,
    /// Bytes of segment files that nothing uses. They are no damage.
    pub waste: u64,
    /// Branches with changes that were verified.
    pub branches: u64,
    /// Changed inodes of branches.
    pub inodes: u64,
    /// Changed names of branches.
    pub names: u64,
    /// Records of outboxes that are not drained.
    pub records: u64,
    /// What is wrong, sorted.
    pub findings: Vec<Finding>,
}

/// Verifies every chunk, tree, reference and git map entry of `store`, as it is when the check
/// begins, and what its branches have changed, each as it is when its turn comes. Worktrees may go on
/// being written.
///
/// # Errors
/// [`Error::Cancelled`]. Damage is no error: it is a finding.
pub fn check(
    store: &Arc<Store>,
    git: &dyn GitVerifier,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<CheckReport> {
    // Nothing moves meanwhile.
    let _upkeep = store.upkeep();
    let snapshot = store.core().snapshot();
    let mut findings = Vec::new();
    let index = Index::read(&snapshot, &mut findings);
    let bytes = index.objects.iter().map(|located| u64::from(located.raw_len)).sum();
    progress.begin(Phase::Check, Some(index.objects.len() as u64), Some(bytes));
    let checker = Checker {
        store,
        segments: store.core().segments(),
        snapshot: &snapshot,
        sizes: index.sizes(),
        index: &index,
        git,
        progress,
        cancel,
        findings: Mutex::new(findings),
        verified: Mutex::default(),
        trees: Mutex::default(),
        recorded: Mutex::default(),
        counts: Counts::default(),
    };
    let result = checker.run();
    progress.end(Phase::Check);
    result?;
    Ok(checker.report())
}

#[derive(Debug, Default)]
struct Counts {
    chunks: AtomicU64,
    trees: AtomicU64,
    contents: AtomicU64,
    mapped: AtomicU64,
    bytes: AtomicU64,
    waste: AtomicU64,
    branches: AtomicU64,
    inodes: AtomicU64,
    names: AtomicU64,
    records: AtomicU64,
}

struct Checker<'a> {
    store: &'a Arc<Store>,
    segments: &'a Segments,
    snapshot: &'a Snapshot,
    index: &'a Index,
    /// The size of every content.
    sizes: HashMap<ContentId, u64>,
    git: &'a dyn GitVerifier,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
    /// Leaf locks.
    findings: Mutex<Vec<Finding>>,
    /// Chunks that were verified as part of a content.
    verified: Mutex<HashSet<ChunkId>>,
    /// Trees that were verified.
    trees: Mutex<HashMap<TreeId, Subtree>>,
    /// Subtrees as the tree that comes first records them.
    recorded: Mutex<Vec<(TreeId, Subtree)>>,
    counts: Counts,
}

/// What a thread needs for reading.
#[derive(Default)]
struct Scratch {
    decoder: Decoder,
    record: Vec<u8>,
    bytes: Vec<u8>,
}

impl Checker<'_> {
    fn run(&self) -> Result<()> {
        // The long ones first, so that no core is left with one at the end.
        let mut manifests: Vec<_> = self.index.manifests.iter().collect();
        manifests.sort_unstable_by_key(|manifest| std::cmp::Reverse(manifest.size));
        manifests
            .par_iter()
            .with_max_len(1)
            .try_for_each_init(Scratch::default, |scratch, manifest| {
                self.check_manifest(manifest, scratch)
            })?;
        self.index.objects.par_iter().try_for_each_init(Scratch::default, |scratch, located| {
            self.cancel.check()?;
            match located.object {
                Object::Chunk(id) => self.check_chunk(id, scratch),
                Object::Tree(id) => self.check_tree(id, scratch),
            }
            Ok(())
        })?;
        self.check_subtrees();
        self.check_map();
        self.check_records();
        self.check_segments();
        self.index.branches.par_iter().try_for_each(|branch| self.check_branch(branch))?;
        self.index.other_snapshots().par_iter().try_for_each(|one| self.check_snapshot(one))?;
        self.check_owners();
        self.check_pages();
        self.check_files()
    }

    fn report(self) -> CheckReport {
        let mut findings = self.findings.into_inner().unwrap_or_else(PoisonError::into_inner);
        findings.sort_unstable();
        findings.dedup();
        let Counts {
            chunks,
            trees,
            contents,
            mapped,
            bytes,
            waste,
            branches,
            inodes,
            names,
            records,
        } = self.counts;
        CheckReport {
            chunks: chunks.into_inner(),
            trees: trees.into_inner(),
            contents: contents.into_inner(),
            mapped: mapped.into_inner(),
            bytes: bytes.into_inner(),
            waste: waste.into_inner(),
            branches: branches.into_inner(),
            inodes: inodes.into_inner(),
            names: names.into_inner(),
            records: records.into_inner(),
            findings,
        }
    }

    fn find(&self, finding: Finding) {
        lock(&self.findings).push(finding);
    }

    /// Reads an object into `scratch.bytes` and verifies it; the error if it is damaged.
    fn load(&self, object: &Object, scratch: &mut Scratch) -> Result<()> {
        let Scratch { decoder, record, bytes } = scratch;
        let found = self.snapshot.get(object.table(), object.id(), |value| {
            let place = Place::decode(object, value)?;
            let (stored, intact) = match place.at {
                At::Inline(payload) => (payload, true),
                At::Segment(extent) => {
                    let header = self.segments.read(object, &place, extent, record)?;
                    let payload = &record[RECORD_HEADER_BYTES..];
                    (payload, header.is_intact(payload))
                }
            };
            check_lengths(place.encoding, stored, place.raw_len)
                .map_err(|why| object.corrupt_at(&place.at, why))?;
            bytes.resize(place.raw_len as usize, 0);
            decode_verified(object, &place, stored, decoder, bytes)?;
            if !intact {
                self.find(Finding::BadRecord { object: *object, at: place.at.to_string() });
            }
            Ok(())
        })?;
        found.ok_or_else(|| object.missing())
    }

    fn done(&self, counter: &AtomicU64, bytes: usize) {
        counter.fetch_add(1, Ordering::Relaxed);
        self.progress.advance(Phase::Check, 1, bytes as u64);
    }

    /// Verifies a chunk as such and as the content of one chunk that it may be.
    fn check_chunk(&self, id: ChunkId, scratch: &mut Scratch) {
        let blobs = self.index.blobs_of(id.into());
        let part = self.index.parts.contains(&id);
        if part && blobs.is_empty() && lock(&self.verified).contains(&id) {
            return;
        }
        if let Err(error) = self.load(&Object::Chunk(id), scratch) {
            return self.find(Finding::BadChunk { id, why: error.to_string() });
        }
        let bytes = scratch.bytes.as_slice();
        if !part || !lock(&self.verified).contains(&id) {
            self.counts.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.done(&self.counts.chunks, bytes.len());
        }
        // A chunk that no manifest names is itself a content.
        if !part || !blobs.is_empty() {
            self.counts.contents.fetch_add(1, Ordering::Relaxed);
        }
        for (stored, oid) in blobs {
            let mut hasher = self.git.blob_hasher(oid.kind(), bytes.len() as u64);
            hasher.update(bytes);
            self.compare(oid, stored.id, hasher.finish());
        }
    }

    /// Verifies a content of several chunks, and so its chunks.
    fn check_manifest(&self, manifest: &StreamedContent, scratch: &mut Scratch) -> Result<()> {
        let id = manifest.id;
        let mut whole = blake3::Hasher::new();
        let blobs = self.index.blobs_of(id);
        let mut hashers: Vec<_> =
            blobs.iter().map(|(_, oid)| self.git.blob_hasher(oid.kind(), manifest.size)).collect();
        for &(chunk, len) in &manifest.chunks {
            self.cancel.check()?;
            match self.load(&Object::Chunk(chunk), scratch) {
                Ok(()) => {}
                Err(Error::MissingChunk(_)) => {
                    self.find(Finding::MissingChunk { content: id, chunk });
                    return Ok(());
                }
                // The chunk itself is reported when its turn comes.
                Err(_) => return Ok(()),
            }
            let bytes = scratch.bytes.as_slice();
            if bytes.len() != len as usize {
                let why = format!("it gives {len} bytes to chunk {chunk} of {}", bytes.len());
                self.find(Finding::BadContent { id, why });
                return Ok(());
            }
            whole.update(bytes);
            hashers.iter_mut().for_each(|hasher| hasher.update(bytes));
            self.counts.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if lock(&self.verified).insert(chunk) {
                self.done(&self.counts.chunks, bytes.len());
            }
        }
        if whole.finalize().as_bytes() != id.as_bytes() {
            let why = "its chunks do not make up the bytes of this digest".into();
            self.find(Finding::BadContent { id, why });
        }
        self.counts.contents.fetch_add(1, Ordering::Relaxed);
        for ((_, oid), hasher) in blobs.iter().zip(hashers) {
            self.compare(oid, id, hasher.finish());
        }
        Ok(())
    }

    fn compare(&self, oid: &GitOid, content: ContentId, found: GitOid) {
        self.counts.mapped.fetch_add(1, Ordering::Relaxed);
        if *oid != found {
            self.find(Finding::WrongOid { oid: *oid, of: format!("content {content}"), found });
        }
    }

    /// Verifies a tree and what its entries name.
    fn check_tree(&self, id: TreeId, scratch: &mut Scratch) {
        let decoded = self.load(&Object::Tree(id), scratch).and_then(|()| {
            let bytes = mem::take(&mut scratch.bytes);
            Tree::decode(bytes).map_err(|why| Error::corrupt(format!("tree {id}"), why))
        });
        let tree = match decoded {
            Ok(tree) => tree,
            Err(error) => return self.find(Finding::BadTree { id, why: error.to_string() }),
        };
        for entry in tree.entries() {
            let by = || format!("{:?} in tree {id}", String::from_utf8_lossy(entry.name));
            match (entry.subtree, entry.content, entry.oid) {
                (Some(subtree), ..) => lock(&self.recorded).push((id, subtree)),
                (None, Some(content), _) => self.check_content(content, entry.size, by),
                (None, None, Some(oid)) => {
                    // None: not ingested yet, or a commit of another repository.
                    if let Some(stored) = self.content_of(&oid) {
                        self.check_content(stored.id, entry.size, by);
                    }
                }
                (None, None, None) => {}
            }
        }
        self.check_tree_oids(id, &tree);
        lock(&self.trees).insert(id, tree.subtree(id));
        self.done(&self.counts.trees, tree.bytes().len());
    }

    /// What the git map says of a blob. A damaged entry was reported when the tables were read.
    fn content_of(&self, oid: &GitOid) -> Option<Stored> {
        let key = oid_key(oid);
        let decode = |value: &[u8]| decode_sealed(Table::Blobs, &key, value, decode_stored);
        self.snapshot.get(Table::Blobs, &key, decode).ok().flatten()
    }

    fn check_tree_oids(&self, id: TreeId, tree: &Tree) {
        let mapped = self.index.git_trees_of(id);
        let Some(found) = (!mapped.is_empty()).then(|| self.git.tree_oid(tree)).flatten() else {
            return;
        };
        for (_, oid) in mapped.iter().filter(|(_, oid)| oid.kind() == found.kind()) {
            self.counts.mapped.fetch_add(1, Ordering::Relaxed);
            if *oid != found {
                self.find(Finding::WrongOid { oid: *oid, of: format!("tree {id}"), found });
            }
        }
    }

    /// Compares what is known of a content with what something that names it says.
    fn check_content(&self, id: ContentId, size: u64, by: impl Fn() -> String) {
        let why = match self.sizes.get(&id) {
            Some(&found) if found == size => return,
            Some(found) => format!("has {found} bytes and not {size}"),
            None => "is missing".into(),
        };
        self.find(Finding::WrongContent { id, by: by(), why });
    }

    fn check_subtrees(&self) {
        for (parent, subtree) in lock(&self.recorded).iter() {
            self.check_subtree(subtree.id, Some(subtree), || format!("tree {parent}"));
        }
        for (subtree, oid) in &self.index.git_trees {
            self.check_subtree(subtree.id, Some(subtree), || format!("git tree {oid}"));
        }
        for branch in &self.index.branches {
            let by = || format!("branch {}:{}", branch.repository, branch.name);
            self.check_subtree(branch.root, None, by);
        }
    }

    /// Compares what is known of a tree with what something that names it records.
    fn check_subtree(&self, id: TreeId, recorded: Option<&Subtree>, by: impl Fn() -> String) {
        let why = match (lock(&self.trees).get(&id), recorded) {
            (Some(found), Some(recorded)) if found != recorded => "is not as recorded",
            (Some(_), _) => return,
            (None, _) => "is missing or damaged",
        };
        self.find(Finding::WrongTree { id, by: by(), why: why.into() });
    }

    fn check_map(&self) {
        for (stored, oid) in &self.index.blobs {
            self.check_content(stored.id, stored.size, || format!("git blob {oid}"));
        }
        for (stored, oid) in self.index.blobs_of(empty_content()) {
            self.compare(oid, stored.id, self.git.blob_hasher(oid.kind(), 0).finish());
        }
    }

    fn check_records(&self) {
        let Index { repositories, branches, worktrees, .. } = self.index;
        let has_repository = |name: &str| repositories.iter().any(|known| known.name == name);
        let dangling = |record, names| self.find(Finding::Dangling { record, names });
        for branch in branches.iter().filter(|branch| !has_repository(&branch.repository)) {
            let record = format!("branch {}:{}", branch.repository, branch.name);
            dangling(record, format!("repository {}", branch.repository));
        }
        for worktree in worktrees {
            let WorktreeRecord { dir, repository, branch, .. } = worktree;
            let known = |b: &Branch| b.repository == *repository && b.name == *branch;
            if !branches.iter().any(known) {
                let record = format!("worktree {}", dir.display());
                dangling(record, format!("branch {repository}:{branch}"));
            }
        }
        for snapshot in &self.index.snapshots {
            if !has_repository(&snapshot.repository) {
                let record = format!("snapshot {}", snapshot.number);
                dangling(record, format!("repository {}", snapshot.repository));
            }
            let by = || format!("snapshot {}", snapshot.number);
            self.check_subtree(snapshot.root, None, by);
        }
    }

    /// Verifies what a branch has changed.
    fn check_branch(&self, branch: &Branch) -> Result<()> {
        self.cancel.check()?;
        let mut find = |finding| self.find(finding);
        let Some(changed) = branch::gather(self.store, branch, &mut find) else { return Ok(()) };
        overlay::check(&changed, &mut find);
        let Counts { branches, inodes, names, records, .. } = &self.counts;
        let (changed_inodes, changed_names) = changed.rows;
        for (counter, by) in [
            (branches, u64::from(changed.examined.segments + changed_inodes > 0)),
            (inodes, changed_inodes),
            (names, changed_names),
            (records, changed.examined.records),
        ] {
            counter.fetch_add(by, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Verifies what a snapshot has changed.
    fn check_snapshot(&self, snapshot: &SnapshotRecord) -> Result<()> {
        self.cancel.check()?;
        let mut find = |finding| self.find(finding);
        let changed = branch::gather_snapshot(self.store, snapshot, &mut find);
        if let Some(changed) = changed {
            overlay::check(&changed, &mut find);
        }
        Ok(())
    }

    /// Tells which pages of the database were damaged when all of this was read.
    fn check_pages(&self) {
        let pages = self.store.damaged_pages();
        if !pages.is_empty() {
            self.find(Finding::BadPages { pages });
        }
    }

    /// Looks for layers that nobody needs, and for heads and outboxes of branches that are not on
    /// record.
    fn check_owners(&self) {
        let known: HashSet<_> = self.index.branches.iter().map(|branch| branch.number).collect();
        for &number in self.index.heads.keys().filter(|number| !known.contains(number)) {
            self.find(Finding::HeadOfNoBranch { number });
        }
        let needed = self.index.needed_layers();
        for (&layer, &(_, rows)) in &self.index.layers {
            if !needed.contains(&layer) {
                self.find(Finding::LayerOfNobody { layer, rows });
            }
        }
        // An outbox is made before its branch is on record, and holds nothing until then.
        for number in branch::outboxes(self.store) {
            if !known.contains(&number) && branch::is_used(self.store, number) {
                self.find(Finding::OutboxOfNoBranch { number });
            }
        }
    }

    /// Verifies the plain files of the cache.
    fn check_files(&self) -> Result<()> {
        let go_on = || self.cancel.check();
        let mut find = |name, why| self.find(Finding::BadFile { name, why });
        let read = self.store.files().check(&go_on, &mut find)?;
        self.counts.bytes.fetch_add(read, Ordering::Relaxed);
        Ok(())
    }

    /// Verifies the headers of the segments, and counts what nothing uses. A missing segment was
    /// reported with every chunk in it; what lies beyond the tail is a batch that is under way.
    fn check_segments(&self) {
        let mut used = HashMap::<u32, u64>::new();
        for extent in self.index.objects.iter().filter_map(|located| located.extent) {
            let len = RECORD_HEADER_BYTES as u64 + u64::from(extent.stored_len);
            *used.entry(extent.segment).or_default() += len;
        }
        let Ok(tail) = tail_of(self.snapshot) else { return };
        for number in 1..=tail.segment {
            let Ok(file) = self.segments.file(number) else { continue };
            let bad = |why: String| self.find(Finding::BadSegment { number, why });
            match check_header(&*file, number) {
                Ok(None) => {}
                Ok(Some(why)) => bad(why.into()),
                Err(error) => bad(error.to_string()),
            }
            let len = file.len().unwrap_or(0);
            let end = if number == tail.segment { len.min(tail.end) } else { len };
            let used = used.get(&number).unwrap_or(&0) + SEGMENT_HEADER_BYTES as u64;
            self.counts.waste.fetch_add(end.saturating_sub(used), Ordering::Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is complete before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
