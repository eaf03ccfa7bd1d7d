//! Goal: forks and snapshots are what their branch was at that moment, for ever, whatever is written,
//! drained, dropped, restarted and cut off afterwards; and what nobody stands on is removed.

use std::sync::Arc;

use proptest::prelude::*;

use super::NewNode;
use super::check_tests::Fixture;
use super::fixture::{BRANCH, USER, dir, open};
use super::model::{Herd, HerdStep, herd_steps};
use crate::id::{BranchNumber, Ino, Sequence};
use crate::storage::Storage;
use crate::testing::FaultyStorage;

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn forks_and_snapshots_are_what_their_branch_was(
        steps in herd_steps(60),
        synced in any::<u8>(),
        seed in 0..20_u64,
    ) {
        let mut herd = Herd::begin(FaultyStorage::new()).unwrap();
        for step in &steps {
            herd.take(step).unwrap();
        }
        herd.compare().unwrap();
        herd.crash_after_sync_of(synced, seed).unwrap();
    }

    #[test]
    fn snapshots_keep_what_their_branch_was(steps in herd_steps(60)) {
        let mut herd = Herd::begin(FaultyStorage::new()).unwrap();
        for step in &steps {
            herd.take(step).unwrap();
        }
        herd.compare_snapshots().unwrap();
        herd.take(&HerdStep::Restart).unwrap();
        herd.compare_snapshots().unwrap();
        herd.compare().unwrap();
    }
}

/// A branch that comes and goes leaves nothing, and neither does a snapshot.
#[test]
fn what_nobody_stands_on_is_removed() {
    let mut herd = Herd::begin(FaultyStorage::new()).unwrap();
    herd.write(0, b"first").unwrap();
    herd.take(&HerdStep::Drain(0)).unwrap();
    let before = herd.layers().unwrap();
    herd.take(&HerdStep::Fork(0)).unwrap();
    herd.write(1, b"second").unwrap();
    herd.take(&HerdStep::Snapshot(1)).unwrap();
    herd.take(&HerdStep::Drain(1)).unwrap();
    let most = herd.layers().unwrap();
    herd.take(&HerdStep::Drop(1)).unwrap();
    assert!(herd.layers().unwrap() < most, "the head of the branch is gone");
    let kept = herd.layers().unwrap();
    herd.take(&HerdStep::DropSnapshot(0)).unwrap();
    assert!(herd.layers().unwrap() < kept, "and so is what the snapshot needed");
    // The origin was sealed by the fork, and its head lies on what was the head before.
    assert_eq!(herd.layers().unwrap(), before + 1);
    herd.compare().unwrap();
}

/// A branch that stood on what is gone could not be opened any more.
#[test]
fn a_branch_does_not_become_what_nothing_has_kept() {
    let storage: Arc<dyn Storage> = Arc::new(FaultyStorage::new());
    let worktree = open(Arc::clone(&storage), &dir()).unwrap();
    let bare = worktree.seal().unwrap();
    worktree.create(USER, Ino::ROOT, b"new", 0o644, NewNode::File).unwrap();
    let changed = worktree.seal().unwrap();
    worktree.restore(&bare).unwrap();
    let layer = changed.layer.unwrap();
    let refused = worktree.restore(&changed).unwrap_err();
    assert_eq!(refused.to_string(), format!("there is no layer \"{layer}\" in this store"));
    let missing = worktree.clean.contents.store().layer(layer).unwrap_err();
    assert!(missing.is_corruption(), "{missing}");
    drop((bare, changed, worktree));
    let worktree = open(storage, &dir()).unwrap();
    assert_eq!(worktree.lookup(Ino::ROOT, b"new").unwrap(), None);
}

/// Sealing what has not changed gives the same layer again and writes nothing.
#[test]
fn an_unchanged_branch_is_not_sealed_twice() {
    let mut herd = Herd::begin(FaultyStorage::new()).unwrap();
    let clean = herd.seal(0).unwrap();
    assert_eq!(clean, (None, 0), "a clean branch is its base");
    herd.write(0, b"x").unwrap();
    let first = herd.seal(0).unwrap();
    assert_eq!(herd.seal(0).unwrap(), first);
    herd.take(&HerdStep::Drain(0)).unwrap();
    assert_eq!(herd.seal(0).unwrap().0, first.0);
    herd.take(&HerdStep::Restart).unwrap();
    assert_eq!(herd.seal(0).unwrap().0, first.0);
    herd.write(0, b"y").unwrap();
    assert_ne!(herd.seal(0).unwrap().0, first.0);
}

/// A drain that took its copy before the layer was sealed does not make it complete.
#[test]
fn a_layer_that_was_named_meanwhile_goes_on_waiting() {
    let fixture = Fixture::new();
    fixture.worktree.write(fixture.a, 0, b"not drained", false).unwrap();
    let point = fixture.worktree.seal().unwrap();
    let (layer, fork) = (point.layer.unwrap(), BranchNumber(9));
    fixture.change(|batch| {
        batch.name_point(&point).unwrap();
        batch.put_fork(fork, layer, point.last_new);
    });
    let waits = || fixture.store().waits_for(fork).unwrap();
    assert_eq!(waits(), Some(BRANCH));
    let drained_through = |record| {
        fixture.change(|batch| batch.put_drained_layer((layer, None), 0, record).unwrap());
    };
    drained_through(Sequence(point.through.0 - 1));
    assert_eq!(waits(), Some(BRANCH));
    drained_through(point.through);
    assert_eq!(waits(), None);
}

/// A branch that was snapshotted often has few layers when the snapshots are gone, and is what it was.
#[test]
fn lines_of_layers_are_folded_where_nobody_stands() {
    let mut herd = Herd::begin(FaultyStorage::new()).unwrap();
    for number in 0..40_u8 {
        herd.write(0, &[number; 100]).unwrap();
        herd.take(&HerdStep::Snapshot(0)).unwrap();
        herd.take(&HerdStep::Drain(0)).unwrap();
    }
    assert_eq!(herd.layers().unwrap(), 41);
    assert_eq!(herd.fold().unwrap(), 0, "a snapshot stands on each");
    // All but those numbered 20 and 39 go.
    for number in (0..39).rev().filter(|number| *number != 20) {
        herd.take(&HerdStep::DropSnapshot(number)).unwrap();
    }
    assert_eq!(herd.layers().unwrap(), 41);
    assert_eq!(herd.fold().unwrap(), 19 + 17);
    assert_eq!(herd.layers().unwrap(), 5);
    for _ in 0..2 {
        herd.compare().unwrap();
        herd.compare_snapshots().unwrap();
        herd.take(&HerdStep::Restart).unwrap();
    }
    assert_eq!(herd.findings().unwrap(), [""; 0]);
}

/// What somebody looks at stays as long as he does, though nothing in the store leads to it any more.
#[test]
fn what_is_viewed_is_not_taken_away() {
    let mut herd = Herd::begin(FaultyStorage::new()).unwrap();
    herd.take(&HerdStep::Fork(0)).unwrap();
    herd.write(1, &[1; 5000]).unwrap();
    herd.take(&HerdStep::Snapshot(1)).unwrap();
    herd.take(&HerdStep::Drain(1)).unwrap();
    let gone = [HerdStep::DropSnapshot(0), HerdStep::Drop(1)];
    let reports = herd.collect_beside_a_view(&gone).unwrap();
    assert_eq!(reports.map(|report| report.freed.chunks.count), [0, 1]);
}

fn littered(storage: FaultyStorage) -> Herd {
    let mut herd = Herd::begin(storage).unwrap();
    for number in 0..12_u8 {
        herd.write(0, &vec![number; 3000 + usize::from(number)]).unwrap();
        herd.take(&HerdStep::Snapshot(0)).unwrap();
        if number % 3 == 0 {
            herd.take(&HerdStep::Drain(0)).unwrap();
        }
    }
    herd.take(&HerdStep::Fork(0)).unwrap();
    herd.write(1, b"the fork").unwrap();
    for number in [9, 8, 7, 5, 3, 2, 1] {
        herd.take(&HerdStep::DropSnapshot(number)).unwrap();
    }
    herd.take(&HerdStep::Drain(1)).unwrap();
    // Not drained.
    herd.write(0, b"the last").unwrap();
    herd.take(&HerdStep::Sync(0)).unwrap();
    herd
}

/// A power failure at any sync of a collection and of a fold takes nothing that can be reached.
#[test]
fn upkeep_that_is_cut_short_takes_nothing() {
    let work = |herd: &mut Herd| herd.fold().and_then(|folded| Ok((folded, herd.collect(&[])?)));
    let whole = FaultyStorage::new();
    let mut herd = littered(whole.clone());
    let first = whole.syncs();
    let (folded, report) = work(&mut herd).unwrap();
    assert!(folded > 3 && report.freed.chunks.count > 3, "{folded} {report:?}");
    let last = whole.syncs();
    for sync in first..last {
        for seed in 0..3 {
            let storage = FaultyStorage::new();
            let mut herd = littered(storage.clone());
            storage.fail_at(sync);
            work(&mut herd).unwrap_err();
            let crashed = herd.crashed(seed);
            herd.restart(crashed, &|_| true).unwrap();
            herd.compare().unwrap();
            herd.compare_snapshots().unwrap();
            assert_eq!(herd.findings().unwrap(), [""; 0], "sync {sync}, seed {seed}");
            work(&mut herd).unwrap();
            herd.compare().unwrap();
            herd.compare_snapshots().unwrap();
            assert_eq!(herd.findings().unwrap(), [""; 0], "sync {sync}, seed {seed}");
        }
    }
}
