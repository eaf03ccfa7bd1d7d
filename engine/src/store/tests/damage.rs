//! Damaged, foreign and full stores: a clear error, never wrong bytes, never a panic.

use super::*;

#[test]
fn trees_read_back_and_a_damaged_one_is_named() {
    let (storage, store) = fresh();
    let small = tree(1);
    let mut builder = TreeBuilder::new(None);
    for index in 0..100 {
        let name = format!("name{index:04}");
        let content = Some(ContentId::of(name.as_bytes()));
        let name = name.as_bytes();
        let entry =
            Entry { kind: EntryKind::File, name, size: 1, oid: None, content, subtree: None };
        builder.push(&entry).unwrap();
    }
    let large = builder.finish();
    let mut batch = store.batch().unwrap();
    batch.put_tree(&small).unwrap();
    batch.put_tree(&large).unwrap();
    batch.commit().unwrap();
    for tree in [&small, &large] {
        assert_eq!(store.tree(tree.subtree.id).unwrap().bytes(), tree.bytes);
    }
    let unknown = TreeId::of(b"");
    assert!(matches!(store.tree(unknown), Err(Error::MissingTree(id)) if id == unknown));
    storage.tamper(&segment(1), |bytes| *bytes.last_mut().unwrap() ^= 1);
    let error = store.tree(large.subtree.id).unwrap_err();
    assert!(error.to_string().contains(&format!("tree {}", large.subtree.id)), "{error}");
    assert!(error.is_corruption());
    let mut batch = store.batch().unwrap();
    batch.put_tree(&large).unwrap();
    batch.commit().unwrap();
    assert!(store.tree(large.subtree.id).is_err(), "putting does not replace");
    let mut batch = store.batch().unwrap();
    batch.replace_tree(&large).unwrap();
    batch.commit().unwrap();
    assert_eq!(store.tree(large.subtree.id).unwrap().bytes(), large.bytes);
    assert_eq!(store.counters().trees_healed, 1);
}

#[test]
fn a_damaged_chunk_is_named_never_served_and_can_be_healed() {
    let (storage, store) = fresh();
    let bytes: Vec<u8> =
        (0..400_u64).flat_map(|n| format!("{n} {}, ", n * n * n).into_bytes()).collect();
    put(&store, &noise(1, 1000));
    let id = put(&store, &bytes);
    let offset = SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + 1000;
    let length = storage.contents(&segment(1)).unwrap().len();
    let mut harmless = 0;
    for at in offset..length {
        storage.tamper(&segment(1), |bytes| bytes[at] ^= 0x20);
        let whole = read_all(&store, id, bytes.len());
        let part = store.read_at(id, 10, &mut [0; 10]);
        match (whole, part) {
            // The record's checksum, which only the check looks at, or a bit that zstd ignores.
            (Ok(read), Ok(10)) => {
                assert!(read == bytes);
                harmless += 1;
                store.core.chunks.clear();
            }
            (Err(whole), Err(part)) => {
                for error in [whole, part] {
                    let text = error.to_string();
                    let named =
                        format!("chunk {} at offset {offset} of segment 1", ChunkId::from(id));
                    assert!(text.contains(&named), "{text}");
                    assert!(error.is_corruption());
                }
            }
            other => panic!("at {at}: {other:?}"),
        }
        storage.tamper(&segment(1), |bytes| bytes[at] ^= 0x20);
    }
    assert!(harmless < 12, "{harmless} of {}", length - offset);
    assert_eq!(store.counters().chunks_bad as usize, 2 * (length - offset - harmless));

    storage.tamper(&segment(1), |bytes| *bytes.last_mut().unwrap() ^= 1);
    assert!(read_all(&store, id, bytes.len()).is_err());
    let content = Preparer::new().content(&bytes);
    let mut batch = store.batch().unwrap();
    batch.put_chunk(&content.chunks[0]).unwrap();
    batch.commit().unwrap();
    assert!(read_all(&store, id, bytes.len()).is_err(), "putting does not replace");
    let mut batch = store.batch().unwrap();
    batch.replace_chunk(&content.chunks[0]).unwrap();
    batch.commit().unwrap();
    assert!(read_all(&store, id, bytes.len()).unwrap() == bytes);
    assert_eq!(store.counters().chunks_healed, 1);
}

#[test]
fn a_lost_segment_is_damage_and_not_a_missing_chunk() {
    let (storage, store) = fresh();
    let bytes = noise(1, 5000);
    let id = put(&store, &bytes);
    drop(store);
    storage.remove(&segment(1)).unwrap();
    let store = open(&storage).unwrap();
    let error = read_all(&store, id, 5000).unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains("segment 1"), "{error}");
    let other = put(&store, &noise(2, 5000));
    assert!(read_all(&store, other, 5000).is_ok(), "the store goes on in another segment");
}

#[test]
fn a_store_is_open_once() {
    let (storage, store) = fresh();
    let error = open(&storage).unwrap_err();
    assert!(matches!(&error, Error::InUse { path } if path == Path::new(DIR)), "{error}");
    drop(store);
    open(&storage).unwrap();
}

#[test]
fn another_format_is_refused_by_name() {
    let (storage, store) = fresh();
    drop(store);
    let format = Path::new(DIR).join("format");
    assert_eq!(storage.contents(&format).unwrap(), b"agentfs store 3\n");
    storage.tamper(&format, |text| *text = b"agentfs store 31\n".to_vec());
    let before = storage.contents(&database());
    let error = open(&storage).unwrap_err();
    assert!(matches!(error, Error::UnknownFormat { found: 31, known: 3, .. }), "{error}");
    storage.tamper(&format, |text| *text = b"something else".to_vec());
    assert!(matches!(open(&storage), Err(Error::Corrupt { .. })));
    assert!(storage.contents(&database()) == before);

    storage.tamper(&format, |text| *text = b"agentfs store 3\n".to_vec());
    let store = open(&storage).unwrap();
    let sealed = tables::seal(tables::META_FORMAT, 4_u32.to_le_bytes().to_vec());
    let changes = [(tables::META_FORMAT.to_vec(), Some(sealed))].into();
    let changes = [(Table::Meta, changes)].into();
    store.core.lock_state().database.as_ref().unwrap().apply(&changes).unwrap();
    drop(store);
    assert!(matches!(open(&storage), Err(Error::UnknownFormat { found: 4, .. })));
}

#[test]
fn a_missing_or_empty_database_is_not_replaced_by_a_new_one() {
    let (storage, store) = fresh();
    put(&store, b"something");
    drop(store);
    let bytes = storage.contents(&database()).unwrap();
    storage.tamper(&database(), Vec::clear);
    let error = open(&storage).unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains("store.redb"), "{error}");
    storage.remove(&database()).unwrap();
    assert!(open(&storage).unwrap_err().is_corruption());
    storage.open(&database(), true).unwrap();
    storage.tamper(&database(), |file| *file = bytes);
    assert!(read_all(&open(&storage).unwrap(), ContentId::of(b"something"), 9).is_ok());
}

/// A store of some hundred small files, closed.
fn filled() -> (FaultyStorage, Vec<(ContentId, Vec<u8>)>) {
    let (storage, store) = fresh();
    let mut preparer = Preparer::new();
    let mut files = Vec::new();
    let mut batch = store.batch().unwrap();
    for seed in 0..300 {
        let bytes = noise(seed, 20 + (seed as usize * 37) % 2000);
        let content = preparer.content(&bytes);
        batch.put_content(&content).unwrap();
        batch.map_blob(&oid(HashKind::Sha1, seed), Stored { id: content.id, size: content.size });
        files.push((content.id, bytes));
    }
    batch.commit().unwrap();
    (storage, files)
}

/// Opens the store and reads everything; what is read must be right. Says whether all was.
fn survives(storage: &FaultyStorage, files: &[(ContentId, Vec<u8>)]) -> bool {
    let Ok(store) = open(storage) else { return false };
    let mut whole = true;
    for (seed, (id, bytes)) in files.iter().enumerate() {
        match read_all(&store, *id, bytes.len()) {
            Ok(read) => assert!(read == *bytes, "wrong bytes were served"),
            Err(_) => whole = false,
        }
        match store.content_of(&oid(HashKind::Sha1, seed as u64)) {
            Ok(Some(stored)) => assert_eq!(stored.id, *id, "a wrong content was named"),
            Ok(None) | Err(_) => whole = false,
        }
    }
    whole
}

#[test]
fn a_truncated_database_is_an_error_and_stays_as_it_was() {
    let (storage, files) = filled();
    let bytes = storage.contents(&database()).unwrap();
    for part in 0..40 {
        let len = bytes.len() * part / 40;
        storage.tamper(&database(), |file| {
            *file = bytes.clone();
            file.truncate(len);
        });
        match open(&storage) {
            Ok(store) => panic!("cut at {len}: {:?}", store.statistics()),
            Err(error) => {
                let clear = error.is_corruption() || matches!(error, Error::Database { .. });
                assert!(clear, "{error}");
                assert!(error.to_string().contains("store.redb"), "{error}");
            }
        }
        assert!(storage.contents(&database()).unwrap() == bytes[..len], "cut at {len}");
    }
    storage.tamper(&database(), |file| *file = bytes);
    assert!(survives(&storage, &files));
}

/// Damages `bytes`: a bit, or up to 600 bytes.
fn garble(bytes: &mut [u8], roll: u64) {
    let at = roll as usize % bytes.len();
    bytes[at] ^= 1 << (roll % 7);
    if roll.is_multiple_of(3) {
        let end = (at + 600).min(bytes.len());
        bytes[at..end].fill((roll >> 32) as u8);
    }
}

fn rolls() -> Vec<u64> {
    let dice = noise(42, 8 * 300);
    dice.chunks_exact(8).map(|roll| u64::from_le_bytes(roll.try_into().unwrap())).collect()
}

#[test]
fn a_garbled_database_never_panics_and_never_lies() {
    let (storage, files) = filled();
    let bytes = storage.contents(&database()).unwrap();
    let mut noticed = 0;
    for roll in rolls() {
        storage.tamper(&database(), |file| file.clone_from(&bytes));
        // Beyond what checksums and parity can know.
        crate::testing::tamper_database(&storage, &database(), |file| garble(file, roll)).unwrap();
        noticed += u32::from(!survives(&storage, &files));
    }
    assert!(noticed > 20, "the damage must hit something: {noticed}");
}

#[test]
fn a_database_with_one_damaged_page_is_whole() {
    let (storage, files) = filled();
    let bytes = storage.contents(&database()).unwrap();
    for roll in rolls() {
        storage.tamper(&database(), |file| {
            file.clone_from(&bytes);
            let page = roll as usize % (bytes.len() / 4096) * 4096;
            garble(&mut file[page..page + 4096], roll >> 8);
        });
        assert!(survives(&storage, &files), "roll {roll}");
    }
}

#[test]
fn a_full_disk_fails_the_batch_and_nothing_else() {
    let (storage, store) = fresh();
    let kept = noise(1, 50_000);
    let id = put(&store, &kept);
    put(&store, &noise(3, 400));
    storage.set_full(true);
    let mut batch = store.batch().unwrap();
    let mut preparer = Preparer::new();
    for seed in 10..3000 {
        // Large ones are appended at once, and may fail here; then the commit must fail too.
        let _ = batch.put_content(&preparer.content(&noise(seed, 200 + seed as usize)));
    }
    assert!(batch.commit().is_err());
    for _ in 0..3 {
        assert!(read_all(&store, id, kept.len()).unwrap() == kept, "reading goes on");
    }
    assert!(!store.has_content(ContentId::of(&noise(10, 210))).unwrap());
    storage.set_full(false);
    let later = put(&store, &noise(5000, 500));
    assert!(store.has_content(later).unwrap(), "writing goes on once there is room");
    drop(store);
    let store = open(&storage).unwrap();
    assert!(read_all(&store, id, kept.len()).unwrap() == kept);
    assert!(store.has_content(later).unwrap());
}
