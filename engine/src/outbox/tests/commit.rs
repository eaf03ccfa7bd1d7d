//! Syncs are shared, nobody else waits for them, and none is believed after one that failed.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::limits::{OUTBOX_SYNC_LITTLE_BYTES, OUTBOX_ZEROS_BYTES};

const THREADS: usize = 8;
const ROUNDS: usize = 100;

fn is_file(path: &Path) -> bool {
    path.extension().is_some()
}

#[test]
fn a_lone_caller_pays_one_sync_of_a_file_and_none_of_a_directory_after_the_first() {
    let storage = FaultyStorage::new();
    let (outbox, _) = open(&storage);
    for round in 1..=5 {
        append(&outbox).unwrap();
        outbox.sync(outbox.last()).unwrap();
        let counters = outbox.counters();
        assert_eq!((counters.file_syncs, counters.dir_syncs), (round, 3));
    }
    outbox.sync(Sequence(3)).unwrap();
    outbox.sync(Sequence(99)).unwrap();
    let counters = outbox.counters();
    assert_eq!(
        (counters.file_syncs, counters.syncs_asked),
        (5, 7),
        "what is durable costs nothing"
    );
    outbox.seal().unwrap();
    append(&outbox).unwrap();
    outbox.sync(outbox.last()).unwrap();
    let counters = outbox.counters();
    assert_eq!((counters.file_syncs, counters.dir_syncs), (6, 4), "the new segment has a name");
    assert_eq!(storage.syncs(), 10);
}

#[test]
fn many_small_syncs_find_their_place_written_before() {
    let storage = FaultyStorage::new();
    let (dir, none) = (Path::new(DIR), Sequence::NONE);
    let outbox = Outbox::open(Arc::new(storage.clone()), dir, none, &mut |_| Ok(())).unwrap();
    let len = || storage.contents(&path(1)).map_or(0, |bytes| bytes.len());
    // By how many bytes the file grows when a record of so many is appended, and when it is synced.
    let step = |body: usize| {
        let before = len();
        outbox.append(b"head", &[&vec![7; body]]).unwrap();
        let appended = len();
        outbox.sync(outbox.last()).unwrap();
        (appended - before, len() - appended)
    };
    for large in [100 << 10, 100, 100 << 10, 100] {
        assert_eq!(step(large).1, 0, "one small sync between large ones");
    }
    assert_eq!(step(100).1, OUTBOX_ZEROS_BYTES, "the second in a row");
    for _ in 0..OUTBOX_ZEROS_BYTES / OUTBOX_SYNC_LITTLE_BYTES as usize - 2 {
        assert_eq!(step(OUTBOX_SYNC_LITTLE_BYTES as usize - 100), (0, 0), "its place is there");
    }
    let count = outbox.last().0;
    drop(outbox);
    let (mut found, crashed) = (0, Arc::new(storage.after_crash(1)));
    let mut replay = |record: Replayed<'_>| {
        found = record.sequence.0;
        Ok(())
    };
    Outbox::open(crashed, dir, none, &mut replay).unwrap();
    assert_eq!(found, count, "zeros are no damage");
}

#[test]
fn an_empty_outbox_needs_no_sync() {
    let storage = FaultyStorage::new();
    let (outbox, _) = open(&storage);
    outbox.sync(outbox.last()).unwrap();
    assert_eq!(storage.syncs(), 0);
}

#[test]
fn threads_share_their_syncs() {
    within_a_minute(|| {
        let storage = FaultyStorage::new();
        let (outbox, _) = open(&storage);
        // A sync takes until every thread has a record that is not durable, or has ended.
        let ended = Arc::new(AtomicUsize::new(0));
        let (seen, during) = (Arc::clone(&ended), Arc::downgrade(&outbox));
        storage.on_sync(move |_| {
            let during = during.upgrade().unwrap();
            let waiting = || (during.last().0 - during.durable().0) as usize;
            while waiting() + seen.load(Ordering::SeqCst) < THREADS {
                std::thread::yield_now();
            }
        });
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (outbox, ended) = (&outbox, &ended);
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        let appended = outbox.append(&[thread as u8], &[]).unwrap();
                        outbox.sync(appended.sequence).unwrap();
                        assert!(outbox.durable() >= appended.sequence);
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        let counters = outbox.counters();
        assert_eq!(counters.syncs_asked as usize, THREADS * ROUNDS);
        assert_eq!(counters.records as usize, THREADS * ROUNDS);
        // Whoever came too late for one sync is served by the next, with all others.
        let most = 2 * ROUNDS as u64 + 2 + counters.segments;
        assert!(counters.file_syncs <= most, "{counters:?}");
        assert_eq!(open(&storage.after_crash(0)).1.len(), THREADS * ROUNDS);
    });
}

#[test]
fn neither_an_append_nor_a_seal_nor_a_trim_waits_for_a_sync() {
    within_a_minute(|| {
        let storage = FaultyStorage::new();
        let (outbox, _) = open(&storage);
        append(&outbox).unwrap();
        let during = Arc::clone(&outbox);
        storage.on_sync(move |path| {
            if is_file(path) && during.last() == Sequence(1) {
                append(&during).unwrap();
                assert_eq!(during.seal().unwrap(), Sequence(2));
                append(&during).unwrap();
                during.trim(Sequence::NONE).unwrap();
                assert_eq!(during.counters().segments, 2);
                assert_eq!(during.durable(), Sequence::NONE);
            }
        });
        outbox.sync(Sequence(1)).unwrap();
        assert_eq!((outbox.durable(), outbox.last()), (Sequence(1), Sequence(3)));
        assert_eq!(open(&storage.after_crash(0)).1, records(1..=1));
        // The first segment was closed during the sync, with a record that it does not cover.
        outbox.sync(Sequence(2)).unwrap();
        assert_eq!(outbox.durable(), Sequence(3));
        assert_eq!(open(&storage.after_crash(0)).1, records(1..=3));
    });
}

#[test]
fn a_sync_covers_all_segments_and_their_names() {
    for records_each in 1..4 {
        let storage = FaultyStorage::new();
        let (outbox, _) = open(&storage);
        for _ in 0..3 {
            (0..records_each).for_each(|_| drop(append(&outbox).unwrap()));
            outbox.seal().unwrap();
        }
        outbox.sync(Sequence(1)).unwrap();
        let last = 3 * records_each;
        assert_eq!(outbox.durable(), Sequence(last));
        assert_eq!(open(&storage.after_crash(0)).1, records(1..=last));
        assert_eq!(outbox.counters().file_syncs, 3, "the newest is empty");
    }
}

#[test]
fn a_trimmed_segment_is_not_synced() {
    let storage = written("rr|r");
    let (outbox, _) = open(&storage);
    append(&outbox).unwrap();
    outbox.trim(Sequence(2)).unwrap();
    outbox.sync(outbox.last()).unwrap();
    assert_eq!(outbox.counters().file_syncs, 2);
}

#[test]
fn a_failed_write_ends_writing_with_one_error_and_reading_goes_on() {
    let storage = FaultyStorage::new();
    let (outbox, _) = open(&storage);
    let place = append(&outbox).unwrap().body;
    storage.refuse_writes(true);
    let first = append(&outbox).unwrap_err();
    assert!(matches!(first, Error::Io { .. }), "{first}");
    storage.refuse_writes(false);
    assert_eq!(outbox.failure(), Some(first.to_string()));
    let later = [
        append(&outbox).unwrap_err(),
        outbox.sync(Sequence(1)).unwrap_err(),
        outbox.seal().unwrap_err(),
    ];
    for error in later {
        assert!(matches!(error, Error::Poisoned { .. }), "{error}");
        assert!(error.to_string().contains(&first.to_string()), "{error}");
    }
    assert_eq!((outbox.last(), storage.syncs()), (Sequence(1), 0));
    let mut body = vec![0; record(1).2.len()];
    place.read(&mut body).unwrap();
    assert_eq!(body, record(1).2);
    drop(outbox);
    let (outbox, found) = open(&storage);
    assert_eq!(found, records(1..=1));
    append(&outbox).unwrap();
}

#[test]
fn a_header_that_cannot_be_written_ends_writing() {
    let storage = written("r");
    let (outbox, _) = open(&storage);
    storage.refuse_writes(true);
    assert!(matches!(append(&outbox), Err(Error::Io { .. })));
    assert!(matches!(append(&outbox), Err(Error::Poisoned { .. })));
}

#[test]
fn a_failed_sync_is_not_tried_again_as_if_it_had_succeeded() {
    // The sync of the file, and those of the three directories.
    for lost in 0..4 {
        let storage = FaultyStorage::new();
        let (outbox, _) = open(&storage);
        append(&outbox).unwrap();
        storage.lose_at(lost);
        let first = outbox.sync(Sequence(1)).unwrap_err();
        assert!(matches!(first, Error::Io { action: "sync", .. }), "{first}");
        let syncs = storage.syncs();
        for _ in 0..2 {
            let later = outbox.sync(Sequence(1)).unwrap_err();
            assert!(later.to_string().contains(&first.to_string()), "{later}");
            assert!(matches!(append(&outbox), Err(Error::Poisoned { .. })));
        }
        assert_eq!((storage.syncs(), outbox.durable()), (syncs, Sequence::NONE));
    }
}

#[test]
fn after_a_failed_sync_the_next_opening_writes_again_what_is_not_known_to_be_durable() {
    let storage = FaultyStorage::new();
    let (outbox, _) = open(&storage);
    append(&outbox).unwrap();
    outbox.sync(Sequence(1)).unwrap();
    append(&outbox).unwrap();
    outbox.seal().unwrap();
    append(&outbox).unwrap();
    storage.lose_at(storage.syncs());
    outbox.sync(Sequence(3)).unwrap_err();
    drop(outbox);
    assert_eq!(open(&storage.after_crash(0)).1, records(1..=1), "it was lost");
    let (outbox, found) = open(&storage);
    assert_eq!((found, outbox.durable()), (records(1..=3), Sequence(1)));
    append(&outbox).unwrap();
    outbox.sync(Sequence(4)).unwrap();
    assert_eq!(open(&storage.after_crash(0)).1, records(1..=4));
}

#[test]
fn everybody_who_waits_for_a_sync_that_fails_is_told() {
    within_a_minute(|| {
        let storage = FaultyStorage::new();
        let (outbox, _) = open(&storage);
        let waiting = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&waiting);
        storage.on_sync(move |_| {
            while seen.load(Ordering::SeqCst) < THREADS {
                std::thread::yield_now();
            }
        });
        storage.lose_at(0);
        let told: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        let sequence = append(&outbox).unwrap().sequence;
                        waiting.fetch_add(1, Ordering::SeqCst);
                        outbox.sync(sequence).unwrap_err()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let leaders = told.iter().filter(|error| matches!(error, Error::Io { .. })).count();
        let others = told.iter().filter(|error| matches!(error, Error::Poisoned { .. })).count();
        assert_eq!((leaders, others), (1, THREADS - 1));
    });
}
