//! What is drained of the branches: layers of changes, and where each branch stands.
//!
//! A layer is rows of inodes and names that say what differs from the layer below it. The keys of the
//! rows begin with the number of the layer and go on with that of the inode, both big-endian, so that
//! what belongs together lies together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Store;
use super::batch::Batch;
use super::database::Snapshot;
use super::decode_sealed;
use super::records::{Branch, Record, SnapshotRecord};
use super::tables::{Table, corrupt_entry};
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::id::{BranchNumber, Ino, LayerNumber, Sequence};
use crate::limits::LAYERS_MAX;
use crate::overlay::{EntryRow, InodeRow, Known, Node, Overlay};

/// Where a branch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The layer that takes its changes.
    pub layer: LayerNumber,
    /// The layer below that one.
    pub below: Option<LayerNumber>,
    /// The last record of its outbox that is drained.
    pub drained: Sequence,
    /// Whether the layer has changes.
    pub used: bool,
}

/// What the store knows of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    /// The layer below it.
    pub(crate) below: Option<LayerNumber>,
    /// The highest number that a new inode has had.
    pub(crate) last_new: u64,
    /// The branch in whose outbox the rest of it is, and the record that sealed it there.
    pub(crate) waits: Option<(BranchNumber, Sequence)>,
}

impl Layer {
    pub(crate) fn encode(self) -> Vec<u8> {
        let (branch, sequence) = self.waits.map_or((0, 0), |(branch, at)| (branch.0, at.0));
        let below = self.below.map_or(0, |below| below.0);
        let fields = [below, self.last_new, branch, sequence];
        fields.iter().flat_map(|field| field.to_le_bytes()).collect()
    }

    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let mut fields = Fields(value);
        let (below, last_new) = (fields.u64()?, fields.u64()?);
        let (branch, sequence) = (fields.u64()?, fields.u64()?);
        let below = (below != 0).then_some(LayerNumber(below));
        let waits = (branch != 0).then_some((BranchNumber(branch), Sequence(sequence)));
        fields.0.is_empty().then_some(Self { below, last_new, waits })
    }
}

/// The value of [`Table::Heads`].
pub(crate) fn decode_head(value: &[u8]) -> Option<(LayerNumber, Sequence)> {
    let mut fields = Fields(value);
    let head = (LayerNumber(fields.u64()?), Sequence(fields.u64()?));
    fields.0.is_empty().then_some(head)
}

fn encode_head(layer: LayerNumber, drained: Sequence) -> Vec<u8> {
    [layer.0.to_le_bytes(), drained.0.to_le_bytes()].concat()
}

pub(crate) fn layer_key(layer: LayerNumber) -> [u8; 8] {
    layer.0.to_be_bytes()
}

fn inode_key(layer: LayerNumber, ino: Ino) -> Vec<u8> {
    [layer_key(layer), ino.0.to_be_bytes()].concat()
}

fn entry_key(layer: LayerNumber, dir: Ino, name: &[u8]) -> Vec<u8> {
    let mut key = inode_key(layer, dir);
    key.extend_from_slice(name);
    key
}

/// The number of the layer, or of the branch, with which a key begins.
pub(crate) fn number_of(key: &[u8]) -> Option<u64> {
    key.first_chunk().map(|number| u64::from_be_bytes(*number))
}

/// Takes the number of the layer and of the inode off a key.
fn split_key(key: &[u8]) -> Option<(Ino, &[u8])> {
    let (_, rest) = key.split_at_checked(8)?;
    let (ino, name) = rest.split_first_chunk::<8>()?;
    Some((Ino(u64::from_be_bytes(*ino)), name))
}

/// The row of an inode: without a node it is gone, whatever the layers below say.
fn decode_inode(value: &[u8]) -> Option<Option<Node>> {
    if value.is_empty() { Some(None) } else { InodeRow::decode(value).map(Some) }
}

/// A row of a layer.
pub(crate) enum Row<'a> {
    /// A changed inode; without a node it is gone.
    Inode(Ino, Option<Node>),
    /// What a directory says of a name.
    Entry(Ino, &'a [u8], Option<Known>),
}

/// The layers on which a branch or a snapshot stands.
#[derive(Debug)]
pub(crate) struct Line {
    /// From the lowest to that on which it stands.
    pub(crate) layers: Vec<LayerNumber>,
    /// The highest number of a new inode in them.
    pub(crate) last_new: u64,
    /// The highest of them whose rest is in the outbox of another branch, and the record there that
    /// sealed it. The line ends with it.
    pub(crate) waits: Option<(LayerNumber, BranchNumber, Sequence)>,
}

/// The layer that takes the changes of a branch, and up to where it is drained; `None` if nothing of
/// it ever was.
///
/// # Errors
/// What reading the database meets, [`Error::Corrupt`] for a row that cannot be.
pub(crate) fn drained_of(
    snapshot: &Snapshot,
    branch: BranchNumber,
) -> Result<Option<(LayerNumber, Sequence)>> {
    let key = branch.0.to_be_bytes();
    snapshot
        .get(Table::Heads, &key, |sealed| decode_sealed(Table::Heads, &key, sealed, decode_head))
}

fn head_of(snapshot: &Snapshot, branch: BranchNumber) -> Result<(LayerNumber, Sequence)> {
    let head = drained_of(snapshot, branch)?;
    Ok(head.unwrap_or((LayerNumber::first_of(branch), Sequence::NONE)))
}

fn layer_of(snapshot: &Snapshot, layer: LayerNumber) -> Result<Option<Layer>> {
    let key = layer_key(layer);
    snapshot.get(Table::Layers, &key, |sealed| {
        decode_sealed(Table::Layers, &key, sealed, Layer::decode)
    })
}

/// The line that ends with `layer`. That `layer` itself waits for the outbox of `owner` is as it should
/// be.
///
/// # Errors
/// What reading the database meets, [`Error::Corrupt`] for a row that cannot be and for a layer that
/// is missing.
pub(crate) fn line_of(
    snapshot: &Snapshot,
    layer: LayerNumber,
    owner: Option<BranchNumber>,
) -> Result<Line> {
    let mut line = Line { layers: vec![layer], last_new: 0, waits: None };
    let mut at = layer;
    loop {
        let below = match layer_of(snapshot, at)? {
            // What it lies on may be in that outbox too.
            Some(Layer { waits: Some((branch, record)), .. })
                if at != layer || owner != Some(branch) =>
            {
                line.waits = Some((at, branch, record));
                None
            }
            Some(Layer { below, last_new, .. }) => {
                line.last_new = line.last_new.max(last_new);
                below
            }
            // The first layer of a branch that has drained nothing.
            None if at == layer => None,
            None => return Err(Error::corrupt(format!("layer {at}"), "it is missing")),
        };
        let Some(below) = below else { break };
        if line.layers.len() >= LAYERS_MAX {
            return Err(Error::corrupt(format!("layer {layer}"), "it lies on too many others"));
        }
        line.layers.push(below);
        at = below;
    }
    line.layers.reverse();
    Ok(line)
}

/// Calls `visit` for every row of a layer, inodes first, with what is wrong with those that cannot be
/// read.
///
/// # Errors
/// What reading the database meets, and what `visit` returns.
pub(crate) fn rows_of(
    snapshot: &Snapshot,
    layer: LayerNumber,
    mut visit: impl FnMut(Result<Row<'_>>) -> Result<()>,
) -> Result<()> {
    let prefix = layer_key(layer);
    let bad = |table, key: &[u8]| corrupt_entry(table, key, "its fields are impossible");
    let table = Table::LayerInodes;
    snapshot.scan(table, &prefix, |key, sealed| {
        let node = decode_sealed(table, key, sealed, decode_inode);
        let place = split_key(key).filter(|(_, rest)| rest.is_empty());
        visit(match (node, place) {
            (Ok(node), Some((ino, _))) => Ok(Row::Inode(ino, node)),
            (Err(error), _) => Err(error),
            (Ok(_), None) => Err(bad(table, key)),
        })
    })?;
    let table = Table::LayerEntries;
    snapshot.scan(table, &prefix, |key, sealed| {
        let known = decode_sealed(table, key, sealed, EntryRow::decode);
        let place = split_key(key).filter(|(_, name)| !name.is_empty());
        visit(match (known, place) {
            (Ok(known), Some((dir, name))) => Ok(Row::Entry(dir, name, known)),
            (Err(error), _) => Err(error),
            (Ok(_), None) => Err(bad(table, key)),
        })
    })
}

/// Applies the rows of a layer; returns whether it has any.
fn load_layer(
    snapshot: &Snapshot,
    layer: LayerNumber,
    last_new: u64,
    overlay: &mut Overlay,
) -> Result<bool> {
    let mut used = false;
    rows_of(snapshot, layer, |row| {
        used = true;
        match row? {
            Row::Inode(ino, _) if ino.0 > last_new && ino.is_new() => Err(Error::corrupt(
                format!("inode {ino} of layer {layer}"),
                format!("the highest number that was given is {last_new}"),
            )),
            Row::Inode(ino, node) => {
                overlay.load_inode(ino, node);
                Ok(())
            }
            Row::Entry(dir, name, known) if !overlay.load_entry(dir, name, known) => {
                let key = entry_key(layer, dir, name);
                Err(corrupt_entry(Table::LayerEntries, &key, "it is in no directory"))
            }
            Row::Entry(..) => Ok(()),
        }
    })?;
    Ok(used)
}

fn load_line(
    snapshot: &Snapshot,
    layer: LayerNumber,
    owner: Option<BranchNumber>,
) -> Result<(Overlay, bool, Line)> {
    let line = line_of(snapshot, layer, owner)?;
    if let Some((layer, branch, record)) = line.waits {
        return Err(Error::corrupt(
            format!("layer {layer}"),
            format!("it ends with record {record} of branch {branch}, which is not drained"),
        ));
    }
    let mut overlay = Overlay::default();
    overlay.load_last_new(line.last_new);
    let mut used = false;
    for &layer in &line.layers {
        used = load_layer(snapshot, layer, line.last_new, &mut overlay)?;
    }
    Ok((overlay, used, line))
}

impl Store {
    /// The directory in which the outbox of a branch belongs.
    pub fn outbox_dir(&self, branch: BranchNumber) -> PathBuf {
        self.outboxes_dir().join(branch.to_string())
    }

    /// The directory of the outboxes.
    pub(crate) fn outboxes_dir(&self) -> PathBuf {
        self.core.dir.join("outbox")
    }

    /// Whether a branch differs from its base, by what is drained.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn has_changes(&self, branch: BranchNumber) -> Result<bool> {
        self.core.read(|snapshot| {
            let (layer, _) = head_of(snapshot, branch)?;
            for layer in line_of(snapshot, layer, Some(branch))?.layers {
                let mut any = false;
                snapshot.scan(Table::LayerInodes, &layer_key(layer), |_, _| {
                    any = true;
                    Ok(())
                })?;
                if any {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// A number for a new branch, layer or snapshot. No other has it or had it, since the clock
    /// gives it, and the numbers that it gave before.
    fn new_number(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let last = self.last_number.fetch_max(now, Ordering::Relaxed);
        if now > last {
            return now;
        }
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A number for a new branch.
    pub fn new_branch_number(&self) -> BranchNumber {
        BranchNumber(self.new_number())
    }

    /// A number for a new snapshot.
    pub fn new_snapshot_number(&self) -> u64 {
        self.new_number()
    }

    /// A number for a new layer.
    pub(crate) fn new_layer_number(&self) -> LayerNumber {
        LayerNumber(self.new_number())
    }

    /// What is drained of a branch: its overlay, and where it stands.
    ///
    /// # Errors
    /// What reading the database meets, [`Error::Corrupt`] for rows that cannot be and for a layer
    /// that is missing or not drained.
    pub(crate) fn head(&self, branch: BranchNumber) -> Result<(Overlay, Head)> {
        self.core.read(|snapshot| {
            let (layer, drained) = head_of(snapshot, branch)?;
            let (overlay, used, line) = load_line(snapshot, layer, Some(branch))?;
            let below = line.layers.iter().rev().nth(1).copied();
            Ok((overlay, Head { layer, below, drained, used }))
        })
    }

    /// What a sealed layer and those below it have changed.
    ///
    /// # Errors
    /// As [`Store::head`].
    pub(crate) fn layer(&self, layer: LayerNumber) -> Result<Overlay> {
        self.core.read(|snapshot| load_line(snapshot, layer, None).map(|(overlay, ..)| overlay))
    }

    /// The branch whose outbox has the rest of a layer below `branch`, if there is one: it has to be
    /// drained before `branch` can be opened.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn waits_for(&self, branch: BranchNumber) -> Result<Option<BranchNumber>> {
        self.core.read(|snapshot| {
            let (layer, _) = head_of(snapshot, branch)?;
            let line = line_of(snapshot, layer, Some(branch))?;
            Ok(line.waits.map(|(_, owner, _)| owner))
        })
    }

    /// The same of the layer that a snapshot is.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn snapshot_waits_for(&self, snapshot: &SnapshotRecord) -> Result<Option<BranchNumber>> {
        let Some(layer) = snapshot.layer else { return Ok(None) };
        self.core.read(|found| Ok(line_of(found, layer, None)?.waits.map(|(_, owner, _)| owner)))
    }

    /// A branch whose outbox has a part of a layer that others stand on, and which can be opened and
    /// drained now; none of those in `done`.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn next_to_drain(&self, done: &BTreeSet<BranchNumber>) -> Result<Option<BranchNumber>> {
        self.core.read(|snapshot| {
            let layers = layers(snapshot)?;
            let owners = layers.values().filter_map(|layer| layer.waits);
            for (owner, _) in owners.filter(|(owner, _)| !done.contains(owner)) {
                let (head, _) = head_of(snapshot, owner)?;
                let below = layers.get(&head).and_then(|layer| layer.below);
                if !below.is_some_and(|below| is_waiting(&layers, below)) {
                    return Ok(Some(owner));
                }
            }
            Ok(None)
        })
    }

    /// The snapshots of a branch, the oldest first.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn snapshots(&self, branch: BranchNumber) -> Result<Vec<SnapshotRecord>> {
        self.core.scan_sealed(Table::Snapshots, &branch.0.to_be_bytes(), Record::decode)
    }

    /// Every snapshot, by branch.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn all_snapshots(&self) -> Result<Vec<SnapshotRecord>> {
        self.core.scan_sealed(Table::Snapshots, b"", Record::decode)
    }
}

type Layers = BTreeMap<LayerNumber, Layer>;

/// Whether a layer, or one below it, waits for an outbox.
fn is_waiting(layers: &Layers, mut at: LayerNumber) -> bool {
    for _ in 0..LAYERS_MAX {
        match layers.get(&at) {
            Some(Layer { waits: Some(_), .. }) => return true,
            Some(Layer { below: Some(below), .. }) => at = *below,
            _ => return false,
        }
    }
    false
}

fn layers(snapshot: &Snapshot) -> Result<Layers> {
    let mut layers = BTreeMap::new();
    snapshot.scan(Table::Layers, b"", |key, sealed| {
        let layer = decode_sealed(Table::Layers, key, sealed, Layer::decode)?;
        let number = key.try_into().map(u64::from_be_bytes);
        let number =
            number.map_err(|_| corrupt_entry(Table::Layers, key, "its key is too short"))?;
        layers.insert(LayerNumber(number), layer);
        Ok(())
    })?;
    Ok(layers)
}

impl Batch<'_> {
    /// Puts a changed inode into its row of a layer, or takes the row away. Above another layer an
    /// inode that is gone has a row that says so. `false` for one of which some bytes lie in the
    /// outbox.
    pub(crate) fn put_inode(
        &mut self,
        (layer, below): (LayerNumber, Option<LayerNumber>),
        ino: Ino,
        node: Option<&Node>,
    ) -> bool {
        let key = inode_key(layer, ino);
        match node.map(InodeRow::encode) {
            Some(Some(row)) => self.put_sealed(Table::LayerInodes, key, row),
            Some(None) => return false,
            None if below.is_some() => self.put_sealed(Table::LayerInodes, key, Vec::new()),
            None => self.change(Table::LayerInodes, key, None),
        }
        true
    }

    /// Puts a changed entry of a directory into its row of a layer, or takes the row away. Above
    /// another layer an entry that is left to the base has a row that says so.
    pub(crate) fn put_entry(
        &mut self,
        (layer, below): (LayerNumber, Option<LayerNumber>),
        dir: Ino,
        name: &[u8],
        known: Option<Known>,
    ) {
        let key = entry_key(layer, dir, name);
        if known.is_some() || below.is_some() {
            self.put_sealed(Table::LayerEntries, key, EntryRow::encode(known));
        } else {
            self.change(Table::LayerEntries, key, None);
        }
    }

    /// States what a layer lies on, and the highest number of a new inode in it: its rows are
    /// complete.
    pub(crate) fn put_layer(
        &mut self,
        layer: LayerNumber,
        below: Option<LayerNumber>,
        last_new: u64,
    ) {
        let value = Layer { below, last_new, waits: None }.encode();
        self.put_sealed(Table::Layers, layer_key(layer).to_vec(), value);
    }

    /// The same of a layer that took changes up to record `drained`. If it was sealed after that, and named
    /// by whoever stands on it, it goes on waiting.
    ///
    /// # Errors
    /// What reading the database meets.
    pub(crate) fn put_open_layer(
        &mut self,
        layer: LayerNumber,
        below: Option<LayerNumber>,
        last_new: u64,
        drained: Sequence,
    ) -> Result<()> {
        let named = layer_of(&self.snapshot(), layer)?;
        let named = named.filter(|row| row.waits.is_some_and(|(_, record)| record > drained));
        let waits = named.and_then(|row| row.waits);
        let last_new = named.map_or(last_new, |row| row.last_new.max(last_new));
        let value = Layer { below, last_new, waits }.encode();
        self.put_sealed(Table::Layers, layer_key(layer).to_vec(), value);
        Ok(())
    }

    /// States which layer takes the changes of a branch, and up to which record it is drained.
    pub(crate) fn put_head(&mut self, branch: BranchNumber, layer: LayerNumber, drained: Sequence) {
        let key = branch.0.to_be_bytes().to_vec();
        self.put_sealed(Table::Heads, key, encode_head(layer, drained));
    }

    /// Notes for the sealed layer of `point` that it waits to be drained, if it does, so that what is
    /// put into this batch can stand on it.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn name_point(&mut self, point: &crate::worktree::Point) -> Result<()> {
        let snapshot = self.snapshot();
        let (_, drained) = head_of(&snapshot, point.branch)?;
        if let Some(layer) = point.layer.filter(|_| drained < point.through) {
            let row = Layer {
                below: point.below,
                last_new: point.last_new,
                waits: Some((point.branch, point.through)),
            };
            self.put_sealed(Table::Layers, layer_key(layer).to_vec(), row.encode());
        }
        Ok(())
    }

    /// Begins a branch on top of a sealed layer. The layer must be in the store or named in this
    /// batch.
    pub fn put_fork(&mut self, branch: BranchNumber, on: LayerNumber, last_new: u64) {
        let first = LayerNumber::first_of(branch);
        self.put_layer(first, Some(on), last_new);
        self.put_head(branch, first, Sequence::NONE);
    }

    /// Adds a snapshot or replaces that of the same number.
    pub fn put_snapshot(&mut self, snapshot: &SnapshotRecord) {
        self.put_sealed(Table::Snapshots, snapshot.key(), snapshot.encode());
    }

    /// Removes a snapshot; removing none is no error. What only it needed goes with
    /// [`Batch::sweep_layers`].
    pub fn remove_snapshot(&mut self, snapshot: &SnapshotRecord) {
        self.change(Table::Snapshots, snapshot.key(), None);
    }

    /// Forgets where a branch stands. What only it needed goes with [`Batch::sweep_layers`].
    pub fn remove_head(&mut self, branch: BranchNumber) {
        self.change(Table::Heads, branch.0.to_be_bytes().to_vec(), None);
    }

    /// Removes the layers on which, but for what this batch removes, neither a branch nor a snapshot
    /// stands; returns how many those are.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn sweep_layers(&mut self) -> Result<u64> {
        let (layers, needed) = {
            let snapshot = self.snapshot();
            let layers = layers(&snapshot)?;
            let mut needed = self.standing(&snapshot)?;
            let mut open: Vec<_> = needed.iter().copied().collect();
            while let Some(layer) = open.pop() {
                if let Some(Layer { below: Some(below), .. }) = layers.get(&layer)
                    && needed.insert(*below)
                {
                    open.push(*below);
                }
            }
            (layers, needed)
        };
        let mut removed = 0;
        for layer in layers.into_keys().filter(|layer| !needed.contains(layer)) {
            self.remove_layer(layer)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes what lies on layers of which the rest is nowhere any more: a crash of the machine took
    /// it before anything that lies on it was synced. To be called when [`Store::next_to_drain`] has no
    /// more. Returns the branches that are gone with it; their records and
    /// outboxes are the caller's to remove.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn remove_lost(&mut self) -> Result<Vec<BranchNumber>> {
        let snapshot = self.snapshot();
        let layers = layers(&snapshot)?;
        let mut lost = Vec::new();
        let mut keys = Vec::new();
        snapshot.scan(Table::Heads, b"", |key, sealed| {
            let (layer, _) = decode_sealed(Table::Heads, key, sealed, decode_head)?;
            if is_waiting(&layers, layer) {
                let number = key.try_into().map(u64::from_be_bytes);
                let bad = |_| corrupt_entry(Table::Heads, key, "its key is no number");
                lost.push(BranchNumber(number.map_err(bad)?));
                keys.push((Table::Heads, key.to_vec()));
            }
            Ok(())
        })?;
        snapshot.scan(Table::Snapshots, b"", |key, sealed| {
            let found = decode_sealed(Table::Snapshots, key, sealed, SnapshotRecord::decode)?;
            if found.layer.is_some_and(|layer| is_waiting(&layers, layer)) {
                keys.push((Table::Snapshots, key.to_vec()));
            }
            Ok(())
        })?;
        for (table, key) in keys {
            self.change(table, key, None);
        }
        for layer in layers.keys().copied().filter(|layer| is_waiting(&layers, *layer)) {
            self.remove_layer(layer)?;
        }
        Ok(lost)
    }

    /// Puts any bytes into a row, for tests of damage; they get a right checksum. `None` takes the row
    /// away.
    #[cfg(test)]
    pub(crate) fn put_row(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        match value {
            Some(value) => self.put_sealed(table, key, value),
            None => self.change(table, key, None),
        }
    }

    fn remove_layer(&mut self, layer: LayerNumber) -> Result<()> {
        let prefix = layer_key(layer);
        for table in [Table::Layers, Table::LayerInodes, Table::LayerEntries] {
            for key in self.keys(table, &prefix)? {
                self.change(table, key, None);
            }
        }
        Ok(())
    }

    /// The layers on which a branch or a snapshot stands that this batch does not remove.
    fn standing(&self, snapshot: &Snapshot) -> Result<BTreeSet<LayerNumber>> {
        let mut standing = BTreeSet::new();
        // One whose head is lost may have rows in its first layer.
        snapshot.scan(Table::Branches, b"", |key, sealed| {
            let branch = decode_sealed(Table::Branches, key, sealed, Branch::decode)?;
            if drained_of(snapshot, branch.number)?.is_none() {
                standing.insert(LayerNumber::first_of(branch.number));
            }
            Ok(())
        })?;
        snapshot.scan(Table::Heads, b"", |key, sealed| {
            if !self.removes(Table::Heads, key) {
                let (layer, _) = decode_sealed(Table::Heads, key, sealed, decode_head)?;
                standing.insert(layer);
            }
            Ok(())
        })?;
        snapshot.scan(Table::Snapshots, b"", |key, sealed| {
            if !self.removes(Table::Snapshots, key) {
                let found = decode_sealed(Table::Snapshots, key, sealed, SnapshotRecord::decode)?;
                standing.extend(found.layer);
            }
            Ok(())
        })?;
        Ok(standing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_of_layers_and_heads_read_back() {
        for waits in [None, Some((BranchNumber(4), Sequence(5)))] {
            let below = waits.map(|_| LayerNumber(3));
            let layer = Layer { below, last_new: u64::MAX, waits };
            assert_eq!(Layer::decode(&layer.encode()), Some(layer));
        }
        let head = (LayerNumber(1), Sequence(2));
        assert_eq!(decode_head(&encode_head(head.0, head.1)), Some(head));
    }

    proptest! {
        #[test]
        fn no_value_makes_a_decoder_panic(value in prop::collection::vec(any::<u8>(), 0..32)) {
            let _ = Layer::decode(&value);
            let _ = decode_head(&value);
            let _ = decode_inode(&value);
        }
    }
}
