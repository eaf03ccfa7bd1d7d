//! The bytes of files: from the store, and from the repository where the store does not have them.
//!
//! A file whose blob is not in the store yet is read from the repository at once, verified against
//! its git object id, handed to the store's writer and kept in memory until the writer has it, so
//! that the next read does not inflate it again. A chunk that is damaged or gone is rebuilt the same
//! way: verified against the content id, stored in place of the bad one, and only then served.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tracing::{error, warn};

use crate::content::Preparer;
use crate::error::{Error, Result};
use crate::id::{ContentId, GitOid};
use crate::source::{Blob, ObjectSource};
use crate::store::{Store, WriteItem};
use crate::tree::Entry;

/// Most bytes of fetched blobs that are kept while the writer stores them.
const RECENT_BYTES_MAX: usize = 32 << 20;

/// The contents of one repository's files, shared by all its worktrees.
pub struct Contents {
    store: Arc<Store>,
    source: Option<Arc<dyn ObjectSource>>,
    /// Leaf lock: never held while the store or the repository is read.
    fetches: Mutex<Fetches>,
    finished: Condvar,
}

/// Blobs that are being fetched, and those that were a moment ago.
#[derive(Default)]
struct Fetches {
    running: HashSet<GitOid>,
    recent: HashMap<GitOid, Arc<[u8]>>,
    /// The keys of `recent`, oldest first.
    order: VecDeque<GitOid>,
    recent_bytes: usize,
}

impl Contents {
    /// Contents that the store holds or `source` can supply.
    pub fn new(store: Arc<Store>, source: Option<Arc<dyn ObjectSource>>) -> Arc<Self> {
        Arc::new(Self { store, source, fetches: Mutex::default(), finished: Condvar::new() })
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The repository that supplies what the store does not have.
    pub fn source(&self) -> Option<&Arc<dyn ObjectSource>> {
        self.source.as_ref()
    }

    /// Lets go of what is kept in memory until it is stored. Called when an import has ended, since
    /// nothing asks for it from then on.
    pub fn trim(&self) {
        let mut fetches = self.lock();
        fetches.recent = HashMap::new();
        fetches.order = VecDeque::new();
        fetches.recent_bytes = 0;
    }

    /// Reads the file of `entry` from `offset` into `out`; fewer bytes than asked for only at its
    /// end. `path` names the file in errors and finds its attributes when it must be converted
    /// again.
    ///
    /// # Errors
    /// [`Error::MissingObject`] or [`Error::Source`] where only the repository has it and cannot
    /// supply it, [`Error::Corrupt`] where the store's copy is damaged and cannot be rebuilt, and
    /// what reading the store meets.
    pub fn read(
        &self,
        entry: &Entry<'_>,
        path: impl Fn() -> Result<Vec<u8>>,
        offset: u64,
        out: &mut [u8],
    ) -> Result<usize> {
        let len = entry.size.saturating_sub(offset).min(out.len() as u64) as usize;
        let out = &mut out[..len];
        if len == 0 {
            return Ok(0);
        }
        let id = match self.content_of(entry) {
            Ok(id) => id,
            // The map is damaged, not the content: the repository knows what the object holds, and
            // storing it writes the entry anew.
            Err(damage) if damage.is_corruption() && self.source.is_some() => {
                warn!(%damage, "a file is read from the repository instead");
                None
            }
            Err(other) => return Err(other),
        };
        let Some(id) = id else {
            let oid = entry.oid.ok_or_else(|| {
                Error::corrupt(format!("{:?}", String::from_utf8_lossy(entry.name)), "it has no id")
            })?;
            return self.read_unstored(oid, entry.size, offset, out);
        };
        match self.store.read_at(id, offset, out) {
            Ok(read) => Ok(read),
            Err(damage) if damage.is_corruption() => {
                let path = path()?;
                self.rebuild(entry, id, &path, damage)?;
                self.store.read_at(id, offset, out)
            }
            Err(other) => Err(other),
        }
    }

    /// The id under which the store has the content of `entry`, if it is there.
    pub(super) fn content_of(&self, entry: &Entry<'_>) -> Result<Option<ContentId>> {
        if entry.content.is_some() {
            return Ok(entry.content);
        }
        let Some(oid) = entry.oid else {
            return Ok(None);
        };
        match self.store.content_of(&oid)? {
            Some(stored) if stored.size != entry.size => Err(Error::corrupt(
                format!("the map entry of git object {oid}"),
                format!("it states {} bytes, the tree {}", stored.size, entry.size),
            )),
            stored => Ok(stored.map(|stored| stored.id)),
        }
    }

    fn read_unstored(&self, oid: GitOid, size: u64, offset: u64, out: &mut [u8]) -> Result<usize> {
        loop {
            let mut fetches = self.lock();
            if let Some(bytes) = fetches.recent.get(&oid).map(Arc::clone) {
                drop(fetches);
                return copy_range(&bytes, size, offset, out, &oid);
            }
            if fetches.running.insert(oid) {
                break;
            }
            drop(self.finished.wait(fetches).unwrap_or_else(PoisonError::into_inner));
            // A large blob is never recent: the fetch that ended has stored it.
            if let Some(stored) = self.store.content_of(&oid)? {
                return self.store.read_at(stored.id, offset, out);
            }
        }
        let _running = Running { contents: self, oid };
        match self.fetch(&oid)? {
            Some(bytes) => copy_range(&bytes, size, offset, out, &oid),
            None => match self.store.content_of(&oid)? {
                Some(stored) => self.store.read_at(stored.id, offset, out),
                None => Err(Error::MissingObject(oid)),
            },
        }
    }

    /// Reads a blob from the repository and hands it to the writer. `None` for one too large to
    /// hold: that one is in the store when this returns.
    fn fetch(&self, oid: &GitOid) -> Result<Option<Arc<[u8]>>> {
        let source = self.source.as_ref().ok_or(Error::MissingObject(*oid))?;
        let mut preparer = Preparer::new();
        match source.blob(oid)? {
            Blob::Whole(bytes) => {
                let bytes: Arc<[u8]> = bytes.into();
                self.lock().remember(*oid, Arc::clone(&bytes));
                let item = WriteItem::Blob { oid: *oid, content: preparer.content(&bytes) };
                if !self.store.writer().try_send(item) {
                    // The importer will come to it; until then it is read from the repository.
                    tracing::debug!(%oid, "the writer is busy: a fetched blob is not stored now");
                }
                Ok(Some(bytes))
            }
            Blob::Stream(mut reader) => {
                let (writer, hold) = (self.store.writer().session(), self.store.hold());
                let content = preparer
                    .stream(&mut *reader, &mut |chunk| writer.send(WriteItem::Chunk(chunk)))?;
                writer.send(WriteItem::Manifest { oid: Some(*oid), content, hold })?;
                writer.flush()?;
                Ok(None)
            }
        }
    }

    /// Stores the content `id` of `entry` anew from the repository, after `damage` was met.
    pub(super) fn rebuild(
        &self,
        entry: &Entry<'_>,
        id: ContentId,
        path: &[u8],
        damage: Error,
    ) -> Result<()> {
        let shown = String::from_utf8_lossy(path).into_owned();
        let (Some(source), Some(oid)) = (&self.source, entry.oid) else {
            error!(path = shown, %damage, "a file cannot be read and no repository has it");
            return Err(damage);
        };
        let blob = match entry.content {
            Some(_) => source.converted(&oid, path),
            None => source.blob(&oid),
        };
        let rebuilt = blob.and_then(|blob| self.replace(id, blob));
        match rebuilt {
            Ok(()) => {
                warn!(path = shown, %damage, "a damaged file was rebuilt from the repository");
                Ok(())
            }
            Err(why) => {
                error!(path = shown, %damage, %why, "a file cannot be read nor rebuilt");
                Err(damage)
            }
        }
    }

    /// Replaces every chunk of content `id` by those of `blob`, which must be that content.
    fn replace(&self, id: ContentId, blob: Blob) -> Result<()> {
        let mut preparer = Preparer::new();
        let mut batch = self.store.batch()?;
        let found = match blob {
            Blob::Whole(bytes) => {
                let content = preparer.content(&bytes);
                for chunk in &content.chunks {
                    batch.replace_chunk(chunk)?;
                }
                batch.put_content(&content)?;
                content.id
            }
            Blob::Stream(mut reader) => {
                let content =
                    preparer.stream(&mut *reader, &mut |chunk| batch.replace_chunk(&chunk))?;
                batch.put_manifest(&content)?;
                content.id
            }
        };
        if found != id {
            return Err(Error::corrupt(
                format!("content {id}"),
                format!("the repository now gives {found}"),
            ));
        }
        batch.commit()
    }

    fn lock(&self) -> MutexGuard<'_, Fetches> {
        // Every change of the maps is complete before anything can panic.
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetches {
    fn remember(&mut self, oid: GitOid, bytes: Arc<[u8]>) {
        self.recent_bytes += bytes.len();
        if let Some(before) = self.recent.insert(oid, bytes) {
            self.recent_bytes -= before.len();
        } else {
            self.order.push_back(oid);
        }
        while self.recent_bytes > RECENT_BYTES_MAX && self.order.len() > 1 {
            if let Some(bytes) = self.order.pop_front().and_then(|oid| self.recent.remove(&oid)) {
                self.recent_bytes -= bytes.len();
            }
        }
    }
}

/// Marks a blob as being fetched until it is dropped, however the fetch ends.
struct Running<'a> {
    contents: &'a Contents,
    oid: GitOid,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.contents.lock().running.remove(&self.oid);
        self.contents.finished.notify_all();
    }
}

fn copy_range(bytes: &[u8], size: u64, offset: u64, out: &mut [u8], oid: &GitOid) -> Result<usize> {
    if bytes.len() as u64 != size {
        return Err(Error::corrupt(
            format!("the size of git object {oid}"),
            format!("the tree states {size} bytes, the object has {}", bytes.len()),
        ));
    }
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let len = out.len().min(bytes.len() - start);
    out[..len].copy_from_slice(&bytes[start..start + len]);
    Ok(len)
}
