//! The power fails at every sync of recorded workloads, and what was not synced is kept, lost or
//! torn. Afterwards:
//!
//! - the worktree opens, and is as it was at some moment not before the last sync that returned;
//! - the check finds nothing wrong;
//! - replaying the outbox twice, draining and opening again change nothing that is seen;
//! - it can be written again.

use std::sync::Arc;

use super::fixture::{LARGE_BYTES, ROOT, USER, dir, noise, open};
use super::model::{History, New, Op, fixed_steps};
use super::{Allocate, RenameMode, SetAttributes};
use crate::error::Result;
use crate::id::Ino;
use crate::testing::FaultyStorage;

const SEEDS: u64 = 5;

/// Something that is done to a fresh worktree until it ends or the device fails.
type Workload = fn(&mut History) -> Result<()>;

const WORKLOADS: [(&str, Workload); 8] = [
    ("many small files", many_small_files),
    ("a large file", a_large_file),
    ("names", names),
    ("inodes without names", inodes_without_names),
    ("copies", copies),
    ("changes during drains", changes_during_drains),
    ("drains that fail", drains_that_fail),
    ("random steps", random_steps),
];

fn write(ino: Ino, offset: u64, data: Vec<u8>) -> Op {
    Op::Write { ino, offset, data, kill_set_id: false }
}

fn truncate(ino: Ino, size: u64) -> Op {
    let set = SetAttributes { size: Some(size), ..Default::default() };
    Op::SetAttributes { caller: USER, ino, set }
}

fn unlink(parent: Ino, name: &str) -> Op {
    Op::Unlink { parent, name: name.into() }
}

fn remove(parent: Ino, name: &str) -> Op {
    Op::RemoveDirectory { parent, name: name.into() }
}

fn link(ino: Ino, parent: Ino, name: &str) -> Op {
    Op::Link { ino, parent, name: name.into() }
}

fn rename(from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> Op {
    let place = |(dir, name): (Ino, &str)| (dir, name.into());
    Op::Rename { from: place(from), to: place(to), mode }
}

fn lookup(history: &History, path: &str) -> Result<Ino> {
    path.split('/').try_fold(Ino::ROOT, |dir, name| {
        let found = history.worktree().lookup(dir, name.as_bytes())?;
        Ok(found.unwrap_or_else(|| panic!("there is no {path}")).ino)
    })
}

fn many_small_files(history: &mut History) -> Result<()> {
    let dir = history.make(Ino::ROOT, "many", New::Directory)?;
    let mut files = Vec::new();
    for number in 0..40_u64 {
        let file = history.make(dir, &format!("f{number}"), New::File)?;
        files.push(file);
        history.all([write(file, 0, noise(number, 10 + number as usize * 97))])?;
        if number % 10 == 9 {
            history.sync()?;
        }
    }
    history.drain()?;
    for (number, file) in files.into_iter().enumerate() {
        let name = format!("f{number}");
        let new_name = format!("g{number}");
        history.all([match number % 4 {
            0 => unlink(dir, &name),
            1 => write(file, 5, noise(1000, 50)),
            2 => rename((dir, &name), (Ino::ROOT, &new_name), RenameMode::Replace),
            _ => truncate(file, 7),
        }])?;
    }
    history.drain()?;
    for number in 40..45_u64 {
        let file = history.make(dir, &format!("f{number}"), New::File)?;
        history.all([write(file, 0, noise(number, 300))])?;
    }
    history.sync()
}

fn a_large_file(history: &mut History) -> Result<()> {
    let file = history.make(Ino::ROOT, "big", New::File)?;
    for part in 0..6 {
        history.all([write(file, part << 18, noise(part, 1 << 18))])?;
    }
    history.sync()?;
    history.all([write(file, 100_000, b"edited".to_vec()), truncate(file, 1_000_000)])?;
    history.drain()?;
    let what = Allocate::PunchHole;
    let punch = Op::Allocate { caller: USER, ino: file, what, offset: 9000, len: 700_000 };
    history.all([write(file, 5, vec![b'5'; 5000]), truncate(file, 1_400_000), punch])?;
    history.sync()?;
    history.drain()?;
    let large = lookup(history, "large")?;
    history.all([write(large, 400_000, b"edited".to_vec()), truncate(large, 500_000)])?;
    history.drain()?;
    history.all([truncate(large, 0), write(file, 0, noise(9, 300_000))])?;
    history.drain()?;
    history.all([write(large, 0, b"new".to_vec())])
}

fn names(history: &mut History) -> Result<()> {
    let (sub, file) = (lookup(history, "sub")?, lookup(history, "file")?);
    let dir = history.make(Ino::ROOT, "dir", New::Directory)?;
    let new = history.make(dir, "new", New::File)?;
    history.all([
        write(new, 0, b"over".to_vec()),
        link(file, dir, "hard"),
        rename((dir, "new"), (Ino::ROOT, "file"), RenameMode::Replace),
    ])?;
    history.sync()?;
    history.all([
        rename((Ino::ROOT, "sub"), (dir, "sub"), RenameMode::NoReplace),
        rename((dir, "hard"), (sub, "inner"), RenameMode::Exchange),
        link(new, sub, "again"),
        unlink(Ino::ROOT, "file"),
    ])?;
    history.drain()?;
    let empty = history.make(Ino::ROOT, "empty directory", New::Directory)?;
    history.make(empty, "symlink", New::Symlink(b"../file".to_vec()))?;
    history.all([
        rename((empty, "symlink"), (Ino::ROOT, "file"), RenameMode::Replace),
        rename((sub, "deep"), (Ino::ROOT, "empty directory"), RenameMode::Replace),
        rename((Ino::ROOT, "module"), (dir, "module"), RenameMode::Replace),
        remove(dir, "module"),
    ])?;
    history.sync()?;
    history.all([
        rename((dir, "sub"), (Ino::ROOT, "sub"), RenameMode::Replace),
        unlink(sub, "again"),
        rename((Ino::ROOT, ".git"), (Ino::ROOT, "git"), RenameMode::Replace),
        rename((Ino::ROOT, "git"), (Ino::ROOT, ".git"), RenameMode::Replace),
    ])?;
    history.drain()?;
    history.restart()?;
    history.all([rename((Ino::ROOT, "exec"), (dir, "hard"), RenameMode::Replace)])
}

fn inodes_without_names(history: &mut History) -> Result<()> {
    let (file, inner) = (lookup(history, "file")?, lookup(history, "sub/inner")?);
    let (sub, deep) = (lookup(history, "sub")?, lookup(history, "sub/deep")?);
    let new = history.make(Ino::ROOT, "new", New::File)?;
    let dir = history.make(sub, "dir", New::Directory)?;
    history.all([
        write(new, 0, noise(1, 5000)),
        unlink(Ino::ROOT, "new"),
        unlink(Ino::ROOT, "file"),
        remove(sub, "dir"),
        write(new, 100, b"nameless".to_vec()),
        write(file, 1, b"nameless".to_vec()),
    ])?;
    history.drain()?;
    history.all([
        write(new, 200, noise(2, 5000)),
        Op::Release { ino: new },
        unlink(deep, "leaf"),
        remove(sub, "deep"),
        Op::Release { ino: deep },
    ])?;
    history.sync()?;
    history.all([Op::Release { ino: dir }, unlink(sub, "inner")])?;
    history.drain()?;
    history.all([
        Op::Release { ino: file },
        Op::Release { ino: inner },
        remove(Ino::ROOT, "sub"),
    ])?;
    history.drain()?;
    history.restart()?;
    history.make(Ino::ROOT, "sub", New::Directory)?;
    history.drain().map(drop)
}

fn copies(history: &mut History) -> Result<()> {
    let large = lookup(history, "large")?;
    let copy =
        |from: (Ino, u64), to: (Ino, u64), len| Op::CopyRange { caller: ROOT, from, to, len };
    let to = history.make(Ino::ROOT, "to", New::File)?;
    let fresh = history.make(Ino::ROOT, "fresh", New::File)?;
    history.all([
        write(fresh, 3000, noise(3, 20_000)),
        copy((large, 5), (to, 100), u64::MAX),
        copy((fresh, 0), (to, 200_000), u64::MAX),
    ])?;
    history.sync()?;
    history.drain()?;
    let end = LARGE_BYTES as u64;
    history.all([
        copy((to, 150_000), (fresh, 1000), 100_000),
        copy((large, 0), (large, end), end),
        unlink(Ino::ROOT, "large"),
        Op::Release { ino: large },
        copy((fresh, 0), (fresh, 500_000), 50_000),
    ])?;
    history.drain()?;
    history.all([copy((fresh, 500_000), (to, 0), 9000), truncate(fresh, 4)])
}

/// Puts names, a new one and those of the base, and content through changes while a drain copies.
fn changes_during_drains(history: &mut History) -> Result<()> {
    let sub = lookup(history, "sub")?;
    let dir = history.make(Ino::ROOT, "dir", New::Directory)?;
    for round in 0..3_u64 {
        let kept = history.make(dir, &format!("kept{round}"), New::File)?;
        let gone = history.make(dir, &format!("gone{round}"), New::File)?;
        history.all([write(kept, 0, noise(round, 2000)), write(gone, 0, noise(round, 3000))])?;
        history.drain_during(move |history| {
            let name = |what: &str| format!("{what}{round}");
            history.all([
                rename((dir, &name("kept")), (sub, &name("moved")), RenameMode::Replace),
                unlink(dir, &name("gone")),
                write(gone, 1000, noise(7, 500)),
                Op::Release { ino: gone },
                write(kept, 1000, noise(8, 5000)),
                truncate(kept, 4000),
            ])?;
            let new = history.make(dir, &name("new"), New::File)?;
            history.all([write(new, 0, noise(9, 100)), link(new, sub, &name("new"))])
        })?;
        if round == 1 {
            history.sync()?;
        }
        history.all([unlink(sub, &format!("moved{round}"))])?;
    }
    history.drain().map(drop)
}

fn drains_that_fail(history: &mut History) -> Result<()> {
    let storage = history.storage().clone();
    let file = history.make(Ino::ROOT, "f", New::File)?;
    for round in 0..4_u64 {
        history.all([
            write(file, round * 50_000, noise(round, 90_000)),
            rename((Ino::ROOT, "f"), (Ino::ROOT, "g"), RenameMode::Replace),
            rename((Ino::ROOT, "g"), (Ino::ROOT, "f"), RenameMode::Replace),
        ])?;
        // Room for the header of a segment of the outbox, and for less than what is drained.
        storage.set_room(Some(round * 30_000));
        let failed = history.drain();
        storage.set_room(None);
        if !storage.has_failed() {
            assert!(failed.is_err(), "there was no room");
        }
        history.all([write(file, 10, b"between".to_vec())])?;
        if round % 2 == 1 {
            history.drain()?;
        }
    }
    history.sync()
}

fn random_steps(history: &mut History) -> Result<()> {
    fixed_steps(220).iter().try_for_each(|step| history.take(step))
}

/// Runs `workload` on `storage` until it ends or the power fails.
fn run(workload: Workload, storage: &FaultyStorage) -> Option<History> {
    let mut history = History::begin(storage.clone()).ok()?;
    let ended = workload(&mut history);
    if let (Err(error), false) = (ended, storage.has_failed()) {
        panic!("the workload fails on a whole device: {error}");
    }
    Some(history)
}

/// What a machine finds that starts again after `history`, which is `None` if nothing was acknowledged.
fn verify(
    history: Option<&History>,
    storage: &FaultyStorage,
    seed: u64,
) -> Result<History, String> {
    match history {
        Some(history) => history.after_crash(seed),
        None => {
            let begun = History::begin(storage.after_crash(seed));
            let begun = begun.map_err(|error| format!("it does not begin: {error}"))?;
            begun.compare();
            Ok(begun)
        }
    }
}

#[test]
fn a_power_failure_at_any_sync_leaves_a_moment_not_before_the_last_sync() {
    let mut points = 0;
    for (name, workload) in WORKLOADS {
        let whole = FaultyStorage::new();
        run(workload, &whole).expect("a whole device").compare();
        for sync in 0..whole.syncs() {
            let storage = FaultyStorage::new();
            storage.fail_at(sync);
            let history = run(workload, &storage);
            for seed in 0..SEEDS {
                let verdict = verify(history.as_ref(), &storage, seed).and_then(History::goes_on);
                assert_eq!(verdict, Ok(()), "{name}: power failed at sync {sync}, seed {seed}");
                points += 1;
            }
        }
    }
    report(&format!("{points} crashes, {SEEDS} at each sync of {} workloads", WORKLOADS.len()));
    assert!(points >= 800, "{points}");
}

/// The second failure comes while the first one is repaired.
#[test]
fn a_second_power_failure_is_no_worse_than_the_first() {
    let mut points = 0;
    for (name, workload) in WORKLOADS {
        let whole = FaultyStorage::new();
        run(workload, &whole);
        for (sync, second) in (0..whole.syncs()).step_by(3).zip((0..8).cycle()) {
            let storage = FaultyStorage::new();
            storage.fail_at(sync);
            let Some(history) = run(workload, &storage) else { continue };
            for seed in 0..SEEDS {
                let at = || format!("{name}: failures at {sync} and {second}, seed {seed}");
                let crashed = storage.after_crash(seed);
                let mut opened = history
                    .survives(crashed.clone())
                    .unwrap_or_else(|error| panic!("{}: {error}", at()));
                crashed.fail_at(crashed.syncs() + second);
                // What was seen once stays; what is done now may be lost.
                if let Ok(file) = opened.make(Ino::ROOT, "between the crashes", New::File) {
                    let _ = opened.all([write(file, 0, noise(5, 70_000))]);
                    let _ = opened.sync();
                    let _ = opened.drain();
                }
                let verdict = opened.after_crash(seed + 1).and_then(History::goes_on);
                assert_eq!(verdict, Ok(()), "{}", at());
                points += 1;
            }
        }
    }
    report(&format!("{points} second crashes"));
    assert!(points >= 200, "{points}");
}

/// The power fails again before the worktree is open.
#[test]
fn a_power_failure_during_recovery_loses_nothing() {
    for (name, workload) in WORKLOADS {
        let storage = FaultyStorage::new();
        let history = run(workload, &storage).expect("a whole device");
        for seed in 0..SEEDS {
            for second in 0..4 {
                let crashed = storage.after_crash(seed);
                crashed.fail_at(second);
                let _ = open(Arc::new(crashed.clone()), &dir());
                let verdict = history.survives(crashed.after_crash(seed + 2));
                let verdict = verdict.and_then(History::goes_on);
                assert_eq!(verdict, Ok(()), "{name}: again at sync {second}, seed {seed}");
            }
        }
    }
}

/// That the tests above can fail: what a storage loses that ignores these syncs, is noticed.
fn noticed(workload: Workload, suffix: &'static str) -> bool {
    let storage = FaultyStorage::new();
    storage.ignore_syncs_of(suffix);
    let history = run(workload, &storage);
    (0..SEEDS).any(|seed| verify(history.as_ref(), &storage, seed).is_err())
}

#[test]
fn a_missing_sync_of_the_outbox_is_noticed() {
    assert!(noticed(many_small_files, ".obx"));
}

#[test]
fn a_missing_sync_of_the_database_is_noticed() {
    for (name, workload) in WORKLOADS {
        assert!(noticed(workload, "store.redb"), "{name}");
    }
}

#[test]
fn a_missing_sync_of_the_segments_is_noticed() {
    assert!(noticed(many_small_files, ".seg"));
    assert!(noticed(a_large_file, ".seg"));
}

/// A drain that commits before the outbox is synced states that records are drained of which the power
/// leaves a torn part.
#[test]
fn a_drain_that_does_not_sync_the_outbox_is_noticed() {
    for planted in [false, true] {
        let storage = FaultyStorage::new();
        let mut history = History::begin(storage.clone()).unwrap();
        storage.ignore_syncs_of(planted.then_some(".obx"));
        let file = history.make(Ino::ROOT, "f", New::File).unwrap();
        for round in 0..2 {
            history.all([write(file, 0, noise(round, 1000))]).unwrap();
            history.drain().unwrap();
        }
        let failed = (0..40).filter(|&seed| history.after_crash(seed).is_err()).count();
        assert_eq!(failed > 0, planted, "{failed} of 40 crashes");
    }
}

#[expect(clippy::print_stdout, reason = "a test tells how much it tried")]
fn report(what: &str) {
    println!("{what}");
}
