//! A full device refuses a record and harms nothing.

use super::*;

/// How many records fit in `room` bytes, and whether everything is as it should be.
fn fill(storage: &FaultyStorage, room: u64) -> u64 {
    let (outbox, _) = open(storage);
    append(&outbox).unwrap();
    outbox.sync(Sequence(1)).unwrap();
    storage.set_room(Some(room));
    let mut refused = None;
    for _ in 0..200 {
        refused = append(&outbox).err();
        if refused.is_some() {
            break;
        }
    }
    let last = outbox.last();
    if let Some(error) = refused {
        assert!(error.is_full() && !error.is_corruption(), "{error}");
        assert_eq!(outbox.failure(), None);
        outbox.sync(last).unwrap();
        assert!(append(&outbox).unwrap_err().is_full(), "it stays full");
    }
    storage.set_room(None);
    for _ in 0..70 {
        append(&outbox).unwrap();
    }
    assert_eq!(outbox.last().0, last.0 + 70, "a refused record takes no sequence");
    last.0
}

#[test]
fn a_record_that_does_not_fit_is_refused_and_the_next_one_takes_its_place() {
    for refuse in [false, true] {
        let mut fitting = Vec::new();
        for room in (0..300).chain((300..10_000).step_by(47)) {
            let storage = FaultyStorage::new();
            storage.refuse_to_reserve(refuse);
            let fits = fill(&storage, room);
            let (outbox, found) = open(&storage);
            assert_eq!(found, records(1..=fits + 70), "room for {room}");
            outbox.sync(outbox.last()).unwrap();
            for seed in 0..4 {
                assert_eq!(open(&storage.after_crash(seed)).1, found);
            }
            fitting.push(fits);
        }
        assert!(fitting.is_sorted());
        assert!(fitting[0] < 60 && *fitting.last().unwrap() > 100, "{fitting:?}");
    }
}

#[test]
fn a_crash_after_a_refused_record_leaves_a_prefix() {
    for room in (0..300).step_by(7) {
        let storage = FaultyStorage::new();
        storage.refuse_to_reserve(true);
        let last = fill(&storage, room) + 70;
        for seed in 0..20 {
            let (outbox, found) = open(&storage.after_crash(seed));
            assert!((1..=last).contains(&outbox.last().0));
            assert_eq!(found, records(1..=outbox.last().0));
        }
    }
}

#[test]
fn room_is_reserved_before_a_record_is_acknowledged() {
    let storage = FaultyStorage::new();
    let (outbox, _) = open(&storage);
    append(&outbox).unwrap();
    storage.set_full(true);
    append(&outbox).unwrap();
    append(&outbox).unwrap();
    let long = vec![0; 2 * crate::limits::OUTBOX_RESERVE_BYTES_MIN as usize];
    assert!(outbox.append(b"", &[&long]).unwrap_err().is_full());
    assert_eq!(outbox.failure(), None);
    drop(outbox);
    assert_eq!(open(&storage).1, records(1..=3));
}

#[test]
fn a_segment_that_cannot_be_begun_for_lack_of_room_is_begun_later() {
    for room in 0..200 {
        let storage = written("rr");
        storage.refuse_to_reserve(true);
        let (outbox, _) = open(&storage);
        storage.set_room(Some(room));
        let full = room < segment::SEGMENT_HEADER_BYTES as u64;
        assert_eq!(outbox.seal().is_err_and(|error| error.is_full()), full);
        // A refused attempt takes the room that there was.
        let needed = (segment::SEGMENT_HEADER_BYTES + frame::FRAME_HEADER_BYTES + 6 + 13) as u64;
        assert_eq!(append(&outbox).is_err_and(|error| error.is_full()), room < needed);
        storage.set_room(None);
        append(&outbox).unwrap();
        let last = outbox.last().0;
        assert!(last == 3 || last == 4);
        drop(outbox);
        let (outbox, found) = open(&storage);
        assert_eq!(found, records(1..=last));
        outbox.sync(outbox.last()).unwrap();
        assert_eq!(open(&storage.after_crash(0)).1, found);
    }
}
