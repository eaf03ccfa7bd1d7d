//! The device under a whole worktree fails while the machine goes on: it is full, it refuses writes,
//! a sync loses what it should have saved, files are deleted. Outbox, segments and database of the
//! store lie on it together. Then:
//!
//! - whoever asked is told, and nothing that was acknowledged before is lost or changed;
//! - reading goes on;
//! - after lack of room everything goes on as soon as there is some; after any other error of the
//!   outbox no change is taken until the worktree is opened anew, and its state says why;
//! - the check finds nothing wrong, unless files are gone: then it finds that.

use std::path::PathBuf;
use std::sync::Arc;

use super::fixture::{ROOT, USER, dir, noise, open};
use super::model::{History, Step, fixed_steps};
use super::{NewNode, SetAttributes};
use crate::check::tests::FakeGit;
use crate::check::{Finding, check};
use crate::error::Error;
use crate::id::{ChunkId, ContentId, Ino, Sequence};
use crate::limits::{OUTBOX_BODY_BYTES_MAX, OUTBOX_BYTES_MAX};
use crate::progress::{Cancel, Silent};
use crate::storage::{Disk, Storage};
use crate::store::Store;
use crate::testing::FaultyStorage;

/// More room than any workload here takes.
const PLENTY: u64 = 1 << 40;

/// Changes, syncs and drains; nothing that begins anew by itself.
fn workload() -> Vec<Step> {
    let steps = fixed_steps(260).into_iter();
    steps.filter(|step| !matches!(step, Step::Restart | Step::DrainDuring(_))).collect()
}

/// A history in which `step` ends every tenth step of the workload with a drain.
fn steps() -> impl Iterator<Item = Step> {
    let drained = |(number, step)| match number % 10 {
        9 => vec![step, Step::Drain],
        _ => vec![step],
    };
    workload().into_iter().enumerate().flat_map(drained)
}

/// Takes `step`; why the device did not, if it did not.
fn taken(history: &mut History, step: &Step) -> Option<Error> {
    history.take(step).err()
}

fn compare_anew(history: &mut History) {
    history.restart().unwrap();
    history.compare();
    assert_eq!(history.check(), Ok(()));
}

#[test]
fn a_device_that_is_full_at_any_step_refuses_and_loses_nothing() {
    // How much room is left after each step, when there is no lack of it.
    let storage = FaultyStorage::new();
    let mut history = History::begin(storage.clone()).unwrap();
    storage.set_room(Some(PLENTY));
    let mut used = vec![0];
    for step in steps() {
        assert!(taken(&mut history, &step).is_none());
        used.push(PLENTY - storage.room().unwrap());
    }
    used.dedup();
    let mut points = 0;
    let mut refused = 0;
    let at = used.windows(2).flat_map(|pair| [pair[0], pair[0] + 1, pair[0].midpoint(pair[1])]);
    for room in at {
        let storage = FaultyStorage::new();
        let mut history = History::begin(storage.clone()).unwrap();
        storage.set_room(Some(room));
        let mut full = false;
        for step in steps() {
            let Some(error) = taken(&mut history, &step) else { continue };
            if matches!(step, Step::Op(..) | Step::Sync) {
                assert!(error.is_full(), "room for {room}: {error}");
            }
            refused += 1;
            // The first time is enough for what costs most.
            if !full {
                history.compare();
                assert_eq!(history.worktree().state().unwrap().failure, None);
                full = true;
                // A little later there is room again.
                storage.set_room(Some(room % 7000));
                continue;
            }
            storage.set_room(None);
            assert!(taken(&mut history, &step).is_none(), "there is room again");
        }
        storage.set_room(None);
        history.compare();
        history.drain().unwrap();
        compare_anew(&mut history);
        points += 1;
    }
    report(&format!("{points} points at which the device is full, {refused} refusals"));
    assert!(points >= 100 && refused >= points, "{points} {refused}");
}

#[test]
fn a_device_that_refuses_writes_ends_changes_and_not_reading() {
    let mut points = 0;
    let all: Vec<_> = steps().collect();
    for at in (0..all.len()).step_by(4) {
        let storage = FaultyStorage::new();
        let mut history = History::begin(storage.clone()).unwrap();
        for step in &all[..at] {
            assert!(taken(&mut history, step).is_none());
        }
        storage.refuse_writes(true);
        let tried = all[at..].iter().find_map(|step| taken(&mut history, step));
        let Some(error) = tried else { continue };
        assert!(!error.is_full(), "{error}");
        storage.refuse_writes(false);
        history.compare();
        let failure = history.worktree().state().unwrap().failure;
        let write = history.worktree().create(ROOT, Ino::ROOT, b"new", 0o644, NewNode::File);
        match failure {
            // The outbox was hit: nothing but opening it anew helps.
            Some(why) => {
                assert!(why.contains("refuses writes"), "{why}");
                assert!(matches!(write, Err(Error::Poisoned { .. })), "{write:?}");
                let synced = history.worktree().sync();
                assert!(matches!(synced, Err(Error::Poisoned { .. })), "{synced:?}");
                history.compare();
            }
            // Only the store was, by a drain: it is opened anew by itself.
            None => {
                write.unwrap();
                history.worktree().unlink(Ino::ROOT, b"new").unwrap();
                history.drain().unwrap();
                continue;
            }
        }
        compare_anew(&mut history);
        history.drain().unwrap();
        compare_anew(&mut history);
        points += 1;
    }
    report(&format!("{points} points at which the device refuses writes"));
    assert!(points >= 40, "{points}");
}

/// The sync that fails is of the outbox, of a segment of the store, of the database or a directory.
#[test]
fn a_failed_sync_at_any_point_loses_nothing_that_a_later_one_promises() {
    let whole = FaultyStorage::new();
    let mut history = History::begin(whole.clone()).unwrap();
    let from = whole.syncs();
    for step in steps() {
        assert!(taken(&mut history, &step).is_none());
    }
    let (mut points, mut latched) = (0, 0);
    for sync in from..whole.syncs() {
        let storage = FaultyStorage::new();
        let mut history = History::begin(storage.clone()).unwrap();
        storage.lose_at(sync);
        let mut failed = false;
        for step in steps() {
            if let Some(error) = taken(&mut history, &step) {
                assert!(!error.is_full(), "sync {sync}: {error}");
                failed = true;
                break;
            }
        }
        assert!(failed, "sync {sync} is believed");
        history.compare();
        if history.worktree().state().unwrap().failure.is_some() {
            latched += 1;
            let set = SetAttributes { permissions: Some(0o700), ..Default::default() };
            let refused = history.worktree().set_attributes(USER, Ino::ROOT, &set);
            assert!(matches!(refused, Err(Error::Poisoned { .. })), "{refused:?}");
            history.restart().unwrap();
            history.compare();
        }
        // What is synced from now on is on the device, whatever the kernel believes of what came
        // before.
        history.sync().unwrap();
        let verdict = history.after_crash(0).and_then(History::goes_on);
        assert_eq!(verdict, Ok(()), "sync {sync}");
        points += 1;
    }
    report(&format!("{points} syncs that fail, after {latched} of which no change is taken"));
    assert!(points >= 60 && latched >= 20 && latched < points, "{points} {latched}");
}

fn segments(storage: &FaultyStorage, dir: &str, suffix: &str) -> Vec<PathBuf> {
    let dir = super::fixture::dir().join(dir);
    let mut paths: Vec<_> = storage.list(&dir).unwrap().iter().map(|name| dir.join(name)).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(suffix));
    paths.sort();
    paths
}

#[test]
fn a_deleted_segment_of_the_outbox_costs_nothing_that_is_drained_before_the_end() {
    let storage = FaultyStorage::new();
    let mut history = History::begin(storage.clone()).unwrap();
    for step in workload().iter().take(60) {
        assert!(taken(&mut history, step).is_none());
    }
    for path in segments(&storage, "outbox/3", ".obx") {
        storage.remove(&path).unwrap();
    }
    for step in workload().iter().skip(60).take(60) {
        assert!(taken(&mut history, step).is_none());
        history.compare();
    }
    history.drain().unwrap();
    history.compare();
    compare_anew(&mut history);
}

#[test]
fn an_outbox_that_lacks_a_segment_is_reported_and_not_opened() {
    let storage = FaultyStorage::new();
    let worktree = open(Arc::new(storage.clone()), &dir()).unwrap();
    let made = worktree.create(USER, Ino::ROOT, b"f", 0o644, NewNode::File).unwrap();
    worktree.sync().unwrap();
    let first = segments(&storage, "outbox/3", ".obx").remove(0);
    worktree.write(made.ino, 0, &noise(1, 10_000), false).unwrap();
    let store = Arc::clone(worktree.clean.contents.store());
    // As a drain does first.
    worktree.live().unwrap().outbox.seal().unwrap();
    worktree.write(made.ino, 0, b"second", false).unwrap();
    worktree.sync().unwrap();
    storage.remove(&first).unwrap();
    let found = check(&store, &FakeGit, &Silent, &Cancel::default()).unwrap().findings;
    match found.as_slice() {
        [Finding::BadOutbox { record: Some(Sequence(1)), why, .. }] => {
            assert!(why.contains("the segment that held it is missing"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    drop((worktree, store));
    let error = open(Arc::new(storage.clone()), &dir()).err().expect("a record is missing");
    assert!(matches!(error, Error::Outbox { record: Some(Sequence(1)), .. }), "{error}");
}

#[test]
fn a_deleted_segment_of_the_store_is_found_and_never_read_as_zeros() {
    let storage = FaultyStorage::new();
    let worktree = open(Arc::new(storage.clone()), &dir()).unwrap();
    let made = worktree.create(USER, Ino::ROOT, b"f", 0o644, NewNode::File).unwrap();
    let bytes = noise(1, 10_000);
    worktree.write(made.ino, 0, &bytes, false).unwrap();
    worktree.drain().unwrap();
    for path in segments(&storage, "segments", ".seg") {
        storage.remove(&path).unwrap();
    }
    // What is open outlives its name.
    let mut out = vec![0; bytes.len()];
    assert_eq!(worktree.read(made.ino, 0, &mut out).unwrap(), bytes.len());
    assert!(out == bytes);
    worktree.write(made.ino, 0, b"more", false).unwrap();
    drop(worktree);
    let error = open(Arc::new(storage.clone()), &dir()).err().expect("the base is gone");
    assert!(error.to_string().contains("the segment file is missing"), "{error}");
    let store = Store::open_on(Arc::new(storage.clone()), &dir()).unwrap();
    let error = store.read_at(ContentId::of(&bytes), 0, &mut out).unwrap_err();
    assert!(error.is_corruption(), "{error}");
    let found = check(&store, &FakeGit, &Silent, &Cancel::default()).unwrap().findings;
    let chunk = ChunkId::of(&bytes);
    let lost = |finding: &Finding| matches!(finding, Finding::BadChunk { id, .. } if *id == chunk);
    assert!(found.iter().any(lost), "{found:?}");
}

/// Whoever writes faster than the store takes it in waits for the store: the outbox stays within its
/// limit and one record.
#[test]
fn an_outbox_at_its_limit_makes_writers_wait() {
    let temporary = tempfile::tempdir().unwrap();
    let worktree = open(Arc::new(Disk), temporary.path()).unwrap();
    let made = worktree.create(USER, Ino::ROOT, b"f", 0o644, NewNode::File).unwrap();
    let data = vec![7; OUTBOX_BODY_BYTES_MAX];
    let writes = OUTBOX_BYTES_MAX / OUTBOX_BODY_BYTES_MAX as u64 + 3;
    let mut most = 0;
    for number in 0..writes {
        // The same place: what is overwritten costs the drain nothing.
        worktree.write(made.ino, number % 2, &data, false).unwrap();
        let bytes = worktree.outbox_bytes();
        assert!(bytes < OUTBOX_BYTES_MAX + 2 * OUTBOX_BODY_BYTES_MAX as u64, "{bytes}");
        most = bytes.max(most);
    }
    assert!(most >= OUTBOX_BYTES_MAX, "it never was at its limit");
    assert!(worktree.outbox_bytes() < OUTBOX_BYTES_MAX, "it was drained");
    worktree.drain().unwrap();
}

#[expect(clippy::print_stdout, reason = "a test tells how much it tried")]
fn report(what: &str) {
    println!("{what}");
}
