//! Goal: what is encoded reads back, what must not stand in a tree does not, and no bytes make decoding
//! panic.

use proptest::prelude::*;

use super::*;

fn oid(byte: u8) -> GitOid {
    GitOid::from_slice(HashKind::Sha1, &[byte; 20]).expect("20 bytes")
}

fn file(name: &[u8], size: u64) -> Entry<'_> {
    Entry { kind: EntryKind::File, name, size, oid: Some(oid(7)), content: None, subtree: None }
}

fn encode(entries: &[Entry<'_>]) -> EncodedTree {
    let mut builder = TreeBuilder::new(Some(HashKind::Sha1));
    entries.iter().for_each(|entry| builder.push(entry).expect("a valid entry"));
    builder.finish()
}

#[test]
fn an_encoded_tree_decodes_to_its_entries() {
    let inner = encode(&[file(b"x", 1), file(b"y", 2)]).subtree;
    let content = Some(ContentId::of(b"converted"));
    let entries = [
        file(b"a", 0),
        Entry {
            kind: EntryKind::Directory,
            size: inner.size,
            subtree: Some(inner),
            ..file(b"b", 0)
        },
        Entry { kind: EntryKind::Executable, content, ..file(b"c", 9) },
        Entry { kind: EntryKind::Gitlink, ..file(b"d", 0) },
        Entry { kind: EntryKind::Symlink, ..file(&[0xff, 0xfe], 4) },
    ];
    let encoded = encode(&entries);
    let tree = Tree::decode(encoded.bytes).expect("decodes");
    assert_eq!(tree.entries().collect::<Vec<_>>(), entries);
    assert_eq!(tree.subtree(encoded.subtree.id), encoded.subtree);
    assert_eq!(encoded.subtree.descendants, 7);
    assert_eq!(encoded.subtree.subdirectories, 2);
    assert_eq!((tree.find(b"c"), tree.find(b"bb")), (Some(2), None));
    assert_eq!((tree.before(1), tree.before(2)), (1, 4));
    let owners = (0..8).map(|offset| tree.at(offset)).collect::<Vec<_>>();
    assert_eq!(owners, [Some(0), Some(1), Some(1), Some(1), Some(2), Some(3), Some(4), None]);
    assert_eq!((tree.ordinal(0), tree.ordinal(1)), (None, Some(0)));
}

#[test]
fn names_that_would_escape_or_collide_are_refused() {
    let long = [b'x'; 256];
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &long] {
        let mut builder = TreeBuilder::new(Some(HashKind::Sha1));
        assert!(builder.push(&file(name, 1)).is_err(), "{name:?}");
    }
    let mut builder = TreeBuilder::new(Some(HashKind::Sha1));
    builder.push(&file(b"b", 1)).expect("valid");
    assert!(builder.push(&file(b"b", 1)).is_err());
    assert!(builder.push(&file(b"a", 1)).is_err());
}

#[test]
fn a_link_or_file_of_impossible_size_is_refused() {
    let mut builder = TreeBuilder::new(Some(HashKind::Sha1));
    let link = Entry { kind: EntryKind::Symlink, ..file(b"l", 4096) };
    assert!(builder.push(&link).is_err());
    assert!(builder.push(&file(b"f", u64::MAX)).is_err());
}

proptest! {
    /// Decoding is total: any bytes give a tree or a reason, and a tree that was accepted can
    /// be read in full.
    #[test]
    fn no_bytes_make_decoding_panic(
        flips in prop::collection::vec((0_usize..400, any::<u8>()), 0..6),
        cut in 0_usize..400,
    ) {
        let inner = encode(&[file(b"x", 1)]).subtree;
        let encoded = encode(&[
            file(b"a", 1),
            Entry {
                kind: EntryKind::Directory,
                size: inner.size,
                subtree: Some(inner),
                ..file(b"b", 0)
            },
            file(b"c", 3),
        ]);
        let mut bytes = encoded.bytes;
        for (at, value) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(cut.max(1));
        if let Ok(tree) = Tree::decode(bytes) {
            for (index, entry) in tree.entries().enumerate() {
                prop_assert_eq!(tree.find(entry.name), Some(index));
                prop_assert_eq!(tree.at(tree.before(index)), Some(index));
                prop_assert_eq!(tree.ordinal(index).is_some(), entry.subtree.is_some());
            }
        }
    }
}
