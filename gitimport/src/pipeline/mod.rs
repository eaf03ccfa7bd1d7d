//! From git blobs to chunks of the store.
//!
//! Workers read blobs in the order in which they lie in the packs, verify, cut, hash and compress
//! them, and hand them to the store's writer, which makes them wait when it is behind. What is
//! mapped already is not read, so a run that was interrupted is continued by the next one.
//!
//! Memory: of each blob that is still to be read its id and size; of each worker a light object
//! with its delta chain. Larger blobs are streamed.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use agentfs_engine::content::Preparer;
use agentfs_engine::progress::{Cancel, Phase, Progress};
use agentfs_engine::store::{Session, Store, WriteItem};
use agentfs_engine::{GitOid, HashKind, TreeId};

use crate::error::{Error, Result};
use crate::limits::{DAMAGED_BLOBS_MAX, LIGHT_OBJECT_BYTES_MAX, workers};
use crate::object::Kind;
use crate::odb::Reader;
use crate::repository::Repository;
use crate::walk::ImportedTrees;

/// Blobs that a worker takes at a time: few enough to share the work, enough to stay in a pack's
/// neighbourhood.
const BLOCK_BLOBS: usize = 32;

/// A blob above this size is handed to the writer at once, so that those of a block do not add up.
const READY_BLOB_BYTES_MAX: usize = 64 << 10;

/// What an ingest did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IngestReport {
    /// Blobs stored.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that the store had already.
    pub known: u64,
}

/// Stores all blobs below directory object `root` that the git map does not know yet; they are
/// durable when this returns. A damaged blob does not keep the others from being stored.
///
/// When all are there, and have the sizes that the directory objects state, the git map also gets
/// `trees`, those that the import of `root` has read: the next import need not read them. None are
/// needed to continue an ingest that was interrupted.
///
/// # Errors
/// [`Error::AtPath`] or [`Error::Blobs`] naming a path and an object for blobs that are missing or
/// damaged; what the store meets; cancellation.
pub fn ingest(
    store: &Store,
    repository: &Repository,
    root: TreeId,
    trees: &ImportedTrees,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    match repository.hash() {
        HashKind::Sha1 => ingest_of::<20>(store, repository, root, trees, progress, cancel),
        HashKind::Sha256 => ingest_of::<32>(store, repository, root, trees, progress, cancel),
    }
}

/// [`ingest`] of a repository whose object ids have `N` bytes.
fn ingest_of<const N: usize>(
    store: &Store,
    repository: &Repository,
    root: TreeId,
    trees: &ImportedTrees,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport>
where
    GitOid: From<[u8; N]>,
{
    let wanted = blobs_below::<N>(store, root, cancel)?;
    // It lets go of them: mapping trees takes memory of its own.
    let report = store_blobs(store, repository, root, wanted, (progress, cancel))?;
    trees.map(store)?;
    Ok(report)
}

/// Stores those of `blobs`, which lie below directory object `root`, that the git map does not know yet, each
/// with the size that its directory object states; they are durable when this returns.
///
/// # Errors
/// As [`ingest`].
pub fn ingest_some(
    store: &Store,
    repository: &Repository,
    root: TreeId,
    blobs: &[(GitOid, u64)],
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    let watched = (progress, cancel);
    match repository.hash() {
        HashKind::Sha1 => ingest_some_of::<20>(store, repository, root, blobs, watched),
        HashKind::Sha256 => ingest_some_of::<32>(store, repository, root, blobs, watched),
    }
}

/// [`ingest_some`] of a repository whose object ids have `N` bytes.
fn ingest_some_of<const N: usize>(
    store: &Store,
    repository: &Repository,
    root: TreeId,
    blobs: &[(GitOid, u64)],
    watched: (&dyn Progress, &Cancel),
) -> Result<IngestReport>
where
    GitOid: From<[u8; N]>,
{
    let wanted = blobs.iter().map(|(oid, size)| Wanted::new(oid, *size));
    let mut wanted: Vec<Wanted<N>> = wanted.collect::<Result<_>>()?;
    wanted.sort_unstable();
    wanted.dedup();
    store_blobs(store, repository, root, wanted, watched)
}

fn store_blobs<const N: usize>(
    store: &Store,
    repository: &Repository,
    root: TreeId,
    mut wanted: Vec<Wanted<N>>,
    (progress, cancel): (&dyn Progress, &Cancel),
) -> Result<IngestReport>
where
    GitOid: From<[u8; N]>,
{
    let all = wanted.len();
    let mut fault = None;
    wanted.retain(|blob| {
        let known =
            store.content_of(&blob.oid()).map_err(Error::from).and_then(|known| match known {
                Some(known) => blob.check_size(known.size).map(|()| true),
                None => Ok(false),
            });
        known.map_err(|error| fault.get_or_insert((blob.oid(), error))).is_ok_and(|known| !known)
    });
    if let Some((oid, fault)) = fault {
        return Err(fault.at(&path_of(store, root, &oid)?));
    }
    in_pack_order(&mut wanted, &mut repository.odb().reader())?;
    let ingest = Ingest {
        session: store.writer().session(),
        store,
        repository,
        progress,
        cancel,
        wanted: &wanted,
        next: AtomicUsize::new(0),
        blobs: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        failures: Mutex::default(),
    };
    // Sizes that headers state may be anything.
    let bytes = wanted.iter().map(Wanted::size).fold(0, u64::saturating_add);
    progress.begin(Phase::Ingest, Some(wanted.len() as u64), Some(bytes));
    let result = ingest.run(root);
    progress.end(Phase::Ingest);
    result?;
    Ok(IngestReport {
        blobs: ingest.blobs.into_inner(),
        bytes: ingest.bytes.into_inner(),
        known: (all - wanted.len()) as u64,
    })
}

/// A blob that a tree names, in a repository whose object ids have `N` bytes. Without alignment and without
/// what is the same for all, since there may be millions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted<const N: usize> {
    digest: [u8; N],
    size: [u8; 8],
}

impl<const N: usize> Wanted<N>
where
    GitOid: From<[u8; N]>,
{
    fn new(oid: &GitOid, size: u64) -> Result<Self> {
        let digest = oid.as_bytes().try_into().map_err(|_| {
            Error::corrupt(oid, "a tree names it, whose repository has ids of another kind")
        })?;
        Ok(Self { digest, size: size.to_le_bytes() })
    }

    fn oid(&self) -> GitOid {
        self.digest.into()
    }

    fn size(&self) -> u64 {
        u64::from_le_bytes(self.size)
    }

    /// Compares the size that the directory object states with the true one.
    fn check_size(&self, found: u64) -> Result<()> {
        if self.size() == found {
            return Ok(());
        }
        let stated = self.size();
        Err(Error::corrupt(
            &self.oid(),
            format!("its header stated {stated} bytes when its tree was imported; it has {found}"),
        ))
    }
}

/// The different blobs below `root` that are checked out as they are, by id.
fn blobs_below<const N: usize>(
    store: &Store,
    root: TreeId,
    cancel: &Cancel,
) -> Result<Vec<Wanted<N>>>
where
    GitOid: From<[u8; N]>,
{
    let mut wanted = Vec::new();
    let mut seen = HashSet::from([root]);
    let mut todo = vec![root];
    while let Some(id) = todo.pop() {
        cancel.check()?;
        for entry in store.tree(id)?.entries() {
            if let Some(subtree) = entry.subtree {
                if seen.insert(subtree.id) {
                    todo.push(subtree.id);
                }
            } else if let (false, None, Some(oid)) =
                (entry.kind.is_directory(), entry.content, entry.oid)
            {
                wanted.push(Wanted::new(&oid, entry.size)?);
            }
        }
    }
    wanted.sort_unstable();
    wanted.dedup();
    Ok(wanted)
}

/// Sorts blobs by where they lie. The positions are not kept: there may be millions.
fn in_pack_order<const N: usize>(wanted: &mut [Wanted<N>], reader: &mut Reader) -> Result<()>
where
    GitOid: From<[u8; N]>,
{
    let mut fault = None;
    wanted.sort_by_cached_key(|blob| match reader.position(&blob.oid()) {
        Ok(position) => Some(position),
        Err(error) => {
            fault.get_or_insert(error);
            None
        }
    });
    fault.map_or(Ok(()), Err)
}

struct Ingest<'a, const N: usize> {
    store: &'a Store,
    session: Session<'a>,
    repository: &'a Repository,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
    /// In the order in which they lie in the packs.
    wanted: &'a [Wanted<N>],
    /// The next in `wanted` that no worker has taken.
    next: AtomicUsize,
    blobs: AtomicU64,
    bytes: AtomicU64,
    /// Leaf lock.
    failures: Mutex<Failures>,
}

/// What one thread owns.
struct Worker {
    reader: Reader,
    preparer: Preparer,
    bytes: Vec<u8>,
    /// Blobs for the writer.
    ready: Vec<WriteItem>,
}

#[derive(Default)]
struct Failures {
    /// What ends all work.
    fatal: Option<Error>,
    /// Blobs that are damaged, and the first of them.
    damaged: u64,
    first: Option<(GitOid, Error)>,
}

impl<const N: usize> Ingest<'_, N>
where
    GitOid: From<[u8; N]>,
{
    fn run(&self, root: TreeId) -> Result<()> {
        std::thread::scope(|scope| {
            for _ in 1..workers().min(self.wanted.len().div_ceil(BLOCK_BLOBS)) {
                scope.spawn(|| self.work());
            }
            self.work();
        });
        let failures = std::mem::take(&mut *self.failures());
        if let Some(fatal) = failures.fatal {
            return Err(fatal);
        }
        self.session.flush()?;
        let Some((oid, error)) = failures.first else { return Ok(()) };
        let error = error.at(&path_of(self.store, root, &oid)?);
        match failures.damaged {
            1 => Err(error),
            failed => Err(Error::Blobs { failed, first: Box::new(error) }),
        }
    }

    fn work(&self) {
        let mut worker = Worker {
            reader: self.repository.odb().reader().cancelled_by(self.cancel),
            preparer: Preparer::new(),
            bytes: Vec::new(),
            ready: Vec::with_capacity(BLOCK_BLOBS),
        };
        loop {
            let start = self.next.fetch_add(BLOCK_BLOBS, Ordering::Relaxed);
            let Some(rest) = self.wanted.get(start..).filter(|rest| !rest.is_empty()) else {
                return;
            };
            for blob in &rest[..rest.len().min(BLOCK_BLOBS)] {
                // A panic would be a defect; it must not take the process with it.
                let result = catch_unwind(AssertUnwindSafe(|| self.prepare(&mut worker, blob)));
                let panicked = |_| Err(Error::corrupt(&blob.oid(), "storing it failed"));
                if let Err(error) = result.unwrap_or_else(panicked)
                    && self.is_fatal(&blob.oid(), error)
                {
                    return;
                }
            }
            if let Err(error) = self.send(&mut worker.ready) {
                self.end(error);
                return;
            }
        }
    }

    /// Makes `blob` ready to be stored, or stores it if it is large.
    fn prepare(&self, worker: &mut Worker, blob: &Wanted<N>) -> Result<()> {
        self.cancel.check()?;
        let Worker { reader, preparer, bytes, ready } = worker;
        let oid = blob.oid();
        match reader.read(&oid, Kind::Blob, LIGHT_OBJECT_BYTES_MAX, bytes) {
            Ok(()) => {
                blob.check_size(bytes.len() as u64)?;
                ready.push(WriteItem::Blob { oid, content: preparer.content(bytes) });
                // Few large ones at a time, and many small ones: waking the writer costs more than
                // storing a small one.
                if bytes.len() > READY_BLOB_BYTES_MAX { self.send(ready) } else { Ok(()) }
            }
            Err(Error::TooLarge { .. }) => {
                let item = self.stream(reader, preparer, blob)?;
                ready.push(item);
                self.send(ready)
            }
            Err(error) => Err(error),
        }
    }

    /// Stores the chunks of a large blob; returns what makes them one.
    fn stream(
        &self,
        reader: &mut Reader,
        preparer: &mut Preparer,
        blob: &Wanted<N>,
    ) -> Result<WriteItem> {
        let hold = self.store.hold();
        let oid = blob.oid();
        let mut stream = reader.stream(&oid)?;
        let content = preparer
            .stream(&mut stream, &mut |chunk| {
                self.cancel.check()?;
                self.session.send(WriteItem::Chunk(chunk))
            })
            .map_err(|error| Error::streamed(&oid, error))?;
        blob.check_size(content.size)?;
        Ok(WriteItem::Manifest { oid: Some(oid), content, hold })
    }

    /// Hands blobs to the writer.
    fn send(&self, ready: &mut Vec<WriteItem>) -> Result<()> {
        for item in ready.drain(..) {
            let size = match &item {
                WriteItem::Blob { content, .. } => content.size,
                WriteItem::Manifest { content, .. } => content.size,
                _ => 0,
            };
            self.session.send(item)?;
            self.blobs.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(size, Ordering::Relaxed);
            self.progress.advance(Phase::Ingest, 1, size);
        }
        Ok(())
    }

    /// Takes note of a failure; whether it ends all work.
    fn is_fatal(&self, oid: &GitOid, error: Error) -> bool {
        let mut failures = self.failures();
        if matches!(error, Error::Engine(_)) {
            drop(failures);
            self.end(error);
            return true;
        }
        failures.damaged += 1;
        failures.first.get_or_insert((*oid, error));
        failures.damaged >= DAMAGED_BLOBS_MAX
    }

    /// Ends all work.
    fn end(&self, error: Error) {
        self.failures().fatal.get_or_insert(error);
        self.next.store(self.wanted.len(), Ordering::Relaxed);
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, Failures> {
        // Each change is complete before anything can panic.
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A path below `root` at which blob `oid` lies, for an error.
fn path_of(store: &Store, root: TreeId, oid: &GitOid) -> Result<Vec<u8>> {
    let mut seen = HashSet::from([root]);
    let mut todo = vec![(root, Vec::new())];
    while let Some((id, path)) = todo.pop() {
        for entry in store.tree(id)?.entries() {
            let mut below: Vec<u8> = path.clone();
            below.extend_from_slice(entry.name);
            match entry.subtree {
                Some(subtree) if seen.insert(subtree.id) => {
                    below.push(b'/');
                    todo.push((subtree.id, below));
                }
                None if entry.oid == Some(*oid) => return Ok(below),
                _ => {}
            }
        }
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests;
