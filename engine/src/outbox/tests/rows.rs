//! Each row of the decision table, with bytes that bring it about.

use super::frame::{FRAME_HEADER_BYTES, FrameHeader, Position, checksum};
use super::recovery::{SegmentRow, Verdict};
use super::segment::{Header, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::*;
use crate::limits::OUTBOX_ZEROS_BYTES;

/// What an opening comes to: the last record, or the damage.
fn outcome(storage: &FaultyStorage, drained: u64) -> Result<u64, String> {
    let contents = || (1..9).map(|number| storage.contents(&path(number))).collect::<Vec<_>>();
    let before = contents();
    let examined = examine_after(storage, drained);
    assert_eq!(before, contents(), "an examination changes nothing");
    match open_after(storage, drained) {
        Ok((outbox, found)) => {
            let last = outbox.last().0;
            assert_eq!(examined.as_ref().unwrap(), &found, "an examination finds the same");
            assert!(outbox.durable().0 <= last);
            assert_eq!(found, records(drained + 1..=last));
            drop(outbox);
            let (again, found) = open_after(storage, drained).unwrap();
            assert_eq!((again.last().0, found), (last, records(drained + 1..=last)));
            // It goes on, and what it goes on with is found.
            append(&again).unwrap();
            again.sync(again.last()).unwrap();
            let crashed = storage.after_crash(0);
            assert_eq!(open_after(&crashed, drained).unwrap().1, records(drained + 1..=last + 1));
            Ok(last)
        }
        Err(error) => {
            assert!(error.is_corruption(), "{error}");
            assert_eq!(before, contents(), "damage is left as it is");
            assert_eq!(examined.unwrap_err().to_string(), error.to_string());
            Err(error.to_string())
        }
    }
}

/// Asserts that opening reports damage of `record` at `offset` of `segment`.
#[track_caller]
fn assert_damaged(storage: &FaultyStorage, drained: u64, segment: u64, offset: u64, record: u64) {
    let error = outcome(storage, drained).unwrap_err();
    let path = path(segment);
    let place = format!("record {record} of the outbox, in {} at byte {offset},", path.display());
    assert!(error.starts_with(&place), "{error}");
}

fn header_of(storage: &FaultyStorage, segment: u64) -> SegmentHeader {
    match SegmentHeader::decode(&storage.contents(&path(segment)).unwrap()) {
        Header::Intact(header) => header,
        other => panic!("{other:?}"),
    }
}

fn frame_len(number: u64) -> u64 {
    let (_, head, body) = record(number);
    (FRAME_HEADER_BYTES + head.len() + body.len()) as u64
}

/// Where the frame of record `number` begins in a segment that begins with record `first`.
fn offset_of(first: u64, number: u64) -> u64 {
    SEGMENT_HEADER_BYTES as u64 + (first..number).map(frame_len).sum::<u64>()
}

/// Appends the frame of a record to a segment file, with the sequence and durable sequence given.
fn forge(storage: &FaultyStorage, segment: u64, sequence: u64, durable: u64) {
    let salt = header_of(storage, segment).salt;
    let (_, head, body) = record(sequence);
    let payload = checksum(&head, &[&body]);
    let (sequence, durable) = (Sequence(sequence), Sequence(durable));
    let header = FrameHeader::new(salt, sequence, durable, head.len(), body.len(), payload);
    storage.tamper(&path(segment), |bytes| {
        let at = Position { segment, offset: bytes.len() as u64 };
        bytes.extend_from_slice(&header.encode(at));
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&body);
    });
}

/// Writes a segment file with a header that states `first` and `durable` and no records.
fn forge_segment(storage: &FaultyStorage, number: u64, first: u64, durable: u64) {
    let (first, durable) = (Sequence(first), Sequence(durable));
    let header = SegmentHeader { number, first, durable, salt: 5 };
    storage.tamper_name(&path(number), Some(header.encode().to_vec()));
}

/// S4 to S8.
#[test]
fn every_segment_is_in_one_row() {
    use SegmentRow::{Beyond, Drained, Headless, Next, Superseded};
    let mut met = std::collections::BTreeSet::new();
    for (first, limit, next, drained) in (0..6_u64)
        .flat_map(|first| (1..7).map(move |limit| (first, limit)))
        .flat_map(|(first, limit)| (1..6).map(move |next| (first, limit, next)))
        .flat_map(|(first, limit, next)| (0..next).map(move |d| (first, limit, next, d)))
    {
        let stated = (first > 0).then_some(Sequence(first));
        let row = SegmentRow::of(stated, Sequence(limit), Sequence(next), Sequence(drained));
        let empty = limit <= first;
        let needed = limit > drained + 1;
        let rows = [
            (Headless, first == 0),
            (Superseded, first > 0 && empty),
            (Drained, first > 0 && !empty && !needed),
            (Beyond, first > 0 && !empty && needed && first > next),
            (Next, first > 0 && !empty && needed && first <= next),
        ];
        assert_eq!(rows.iter().filter(|(_, holds)| *holds).count(), 1);
        assert!(rows.contains(&(row, true)), "{row:?}");
        met.insert(row);
    }
    assert_eq!(met.len(), 5);
}

/// V1 to V3.
#[test]
fn every_end_has_one_verdict() {
    for (stated, missing) in [(0, 1), (1, 2), (2, 2), (3, 2)] {
        for follows in [false, true] {
            let verdict = Verdict::of(follows, Sequence(missing), Sequence(stated));
            let expected = match (stated >= missing, follows) {
                (true, _) => Verdict::Damaged,
                (false, true) => Verdict::Torn,
                (false, false) => Verdict::Whole,
            };
            assert_eq!(verdict, expected);
        }
    }
}

/// S1.
#[test]
fn a_foreign_file_is_left_alone() {
    let storage = written("rr|r");
    let names = ["notes.txt", "1.obx", "00000001.obx.bak", "00000004.OBX"];
    for name in names {
        storage.tamper_name(&Path::new(DIR).join(name), Some(b"not ours".to_vec()));
    }
    assert_eq!(outcome(&storage, 0), Ok(3));
    for name in names {
        assert_eq!(storage.contents(&Path::new(DIR).join(name)).unwrap(), b"not ours");
    }
}

/// S2.
#[test]
fn a_segment_of_another_version_is_refused_by_name_even_if_it_is_not_needed() {
    for segment in 1..=3 {
        let storage = written("rs|r|");
        storage.tamper(&path(segment), |bytes| {
            bytes[8] = 9;
            let checksum = twox_hash::XxHash3_64::oneshot(&bytes[..SEGMENT_HEADER_BYTES - 8]);
            bytes[SEGMENT_HEADER_BYTES - 8..SEGMENT_HEADER_BYTES]
                .copy_from_slice(&checksum.to_le_bytes());
        });
        let error = open_after(&storage, 2).unwrap_err();
        let named = |found: &PathBuf| *found == path(segment);
        assert!(
            matches!(&error, Error::UnknownFormat { path, found: 9, known: 1 } if named(path)),
            "{error}"
        );
    }
}

/// S3.
#[test]
fn a_segment_under_another_name_is_damage() {
    let storage = written("rr|r");
    storage.tamper_name(&path(3), storage.contents(&path(1)));
    let error = outcome(&storage, 0).unwrap_err();
    assert!(error.contains("00000003.obx") && error.contains("segment 1"), "{error}");
}

/// S3.
#[test]
fn a_header_that_states_nonsense_is_damage_and_no_panic() {
    for (first, durable) in [(0, 0), (3, 3), (3, 9), (0, u64::MAX), (u64::MAX, u64::MAX)] {
        let storage = written("r");
        forge_segment(&storage, 2, first, durable);
        assert!(outcome(&storage, 0).is_err());
    }
    let storage = written("r");
    forge_segment(&storage, 2, u64::MAX, 0);
    assert_eq!(outcome(&storage, 0), Ok(1));
    // A segment that a younger one supersedes cannot have known more than the log holds.
    let storage = written("r");
    forge_segment(&storage, 2, 100, 99);
    forge_segment(&storage, 3, 2, 0);
    assert_damaged(&storage, 0, 3, SEGMENT_HEADER_BYTES as u64, 2);
}

/// S4, V2.
#[test]
fn the_last_segment_may_be_empty_or_have_no_header_or_half_of_one() {
    for len in 0..=SEGMENT_HEADER_BYTES {
        for fill in [None, Some(0), Some(0xa5)] {
            let storage = written("rrs|");
            storage.tamper(&path(2), |bytes| {
                bytes.truncate(len);
                bytes.extend(fill.into_iter().flat_map(|byte| [byte; 1000]));
            });
            assert_eq!(outcome(&storage, 0), Ok(2), "{len} bytes of the header");
        }
    }
}

/// S4, V1 and V2.
#[test]
fn a_headless_segment_that_held_a_durable_record_is_damage() {
    // A frame in the segment itself vouches for it, or the header of the next.
    for script in ["rr|rsr", "rr|rs|", "rr|rrs|r"] {
        for at in 0..SEGMENT_HEADER_BYTES {
            let storage = written(script);
            storage.tamper(&path(2), |bytes| bytes[at] ^= 1);
            assert_damaged(&storage, 0, 2, 0, 3);
            assert_damaged(&storage, 2, 2, 0, 3);
        }
    }
    // Nothing vouches for it: a crash may have left this.
    let storage = written("rrs|rr|r");
    storage.tamper(&path(2), |bytes| bytes[0] ^= 1);
    assert_eq!(outcome(&storage, 0), Ok(2));
}

/// S7, V1 and V2.
#[test]
fn a_missing_segment_is_damage_if_it_held_a_durable_record_and_a_torn_tail_if_not() {
    let missing = |script, segment| {
        let storage = written(script);
        storage.tamper_name(&path(segment), None);
        storage
    };
    assert_damaged(&missing("rr|rrs|r", 1), 0, 2, 0, 1);
    assert_damaged(&missing("rr|rrs|r", 2), 0, 3, 0, 3);
    assert_damaged(&missing("rr|rs|r", 2), 2, 3, 0, 3);
    assert_eq!(outcome(&missing("rr|rrs|r", 3), 0), Ok(4));
    let storage = missing("rrs|rr|r|r", 2);
    assert_eq!(outcome(&storage, 0), Ok(2));
    assert_eq!(storage.contents(&path(3)), None, "what was never durable is removed");
    assert_eq!(storage.contents(&path(4)), None);
    assert_eq!(outcome(&missing("rr|rr|r", 1), 0), Ok(0));
    assert_eq!(outcome(&missing("rr|rrs|r", 1), 2), Ok(5), "what is drained is not missed");
}

/// S6.
#[test]
fn a_segment_left_over_from_before_a_trim_is_removed_unread() {
    let storage = written("rr|rr|");
    let (first, second) = (storage.contents(&path(1)), storage.contents(&path(2)));
    let (outbox, _) = open(&storage);
    append(&outbox).unwrap();
    outbox.seal().unwrap();
    outbox.trim(Sequence(5)).unwrap();
    append(&outbox).unwrap();
    outbox.sync(Sequence(6)).unwrap();
    drop(outbox);
    for leftovers in [vec![1], vec![2], vec![1, 2]] {
        let storage = storage.after_crash(0);
        for number in leftovers {
            let bytes = if number == 1 { &first } else { &second };
            // Whether it is intact does not matter.
            let mut bytes = bytes.clone().unwrap();
            bytes[SEGMENT_HEADER_BYTES + 3] ^= 1;
            storage.tamper_name(&path(number), Some(bytes));
        }
        assert_eq!(outcome(&storage, 5), Ok(6));
        assert_eq!((storage.contents(&path(1)), storage.contents(&path(2))), (None, None));
    }
    // Nothing younger came to the device: the leftover is all there is.
    let alone = FaultyStorage::new();
    alone.create_dir(Path::new(DIR)).unwrap();
    alone.tamper_name(&path(1), first);
    assert_eq!(outcome(&alone, 4), Ok(4));
}

/// S5, F1.
#[test]
fn a_segment_supersedes_what_an_older_one_holds_from_there_on() {
    // Record 3 was torn and cut, and cutting was not durable; then it was written anew.
    let storage = written("rrsrr");
    let torn = storage.contents(&path(1)).unwrap();
    storage.tamper(&path(1), |bytes| bytes[offset_of(1, 3) as usize + 60] ^= 1);
    let (outbox, found) = open(&storage);
    assert_eq!(found, records(1..=2));
    append(&outbox).unwrap();
    drop(outbox);
    for intact in [true, false] {
        let storage = storage.after_crash(1);
        storage.tamper(&path(1), |bytes| {
            bytes.clone_from(&torn);
            bytes[offset_of(1, 3) as usize + 60] ^= u8::from(!intact);
        });
        assert_eq!(outcome(&storage, 0), Ok(3));
    }
    // An attempt to begin a segment left a header; the next attempt succeeded.
    let storage = written("rr");
    forge_segment(&storage, 2, 3, 0);
    forge_segment(&storage, 3, 3, 1);
    assert_eq!(outcome(&storage, 0), Ok(2));
    assert_eq!(storage.contents(&path(2)), None);
    assert!(storage.contents(&path(3)).is_some());
}

/// F5, F1, V2.
#[test]
fn a_tail_of_zeros_or_noise_is_cut() {
    let noise = crate::check::tests::noise(3, 5000);
    for tail in [vec![0], vec![0; 48], vec![0; 5000], noise[..47].to_vec(), noise] {
        let storage = written("rrs|rs");
        storage.tamper(&path(2), |bytes| bytes.extend_from_slice(&tail));
        assert_eq!(outcome(&storage, 0), Ok(3));
        let end = offset_of(3, 4) as usize;
        assert_eq!(storage.contents(&path(2)).unwrap().len(), end);
        // In a segment that another one follows nobody reads it.
        let storage = written("rrs|rs");
        storage.tamper(&path(1), |bytes| bytes.extend_from_slice(&tail));
        assert_eq!(outcome(&storage, 0), Ok(3));
    }
}

/// F5, V2: what states that a record was durable came after the record was looked for.
#[test]
fn what_is_written_over_zeros_while_it_is_examined_is_no_damage() {
    let storage = FaultyStorage::new();
    let dir = Path::new(DIR);
    let backing = Arc::new(storage.clone());
    let outbox = Outbox::open(backing, dir, Sequence::NONE, &mut |_| Ok(())).unwrap();
    let synced = move || {
        append(&outbox).unwrap();
        outbox.sync(outbox.last()).unwrap();
    };
    (0..3).for_each(|_| synced());
    let len = storage.contents(&path(1)).unwrap().len();
    assert!(len > OUTBOX_ZEROS_BYTES, "zeros follow");
    let examination = Examination::begin(&storage, dir).unwrap().unwrap();
    // Once for the records, and once more for what is behind them.
    let later = storage.clone();
    storage.at_next_read(".obx", move || {
        later.at_next_read(".obx", move || (0..2).for_each(|_| synced()));
    });
    let examined = examination.read(Sequence::NONE, &mut |_| Ok(())).unwrap();
    assert_eq!(examined.records, 3);
    let examined = examination.read(Sequence::NONE, &mut |_| Ok(())).unwrap();
    assert_eq!((examined.records, examined.bytes), (5, len as u64));
    storage.forget_hooks();
}

/// F5.
#[test]
fn a_frame_from_elsewhere_is_no_frame() {
    // The frames of one segment, byte by byte, in another one and at another offset.
    let storage = written("rr|");
    let frames = storage.contents(&path(1)).unwrap().split_off(SEGMENT_HEADER_BYTES);
    storage.tamper(&path(2), |bytes| bytes.extend_from_slice(&frames));
    storage.tamper(&path(1), |bytes| bytes.extend_from_slice(&frames));
    assert_eq!(outcome(&storage, 0), Ok(2));
    // At its own place, but written for another file of this number.
    let storage = written("rs");
    let other = written("rrsr").contents(&path(1)).unwrap();
    storage.tamper(&path(1), |bytes| {
        let at = bytes.len();
        bytes.extend_from_slice(&other[at..]);
    });
    assert_eq!(outcome(&storage, 0), Ok(1));
}

/// F5, V2.
#[test]
fn file_data_that_looks_like_frames_does_not_speak_for_the_log() {
    let storage = written("rrsrrsr");
    let copied = storage.contents(&path(1)).unwrap();
    let storage = written("rr");
    let (outbox, _) = open(&storage);
    outbox.append(b"", &[&copied]).unwrap();
    drop(outbox);
    let end = storage.contents(&path(2)).unwrap().len();
    storage.tamper(&path(2), |bytes| bytes[end - 1] ^= 1);
    assert_eq!(outcome(&storage, 0), Ok(2));
}

/// F4.
#[test]
fn a_frame_that_no_crash_can_leave_is_damage_even_if_it_was_never_durable() {
    // Out of order, twice, and from the future.
    for sequence in [1, 2, 4, 9, u64::MAX] {
        let storage = written("rr");
        forge(&storage, 1, sequence, 0);
        assert_damaged(&storage, 0, 1, offset_of(1, 3), 3);
        assert_damaged(&storage, 2, 1, offset_of(1, 3), 3);
    }
    let storage = written("rr");
    forge(&storage, 1, 3, 2);
    assert_eq!(outcome(&storage, 0), Ok(3), "this one follows");
    let storage = written("rr");
    forge(&storage, 1, 3, 3);
    assert_damaged(&storage, 0, 1, offset_of(1, 3), 3);
}

/// S4, F5, V1 and V2.
#[test]
fn every_flipped_bit_costs_what_was_not_durable_and_is_damage_otherwise() {
    // Records 1 and 2 are durable, which record 3 and the second segment state.
    let whole = written("rrsr|rr");
    for segment in 1..=2 {
        let bytes = whole.contents(&path(segment)).unwrap();
        for bit in 0..bytes.len() * 8 {
            let storage = whole.after_crash(1);
            storage.tamper(&path(segment), |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            let at = bit as u64 / 8;
            let (first, last) = if segment == 1 { (1, 3) } else { (4, 5) };
            match (first..=last).find(|number| at < offset_of(first, number + 1)) {
                Some(_) if at < SEGMENT_HEADER_BYTES as u64 && segment == 1 => {
                    assert_damaged(&storage, 0, 1, 0, 1);
                }
                Some(hit @ 1..=2) => assert_damaged(&storage, 0, 1, offset_of(1, hit), hit),
                Some(hit) => assert_eq!(outcome(&storage, 0), Ok(hit - 1), "bit {bit}"),
                None => panic!("byte {at} belongs to no record"),
            }
        }
    }
}

/// S4, F2, F5, S7, V1 and V2.
#[test]
fn every_lost_end_costs_what_was_not_durable_and_is_damage_otherwise() {
    let whole = written("rrsr|rr");
    for segment in 1..=2 {
        let bytes = whole.contents(&path(segment)).unwrap();
        for len in 0..bytes.len() {
            let storage = whole.after_crash(1);
            storage.tamper(&path(segment), |bytes| bytes.truncate(len));
            let (first, last) = if segment == 1 { (1, 3) } else { (4, 5) };
            let fits = |number: &u64| offset_of(first, number + 1) <= len as u64;
            let hit = (first..=last).find(|number| !fits(number)).unwrap();
            let opened = outcome(&storage, 0);
            if hit <= 2 { assert!(opened.is_err()) } else { assert_eq!(opened, Ok(hit - 1)) }
        }
    }
}

/// F5, V1.
#[test]
fn a_damaged_record_is_damage_if_anything_later_knew_it_durable() {
    // Where the statement stands: the next frame, a later one, a later segment or only its header.
    for script in ["rrrsr", "rrrsrr", "rrrs|r", "rrrs|", "rrrs|r|r"] {
        let storage = written(script);
        storage.tamper(&path(1), |bytes| bytes[offset_of(1, 3) as usize + 50] ^= 1);
        assert_damaged(&storage, 0, 1, offset_of(1, 3), 3);
    }
    // The frame that states it is itself torn, but its header is not.
    let storage = written("rrrsr");
    storage.tamper(&path(1), |bytes| {
        bytes[offset_of(1, 3) as usize + 50] ^= 1;
        bytes[offset_of(1, 4) as usize + 50] ^= 1;
    });
    assert_damaged(&storage, 0, 1, offset_of(1, 3), 3);
    // The position that is drained vouches for records too.
    let storage = written("rrr");
    storage.tamper(&path(1), |bytes| bytes[offset_of(1, 2) as usize + 50] ^= 1);
    assert_damaged(&storage, 2, 1, offset_of(1, 2), 2);
    assert_eq!(outcome(&storage, 0), Ok(1));
}
