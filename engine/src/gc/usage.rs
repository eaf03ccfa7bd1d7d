//! What each branch and snapshot takes: alone, and with others.
//!
//! Every object gets the one branch or snapshot that leads to it, or a note that several do. It is
//! looked at twice at most, however many lead to it, since what is below a thing that several have is
//! theirs too. What lies in memory or in outboxes is not in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Amount;
use super::mark::{Found, chunks_of, contents_of, load, manifest};
use super::sweep::visit_all;
use crate::error::{Error, Result};
use crate::id::{BranchNumber, ChunkId, ContentId, LayerNumber, TreeId};
use crate::progress::{Cancel, Phase, Progress};
use crate::store::{
    Branch, Candidates, Marks, Snapshot, SnapshotRecord, Store, Table, Upkeep, decode_sealed,
    decode_stored, decode_subtree, drained_of, line_of, records_of, visit_inodes,
};

/// Whose a thing is: 0 nobody's, else the number of an owner, from 1 on.
type Tag = u32;
const SHARED: Tag = Tag::MAX;

/// What a branch or a snapshot takes of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The branch, or that of the snapshot.
    pub branch: BranchNumber,
    /// The snapshot; none for the branch itself.
    pub snapshot: Option<u64>,
    /// What only it has: a garbage collection frees so much when it is gone.
    pub own: Amount,
    /// What it has in common with others.
    pub shared: Amount,
    /// Bytes of its outbox, not yet drained or not yet removed.
    pub outbox: u64,
}

/// Where a branch or snapshot begins.
struct Owner {
    usage: Usage,
    root: TreeId,
    line: Vec<LayerNumber>,
}

/// The objects of one kind.
struct Kind {
    marks: Marks,
    /// Of each: whose it is, and its bytes.
    tags: Vec<Tag>,
    bytes: Vec<u64>,
}

impl Kind {
    fn new(marks: Marks) -> Self {
        let (tags, bytes) = (vec![0; marks.len()], vec![0; marks.len()]);
        Self { marks, tags, bytes }
    }

    fn add_bytes(&mut self, id: &[u8], bytes: u64) -> bool {
        let at = self.marks.position(id);
        at.inspect(|at| self.bytes[*at] += bytes).is_some()
    }
}

/// Gives things their owners, or counts what one of them leads to.
struct Walk<'a> {
    store: &'a Arc<Store>,
    snapshot: &'a Snapshot,
    chunks: Kind,
    trees: Kind,
    manifests: Kind,
    cancel: &'a Cancel,
}

/// What each branch and snapshot takes, branches first.
///
/// # Errors
/// Of what they lead to, whatever cannot be read; cancellation.
pub fn usage(
    store: &Arc<Store>,
    _upkeep: &Upkeep<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<Usage>> {
    let snapshot = store.core().snapshot();
    let mut owners = owners(store, &snapshot)?;
    let Candidates { chunks, trees, manifests } = Candidates::read(&snapshot)?;
    let mut walk = Walk {
        store,
        snapshot: &snapshot,
        chunks: Kind::new(chunks),
        trees: Kind::new(trees),
        manifests: Kind::new(manifests),
        cancel,
    };
    progress.begin(Phase::Mark, Some(owners.len() as u64), None);
    let measured = walk
        .measure()
        .and_then(|()| walk.give(&owners))
        .and_then(|()| walk.sum(&mut owners, &mut || progress.advance(Phase::Mark, 1, 0)));
    progress.end(Phase::Mark);
    measured?;
    Ok(owners.into_iter().map(|owner| owner.usage).collect())
}

fn owners(store: &Store, snapshot: &Snapshot) -> Result<Vec<Owner>> {
    let usage = |branch, snapshot| {
        let (own, shared) = (Amount::default(), Amount::default());
        Usage { branch, snapshot, own, shared, outbox: 0 }
    };
    let mut owners = Vec::new();
    for branch in records_of::<Branch>(snapshot, Table::Branches)? {
        let head = drained_of(snapshot, branch.number)?.map(|(layer, _)| layer);
        let head = head.unwrap_or(LayerNumber::first_of(branch.number));
        let line = line_of(snapshot, head, Some(branch.number))?.layers;
        let mut usage = usage(branch.number, None);
        usage.outbox = outbox_bytes(store, branch.number)?;
        owners.push(Owner { usage, root: branch.root, line });
    }
    for one in records_of::<SnapshotRecord>(snapshot, Table::Snapshots)? {
        let line = match one.layer {
            Some(layer) => line_of(snapshot, layer, None)?.layers,
            None => Vec::new(),
        };
        owners.push(Owner { usage: usage(one.branch, Some(one.number)), root: one.root, line });
    }
    Ok(owners)
}

fn outbox_bytes(store: &Store, branch: BranchNumber) -> Result<u64> {
    let (storage, dir) = (store.core().segments().storage(), store.outbox_dir(branch));
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let names = match storage.list(&dir) {
        Ok(names) => names,
        Err(error) if gone(&error) => return Ok(0),
        Err(error) => return Err(Error::io("list", &dir, error)),
    };
    let mut bytes = 0;
    for name in names {
        let path = dir.join(name);
        match storage.open(&path, false).and_then(|file| file.len()) {
            Ok(len) => bytes += len,
            // It was trimmed meanwhile.
            Err(error) if gone(&error) => {}
            Err(error) => return Err(Error::io("measure", &path, error)),
        }
    }
    Ok(bytes)
}

impl Walk<'_> {
    /// The bytes of each object; entries of the git map go with what they lead to.
    fn measure(&mut self) -> Result<()> {
        let Self { snapshot, chunks, trees, manifests, cancel, .. } = self;
        visit_all(snapshot, cancel, |table, key, value, bytes| {
            match table {
                Table::Chunks => chunks.add_bytes(key, bytes),
                Table::Trees => trees.add_bytes(key, bytes),
                Table::Manifests => manifests.add_bytes(key, bytes),
                Table::GitTrees => {
                    let subtree = decode_sealed(table, key, value, decode_subtree)?;
                    trees.add_bytes(subtree.id.as_bytes(), bytes)
                }
                _ => {
                    let content = match table {
                        Table::Blobs => {
                            *decode_sealed(table, key, value, decode_stored)?.id.as_bytes()
                        }
                        _ => key.first_chunk().copied().unwrap_or_default(),
                    };
                    chunks.add_bytes(&content, bytes) || manifests.add_bytes(&content, bytes)
                }
            };
            Ok(())
        })
    }

    /// Says of every object whose it is.
    fn give(&mut self, owners: &[Owner]) -> Result<()> {
        let mut roots = HashMap::<TreeId, Tag>::new();
        let mut layers = BTreeMap::<LayerNumber, Tag>::new();
        for (owner, tag) in owners.iter().zip(1..) {
            roots.entry(owner.root).and_modify(|one| *one = SHARED).or_insert(tag);
            for layer in &owner.line {
                layers.entry(*layer).and_modify(|one| *one = SHARED).or_insert(tag);
            }
        }
        // What several have first: then most is looked at once.
        let mut roots: Vec<_> = roots.into_iter().collect();
        roots.sort_unstable_by_key(|(id, tag)| (std::cmp::Reverse(*tag), *id));
        for (root, tag) in roots {
            self.tree(root, &mut |walk, found| walk.give_one(found, tag))?;
        }
        let snapshot = self.snapshot;
        visit_inodes(snapshot, |layer, node| {
            // A layer of nobody is kept by who does not have it on record yet.
            let tag = layers.get(&layer).copied().unwrap_or(SHARED);
            chunks_of(&node, &mut |id| {
                self.give_one(Thing::Chunk(id), tag);
            });
            Ok(())
        })
    }

    /// Whether its owner was another before.
    fn give_one(&mut self, thing: Thing, tag: Tag) -> bool {
        let (kind, id) = self.kind(&thing);
        let Some(at) = kind.marks.position(id) else { return false };
        let before = kind.tags[at];
        kind.tags[at] = match before {
            0 => tag,
            other if other == tag => tag,
            _ => SHARED,
        };
        kind.tags[at] != before
    }

    fn kind<'t>(&mut self, thing: &'t Thing) -> (&mut Kind, &'t [u8; 32]) {
        match thing {
            Thing::Chunk(id) => (&mut self.chunks, id.as_bytes()),
            Thing::Tree(id) => (&mut self.trees, id.as_bytes()),
            Thing::Manifest(id) => (&mut self.manifests, id.as_bytes()),
        }
    }

    /// Calls `is_new` for a directory object and, where it says so, for everything below.
    fn tree(
        &mut self,
        root: TreeId,
        is_new: &mut dyn FnMut(&mut Self, Thing) -> bool,
    ) -> Result<()> {
        let mut open = Vec::new();
        if is_new(self, Thing::Tree(root)) {
            open.push(root);
        }
        while let Some(id) = open.pop() {
            self.cancel.check()?;
            let tree = load(self.store, id)?;
            let mut contents = Vec::new();
            contents_of(self.snapshot, &tree, |found| match found {
                Found::Tree(id) => {
                    if is_new(self, Thing::Tree(id)) {
                        open.push(id);
                    }
                }
                Found::Content(id) => contents.push(id),
            })?;
            for content in contents {
                is_new(self, Thing::Chunk(content.into()));
                if is_new(self, Thing::Manifest(content)) {
                    for (chunk, _) in manifest(self.snapshot, content)?.unwrap_or_default() {
                        is_new(self, Thing::Chunk(chunk));
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds up what each owner has, with what is only its own.
    fn sum(&mut self, owners: &mut [Owner], done: &mut dyn FnMut()) -> Result<()> {
        for kind in [&self.chunks, &self.trees, &self.manifests] {
            for (tag, bytes) in kind.tags.iter().zip(&kind.bytes) {
                let owner = (*tag as usize).checked_sub(1).and_then(|at| owners.get_mut(at));
                if let Some(owner) = owner {
                    owner.usage.own.add(*bytes);
                }
            }
        }
        let mut chunks = BTreeMap::<LayerNumber, Vec<ChunkId>>::new();
        visit_inodes(self.snapshot, |layer, node| {
            chunks_of(&node, &mut |id| chunks.entry(layer).or_default().push(id));
            Ok(())
        })?;
        let mut by_root: Vec<usize> = (0..owners.len()).collect();
        by_root.sort_by_key(|at| owners[*at].root);
        let mut base: Option<(TreeId, Seen)> = None;
        for at in by_root {
            let owner = &mut owners[at];
            if base.as_ref().is_none_or(|(root, _)| *root != owner.root) {
                let mut seen = Seen::new(self);
                self.tree(owner.root, &mut |walk, thing| seen.add(walk, &thing))?;
                base = Some((owner.root, seen));
            }
            let Some((_, seen)) = &base else { continue };
            let mut seen = seen.clone();
            for chunk in owner.line.iter().filter_map(|layer| chunks.get(layer)).flatten() {
                seen.add(self, &Thing::Chunk(*chunk));
            }
            let Usage { own, shared, .. } = &mut owner.usage;
            shared.count = seen.total.count.saturating_sub(own.count);
            shared.bytes = seen.total.bytes.saturating_sub(own.bytes);
            done();
        }
        Ok(())
    }
}

/// An object of the store.
enum Thing {
    Chunk(ChunkId),
    Tree(TreeId),
    Manifest(ContentId),
}

/// What one owner has: a bit for each object.
#[derive(Clone)]
struct Seen {
    bits: [Vec<u64>; 3],
    total: Amount,
}

impl Seen {
    fn new(walk: &Walk<'_>) -> Self {
        let bits = |kind: &Kind| vec![0; kind.tags.len().div_ceil(64)];
        let bits = [bits(&walk.chunks), bits(&walk.trees), bits(&walk.manifests)];
        Self { bits, total: Amount::default() }
    }

    /// Whether it was not here before.
    fn add(&mut self, walk: &mut Walk<'_>, thing: &Thing) -> bool {
        let which = match thing {
            Thing::Chunk(_) => 0,
            Thing::Tree(_) => 1,
            Thing::Manifest(_) => 2,
        };
        let (kind, id) = walk.kind(thing);
        let Some(at) = kind.marks.position(id) else { return false };
        let (word, bit) = (&mut self.bits[which][at / 64], 1 << (at % 64));
        let is_new = *word & bit == 0;
        if is_new {
            *word |= bit;
            self.total.add(kind.bytes[at]);
        }
        is_new
    }
}
