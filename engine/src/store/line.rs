//! A layer as rows, and the line of layers on which a branch or a snapshot stands.
//!
//! A layer is rows of inodes and names that say what differs from the layer below it. The keys of the
//! rows begin with the number of the layer and go on with that of the inode, both big-endian, so that
//! what belongs together lies together.

use std::ops::RangeInclusive;

use super::database::Snapshot;
use super::decode_sealed;
use super::loading::load_layer;
use super::tables::{Table, corrupt_entry};
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::id::{BranchNumber, Ino, LayerNumber, Sequence};
use crate::limits::LAYERS_MAX;
use crate::overlay::{EntryRow, InodeRow, Known, Node, Overlay};

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

pub(super) fn encode_head(layer: LayerNumber, drained: Sequence) -> Vec<u8> {
    [layer.0.to_le_bytes(), drained.0.to_le_bytes()].concat()
}

pub(super) fn layer_key(layer: LayerNumber) -> [u8; 8] {
    layer.0.to_be_bytes()
}

pub(super) fn inode_key(layer: LayerNumber, ino: Ino) -> Vec<u8> {
    [layer_key(layer), ino.0.to_be_bytes()].concat()
}

pub(super) fn entry_key(layer: LayerNumber, dir: Ino, name: &[u8]) -> Vec<u8> {
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

/// Whether the row of an entry says that it is left to the base.
pub(super) fn is_left(value: &[u8]) -> bool {
    EntryRow::decode(value) == Some(None)
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

pub(super) fn head_of(
    snapshot: &Snapshot,
    branch: BranchNumber,
) -> Result<(LayerNumber, Sequence)> {
    let head = drained_of(snapshot, branch)?;
    Ok(head.unwrap_or((LayerNumber::first_of(branch), Sequence::NONE)))
}

pub(super) fn layer_of(snapshot: &Snapshot, layer: LayerNumber) -> Result<Option<Layer>> {
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

/// Calls `visit` for every row of a layer that is of one of the inodes `of`, inodes first, with what is wrong
/// with those that cannot be read.
///
/// # Errors
/// What reading the database meets, and what `visit` returns.
pub(crate) fn rows_of(
    snapshot: &Snapshot,
    layer: LayerNumber,
    of: &RangeInclusive<u64>,
    mut visit: impl FnMut(Result<Row<'_>>) -> Result<()>,
) -> Result<()> {
    let bad = |table, key: &[u8]| corrupt_entry(table, key, "its fields are impossible");
    let table = Table::LayerInodes;
    scan_inodes(snapshot, table, layer, of, |key, sealed| {
        let node = decode_sealed(table, key, sealed, decode_inode);
        let place = split_key(key).filter(|(_, rest)| rest.is_empty());
        visit(match (node, place) {
            (Ok(node), Some((ino, _))) => Ok(Row::Inode(ino, node)),
            (Err(error), _) => Err(error),
            (Ok(_), None) => Err(bad(table, key)),
        })
        .map(|()| true)
    })?;
    let table = Table::LayerEntries;
    scan_inodes(snapshot, table, layer, of, |key, sealed| {
        let known = decode_sealed(table, key, sealed, EntryRow::decode);
        let place = split_key(key).filter(|(_, name)| !name.is_empty());
        visit(match (known, place) {
            (Ok(known), Some((dir, name))) => Ok(Row::Entry(dir, name, known)),
            (Err(error), _) => Err(error),
            (Ok(_), None) => Err(bad(table, key)),
        })
        .map(|()| true)
    })
}

/// Every inode that there can be.
pub(crate) const ALL_INODES: RangeInclusive<u64> = 0..=u64::MAX;

/// Calls `visit` for the rows of a layer in `table` that are of one of the inodes `of`, in order, until it says
/// `false`.
pub(super) fn scan_inodes(
    snapshot: &Snapshot,
    table: Table,
    layer: LayerNumber,
    of: &RangeInclusive<u64>,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool>,
) -> Result<()> {
    let prefix = layer_key(layer);
    // A key that is too short for an inode sorts before all of them, and is told of with the first.
    let start = match *of.start() {
        0 => prefix.to_vec(),
        first => inode_key(layer, Ino(first)),
    };
    snapshot.scan_from(table, &start, |key, sealed| {
        let ends =
            !key.starts_with(&prefix) || split_key(key).is_some_and(|(ino, _)| ino.0 > *of.end());
        if ends { Ok(false) } else { visit(key, sealed) }
    })
}

/// Calls `visit` for every inode that a layer has, with the layer.
///
/// # Errors
/// What reading the database meets, [`Error::Corrupt`] for a row that cannot be, and what `visit`
/// returns.
pub(crate) fn visit_inodes(
    snapshot: &Snapshot,
    mut visit: impl FnMut(LayerNumber, Node) -> Result<()>,
) -> Result<()> {
    let table = Table::LayerInodes;
    snapshot.scan(table, b"", |key, sealed| {
        let node = decode_sealed(table, key, sealed, decode_inode)?;
        let layer =
            number_of(key).ok_or_else(|| corrupt_entry(table, key, "its key is impossible"))?;
        node.map_or(Ok(()), |node| visit(LayerNumber(layer), node))
    })
}

pub(super) fn load_line(
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
