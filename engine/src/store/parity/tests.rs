//! The loss of any one page costs nothing, whenever it comes; and whatever is lost, nothing wrong is read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::layout::{PAGE_BYTES, Slot, device_len};
use super::*;
use crate::storage::Storage;
use crate::testing::FaultyStorage;

const DIR: &str = "/d";
const NAME: &str = "/d/pages";

fn open(storage: &FaultyStorage) -> io::Result<ParityFile> {
    storage.create_dir(Path::new(DIR))?;
    let file = storage.open(Path::new(NAME), true)?;
    let held = HeldFile::new(file)?;
    held.release()?;
    ParityFile::new(Arc::new(held))
}

fn page(seed: u64) -> Page {
    let mut page = [0; PAGE_BYTES];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut page);
    page
}

fn header(seed: u64) -> Page {
    let mut header = [0; PAGE_BYTES];
    header[..320].copy_from_slice(&page(seed)[..320]);
    header
}

fn read(file: &ParityFile, page: u64) -> io::Result<Page> {
    let mut out = [1; PAGE_BYTES];
    file.read_at(page * PAGE, &mut out).map(|()| out)
}

/// A file of `pages` pages, each with bytes of its own, synced.
fn filled(storage: &FaultyStorage, pages: u64) -> ParityFile {
    let file = open(storage).unwrap();
    file.set_len(pages * PAGE).unwrap();
    file.write_at(0, &header(0)).unwrap();
    (1..pages).for_each(|number| file.write_at(number * PAGE, &page(number)).unwrap());
    file.sync().unwrap();
    file
}

fn assert_filled(file: &ParityFile, pages: u64) {
    assert_eq!(read(file, 0).unwrap(), header(0));
    (1..pages).for_each(|number| assert!(read(file, number).unwrap() == page(number), "{number}"));
}

#[test]
fn any_page_of_the_device_can_be_lost() {
    const PAGES: u64 = 150;
    let storage = FaultyStorage::new();
    drop(filled(&storage, PAGES));
    let whole = storage.contents(Path::new(NAME)).unwrap();
    assert_eq!(whole.len() as u64, device_len(PAGES).unwrap());
    for at in (0..whole.len()).step_by(PAGE_BYTES) {
        for kind in 0..2 {
            storage.tamper(Path::new(NAME), |bytes| {
                bytes.clone_from(&whole);
                match kind {
                    0 => bytes[at..at + PAGE_BYTES].fill(0),
                    _ => bytes[at + at / PAGE_BYTES % 8 * 8] ^= 1,
                }
            });
            let file = open(&storage).unwrap();
            assert_filled(&file, PAGES);
            let damaged = file.damaged();
            file.rebuild().unwrap();
            assert_eq!(file.damaged(), []);
            assert_eq!(read(&file, 5).unwrap(), page(5));
            protect(&file);
            file.sync().unwrap();
            drop(file);
            // Where the older headers were, which nobody needs, nothing is written.
            let mended = storage.contents(Path::new(NAME)).unwrap();
            assert!(mended[at..][..2048] == whole[at..][..2048], "{at}: {damaged:?}");
            assert!(mended[2 * PAGE_BYTES..] == whole[2 * PAGE_BYTES..], "{at}: {damaged:?}");
        }
    }
}

#[test]
fn two_lost_pages_of_a_group_are_told_and_cost_no_other() {
    let storage = FaultyStorage::new();
    drop(filled(&storage, 100));
    storage.tamper(Path::new(NAME), |bytes| {
        for lost in [3, 7] {
            bytes[Slot::of(lost).offset() as usize + 9] ^= 1;
        }
    });
    let file = open(&storage).unwrap();
    for number in 1..100 {
        match read(&file, number) {
            Err(error) => {
                assert!([3, 7].contains(&number), "{number}");
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                assert!(error.to_string().contains(&number.to_string()), "{error}");
            }
            Ok(found) => assert!(found == page(number) && ![3, 7].contains(&number)),
        }
    }
    // One of them is written again; then the group can be protected, and lose another one.
    file.write_at(3 * PAGE, &page(3)).unwrap();
    assert_eq!(file.protect(1).unwrap(), Some(false), "it is as good as it gets");
    file.sync().unwrap();
    storage.tamper(Path::new(NAME), |bytes| bytes[Slot::of(60).offset() as usize] ^= 1);
    let file = open(&storage).unwrap();
    assert_eq!(read(&file, 60).unwrap(), page(60));
    assert!(read(&file, 7).is_err());
}

#[test]
fn what_is_cut_off_is_gone_and_zeros_when_it_comes_back() {
    let storage = FaultyStorage::new();
    let file = filled(&storage, 150);
    for pages in [140, 66, 65, 10] {
        file.set_len(pages * PAGE).unwrap();
        assert_eq!(file.len(), pages * PAGE);
        assert!(read(&file, pages).is_err());
        file.sync().unwrap();
        assert_filled(&open(&storage).unwrap(), pages);
    }
    file.set_len(150 * PAGE).unwrap();
    file.sync().unwrap();
    let file = open(&storage).unwrap();
    assert_filled(&file, 10);
    assert_eq!(read(&file, 100).unwrap(), [0; PAGE_BYTES]);
    assert_eq!(file.damaged(), []);
}

#[test]
fn a_header_without_a_whole_copy_and_a_cut_one_are_refused() {
    let storage = FaultyStorage::new();
    drop(filled(&storage, 10));
    let whole = storage.contents(Path::new(NAME)).unwrap();
    storage.tamper(Path::new(NAME), |bytes| bytes[..2 * PAGE_BYTES].fill(0));
    assert_eq!(open(&storage).unwrap_err().kind(), io::ErrorKind::InvalidData);
    storage.tamper(Path::new(NAME), |bytes| *bytes = whole[..PAGE_BYTES].to_vec());
    assert_eq!(open(&storage).unwrap_err().kind(), io::ErrorKind::InvalidData);
    let file = filled(&FaultyStorage::new(), 10);
    let mut long = header(0);
    long[PAGE_BYTES - 1] = 1;
    assert_eq!(file.write_at(0, &long).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_header_that_is_torn_at_any_byte_leaves_the_one_of_the_last_sync() {
    let storage = FaultyStorage::new();
    let file = filled(&storage, 10);
    let before = storage.contents(Path::new(NAME)).unwrap();
    // The second is written over the first, which was not synced.
    file.write_at(0, &header(1)).unwrap();
    file.write_at(0, &header(2)).unwrap();
    let after = storage.contents(Path::new(NAME)).unwrap();
    drop(file);
    for split in 0..PAGE_BYTES {
        storage.tamper(Path::new(NAME), |bytes| {
            bytes.clone_from(&before);
            for page in bytes.chunks_mut(PAGE_BYTES).zip(after.chunks(PAGE_BYTES)).take(2) {
                page.0[..split].copy_from_slice(&page.1[..split]);
            }
        });
        let found = read(&open(&storage).unwrap(), 0).unwrap();
        assert!(found == header(0) || found == header(2), "{split}");
    }
}

#[derive(Clone, Debug)]
enum Act {
    /// Bytes at an offset, as far as there are pages.
    Write(u64, usize, u64),
    Header(u64),
    SetLen(u64),
    Sync,
    Reopen,
    /// A page of the device is lost while nobody has it open, after a sync.
    Lose(u64, bool),
    Protect,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0_u64..150 * PAGE, 1_usize..3 * PAGE_BYTES, any::<u64>())
            .prop_map(|(at, len, seed)| Act::Write(at, len, seed)),
        4 => (1_u64..150, any::<u64>())
            .prop_map(|(page, seed)| Act::Write(page * PAGE, PAGE_BYTES, seed)),
        1 => any::<u64>().prop_map(Act::Header),
        1 => (1_u64..160).prop_map(Act::SetLen),
        2 => Just(Act::Sync),
        1 => Just(Act::Reopen),
        4 => (any::<u64>(), any::<bool>()).prop_map(|(page, all)| Act::Lose(page, all)),
        1 => Just(Act::Protect),
    ]
}

fn protect(file: &ParityFile) {
    let mut part = 0;
    while file.protect(part).unwrap().is_some() {
        part += 1;
    }
}

proptest! {
    /// It is a file, whatever single pages are lost of it, if it is repaired before the next one is.
    #[test]
    fn it_reads_as_a_plain_file(acts in prop::collection::vec(act(), 1..40)) {
        let storage = FaultyStorage::new();
        let mut file = open(&storage).unwrap();
        file.set_len(PAGE).unwrap();
        file.write_at(0, &header(0)).unwrap();
        let mut plain = header(0).to_vec();
        for act in acts {
            match act {
                Act::Write(at, len, seed) => {
                    let at = at.max(PAGE).min(plain.len() as u64);
                    let len = len.min(plain.len() - at as usize);
                    let mut bytes = vec![0; len];
                    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
                    file.write_at(at, &bytes).unwrap();
                    plain[at as usize..at as usize + len].copy_from_slice(&bytes);
                }
                Act::Header(seed) => {
                    file.write_at(0, &header(seed)[..320]).unwrap();
                    plain[..PAGE_BYTES].copy_from_slice(&header(seed));
                }
                Act::SetLen(pages) => {
                    file.set_len(pages * PAGE).unwrap();
                    plain.resize((pages * PAGE) as usize, 0);
                }
                Act::Sync => file.sync().unwrap(),
                Act::Reopen => {
                    file.flush().unwrap();
                    file = open(&storage).unwrap();
                }
                Act::Lose(number, all) => {
                    protect(&file);
                    file.sync().unwrap();
                    storage.tamper(Path::new(NAME), |bytes| {
                        let at = (number as usize % bytes.len()) / PAGE_BYTES * PAGE_BYTES;
                        match all {
                            true => bytes[at..at + PAGE_BYTES].fill(0),
                            false => bytes[at + number as usize % PAGE_BYTES] ^= 4,
                        }
                    });
                    file = open(&storage).unwrap();
                }
                Act::Protect => protect(&file),
            }
            prop_assert_eq!(file.len() as usize, plain.len());
            let mut found = vec![1; plain.len()];
            file.read_at(0, &mut found).unwrap();
            prop_assert!(found == plain);
        }
    }

    /// As a database uses it: pages in use are never written in place. The power fails at some sync; what was in use at
    /// the last one is there, also without the page that is lost next.
    #[test]
    fn what_was_synced_outlives_a_crash_and_then_a_page(
        rounds in prop::collection::vec(prop::collection::vec(1_u64..140, 1..12), 1..8),
        crash in 0_u64..8,
        seed: u64,
        lost: u64,
    ) {
        let storage = FaultyStorage::new();
        let file = filled(&storage, 140);
        storage.sync_dir(Path::new(DIR)).unwrap();
        let mut used: BTreeMap<u64, u64> = (1..70).map(|page| (page, page)).collect();
        let mut stated = 0;
        storage.fail_at(storage.syncs() + crash);
        for (round, pages) in rounds.iter().enumerate() {
            let round = round as u64 + 1;
            let mut next = used.clone();
            for (number, page_number) in pages.iter().enumerate() {
                if used.contains_key(page_number) {
                    // It is free once this is durable.
                    next.remove(page_number);
                } else {
                    let content = round << 32 | number as u64;
                    let write = file.write_at(page_number * PAGE, &page(content));
                    if write.is_ok() {
                        next.insert(*page_number, content);
                    }
                }
            }
            let done = file.write_at(0, &header(round)).and_then(|()| file.sync());
            if done.is_err() {
                break;
            }
            (used, stated) = (next, round);
        }
        drop(file);
        let after = if storage.has_failed() { storage.after_crash(seed) } else { storage };
        after.fail_at(u64::MAX);
        let check = |file: &ParityFile| {
            let found = read(file, 0).unwrap();
            assert!(found == header(stated) || found == header(stated + 1));
            for (number, content) in &used {
                // What the round that failed would have made free has not been written since.
                assert!(read(file, *number).unwrap() == page(*content), "page {number}");
            }
        };
        let file = open(&after).unwrap();
        check(&file);
        prop_assert_eq!(file.damaged(), []);
        protect(&file);
        file.sync().unwrap();
        drop(file);
        after.tamper(Path::new(NAME), |bytes| {
            let at = (lost as usize % bytes.len()) / PAGE_BYTES * PAGE_BYTES;
            bytes[at..at + PAGE_BYTES].fill(0x55);
        });
        check(&open(&after).unwrap());
    }
}
