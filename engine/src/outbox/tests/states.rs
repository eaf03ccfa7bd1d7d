//! Every state that a crash can leave a small outbox in, and every state beyond that which differs
//! by what is gone: each file absent, headless or whole, each frame intact, torn or gone.
//!
//! - What no damage explains opens, whatever else is lost, with the longest intact prefix.
//! - Where anything that is left states that a record was durable which is not in that prefix, the
//!   opening says so.

use super::frame::FRAME_HEADER_BYTES;
use super::*;

/// The first records of the three segments, and the one after the last.
const FIRSTS: [u64; 4] = [1, 3, 5, 6];
const RECORDS: u64 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    Intact,
    /// Its header is there, its payload is not.
    Torn,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    Absent,
    Headless,
    Whole,
}

#[derive(Clone, Debug)]
struct State {
    files: [File; 3],
    frames: [Frame; RECORDS as usize],
}

impl State {
    /// All that differ.
    fn all() -> Vec<Self> {
        let mut states = Vec::new();
        for code in 0..3_usize.pow(8) {
            let digit = |place: u32| code / 3_usize.pow(place) % 3;
            let files = [0, 1, 2].map(|n| [File::Absent, File::Headless, File::Whole][digit(n)]);
            let kinds = [Frame::Gone, Frame::Torn, Frame::Intact];
            let frames = [3, 4, 5, 6, 7].map(|n| kinds[digit(n)]);
            let state = Self { files, frames };
            // The frames of an absent file make no difference.
            let same = (1..=RECORDS).any(|number| {
                state.file_of(number) == File::Absent && state.frame(number) != Frame::Gone
            });
            if !same {
                states.push(state);
            }
        }
        states
    }

    fn frame(&self, number: u64) -> Frame {
        self.frames[number as usize - 1]
    }

    fn file_of(&self, number: u64) -> File {
        self.files[segment_of(number)]
    }

    /// Whether a crash can leave this if everything up to `synced` was synced.
    fn is_legal(&self, synced: u64) -> bool {
        (1..=synced).all(|n| self.frame(n) == Frame::Intact && self.file_of(n) == File::Whole)
    }

    fn apply(&self, storage: &FaultyStorage) {
        for (index, file) in self.files.iter().enumerate() {
            let path = path(index as u64 + 1);
            if *file == File::Absent {
                storage.tamper_name(&path, None);
                continue;
            }
            storage.tamper(&path, |bytes| {
                let mut at = segment::SEGMENT_HEADER_BYTES;
                if *file == File::Headless {
                    bytes[..at].fill(0);
                }
                for number in FIRSTS[index]..FIRSTS[index + 1] {
                    let (_, head, body) = record(number);
                    let payload = at + FRAME_HEADER_BYTES;
                    let end = payload + head.len() + body.len();
                    match self.frame(number) {
                        Frame::Intact => {}
                        Frame::Torn => bytes[payload] ^= 0xff,
                        Frame::Gone => bytes[at..end].fill(0),
                    }
                    at = end;
                }
            });
        }
    }

    /// The last record that an opening finds; `None` if it must report damage. `stated` is what
    /// each frame and each header says was durable.
    fn expected(&self, stated: impl Fn(u64) -> u64, drained: u64) -> Option<u64> {
        let frames = (1..=RECORDS).filter(|number| self.frame(*number) != Frame::Gone).map(&stated);
        let whole = |index: &usize| self.files[*index] == File::Whole;
        let headers = (0..3).filter(whole).map(|index| stated(FIRSTS[index]));
        let durable = frames.chain(headers).max().unwrap_or(0).max(drained);
        let missing = self.first_missing(drained);
        (durable < missing).then(|| missing - 1)
    }

    fn first_missing(&self, drained: u64) -> u64 {
        let mut next = drained + 1;
        let whole: Vec<usize> = (0..3).filter(|index| self.files[*index] == File::Whole).collect();
        for (place, index) in whole.iter().enumerate() {
            let limit = whole.get(place + 1).map_or(u64::MAX, |younger| FIRSTS[*younger]);
            if limit <= drained + 1 {
                continue;
            }
            if FIRSTS[*index] > next {
                return next;
            }
            for number in FIRSTS[*index]..FIRSTS[index + 1] {
                if self.frame(number) != Frame::Intact {
                    return number;
                }
                next = next.max(number + 1);
            }
        }
        next
    }
}

fn segment_of(number: u64) -> usize {
    FIRSTS.iter().rposition(|first| *first <= number).unwrap()
}

/// The outbox of five records that was synced after each of `syncs`, and what was known to be
/// durable when each record was written.
fn outbox(syncs: &[u64]) -> (FaultyStorage, impl Fn(u64) -> u64) {
    let mut script = String::new();
    for number in 1..=RECORDS {
        script.push_str(if number > 1 && FIRSTS.contains(&number) { "|r" } else { "r" });
        script.push_str(if syncs.contains(&number) { "s" } else { "" });
    }
    let syncs = syncs.to_vec();
    (written(&script), move |number| {
        syncs.iter().copied().filter(|sync| *sync < number).max().unwrap_or(0)
    })
}

#[test]
fn every_state_opens_with_its_longest_prefix_or_is_reported_as_damaged() {
    let states = State::all();
    let (mut opened, mut damaged) = (0, 0);
    for syncs in [&[][..], &[1], &[2], &[3], &[4], &[5], &[1, 4], &[2, 3], &[1, 2, 3, 4, 5]] {
        let (whole, stated) = outbox(syncs);
        let synced = syncs.iter().copied().max().unwrap_or(0);
        for state in &states {
            for drained in 0..=synced {
                let storage = whole.after_crash(1);
                state.apply(&storage);
                let expected = state.expected(&stated, drained);
                assert!(expected.is_some() || !state.is_legal(synced), "{state:?}");
                let found = open_after(&storage, drained);
                match (&found, expected) {
                    (Ok((outbox, found)), Some(last)) => {
                        opened += 1;
                        assert_eq!(outbox.last().0, last, "{state:?}, synced {syncs:?}, {drained}");
                        assert_eq!(*found, records(drained + 1..=last));
                        let (again, same) = open_after(&storage, drained).unwrap();
                        assert_eq!((again.last().0, same.len()), (last, found.len()));
                    }
                    (Err(error), None) => {
                        damaged += 1;
                        assert!(error.is_corruption(), "{error}");
                    }
                    _ => panic!(
                        "{state:?}, synced {syncs:?}, drained {drained}: {expected:?}, not {:?}",
                        found.map(|(outbox, _)| outbox.last())
                    ),
                }
            }
        }
    }
    assert!(opened > 10_000 && damaged > 10_000, "{opened} {damaged}");
}
