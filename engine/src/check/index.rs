//! What the tables of a store say, gathered for a check.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::Finding;
use crate::content::StreamedContent;
use crate::error::Result;
use crate::id::{BranchNumber, ChunkId, ContentId, GitOid, LayerNumber, TreeId};
use crate::store::{
    At, BAD_KEY, Branch, Extent, Layer, Object, Place, Record, Repository, Snapshot,
    SnapshotRecord, Stored, Table, WorktreeRecord, blob_of, check_content, chunk_of, content_key,
    corrupt_entry, decode_head, decode_sealed, empty_content, git_tree_of, manifest_of, number_of,
    tree_of, unseal,
};
use crate::tree::Subtree;

/// A chunk or tree with its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Located {
    pub(super) object: Object,
    /// `None`: in the database.
    pub(super) extent: Option<Extent>,
    pub(super) raw_len: u32,
}

/// The tables, sorted as the check needs them.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// In segment order, those in the database first.
    pub(super) objects: Vec<Located>,
    pub(super) manifests: Vec<StreamedContent>,
    /// The chunks of all manifests.
    pub(super) parts: HashSet<ChunkId>,
    /// By content.
    pub(super) blobs: Vec<(Stored, GitOid)>,
    /// By tree.
    pub(super) git_trees: Vec<(Subtree, GitOid)>,
    pub(super) repositories: Vec<Repository>,
    pub(super) branches: Vec<Branch>,
    pub(super) worktrees: Vec<WorktreeRecord>,
    pub(super) snapshots: Vec<SnapshotRecord>,
    /// The layer that takes the changes of a branch.
    pub(super) heads: BTreeMap<BranchNumber, LayerNumber>,
    /// What each layer lies on, and how many rows it has.
    pub(super) layers: BTreeMap<LayerNumber, (Option<LayerNumber>, u64)>,
}

impl Index {
    pub(super) fn read(snapshot: &Snapshot, findings: &mut Vec<Finding>) -> Self {
        let mut index = Self::default();
        let mut tables = Tables { snapshot, findings };
        tables.each(Table::Chunks, |key, value| {
            index.objects.push(locate(chunk_of(key, value)?));
            Ok(())
        });
        tables.each(Table::Trees, |key, value| {
            index.objects.push(locate(tree_of(key, value)?));
            Ok(())
        });
        tables.each(Table::Manifests, |key, value| {
            let manifest = manifest_of(key, value)?;
            index.parts.extend(manifest.chunks.iter().map(|(chunk, _)| *chunk));
            index.manifests.push(manifest);
            Ok(())
        });
        tables.each(Table::Blobs, |key, value| {
            let (oid, stored) = blob_of(key, value)?;
            if !snapshot.contains(Table::Contents, &content_key(&stored.id, oid.kind()))? {
                return Err(corrupt_entry(Table::Blobs, key, "no entry leads back to it"));
            }
            index.blobs.push((stored, oid));
            Ok(())
        });
        tables.each(Table::Contents, |key, value| check_content(snapshot, key, value));
        tables.each(Table::GitTrees, |key, value| {
            let (oid, subtree) = git_tree_of(key, value)?;
            index.git_trees.push((subtree, oid));
            Ok(())
        });
        // What the rows say is the business of those who read a branch.
        for table in [Table::LayerInodes, Table::LayerEntries] {
            tables.each(table, |key, value| {
                index.layers.entry(LayerNumber(number(table, key)?)).or_default().1 += 1;
                unseal(table, key, value).map(drop)
            });
        }
        tables.each(Table::Layers, |key, value| {
            let number = LayerNumber(number(Table::Layers, key)?);
            let layer = index.layers.entry(number).or_default();
            layer.1 += 1;
            layer.0 = decode_sealed(Table::Layers, key, value, Layer::decode)?.below;
            Ok(())
        });
        tables.each(Table::Heads, |key, value| {
            let number = BranchNumber(number(Table::Heads, key)?);
            let (layer, _) = decode_sealed(Table::Heads, key, value, decode_head)?;
            index.heads.insert(number, layer);
            Ok(())
        });
        tables.each(Table::Meta, |key, value| unseal(Table::Meta, key, value).map(drop));
        index.repositories = tables.records(Table::Repositories);
        index.branches = tables.records(Table::Branches);
        index.worktrees = tables.records(Table::Worktrees);
        index.snapshots = tables.records(Table::Snapshots);
        index.objects.sort_unstable_by_key(|located| located.extent);
        index.blobs.sort_unstable_by_key(|(stored, _)| stored.id);
        index.git_trees.sort_unstable_by_key(|(subtree, _)| subtree.id);
        index
    }

    /// The size of every content.
    pub(super) fn sizes(&self) -> HashMap<ContentId, u64> {
        let single = self.objects.iter().filter_map(|located| match located.object {
            Object::Chunk(id) => Some((id.into(), u64::from(located.raw_len))),
            Object::Tree(_) => None,
        });
        let manifests = self.manifests.iter().map(|manifest| (manifest.id, manifest.size));
        single.chain(manifests).chain([(empty_content(), 0)]).collect()
    }

    /// Snapshots that have layers which neither a branch nor another one of them has.
    pub(super) fn other_snapshots(&self) -> Vec<&SnapshotRecord> {
        let mut seen = self.line_of(self.heads.values().copied());
        let mut newest_first: Vec<_> = self.snapshots.iter().collect();
        newest_first.sort_unstable_by_key(|snapshot| std::cmp::Reverse(snapshot.number));
        newest_first.retain(|snapshot| {
            let is_new = snapshot.layer.is_some_and(|layer| !seen.contains(&layer));
            seen.extend(self.line_of(snapshot.layer));
            is_new
        });
        newest_first
    }

    /// The layers on which a branch or a snapshot stands.
    pub(super) fn needed_layers(&self) -> HashSet<LayerNumber> {
        let heads = self.branches.iter().map(|branch| {
            let head = self.heads.get(&branch.number).copied();
            head.unwrap_or(LayerNumber::first_of(branch.number))
        });
        self.line_of(heads.chain(self.snapshots.iter().filter_map(|snapshot| snapshot.layer)))
    }

    /// These layers and all below them.
    fn line_of(&self, layers: impl IntoIterator<Item = LayerNumber>) -> HashSet<LayerNumber> {
        let mut open: Vec<_> = layers.into_iter().collect();
        let mut line = HashSet::new();
        while let Some(layer) = open.pop() {
            if line.insert(layer) {
                open.extend(self.layers.get(&layer).and_then(|(below, _)| *below));
            }
        }
        line
    }

    /// The git blobs that the map gives to `content`.
    pub(super) fn blobs_of(&self, content: ContentId) -> &[(Stored, GitOid)] {
        equal_range(&self.blobs, |(stored, _)| stored.id.cmp(&content))
    }

    /// The git trees that the map gives to `tree`.
    pub(super) fn git_trees_of(&self, tree: TreeId) -> &[(Subtree, GitOid)] {
        equal_range(&self.git_trees, |(subtree, _)| subtree.id.cmp(&tree))
    }
}

/// Reads tables, and goes on after whatever is damaged in them.
struct Tables<'a> {
    snapshot: &'a Snapshot,
    findings: &'a mut Vec<Finding>,
}

impl Tables<'_> {
    /// Calls `visit` for every entry of `table`.
    fn each(&mut self, table: Table, mut visit: impl FnMut(&[u8], &[u8]) -> Result<()>) {
        let mut entries = 0;
        let mut last = Vec::new();
        let mut ordered = true;
        let scanned = self.snapshot.scan(table, b"", |key, value| {
            ordered &= entries == 0 || last.as_slice() < key;
            last.clear();
            last.extend_from_slice(key);
            entries += 1;
            if let Err(error) = visit(key, value) {
                self.findings
                    .push(Finding::BadEntry { table: table.name(), why: error.to_string() });
            }
            Ok(())
        });
        let why = match (scanned, self.snapshot.len(table)) {
            (Err(error), _) | (_, Err(error)) => error.to_string(),
            (Ok(()), Ok(len)) if len != entries => {
                format!("{entries} of its {len} entries are there")
            }
            (Ok(()), Ok(_)) if !ordered => "its keys are out of order".into(),
            (Ok(()), Ok(_)) => return,
        };
        self.findings.push(Finding::BadTable { table: table.name(), why });
    }

    fn records<R: Record>(&mut self, table: Table) -> Vec<R> {
        let mut records = Vec::new();
        self.each(table, |key, value| {
            let record: R = decode_sealed(table, key, value, Record::decode)?;
            if record.key() != key {
                return Err(corrupt_entry(table, key, BAD_KEY));
            }
            records.push(record);
            Ok(())
        });
        records
    }
}

fn locate((object, place): (Object, Place<'_>)) -> Located {
    let extent = match place.at {
        At::Inline(_) => None,
        At::Segment(extent) => Some(extent),
    };
    Located { object, extent, raw_len: place.raw_len }
}

/// The number with which a key begins.
fn number(table: Table, key: &[u8]) -> Result<u64> {
    number_of(key).ok_or_else(|| corrupt_entry(table, key, BAD_KEY))
}

/// The elements of a sorted slice for which `order` says "equal".
fn equal_range<T>(sorted: &[T], order: impl Fn(&T) -> Ordering) -> &[T] {
    let start = sorted.partition_point(|element| order(element) == Ordering::Less);
    let len = sorted[start..].partition_point(|element| order(element) == Ordering::Equal);
    &sorted[start..start + len]
}
