//! Goal: extents say of every byte what was last put there; every put and row reads back; no bytes
//! make a decoder panic.

use std::ops::Range;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::id::{ChunkId, Sequence};
use crate::outbox::Outbox;
use crate::worktree::Timestamp;

/// What lies at a byte: which put, and the how many-th of its bytes.
type Byte = Option<(u64, u64)>;

const FILE: u64 = 64;

fn base(number: u64) -> Source {
    Source::Base(Ino(number), 0)
}

fn bytes_of(extents: &Extents, range: Range<u64>) -> Vec<Byte> {
    let mut bytes = vec![None; (range.end - range.start) as usize];
    for (start, extent) in extents.within(range.clone()) {
        let Source::Base(Ino(number), offset) = extent.source else { panic!("{extent:?}") };
        for at in 0..extent.len {
            let byte = &mut bytes[(start - range.start + at) as usize];
            assert_eq!(*byte, None, "extents overlap");
            *byte = Some((number, offset + at));
        }
    }
    bytes
}

fn range() -> impl Strategy<Value = Range<u64>> {
    (0..FILE, 0..FILE).prop_map(|(a, b)| a.min(b)..a.max(b))
}

proptest! {
    #[test]
    fn extents_say_what_was_put_last(
        puts in prop::collection::vec((range(), any::<bool>()), 1..24),
        asked in range(),
    ) {
        let mut extents = Extents::default();
        let mut model: Vec<Byte> = vec![None; FILE as usize];
        for (number, (range, hole)) in puts.into_iter().enumerate() {
            for at in range.clone() {
                model[at as usize] = (!hole).then_some((number as u64, at - range.start));
            }
            if hole {
                extents.clear(range);
            } else {
                extents.set(range, base(number as u64));
            }
            prop_assert_eq!(bytes_of(&extents, 0..FILE), model.clone());
            let allocated = model.iter().flatten().count() as u64;
            prop_assert_eq!(extents.allocated(), allocated);
        }
        let part = &model[asked.start as usize..asked.end as usize];
        prop_assert_eq!(bytes_of(&extents, asked.clone()), part.to_vec());
        let data = (asked.start..FILE).find(|&at| model[at as usize].is_some());
        prop_assert_eq!(extents.next_data(asked.start), data);
        let hole = (asked.start..FILE).find(|&at| model[at as usize].is_none()).unwrap_or(FILE);
        prop_assert_eq!(extents.next_hole(asked.start), hole);
    }

    /// What was put between the copy and the settling stays; all else is where the copy moved it.
    #[test]
    fn settling_moves_what_was_not_changed_since(
        before in prop::collection::vec(range(), 0..8),
        since in prop::collection::vec((range(), any::<bool>()), 0..4),
    ) {
        let mut extents = Extents::default();
        for (number, range) in before.into_iter().enumerate() {
            extents.set(range, base(number as u64));
        }
        let old = extents.clone();
        let mut moved = Extents::default();
        for (start, extent) in old.iter() {
            moved.set(start..start + extent.len, Source::Base(Ino(1000), start));
        }
        let mut model: Vec<Byte> = bytes_of(&old, 0..FILE);
        for (at, byte) in model.iter_mut().enumerate() {
            *byte = byte.map(|_| (1000, at as u64));
        }
        for (number, (range, hole)) in since.into_iter().enumerate() {
            let number = 100 + number as u64;
            for at in range.clone() {
                model[at as usize] = (!hole).then_some((number, at - range.start));
            }
            if hole {
                extents.clear(range);
            } else {
                extents.set(range, base(number));
            }
        }
        extents.settle(&old, &moved);
        prop_assert_eq!(bytes_of(&extents, 0..FILE), model);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut fields = Fields(&bytes);
        while Put::decode(&mut fields).is_some() {}
        let _ = InodeRow::decode(&bytes);
        let _ = EntryRow::decode(&bytes);
    }

    #[test]
    fn entries_are_found_by_name_and_by_position(
        steps in prop::collection::vec((0..6_u8, any::<bool>()), 1..40),
    ) {
        let mut directory = Directory::default();
        let mut model: BTreeMap<u8, u64> = BTreeMap::new();
        for (name, add) in steps {
            if add {
                let position = directory.next_position();
                directory.add(&[name], Ino(u64::from(name)), position);
                model.insert(name, position);
            } else {
                directory.leave(&[name]);
                model.remove(&name);
            }
            for name in 0..6 {
                let known = model.get(&name);
                let known = known.map(|&position| Known::Added(Ino(u64::from(name)), position));
                prop_assert_eq!(directory.find(&[name]), known);
            }
            let mut listed: Vec<_> = model.iter().map(|(&name, &at)| (at, vec![name])).collect();
            listed.sort();
            let found: Vec<_> =
                directory.added_from(0).map(|(at, name, _)| (at, name.to_vec())).collect();
            prop_assert_eq!(found, listed);
        }
    }
}

fn inode(kind: NodeKind) -> Inode {
    let time = |seconds| Timestamp { seconds, nanoseconds: 999_999_999 };
    Inode {
        kind,
        permissions: 0o7777,
        nlink: 1,
        uid: 2,
        gid: 3,
        rdev: 4,
        size: 5,
        accessed: time(-6),
        modified: time(7),
        changed: time(i64::MAX),
        parent: Ino(8),
    }
}

#[test]
fn every_put_reads_back() {
    let ino = Ino(7);
    let chunk = Source::Chunk(ChunkId::of(b"c"), 9);
    let puts = [
        Put::Inode(ino, inode(NodeKind::BlockDevice)),
        Put::CopyUp(ino, inode(NodeKind::Directory)),
        Put::Add { dir: ino, name: b"n", ino: Ino(u64::MAX), position: 3 },
        Put::Remove { dir: ino, name: b"\xff", hides: true },
        Put::Target(ino, b"../x"),
        Put::Xattr(ino, b"user.a", Some(b"")),
        Put::Xattr(ino, b"user.a", None),
        Put::Data { ino, offset: 1, len: 2 },
        Put::Hole { ino, offset: 1, len: u64::MAX - 1 },
        Put::Share { ino, offset: 1, len: 2, source: chunk },
        Put::Share { ino, offset: 1, len: 2, source: base(4) },
        Put::Forget(ino),
        Put::Seal(LayerNumber(12)),
        Put::Stand(LayerNumber(13), None),
        Put::Stand(LayerNumber(14), Some(LayerNumber(12))),
        Put::Part(1, 2),
        Put::Part(u64::MAX, u64::MAX),
    ];
    let mut bytes = Vec::new();
    puts.iter().for_each(|put| put.encode(&mut bytes));
    let mut fields = Fields(&bytes);
    for put in &puts {
        assert_eq!(Put::decode(&mut fields).as_ref(), Some(put));
    }
    assert!(fields.0.is_empty());
    for len in 0..bytes.len() {
        let mut fields = Fields(&bytes[..len]);
        let whole = puts.iter().map_while(|_| Put::decode(&mut fields)).count();
        assert!(whole < puts.len(), "cut at {len}");
    }
}

#[test]
fn every_row_reads_back() {
    let mut extents = Extents::default();
    extents.set(0..10, Source::Chunk(ChunkId::of(b"c"), 3));
    extents.set(20..30, base(9));
    let bodies = [
        (NodeKind::File, Body::File(Box::new(extents))),
        (NodeKind::File, Body::Base),
        (NodeKind::Symlink, Body::Target(b"t".as_slice().into())),
        (NodeKind::Directory, Body::Directory(Box::default())),
        (NodeKind::Fifo, Body::Nothing),
    ];
    for (kind, body) in bodies {
        let mut node = Node { inode: inode(kind), body, xattrs: None };
        node.set_xattr(b"user.b", Some(b"2"));
        node.set_xattr(b"user.a", Some(b""));
        let row = InodeRow::encode(&node).unwrap();
        let back = InodeRow::decode(&row).unwrap();
        assert_eq!(format!("{back:?}"), format!("{node:?}"));
    }
    for known in [None, Some(Known::Hidden), Some(Known::Added(Ino(5), 6))] {
        assert_eq!(EntryRow::decode(&EntryRow::encode(known)), Some(known));
    }
}

/// Parts of one change are applied with the last one, and not at all if something else comes between.
#[test]
fn parts_are_one_change() {
    let head = |puts: &[Put<'_>]| {
        let mut head = Vec::new();
        puts.iter().for_each(|put| put.encode(&mut head));
        head
    };
    let new = |number: u64| Put::Inode(Ino(Ino::FIRST_NEW.0 + number), inode(NodeKind::File));
    let storage = std::sync::Arc::new(crate::testing::FaultyStorage::new());
    let outbox =
        Outbox::open(storage, Path::new("/outbox"), Sequence::NONE, &mut |_| Ok(())).unwrap();
    let place = || outbox.append(b"a record", &[]).unwrap().body;
    let first = head(&[Put::Part(1, 2), new(0)]);
    let last = head(&[Put::Part(2, 2), new(1), Put::Seal(LayerNumber(9))]);
    let other = head(&[new(2)]);
    let mut overlay = Overlay::default();
    assert_eq!(overlay.replay(&first, place(), 0).unwrap(), Next::Changed);
    assert_eq!(overlay.nodes().len(), 0);
    assert_eq!(overlay.replay(&last, place(), 0).unwrap(), Next::Sealed(LayerNumber(9)));
    assert_eq!(overlay.nodes().len(), 2);

    let mut overlay = Overlay::default();
    overlay.replay(&first, place(), 0).unwrap();
    overlay.replay(&other, place(), 0).unwrap();
    assert!(overlay.replay(&last, place(), 0).is_err(), "the first part is not its own");
    overlay.replay(&first, place(), 0).unwrap();
    overlay.replay(&first, place(), 0).unwrap();
    overlay.replay(&last, place(), 0).unwrap();
    assert_eq!(overlay.nodes().len(), 3);
    for puts in [
        &[Put::Part(0, 1)][..],
        &[Put::Part(3, 2)],
        &[Put::Part(1, 1), Put::Part(1, 1)],
        &[Put::Part(1, 2), Put::Seal(LayerNumber(9))],
        &[Put::Part(1, 1), Put::Seal(LayerNumber(9)), new(0)],
        &[Put::Part(1, 1), Put::Stand(LayerNumber(9), None)],
        &[new(0), Put::Part(1, 1)],
    ] {
        assert!(Overlay::default().replay(&head(puts), place(), 0).is_err(), "{puts:?}");
    }
}
