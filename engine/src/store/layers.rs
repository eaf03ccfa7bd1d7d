//! What is drained of the branches: where each of them stands, and who needs which layer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Store;
use super::batch::Batch;
use super::database::Snapshot;
use super::decode_sealed;
use super::line::{
    Layer, decode_head, drained_of, encode_head, entry_key, head_of, inode_key, layer_key,
    layer_of, line_of, load_line,
};
use super::records::{Branch, Record, SnapshotRecord};
use super::tables::{Table, corrupt_entry};
use crate::error::{Error, Result};
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
    pub fn new_layer_number(&self) -> LayerNumber {
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
        self.core.read(|snapshot| match layer_of(snapshot, layer)? {
            Some(_) => load_line(snapshot, layer, None).map(|(overlay, ..)| overlay),
            None => Err(Error::corrupt(format!("layer {layer}"), "it is missing")),
        })
    }

    /// Whether a sealed layer is in the store.
    ///
    /// # Errors
    /// What reading the database meets.
    pub(crate) fn has_layer(&self, layer: LayerNumber) -> Result<bool> {
        self.core.read(|snapshot| Ok(layer_of(snapshot, layer)?.is_some()))
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

pub(super) type Layers = BTreeMap<LayerNumber, Layer>;

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

pub(super) fn layers(snapshot: &Snapshot) -> Result<Layers> {
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

    /// The same of a layer whose rows are complete up to record `drained` of its outbox. If it was sealed
    /// after that, and named by whoever stands on it, it goes on waiting.
    ///
    /// # Errors
    /// What reading the database meets.
    pub(crate) fn put_drained_layer(
        &mut self,
        (layer, below): (LayerNumber, Option<LayerNumber>),
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
            let mut needed = standing(&snapshot, |table, key| self.removes(table, key))?;
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

    pub(super) fn remove_layer(&mut self, layer: LayerNumber) -> Result<()> {
        let prefix = layer_key(layer);
        for table in [Table::Layers, Table::LayerInodes, Table::LayerEntries] {
            for key in self.keys(table, &prefix)? {
                self.change(table, key, None);
            }
        }
        Ok(())
    }
}

/// The layers that take the changes of branches.
pub(super) fn heads(snapshot: &Snapshot) -> Result<BTreeSet<LayerNumber>> {
    let mut heads = BTreeSet::new();
    snapshot.scan(Table::Heads, b"", |key, sealed| {
        heads.insert(decode_sealed(Table::Heads, key, sealed, decode_head)?.0);
        Ok(())
    })?;
    Ok(heads)
}

/// The layers on which a branch or a snapshot stands whose row is not removed.
pub(super) fn standing(
    snapshot: &Snapshot,
    is_removed: impl Fn(Table, &[u8]) -> bool,
) -> Result<BTreeSet<LayerNumber>> {
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
        if !is_removed(Table::Heads, key) {
            let (layer, _) = decode_sealed(Table::Heads, key, sealed, decode_head)?;
            standing.insert(layer);
        }
        Ok(())
    })?;
    snapshot.scan(Table::Snapshots, b"", |key, sealed| {
        if !is_removed(Table::Snapshots, key) {
            let found = decode_sealed(Table::Snapshots, key, sealed, SnapshotRecord::decode)?;
            standing.extend(found.layer);
        }
        Ok(())
    })?;
    Ok(standing)
}
