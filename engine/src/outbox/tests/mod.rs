//! The outbox does what `docs/DURABILITY.md` says. One file for each part of it.

mod commit;
mod history;

mod room;
mod rows;
mod salvage;
mod states;

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::testing::FaultyStorage;

const DIR: &str = "/store/outbox/7";
/// Small, so that the tests meet the end of a segment.
const ROTATE_BYTES: u64 = 4 << 10;

/// A record as the tests compare it: sequence, head, body.
type Record = (u64, Vec<u8>, Vec<u8>);

/// Opens the outbox; it, and the records after `drained`.
fn open_after(storage: &FaultyStorage, drained: u64) -> Result<(Arc<Outbox>, Vec<Record>)> {
    open_rotating(storage, drained, ROTATE_BYTES)
}

/// As [`open_after`], with segments of so many bytes.
fn open_rotating(
    storage: &FaultyStorage,
    drained: u64,
    rotate_bytes: u64,
) -> Result<(Arc<Outbox>, Vec<Record>)> {
    let mut records = Vec::new();
    let mut replay = |record: Replayed<'_>| {
        let mut body = vec![0; record.body_len as usize];
        record.body.read(&mut body)?;
        records.push((record.sequence.0, record.head.to_vec(), body));
        Ok(())
    };
    let storage = Arc::new(storage.clone());
    let (dir, drained) = (Path::new(DIR), Sequence(drained));
    let outbox = Outbox::open_rotating(storage, dir, drained, rotate_bytes, &mut replay)?;
    Ok((outbox, records))
}

/// What an examination finds, which changes nothing.
fn examine_after(storage: &FaultyStorage, drained: u64) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    let mut replay = |record: Replayed<'_>| {
        let mut body = vec![0; record.body_len as usize];
        record.body.read(&mut body)?;
        records.push((record.sequence.0, record.head.to_vec(), body));
        Ok(())
    };
    let Some(examination) = Examination::begin(storage, Path::new(DIR))? else {
        return Ok(records);
    };
    let examined = examination.read(Sequence(drained), &mut replay)?;
    assert_eq!(examined.records, records.len() as u64);
    Ok(records)
}

fn open(storage: &FaultyStorage) -> (Arc<Outbox>, Vec<Record>) {
    open_after(storage, 0).unwrap()
}

/// The record that the tests append with this number.
fn record(number: u64) -> Record {
    let head = format!("head {number}").into_bytes();
    (number, head, vec![number as u8; 10 + number as usize % 7])
}

/// Appends [`record`] with the next number.
fn append(outbox: &Outbox) -> Result<Appended> {
    let (_, head, body) = record(outbox.last().0 + 1);
    let (front, back) = body.split_at(3);
    outbox.append(&head, &[front, back])
}

fn records(numbers: std::ops::RangeInclusive<u64>) -> Vec<Record> {
    numbers.map(record).collect()
}

fn path(segment: u64) -> PathBuf {
    Path::new(DIR).join(segment::segment_name(segment))
}

/// An outbox written by `script`: `r` appends a record, `s` syncs, `|` begins a segment.
fn written(script: &str) -> FaultyStorage {
    let storage = FaultyStorage::new();
    let (outbox, _) = open(&storage);
    for step in script.chars() {
        match step {
            'r' => drop(append(&outbox).unwrap()),
            's' => outbox.sync(outbox.last()).unwrap(),
            '|' => drop(outbox.seal().unwrap()),
            _ => panic!("no step is called {step}"),
        }
    }
    storage
}

/// Runs `test` on a thread; a panic if it takes a minute, which only a deadlock does.
fn within_a_minute(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match ended.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        _ => thread.join().unwrap(),
    }
}

#[test]
fn records_are_replayed_in_order() {
    let storage = FaultyStorage::new();
    let (outbox, found) = open(&storage);
    assert_eq!((outbox.last(), outbox.durable(), outbox.bytes()), Default::default());
    assert!(found.is_empty());
    let first = outbox.append(b"one", &[]).unwrap();
    let second = outbox.append(b"", &[b"some ", b"", b"body"]).unwrap();
    assert_eq!((first.sequence, second.sequence), (Sequence(1), Sequence(2)));
    let mut body = [0; 4];
    second.body.at(5).read(&mut body).unwrap();
    assert_eq!(&body, b"body");
    assert_eq!(outbox.last(), Sequence(2));
    drop(outbox);
    let (outbox, found) = open(&storage);
    assert_eq!(found, [(1, b"one".to_vec(), vec![]), (2, vec![], b"some body".to_vec())]);
    assert_eq!(append(&outbox).unwrap().sequence, Sequence(3));
    drop(outbox);
    let (outbox, found) = open_after(&storage, 2).unwrap();
    assert_eq!((found, outbox.last()), (records(3..=3), Sequence(3)));
}

#[test]
fn the_next_record_follows_the_drained_one_even_when_the_outbox_is_gone() {
    let storage = FaultyStorage::new();
    let (outbox, found) = open_after(&storage, 41).unwrap();
    assert_eq!((outbox.last(), outbox.durable(), found), (Sequence(41), Sequence(41), vec![]));
    assert_eq!(append(&outbox).unwrap().sequence, Sequence(42));
    drop(outbox);
    assert_eq!(open_after(&storage, 41).unwrap().1, records(42..=42));
}

#[test]
fn an_error_of_the_replay_ends_the_opening_and_changes_nothing() {
    let storage = written("rr|r");
    storage.tamper(&path(2), |bytes| bytes.push(0));
    let before = storage.contents(&path(2));
    let mut seen = 0;
    let opened =
        Outbox::open(Arc::new(storage.clone()), Path::new(DIR), Sequence::NONE, &mut |record| {
            seen = record.sequence.0;
            if seen == 2 { Err(Error::Cancelled) } else { Ok(()) }
        });
    assert!(matches!(opened, Err(Error::Cancelled)));
    assert_eq!((seen, storage.contents(&path(2))), (2, before));
}

#[test]
fn records_of_any_size_are_replayed_and_longer_ones_refused() {
    let storage = FaultyStorage::new();
    let (outbox, _) = open(&storage);
    let sizes = [
        (0, 0),
        (OUTBOX_HEAD_BYTES_MAX, 5),
        (7, OUTBOX_BODY_BYTES_MAX),
        (OUTBOX_HEAD_BYTES_MAX, 700_000),
        (300_000, 0),
        (100, 256 << 10),
        (100, (256 << 10) - 48 - 100),
        (100, (256 << 10) - 48 - 99),
        (1, 1),
    ];
    let mut written = Vec::new();
    for (number, (head, body)) in sizes.into_iter().enumerate() {
        let head = crate::check::tests::noise(number as u64, head);
        let body = crate::check::tests::noise(100 + number as u64, body);
        outbox.append(&head, &[&body]).unwrap();
        written.push((number as u64 + 1, head, body));
    }
    let long = vec![0; OUTBOX_BODY_BYTES_MAX + 1];
    assert!(matches!(outbox.append(b"", &[&long]), Err(Error::TooLarge { .. })));
    let half = &long[..long.len() / 2 + 1];
    assert!(matches!(outbox.append(b"", &[half, half]), Err(Error::TooLarge { .. })));
    let head = &long[..OUTBOX_HEAD_BYTES_MAX + 1];
    assert!(matches!(outbox.append(head, &[]), Err(Error::TooLarge { .. })));
    assert_eq!(outbox.failure(), None);
    drop(outbox);
    let (outbox, found) = open(&storage);
    assert!(found == written);
    assert_eq!(outbox.last().0 as usize, sizes.len());
}

#[test]
fn segments_rotate_at_their_limit_and_a_longer_record_gets_its_own() {
    let storage = FaultyStorage::new();
    let (outbox, _) = open(&storage);
    let body = vec![0; 1000];
    for _ in 0..20 {
        outbox.append(b"", &[&body]).unwrap();
    }
    let long = vec![0; ROTATE_BYTES as usize + 1];
    outbox.append(b"", &[&long]).unwrap();
    outbox.append(b"", &[&long]).unwrap();
    outbox.append(b"", &[&body]).unwrap();
    assert_eq!(outbox.counters().segments, 10, "seven of three, two of one, and the newest");
    let mut sum = 0;
    for number in 1..=10 {
        let len = storage.contents(&path(number)).unwrap().len() as u64;
        assert!(len <= ROTATE_BYTES || (8..=9).contains(&number));
        sum += len;
    }
    assert_eq!(outbox.bytes(), sum);
    drop(outbox);
    let (outbox, found) = open(&storage);
    assert_eq!((found.len(), outbox.bytes()), (23, sum));
}

#[test]
fn sealed_segments_are_trimmed_when_all_they_hold_is_drained() {
    let storage = written("rr|rr|");
    let (outbox, _) = open(&storage);
    assert_eq!(outbox.seal().unwrap(), Sequence(4), "the newest is empty");
    assert_eq!(outbox.counters().segments, 3);
    append(&outbox).unwrap();
    let place = append(&outbox).unwrap().body;
    assert_eq!(outbox.seal().unwrap(), Sequence(6));
    assert_eq!(outbox.seal().unwrap(), Sequence(6));
    let names = || {
        let exists = |number: &u64| storage.contents(&path(*number)).is_some();
        (1..9).filter(exists).collect::<Vec<_>>()
    };
    assert_eq!(names(), [1, 2, 3, 4, 5]);
    outbox.trim(Sequence(1)).unwrap();
    assert_eq!(names(), [1, 2, 3, 4, 5]);
    outbox.trim(Sequence(3)).unwrap();
    assert_eq!(names(), [2, 3, 4, 5]);
    outbox.trim(Sequence(4)).unwrap();
    assert_eq!(names(), [4, 5]);
    outbox.trim(Sequence(6)).unwrap();
    outbox.trim(Sequence(99)).unwrap();
    assert_eq!(names(), [5], "the newest one stays: its number says which ones were used");
    assert_eq!(outbox.bytes(), segment::SEGMENT_HEADER_BYTES as u64);
    let mut body = vec![0; record(6).2.len()];
    place.read(&mut body).unwrap();
    assert_eq!(body, record(6).2, "a place in a trimmed segment stays readable");
    outbox.sync(outbox.last()).unwrap();
    append(&outbox).unwrap();
    drop(outbox);
    assert_eq!(open_after(&storage, 6).unwrap().1, records(7..=7));
}

#[test]
fn what_was_found_can_be_sealed_and_trimmed() {
    let storage = written("rrr");
    let (outbox, _) = open(&storage);
    assert_eq!(outbox.seal().unwrap(), Sequence(3));
    outbox.trim(Sequence(3)).unwrap();
    assert_eq!((outbox.counters().segments, outbox.bytes()), (1, 64));
    assert_eq!(storage.contents(&path(1)), None);
    drop(outbox);
    let (outbox, found) = open_after(&storage, 3).unwrap();
    assert_eq!((found, outbox.last()), (vec![], Sequence(3)));
}

#[test]
fn a_trim_that_failed_is_done_by_the_next_one() {
    let storage = written("rr|r");
    let (outbox, _) = open(&storage);
    storage.tamper_name(&path(1), None);
    outbox.trim(Sequence(2)).unwrap();
    assert_eq!(outbox.counters().segments, 1, "what is gone already is no error");
}
