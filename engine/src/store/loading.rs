//! From the rows of a layer to the overlay in memory, on all processors: a worktree with a million changed
//! files is to be there at once.
//!
//! A layer of many rows is cut into ranges of inode numbers, each of which one thread reads, verifies and
//! decodes, names included. Only putting the finished inodes into the map is left to one.

use std::ops::RangeInclusive;
use std::sync::Arc;

use rayon::prelude::*;

use super::database::Snapshot;
use super::line::{ALL_INODES, Row, entry_key, rows_of, scan_inodes};
use super::tables::{Table, corrupt_entry};
use crate::error::{Error, Result};
use crate::id::{Ino, LayerNumber};
use crate::overlay::{LayerNodes, Node, Overlay};

/// A layer with fewer inodes is read in one piece: cutting it would take longer.
const INODES_OF_ONE_PIECE: usize = 4096;

/// Ranges for each thread. Numbers have gaps where inodes are gone, so that ranges differ in what they hold.
const RANGES_PER_THREAD: u64 = 8;

/// Applies the rows of a layer; returns whether it has any.
pub(super) fn load_layer(
    snapshot: &Snapshot,
    layer: LayerNumber,
    last_new: u64,
    overlay: &mut Overlay,
) -> Result<bool> {
    let pieces = pieces_of(snapshot, layer, last_new)?;
    let below = &*overlay;
    let loaded = pieces.par_iter().map(|of| load_piece(snapshot, layer, of, last_new, below));
    let loaded = loaded.collect::<Result<Vec<_>>>()?;
    let used = loaded.iter().any(|piece| piece.used);
    for piece in loaded {
        overlay.load(piece.nodes);
    }
    Ok(used)
}

/// What a thread has read.
struct Piece {
    nodes: Vec<(Ino, Option<Arc<Node>>)>,
    /// Whether there was a row.
    used: bool,
}

fn load_piece(
    snapshot: &Snapshot,
    layer: LayerNumber,
    of: &RangeInclusive<u64>,
    last_new: u64,
    below: &Overlay,
) -> Result<Piece> {
    let mut nodes = LayerNodes::above(below);
    let mut used = false;
    rows_of(snapshot, layer, of, |row| {
        used = true;
        match row? {
            Row::Inode(ino, _) if ino.0 > last_new && ino.is_new() => Err(Error::corrupt(
                format!("inode {ino} of layer {layer}"),
                format!("the highest number that was given is {last_new}"),
            )),
            Row::Inode(ino, node) => {
                nodes.inode(ino, node);
                Ok(())
            }
            Row::Entry(dir, name, known) if !nodes.entry(dir, name, known) => {
                let key = entry_key(layer, dir, name);
                Err(corrupt_entry(Table::LayerEntries, &key, "it is in no directory"))
            }
            Row::Entry(..) => Ok(()),
        }
    })?;
    Ok(Piece { nodes: nodes.finish(), used })
}

/// The inodes of a layer in ranges, all of which together are every number that there can be.
fn pieces_of(
    snapshot: &Snapshot,
    layer: LayerNumber,
    last_new: u64,
) -> Result<Vec<RangeInclusive<u64>>> {
    let mut rows = 0;
    scan_inodes(snapshot, Table::LayerInodes, layer, &ALL_INODES, |_, _| {
        rows += 1;
        Ok(rows < INODES_OF_ONE_PIECE)
    })?;
    if rows < INODES_OF_ONE_PIECE {
        return Ok(vec![ALL_INODES]);
    }
    let last_of_base = last_of_base(snapshot, layer)?;
    let last_of_branch = last_new.clamp(Ino::FIRST_NEW.0, u64::MAX - 1);
    let mut pieces = cut(0..=last_of_base);
    // What is between may have names without a row of its own.
    pieces.push(last_of_base + 1..=Ino::FIRST_NEW.0 - 1);
    pieces.extend(cut(Ino::FIRST_NEW.0..=last_of_branch));
    // None should be there, and what is there is to be told of.
    pieces.push(last_of_branch + 1..=u64::MAX);
    Ok(pieces)
}

/// The highest inode of the base that has a row in a layer, 0 if none has.
fn last_of_base(snapshot: &Snapshot, layer: LayerNumber) -> Result<u64> {
    // Up to `low` there may be rows, from `high` on there are none.
    let (mut low, mut high) = (0, Ino::FIRST_NEW.0);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let mut any = false;
        let upper = middle..=Ino::FIRST_NEW.0 - 1;
        scan_inodes(snapshot, Table::LayerInodes, layer, &upper, |_, _| {
            any = true;
            Ok(false)
        })?;
        if any {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// Cuts a range into as many pieces of one length as there is work for.
fn cut(range: RangeInclusive<u64>) -> Vec<RangeInclusive<u64>> {
    let (first, last) = range.into_inner();
    let pieces = rayon::current_num_threads() as u64 * RANGES_PER_THREAD;
    let step = ((last - first) / pieces).max(INODES_OF_ONE_PIECE as u64);
    let mut cut = Vec::new();
    let mut start = first;
    while last - start > step {
        cut.push(start..=start + step);
        start += step + 1;
    }
    cut.push(start..=last);
    cut
}

#[cfg(test)]
mod tests {
    use super::super::line::inode_key;
    use super::*;
    use crate::overlay::{Body, Difference, Inode, Known};
    use crate::store::Store;
    use crate::store::tables::SEAL_BYTES;
    use crate::worktree::{NodeKind, Timestamp};

    const LOWER: LayerNumber = LayerNumber(1);
    const UPPER: LayerNumber = LayerNumber(2);
    const FILES: u64 = 3 * INODES_OF_ONE_PIECE as u64;
    /// A directory of the base, and one of the branch.
    const DIRECTORIES: [Ino; 2] = [Ino(20), Ino(Ino::FIRST_NEW.0)];
    const LAST_NEW: u64 = Ino::FIRST_NEW.0 + FILES;

    fn node(kind: NodeKind, size: u64) -> Node {
        let time = Timestamp { seconds: 1, nanoseconds: 2 };
        let inode = Inode {
            kind,
            permissions: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size,
            accessed: time,
            modified: time,
            changed: time,
            parent: Ino::ROOT,
        };
        let body = match kind {
            NodeKind::Directory => Body::Directory(Box::default()),
            _ => Body::File(Box::default()),
        };
        Node { inode, body, xattrs: None }
    }

    /// Two layers: in the lower one files of the base and of the branch, with names in both directories; in the
    /// upper one every third file is gone and every fifth has changed, and names have changed of directories that have no
    /// row there.
    fn store(dir: &std::path::Path) -> Arc<Store> {
        let store = Store::open(dir).expect("a store");
        let mut batch = store.batch().expect("a batch");
        batch.put_layer(LOWER, None, LAST_NEW);
        batch.put_layer(UPPER, Some(LOWER), LAST_NEW);
        for dir in DIRECTORIES {
            let directory = node(NodeKind::Directory, 0);
            assert!(batch.put_inode((LOWER, None), dir, Some(&directory)));
        }
        for number in 1..=FILES {
            for (dir, first) in [(DIRECTORIES[0], 100), (DIRECTORIES[1], Ino::FIRST_NEW.0)] {
                let ino = Ino(first + number);
                let name = format!("file{number}");
                let file = node(NodeKind::File, number);
                assert!(batch.put_inode((LOWER, None), ino, Some(&file)));
                let known = Known::Added(ino, number);
                batch.put_entry((LOWER, None), dir, name.as_bytes(), Some(known));
                let upper = (UPPER, Some(LOWER));
                if number % 3 == 0 {
                    assert!(batch.put_inode(upper, ino, None));
                    batch.put_entry(upper, dir, name.as_bytes(), None);
                } else if number % 5 == 0 {
                    let file = node(NodeKind::File, 0);
                    assert!(batch.put_inode(upper, ino, Some(&file)));
                    batch.put_entry(upper, dir, name.as_bytes(), Some(Known::Hidden));
                }
            }
        }
        batch.commit().expect("a commit");
        store
    }

    fn in_one_piece(snapshot: &Snapshot, layers: &[LayerNumber]) -> Overlay {
        let mut overlay = Overlay::default();
        for &layer in layers {
            let piece = load_piece(snapshot, layer, &ALL_INODES, LAST_NEW, &overlay);
            overlay.load(piece.expect("a layer").nodes);
        }
        overlay
    }

    #[test]
    fn many_pieces_make_what_one_makes() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = store(dir.path());
        let snapshot = store.core.snapshot.load();
        for layers in [&[LOWER][..], &[LOWER, UPPER]] {
            let mut overlay = Overlay::default();
            for &layer in layers {
                assert!(pieces_of(&snapshot, layer, LAST_NEW).expect("pieces").len() > 4);
                assert!(load_layer(&snapshot, layer, LAST_NEW, &mut overlay).expect("a layer"));
            }
            let expected = in_one_piece(&snapshot, layers);
            assert_eq!(Difference::between(&expected, &overlay), Difference::default());
            let gone = if layers.len() > 1 { 2 * FILES / 3 } else { 0 };
            assert_eq!(overlay.nodes().len() as u64, 2 + 2 * FILES - gone);
        }
    }

    #[test]
    fn a_damaged_row_of_any_piece_is_told_of() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = store(dir.path());
        let below = in_one_piece(&store.core.snapshot.load(), &[LOWER]);
        for ino in [0, 21, 101, 99_999, Ino::FIRST_NEW.0 - 1, LAST_NEW, LAST_NEW + 1, u64::MAX] {
            let key = inode_key(UPPER, Ino(ino));
            let before = {
                let snapshot = store.core.snapshot.load();
                snapshot.get(Table::LayerInodes, &key, |row| Ok(row.to_vec())).expect("a table")
            };
            let put = |value: Option<Vec<u8>>| {
                let mut batch = store.batch().expect("a batch");
                batch.put_row(Table::LayerInodes, key.clone(), value);
                batch.commit().expect("a commit");
            };
            put(Some(vec![255]));
            let snapshot = store.core.snapshot.load();
            let loaded = load_layer(&snapshot, UPPER, LAST_NEW, &mut below.copy());
            assert!(matches!(loaded, Err(Error::Corrupt { .. })), "{ino}: {loaded:?}");
            drop(snapshot);
            put(before.map(|sealed| sealed[..sealed.len() - SEAL_BYTES].to_vec()));
            let snapshot = store.core.snapshot.load();
            load_layer(&snapshot, UPPER, LAST_NEW, &mut below.copy()).expect("a layer");
        }
    }

    #[test]
    fn pieces_cover_every_number_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = store(dir.path());
        let snapshot = store.core.snapshot.load();
        for last_new in [0, LAST_NEW, u64::MAX] {
            let pieces = pieces_of(&snapshot, LOWER, last_new).expect("pieces");
            assert_eq!((*pieces[0].start(), *pieces[pieces.len() - 1].end()), (0, u64::MAX));
            for pair in pieces.windows(2) {
                assert_eq!(pair[0].end() + 1, *pair[1].start(), "{pieces:?}");
            }
        }
    }
}
