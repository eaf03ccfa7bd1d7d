//! Goal: whatever is done to a worktree, in whatever order, and whatever drains, restarts and power
//! failures come in between, it is what a plain model of POSIX says.

use std::sync::Arc;

use proptest::prelude::*;

use super::fixture::USER;
use super::model::{History, steps};
use super::{Allocate, NewNode, Seek, SetAttributes, SetTime, Timestamp};
use crate::error::{Denial, Error};
use crate::id::Ino;
use crate::limits::FILE_BYTES_MAX;
use crate::testing::FaultyStorage;

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_worktree_does_what_its_model_does(steps in steps(60)) {
        let mut history = History::begin(FaultyStorage::new()).unwrap();
        history.compare();
        for step in &steps {
            history.take(step).unwrap();
            history.compare();
        }
        history.drain().unwrap();
        history.compare();
        history.restart().unwrap();
        history.compare();
    }
}

/// What a model of bytes in memory cannot hold.
#[test]
fn a_file_may_be_as_long_as_any_and_costs_only_its_data() {
    let mut history = History::begin(FaultyStorage::new()).unwrap();
    let worktree = Arc::clone(history.worktree());
    let file = worktree.create(USER, Ino::ROOT, b"long", 0o644, NewNode::File).unwrap().ino;
    let set = SetAttributes { size: Some(FILE_BYTES_MAX), ..Default::default() };
    worktree.set_attributes(USER, file, &set).unwrap();
    worktree.write(file, FILE_BYTES_MAX - 4, b"tail", false).unwrap();
    worktree.write(file, 1 << 40, b"middle", false).unwrap();
    worktree.allocate(USER, file, Allocate::PunchHole, 3 + (1 << 40), 1 << 50).unwrap();
    let far = worktree.write(file, FILE_BYTES_MAX, b"x", false);
    assert!(matches!(far, Err(Error::Denied(_, Denial::TooLarge))));
    drop(worktree);
    for round in 0..3 {
        let worktree = history.worktree();
        let attributes = worktree.attributes(file).unwrap();
        assert_eq!((attributes.size, attributes.blocks), (FILE_BYTES_MAX, 1), "round {round}");
        let seek = |offset, what| worktree.seek(file, offset, what).unwrap();
        assert_eq!(seek(0, Seek::Data), Some(1 << 40));
        assert_eq!(seek(1 << 40, Seek::Hole), Some(3 + (1 << 40)));
        assert_eq!(seek(3 + (1 << 40), Seek::Data), Some(FILE_BYTES_MAX - 4));
        let mut bytes = [9; 8];
        assert_eq!(worktree.read(file, FILE_BYTES_MAX - 6, &mut bytes).unwrap(), 6);
        assert_eq!(&bytes[..6], b"\0\0tail");
        let copied = worktree.copy_range(USER, file, 1 << 40, file, 0, 6).unwrap();
        assert_eq!((copied, worktree.read(file, 0, &mut bytes).unwrap()), (6, 8));
        assert_eq!(&bytes, b"mid\0\0\0\0\0");
        worktree.allocate(USER, file, Allocate::Zero(true), 0, 6).unwrap();
        worktree.drain().unwrap();
        history.reopen().unwrap();
    }
}

/// One record holds only so many extents.
#[test]
fn a_copy_of_a_fragmented_file_stops_early_and_can_go_on() {
    let history = History::begin(FaultyStorage::new()).unwrap();
    let worktree = history.worktree();
    let make = |name: &[u8]| worktree.create(USER, Ino::ROOT, name, 0o644, NewNode::File);
    let (from, to) = (make(b"from").unwrap().ino, make(b"to").unwrap().ino);
    let fragments = 40_000_u64;
    for at in 0..fragments {
        worktree.write(from, at * 2, &[at as u8 | 1], false).unwrap();
    }
    let read = |ino| {
        let mut bytes = vec![9; 2 * fragments as usize];
        let len = worktree.read(ino, 0, &mut bytes).unwrap();
        bytes.truncate(len);
        bytes
    };
    for drained in [false, true] {
        if drained {
            worktree.drain().unwrap();
        }
        let set = SetAttributes { size: Some(0), ..Default::default() };
        worktree.set_attributes(USER, to, &set).unwrap();
        let (mut at, mut calls) = (0, 0);
        loop {
            match worktree.copy_range(USER, from, at, to, at, u64::MAX).unwrap() {
                0 => break,
                copied => at += copied,
            }
            calls += 1;
        }
        assert!(read(from) == read(to), "drained: {drained}");
        assert!((2..100).contains(&calls), "{calls} calls");
    }
}

/// What the log cannot say must not get into it: it would not be read back.
#[test]
fn a_time_that_cannot_be_is_refused() {
    let mut history = History::begin(FaultyStorage::new()).unwrap();
    let time = |nanoseconds| Some(SetTime::At(Timestamp { seconds: 1, nanoseconds }));
    for set in [
        SetAttributes { accessed: time(1_000_000_000), ..Default::default() },
        SetAttributes { modified: time(u32::MAX), ..Default::default() },
    ] {
        let refused = history.worktree().set_attributes(USER, Ino::ROOT, &set);
        assert!(matches!(refused, Err(Error::Denied(_, Denial::Invalid))), "{refused:?}");
        history.restart().unwrap();
        history.compare();
    }
}
