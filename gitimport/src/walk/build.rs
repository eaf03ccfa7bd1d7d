//! One directory object from one git tree.

use std::sync::atomic::Ordering;

use agentfs_engine::limits::{SYMLINK_BYTES_MAX, TREE_DEPTH_MAX};
use agentfs_engine::store::WriteItem;
use agentfs_engine::tree::{Entry, EntryKind, TreeBuilder};
use agentfs_engine::{ContentId, GitOid};

use super::schedule::{Done, Parked};
use super::{Key, Phase, Walk, Worker};
use crate::convert::Scope;
use crate::error::{Error, Result};
use crate::lane::Turn;
use crate::limits::{
    BLOB_BYTES_MAX, CONVERTED_BYTES_MAX, LIGHT_OBJECT_BYTES_MAX, WHOLE_OBJECT_BYTES_MAX, workers,
};
use crate::object::Kind;
use crate::odb::Reader;
use crate::tree::{GitEntry, GitTree};

/// From so many entries on, their headers are read by several threads.
const SPLIT_ENTRIES_MIN: usize = 8192;

impl Walk<'_> {
    /// Builds the directory object of a tree whose subtrees are built, and sends it.
    pub(super) fn build(
        &self,
        worker: &mut Worker,
        id: usize,
        (oid, context): &Key,
        parked: Parked,
    ) -> Result<Done> {
        let Parked { scope, tree } = parked;
        let mut turn = None;
        let tree = match tree {
            Some(tree) => {
                if tree.size() as u64 > LIGHT_OBJECT_BYTES_MAX {
                    turn = Some(self.lane.enter());
                }
                tree
            }
            None => self.read_tree(&mut worker.reader, &mut turn, id, oid)?,
        };
        let mut subtrees = self.subtrees(oid, &scope, &tree)?.into_iter();
        let sizes = self.sizes(&mut worker.reader, id, &tree)?;
        let mut builder = TreeBuilder::new(Some(oid.kind()));
        let mut height = 1;
        for (entry, size) in tree.entries().zip(sizes) {
            let mut made = Entry {
                kind: entry.kind,
                name: entry.name,
                size,
                oid: Some(entry.oid),
                content: None,
                subtree: None,
            };
            if entry.kind == EntryKind::Directory {
                if let Some(done) = subtrees.next() {
                    made.size = done.subtree.size;
                    made.subtree = Some(done.subtree);
                    height = height.max(done.height + 1);
                }
            } else if entry.kind != EntryKind::Gitlink {
                let stored = self.check_out(worker, &mut turn, &scope, entry, size);
                let stored = stored.map_err(|error| error.at(&self.path_of(id, entry.name)))?;
                if let Some((content, size)) = stored {
                    (made.content, made.size) = (Some(content), size);
                }
            }
            builder.push(&made).map_err(|error| {
                Error::refused(&self.path_of(id, entry.name), oid, error.to_string())
            })?;
        }
        if height as usize > TREE_DEPTH_MAX {
            return Err(self.too_deep(id, oid));
        }
        // Written as git writes them today, two trees may be one; the map must not tell them apart.
        let mapped = match tree.canonical_id() {
            Some(canonical) => canonical.map_err(|why| Error::corrupt(oid, why))?,
            None => *oid,
        };
        let git_bytes = tree.size() as u64;
        drop(tree);
        let tree = builder.finish();
        let subtree = tree.subtree;
        self.sink.push(mapped, *context, tree)?;
        self.progress.advance(Phase::Trees, 1, git_bytes);
        Ok(Done { subtree, height })
    }

    /// The directory objects of the tree's subdirectories, in their order.
    fn subtrees(&self, oid: &GitOid, scope: &Scope, tree: &GitTree) -> Result<Vec<Done>> {
        let directories = tree.entries().filter(|entry| entry.kind == EntryKind::Directory);
        let keys: Vec<_> = directories
            .map(|entry| {
                let held = self.replacements.of(&entry.oid)?;
                Ok((held, scope.enter(entry.name, None)?.context()))
            })
            .collect::<Result<_>>()?;
        self.schedule
            .built(keys.into_iter())
            .ok_or_else(|| Error::corrupt(oid, "one of its subtrees was not imported"))
    }

    /// The sizes of all entries that are blobs, 0 for the others.
    fn sizes(&self, reader: &mut Reader, id: usize, tree: &GitTree) -> Result<Vec<u64>> {
        let mut sizes = vec![0; tree.len()];
        if sizes.len() < SPLIT_ENTRIES_MIN {
            self.size_some(reader, id, tree, 0, &mut sizes)?;
            return Ok(sizes);
        }
        let part = sizes.len().div_ceil(workers());
        std::thread::scope(|scope| {
            let parts = sizes.chunks_mut(part).enumerate();
            let threads: Vec<_> = parts
                .map(|(number, sizes)| {
                    scope.spawn(move || {
                        self.size_some(&mut self.odb.reader(), id, tree, number * part, sizes)
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        Ok(sizes)
    }

    /// Puts the sizes of the entries from `first` on into `sizes`.
    fn size_some(
        &self,
        reader: &mut Reader,
        id: usize,
        tree: &GitTree,
        first: usize,
        sizes: &mut [u64],
    ) -> Result<()> {
        for (offset, size) in sizes.iter_mut().enumerate() {
            let entry = tree.entry(first + offset);
            let limit = match entry.kind {
                EntryKind::Gitlink | EntryKind::Directory => continue,
                EntryKind::File | EntryKind::Executable => BLOB_BYTES_MAX,
                EntryKind::Symlink => SYMLINK_BYTES_MAX,
            };
            self.cancel.check()?;
            let held = self.replacements.of(&entry.oid);
            let found = held.and_then(|held| size_of(reader, &held, limit));
            *size = found.map_err(|error| error.at(&self.path_of(id, entry.name)))?;
        }
        Ok(())
    }

    /// Stores what a checkout writes for a file or a link if that is not its blob.
    fn check_out<'l>(
        &'l self,
        worker: &mut Worker,
        turn: &mut Option<Turn<'l>>,
        scope: &Scope,
        entry: GitEntry<'_>,
        size: u64,
    ) -> Result<Option<(ContentId, u64)>> {
        let held = self.replacements.of(&entry.oid)?;
        let is_file = matches!(entry.kind, EntryKind::File | EntryKind::Executable);
        if is_file && scope.needs_conversion(entry.name) {
            let converted = self.convert(worker, turn, scope, entry, &held, size)?;
            if converted.is_some() {
                return Ok(converted);
            }
        }
        if held == entry.oid { Ok(None) } else { self.replace(worker, turn, &held, size).map(Some) }
    }

    /// Stores blob `held`, which replaces another.
    fn replace<'l>(
        &'l self,
        worker: &mut Worker,
        turn: &mut Option<Turn<'l>>,
        held: &GitOid,
        size: u64,
    ) -> Result<(ContentId, u64)> {
        let Worker { reader, preparer } = worker;
        let (item, id, size) = if size <= WHOLE_OBJECT_BYTES_MAX {
            let mut bytes = Vec::new();
            self.lane.read_any_size(turn, reader, held, &mut bytes)?;
            let content = preparer.content(&bytes);
            let (id, size) = (content.id, content.size);
            (WriteItem::Blob { oid: *held, content }, id, size)
        } else {
            let (mut stream, hold) = (reader.stream(held)?, self.store.hold());
            let mut sink = |chunk| self.session.send(WriteItem::Chunk(chunk));
            let content = preparer.stream(&mut stream, &mut sink);
            let content = content.map_err(|error| Error::streamed(held, error))?;
            let (id, size) = (content.id, content.size);
            (WriteItem::Manifest { oid: Some(*held), content, hold }, id, size)
        };
        self.session.send(item)?;
        self.converted.fetch_add(1, Ordering::Relaxed);
        Ok((id, size))
    }

    /// Converts a file, whose bytes `held` has, as a checkout does and stores the result; `None` if
    /// that changes nothing.
    fn convert<'l>(
        &'l self,
        worker: &mut Worker,
        turn: &mut Option<Turn<'l>>,
        scope: &Scope,
        entry: GitEntry<'_>,
        held: &GitOid,
        size: u64,
    ) -> Result<Option<(ContentId, u64)>> {
        if size > CONVERTED_BYTES_MAX {
            let what = format!("git object {}, which is to be converted,", entry.oid);
            return Err(Error::TooLarge { what, size, limit: CONVERTED_BYTES_MAX });
        }
        let mut bytes = Vec::new();
        self.lane.read_any_size(turn, &mut worker.reader, held, &mut bytes)?;
        let Some(converted) = scope.convert(entry.name, &entry.oid, held, &bytes)? else {
            return Ok(None);
        };
        drop(bytes);
        let size = converted.len() as u64;
        let id = if size <= WHOLE_OBJECT_BYTES_MAX {
            let content = worker.preparer.content(&converted);
            let id = content.id;
            self.session.send(WriteItem::ConvertedContent(content))?;
            id
        } else {
            let hold = self.store.hold();
            let mut sink = |chunk| self.session.send(WriteItem::Chunk(chunk));
            let content = worker.preparer.stream(&mut &converted[..], &mut sink)?;
            let id = content.id;
            self.session.send(WriteItem::Manifest { oid: None, content, hold })?;
            id
        };
        self.converted.fetch_add(1, Ordering::Relaxed);
        Ok(Some((id, size)))
    }
}

/// The size of blob `oid`, of at most `limit` bytes.
fn size_of(reader: &mut Reader, oid: &GitOid, limit: u64) -> Result<u64> {
    match reader.header(oid)? {
        (Kind::Blob, size) if (1..=limit).contains(&size) => Ok(size),
        // Nobody will read what seems to be empty, which would show a header that lies. Nor is a tree
        // refused for one.
        (_, stated) => {
            let mut bytes = Vec::new();
            let read = reader.read(oid, Kind::Blob, LIGHT_OBJECT_BYTES_MAX, &mut bytes);
            let size = match read {
                Ok(()) => bytes.len() as u64,
                Err(Error::TooLarge { .. }) => stated,
                Err(error) => return Err(error),
            };
            if size > limit {
                let what = format!("git object {oid}");
                return Err(Error::TooLarge { what, size, limit });
            }
            Ok(size)
        }
    }
}
