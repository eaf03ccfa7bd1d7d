//! Goal: forks and snapshots are what their branch was at that moment, for ever, whatever is written,
//! drained, dropped, restarted and cut off afterwards; and what nobody stands on is removed.

use proptest::prelude::*;

use super::check_tests::Fixture;
use super::fixture::BRANCH;
use super::model::{Herd, HerdStep, herd_steps};
use crate::id::{BranchNumber, Sequence};
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
