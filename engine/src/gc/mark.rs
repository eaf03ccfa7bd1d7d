//! What can be reached.

use std::collections::HashSet;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::id::{ChunkId, ContentId, TreeId};
use crate::overlay::{Body, Node, Source};
use crate::progress::{Cancel, Phase, Progress};
use crate::store::{
    Candidates, InUse, Item, Object, Snapshot, Store, Table, decode_manifest, decode_sealed,
    decode_stored, empty_content, oid_key, visit_inodes,
};
use crate::tree::Tree;

/// Between two looks whether it is still wanted.
const STEP: u64 = 256;

/// Marks candidates, and follows what they lead to.
pub(super) struct Marker<'a> {
    store: &'a Arc<Store>,
    candidates: &'a Arc<Candidates>,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
    trees: Vec<TreeId>,
    manifests: Vec<ContentId>,
    /// What is younger than the collection and was followed.
    young: HashSet<[u8; 32]>,
}

impl<'a> Marker<'a> {
    pub(super) fn new(
        store: &'a Arc<Store>,
        candidates: &'a Arc<Candidates>,
        progress: &'a dyn Progress,
        cancel: &'a Cancel,
    ) -> Self {
        let (trees, manifests) = (Vec::new(), Vec::new());
        Self { store, candidates, progress, cancel, trees, manifests, young: HashSet::new() }
    }

    /// Whether everything that was marked is followed.
    pub(super) fn is_done(&self) -> bool {
        self.trees.is_empty() && self.manifests.is_empty()
    }

    pub(super) fn roots(&mut self, roots: &[TreeId]) {
        roots.iter().for_each(|root| self.tree(*root));
    }

    /// What something in memory has.
    pub(super) fn memory(&mut self, trees: &[TreeId], chunks: &[Arc<dyn InUse>]) {
        self.roots(trees);
        chunks.iter().for_each(|used| used.chunks(&mut |id| self.chunk(id)));
    }

    pub(super) fn chunk(&mut self, id: ChunkId) {
        if self.candidates.mark(&Item::Chunk(id)) == Some(true) {
            self.progress.advance(Phase::Mark, 1, 0);
        }
    }

    /// The chunks of every file that a layer has.
    pub(super) fn layers(&mut self, snapshot: &Snapshot) -> Result<()> {
        let mut rows = 0;
        visit_inodes(snapshot, |_, node| {
            rows += 1;
            if rows % STEP == 0 {
                self.cancel.check()?;
            }
            chunks_of(&node, &mut |id| self.chunk(id));
            Ok(())
        })
    }

    fn tree(&mut self, id: TreeId) {
        if self.is_new(Item::Tree(id), id.as_bytes()) {
            self.trees.push(id);
        }
    }

    /// Whether it has not been met before.
    fn is_new(&mut self, item: Item, id: &[u8; 32]) -> bool {
        match self.candidates.mark(&item) {
            Some(true) => {
                self.progress.advance(Phase::Mark, 1, 0);
                true
            }
            Some(false) => false,
            None => self.young.insert(*id),
        }
    }

    fn content(&mut self, id: ContentId) {
        let chunk = Item::Chunk(id.into());
        match self.candidates.mark(&chunk) {
            Some(true) => self.progress.advance(Phase::Mark, 1, 0),
            Some(false) => {}
            None if id == empty_content() => {}
            None if self.is_new(Item::Manifest(id), id.as_bytes()) => self.manifests.push(id),
            None => {}
        }
    }

    /// Follows everything that was marked, by others too.
    pub(super) fn follow(&mut self) -> Result<()> {
        let mut steps = 0_u64;
        loop {
            for item in self.store.core().collector().take_found() {
                // They have marked it already.
                match item {
                    Item::Tree(id) => self.trees.push(id),
                    Item::Manifest(id) => self.manifests.push(id),
                    Item::Chunk(_) => {}
                }
            }
            if self.is_done() {
                return Ok(());
            }
            while !self.is_done() {
                steps += 1;
                if steps.is_multiple_of(STEP) {
                    self.cancel.check()?;
                }
                if let Some(id) = self.manifests.pop() {
                    self.follow_manifest(id)?;
                } else if let Some(id) = self.trees.pop() {
                    self.follow_tree(id)?;
                }
            }
        }
    }

    fn follow_manifest(&mut self, id: ContentId) -> Result<()> {
        // A content that is not stored yet has none.
        for (chunk, _) in manifest(&self.store.core().snapshot(), id)?.unwrap_or_default() {
            self.chunk(chunk);
        }
        Ok(())
    }

    fn follow_tree(&mut self, id: TreeId) -> Result<()> {
        let tree = load(self.store, id)?;
        let snapshot = self.store.core().snapshot();
        contents_of(&snapshot, &tree, |found| match found {
            Found::Tree(id) => self.tree(id),
            Found::Content(id) => self.content(id),
        })
    }
}

/// What a directory object names.
pub(super) enum Found {
    Tree(TreeId),
    Content(ContentId),
}

/// Calls `visit` for everything that `tree` names and the store has, or should have.
pub(super) fn contents_of(
    snapshot: &Snapshot,
    tree: &Tree,
    mut visit: impl FnMut(Found),
) -> Result<()> {
    for entry in tree.entries() {
        match (entry.subtree, entry.content, entry.oid) {
            (Some(subtree), ..) => visit(Found::Tree(subtree.id)),
            (None, Some(content), _) => visit(Found::Content(content)),
            (None, None, Some(oid)) => {
                let key = oid_key(&oid);
                let decode = |value: &[u8]| decode_sealed(Table::Blobs, &key, value, decode_stored);
                // None: not ingested yet, or a commit of another repository.
                if let Some(stored) = snapshot.get(Table::Blobs, &key, decode)? {
                    visit(Found::Content(stored.id));
                }
            }
            (None, None, None) => {}
        }
    }
    Ok(())
}

/// The chunks of a content, if it has a manifest.
pub(super) fn manifest(snapshot: &Snapshot, id: ContentId) -> Result<Option<Vec<(ChunkId, u32)>>> {
    let table = Table::Manifests;
    let found = snapshot.get(table, id.as_bytes(), |value| {
        decode_sealed(table, id.as_bytes(), value, |value| decode_manifest(id, value))
    })?;
    Ok(found.map(|found| found.chunks))
}

pub(super) fn load(store: &Store, id: TreeId) -> Result<Tree> {
    let object = Object::Tree(id);
    let bytes = store.core().load(&object)?;
    Tree::decode(bytes).map_err(|why| Error::corrupt(object.to_string(), why))
}

/// Calls `visit` for every chunk in which bytes of a file lie.
pub(super) fn chunks_of(node: &Node, visit: &mut dyn FnMut(ChunkId)) {
    let Body::File(extents) = &node.body else { return };
    for (_, extent) in extents.iter() {
        if let Source::Chunk(id, _) = extent.source {
            visit(id);
        }
    }
}
