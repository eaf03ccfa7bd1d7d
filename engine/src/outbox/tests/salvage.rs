//! Of a damaged outbox everything is kept that is whole, and nothing else is taken for it.

use super::frame::FRAME_HEADER_BYTES;
use super::salvage::{Salvaged, salvage};
use super::*;

const LAST: u64 = 40;
const DRAINED: u64 = 5;

/// An outbox of some segments, all of it synced and the last record stated to be.
fn written() -> FaultyStorage {
    let storage = FaultyStorage::new();
    let (outbox, _) = open_small(&storage);
    while outbox.last().0 < LAST {
        append(&outbox).unwrap();
        outbox.sync(outbox.last()).unwrap();
    }
    append(&outbox).unwrap();
    outbox.sync(outbox.last()).unwrap();
    storage
}

/// Opens it, whose segments are small; it, and its records.
fn open_small(storage: &FaultyStorage) -> (Arc<Outbox>, Vec<Record>) {
    open_rotating(storage, DRAINED, 700).unwrap()
}

fn segments(storage: &FaultyStorage) -> Vec<PathBuf> {
    let names = storage.list(Path::new(DIR)).unwrap();
    let mut paths: Vec<_> = names.iter().map(|name| Path::new(DIR).join(name)).collect();
    paths.retain(|path| segment::segment_number_of(path).is_some());
    paths.sort_unstable();
    paths
}

/// Salvages all; what came of it, and the records as the next opening finds them.
fn salvaged(storage: &FaultyStorage) -> (Salvaged, Vec<Record>) {
    let mut seen = Vec::new();
    let mut keep = |sequence: Sequence, record: Option<Replayed<'_>>| {
        seen.push(sequence.0);
        assert!(record.is_none_or(|record| record.sequence == sequence));
        Ok(true)
    };
    let done = salvage(storage, Path::new(DIR), Sequence(DRAINED), &mut keep).unwrap();
    assert!(seen.is_sorted() && seen.first().is_none_or(|first| *first == DRAINED + 1));
    let (outbox, records) = open_small(storage);
    // It goes on.
    let next = outbox.last().0 + 1;
    assert_eq!(append(&outbox).unwrap().sequence, Sequence(next));
    outbox.sync(outbox.last()).unwrap();
    drop(outbox);
    let after = storage.after_crash(0);
    let (_, again) = open_small(&after);
    assert_eq!(again[..records.len()], records[..]);
    assert_eq!(again.len(), records.len() + 1);
    (done, records)
}

fn lost(done: &Salvaged) -> Vec<u64> {
    done.lost.iter().flat_map(|(first, last)| first.0..=last.0).collect()
}

/// Asserts that the records are those that were written, but empty ones where they are lost.
#[track_caller]
fn assert_kept(done: &Salvaged, records: &[Record], last: u64) {
    let lost = lost(done);
    let expected: Vec<_> = (DRAINED + 1..=last)
        .map(|number| match lost.contains(&number) {
            true => (number, Vec::new(), Vec::new()),
            false => record(number),
        })
        .collect();
    assert_eq!(records, expected);
    assert_eq!(done.kept, last - DRAINED - lost.len() as u64);
}

#[test]
fn each_damaged_record_is_lost_alone_and_a_damaged_header_costs_nothing() {
    let whole = written();
    let paths = segments(&whole);
    assert!(paths.len() > 3, "{paths:?}");
    let mut lost_ones = Vec::new();
    for path in &paths {
        let len = whole.contents(path).unwrap().len();
        for at in 0..len {
            let storage = whole.after_crash(0);
            storage.tamper(path, |bytes| bytes[at] ^= 0x10);
            let (done, records) = salvaged(&storage);
            let last = match lost(&done)[..] {
                [] => records.last().unwrap().0,
                [lost] => {
                    lost_ones.push(lost);
                    LAST + 1
                }
                ref more => panic!("{path:?} at {at}: {more:?}"),
            };
            // Nothing states that the last one was durable.
            assert!(last >= LAST, "{path:?} at {at}");
            assert_kept(&done, &records, last);
            let aside = path.with_extension("obx.damaged");
            assert_eq!(storage.exists(&aside).unwrap(), !done.lost.is_empty(), "{at}");
        }
    }
    lost_ones.dedup();
    assert_eq!(lost_ones, (DRAINED + 1..=LAST).collect::<Vec<_>>());
}

#[test]
fn a_page_takes_the_records_on_it_and_no_other() {
    let whole = written();
    for path in &segments(&whole) {
        let bytes = whole.contents(path).unwrap();
        for at in (0..bytes.len()).step_by(64) {
            let storage = whole.after_crash(0);
            let end = (at + 200).min(bytes.len());
            storage.tamper(path, |bytes| bytes[at..end].fill(0));
            let (done, records) = salvaged(&storage);
            let last = records.last().unwrap().0;
            assert!(last >= LAST - 4, "{path:?} at {at}: {last}");
            assert_kept(&done, &records, last);
            assert!(lost(&done).len() <= 200 / (FRAME_HEADER_BYTES + 16) + 2, "{at}: {done:?}");
        }
    }
}

#[test]
fn a_missing_segment_takes_its_records_and_no_other() {
    let whole = written();
    for path in &segments(&whole) {
        let storage = whole.after_crash(0);
        storage.remove(path).unwrap();
        let (done, records) = salvaged(&storage);
        assert_kept(&done, &records, records.last().unwrap().0);
    }
}

#[test]
fn what_nobody_can_make_use_of_is_lost_and_an_error_changes_nothing() {
    let storage = written();
    let dir = Path::new(DIR);
    storage.tamper(&path(2), |bytes| bytes[segment::SEGMENT_HEADER_BYTES + 3] ^= 1);
    let before = storage.list(dir).unwrap();
    let refused = salvage(&storage, dir, Sequence(DRAINED), &mut |sequence, record| match record {
        Some(_) => Ok(true),
        None => Err(Error::Refused(format!("record {sequence}"))),
    });
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    assert_eq!(storage.list(dir).unwrap(), before);
    let odd = |sequence: Sequence| sequence.0.is_multiple_of(7);
    let mut keep = |sequence, record: Option<Replayed<'_>>| Ok(record.is_some() && !odd(sequence));
    let done = salvage(&storage, dir, Sequence(DRAINED), &mut keep).unwrap();
    let (_, records) = open_small(&storage);
    assert_kept(&done, &records, LAST + 1);
    assert!([7, 14, 21, 28, 35].iter().all(|number| lost(&done).contains(number)));
    assert!(lost(&done).len() > 5);
}

#[test]
fn a_power_failure_leaves_the_damaged_outbox_or_what_is_whole_of_it() {
    for sync in 0..3 {
        for seed in 0..8 {
            let storage = written();
            storage.tamper(&path(2), |bytes| bytes[segment::SEGMENT_HEADER_BYTES + 3] ^= 1);
            storage.fail_at(storage.syncs() + sync);
            let mut keep = |_, _: Option<Replayed<'_>>| Ok(true);
            let done = salvage(&storage, Path::new(DIR), Sequence(DRAINED), &mut keep);
            assert_eq!(done.is_err(), sync < 2, "{sync}");
            let storage = if storage.has_failed() { storage.after_crash(seed) } else { storage };
            storage.fail_at(u64::MAX);
            let mut none = |_: Replayed<'_>| Ok(());
            let shared = Arc::new(storage.clone());
            let opened =
                Outbox::open_rotating(shared, Path::new(DIR), Sequence(DRAINED), 700, &mut none);
            match opened {
                Ok(outbox) => assert_eq!(outbox.last(), Sequence(LAST + 1)),
                Err(error) => assert!(error.is_corruption(), "{error}"),
            }
            let (done, records) = salvaged(&storage);
            assert!(done.kept >= LAST - DRAINED - 1, "{done:?}");
            assert_eq!(records.last().unwrap().0, LAST + 1);
        }
    }
}
