//! Directory objects on their way into the store.

use std::sync::{Mutex, MutexGuard, PoisonError};

use agentfs_engine::GitOid;
use agentfs_engine::store::{Session, Store};
use agentfs_engine::tree::{EncodedTree, Subtree};

use super::{Key, Purpose};
use crate::error::Result;

/// Directory objects are committed when so many bytes of them have come together.
const BATCH_BYTES: usize = 8 << 20;

/// Which git trees became which directory objects.
///
/// The git map must not have them at once: sizes of files are what object headers state, and a
/// header may lie. An ingest proves them, and maps the trees then.
#[derive(Debug, Default)]
pub struct ImportedTrees(pub(super) Vec<(Key, Subtree)>);

impl ImportedTrees {
    /// Puts them into the git map.
    pub(crate) fn map(&self, store: &Store) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut batch = store.batch()?;
        for ((oid, context), subtree) in &self.0 {
            batch.map_tree(oid, context, subtree)?;
        }
        Ok(batch.commit()?)
    }
}

/// Stores directory objects in the order of [`TreeSink::push`], so none before its subtrees.
pub(super) struct TreeSink<'a> {
    store: &'a Store,
    session: Session<'a>,
    purpose: Purpose,
    /// Held while a batch is written; the other lock is taken under it.
    writing: Mutex<()>,
    /// Leaf lock.
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    trees: Vec<EncodedTree>,
    bytes: usize,
    imported: ImportedTrees,
}

impl<'a> TreeSink<'a> {
    pub(super) fn new(store: &'a Store, session: Session<'a>, purpose: Purpose) -> Self {
        Self { store, session, purpose, writing: Mutex::default(), pending: Mutex::default() }
    }

    /// Takes the directory object of git tree `oid`, under `context`, whose converted contents were
    /// sent in the session before.
    pub(super) fn push(&self, oid: GitOid, context: [u8; 32], tree: EncodedTree) -> Result<()> {
        let mut pending = lock(&self.pending);
        pending.bytes += tree.bytes.len();
        pending.imported.0.push(((oid, context), tree.subtree));
        pending.trees.push(tree);
        let full = pending.bytes >= BATCH_BYTES;
        drop(pending);
        if full { self.write() } else { Ok(()) }
    }

    /// Makes all that was taken durable.
    pub(super) fn finish(self) -> Result<ImportedTrees> {
        self.write()?;
        let pending = self.pending.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(pending.imported)
    }

    fn write(&self) -> Result<()> {
        let _writing = lock(&self.writing);
        let mut pending = lock(&self.pending);
        let trees = std::mem::take(&mut pending.trees);
        pending.bytes = 0;
        drop(pending);
        // Converted contents that the trees name.
        self.session.flush()?;
        let mut batch = self.store.batch()?;
        for tree in &trees {
            match self.purpose {
                Purpose::Import => batch.put_tree(tree)?,
                Purpose::Rebuild if self.is_damaged(tree)? => batch.replace_tree(tree)?,
                Purpose::Rebuild => {}
            }
        }
        Ok(batch.commit()?)
    }

    fn is_damaged(&self, tree: &EncodedTree) -> Result<bool> {
        match self.store.tree(tree.subtree.id) {
            Ok(_) => Ok(false),
            Err(error) if error.is_corruption() => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under these locks is complete before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
