//! What can be repaired is, what cannot stays as it is and is told, and a crash in between costs
//! nothing.

use std::collections::HashMap;
use std::sync::Arc;

use super::check_tests::{Fixture, LAYER, NAME};
use super::fixture::{BRANCH, USER, dir, noise, open};
use super::{Contents, NewNode, Worktree};
use crate::check::tests::{FakeGit, fake_oid};
use crate::check::{Finding, check};
use crate::error::{Error, Result};
use crate::id::{BranchNumber, ChunkId, ContentId, GitOid, Ino, LayerNumber, Sequence, TreeId};
use crate::outbox::Outbox;
use crate::progress::{Cancel, Silent};
use crate::repair::{Step, Surroundings, Taken, execute, plan};
use crate::source::{Blob, ObjectSource};
use crate::storage::Storage;
use crate::store::{Branch, Store, Stored, Table};
use crate::testing::FaultyStorage;

/// A repository of blobs that are their own ids.
#[derive(Default)]
struct Blobs(HashMap<GitOid, Vec<u8>>);

impl ObjectSource for Blobs {
    fn blob(&self, oid: &GitOid) -> Result<Blob> {
        self.0.get(oid).cloned().map(Blob::Whole).ok_or(Error::MissingObject(*oid))
    }

    fn converted(&self, oid: &GitOid, _: &[u8]) -> Result<Blob> {
        self.blob(oid)
    }

    fn rebuild_tree(&self, _: &Store, _: &[u8], id: TreeId) -> Result<()> {
        Err(Error::MissingTree(id))
    }
}

struct Around {
    store: Arc<Store>,
    blobs: Option<Arc<Blobs>>,
    open: bool,
}

impl Surroundings for Around {
    fn contents(&self, _: &Branch) -> Option<Arc<Contents>> {
        let source = self.blobs.clone().map(|blobs| blobs as Arc<dyn ObjectSource>);
        Some(Contents::new(Arc::clone(&self.store), source))
    }

    fn is_open(&self, _: &Branch) -> bool {
        self.open
    }
}

fn findings(store: &Arc<Store>) -> Vec<Finding> {
    check(store, &FakeGit, &Silent, &Cancel::default()).unwrap().findings
}

fn repair(store: &Arc<Store>, blobs: Option<Arc<Blobs>>, open: bool) -> Vec<Taken> {
    let steps = plan(&findings(store));
    let around = Around { store: Arc::clone(store), blobs, open };
    execute(store, &steps, &around, &Cancel::default()).unwrap()
}

/// The steps that were taken, each of which must have been.
#[track_caller]
fn steps(taken: Vec<Taken>) -> Vec<Step> {
    let step = |taken: Taken| {
        assert_eq!(taken.outcome, Ok(()), "{}", taken.step);
        taken.step
    };
    taken.into_iter().map(step).collect()
}

/// The only reason for which the only step was not taken.
#[track_caller]
fn refused(mut taken: Vec<Taken>) -> String {
    assert_eq!(taken.len(), 1, "{taken:?}");
    taken.remove(0).outcome.unwrap_err()
}

fn highest_too_low(fixture: &Fixture) -> u64 {
    let last_new = fixture.store().head(BRANCH).unwrap().0.last_new();
    fixture.change(|batch| batch.put_layer(LAYER.0, None, last_new - 1));
    last_new
}

#[test]
fn wrong_counts_are_counted_again() {
    let fixture = Fixture::new();
    fixture.edit(fixture.a, |node| node.inode.nlink = 7);
    fixture.edit(fixture.d, |node| node.inode.nlink = 9);
    let links = |ino, stated, links| Step::Links { branch: NAME.into(), ino, stated, links };
    let expected = [links(fixture.d, 9, 3), links(fixture.a, 7, 2)];
    assert_eq!(steps(repair(fixture.store(), None, false)), expected);
    assert_eq!(findings(fixture.store()), []);

    let highest = highest_too_low(&fixture);
    let expected = [Step::Highest { branch: NAME.into(), highest }];
    assert_eq!(steps(repair(fixture.store(), None, false)), expected);
    assert_eq!(findings(fixture.store()), []);
    assert_eq!(repair(fixture.store(), None, false), []);
}

#[test]
fn rows_of_a_branch_that_is_open_or_not_drained_are_left_alone() {
    let fixture = Fixture::new();
    fixture.edit(fixture.a, |node| node.inode.nlink = 7);
    let before = findings(fixture.store());
    assert!(refused(repair(fixture.store(), None, true)).contains("unmount it first"));
    assert_eq!(findings(fixture.store()), before);
    fixture.worktree.write(fixture.b, 0, b"not drained", false).unwrap();
    let why = refused(repair(fixture.store(), None, false));
    assert!(why.contains("1 changes that are not drained"), "{why}");
    assert_eq!(findings(fixture.store()), before);
}

#[test]
fn what_belongs_to_no_branch_is_removed_and_nothing_else() {
    let fixture = Fixture::new();
    let number = BranchNumber(9);
    let layer = LayerNumber(8);
    fixture.change(|batch| {
        batch.put_layer(layer, None, 5);
        batch.put_head(number, layer, Sequence(1));
    });
    let storage = Arc::new(fixture.storage.clone());
    let path = fixture.store().outbox_dir(number);
    let outbox = Outbox::open(storage, &path, Sequence::NONE, &mut |_| Ok(())).unwrap();
    outbox.append(b"a change", &[]).unwrap();
    drop(outbox);
    fixture.worktree.write(fixture.b, 0, b"of the other branch", false).unwrap();
    let expected = [
        Step::RemoveHead { number },
        Step::RemoveLayer { layer, rows: 1 },
        Step::RemoveOutbox { number },
    ];
    assert_eq!(steps(repair(fixture.store(), None, true)), expected);
    let report = fixture.report();
    assert_eq!((report.findings, report.records), (vec![], 1));
}

/// Files that a branch has in its outbox alone, and the first of the records that made them.
const FRESH: u64 = 6;

fn fresh_name(number: u64) -> String {
    format!("fresh {number}")
}

/// Makes some files, each in two records, the later of which states the earlier one to be durable.
fn write_fresh(worktree: &Worktree) {
    for number in 0..FRESH {
        let name = fresh_name(number);
        let made = worktree.create(USER, Ino::ROOT, name.as_bytes(), 0o644, NewNode::File);
        let ino = made.unwrap().ino;
        worktree.sync().unwrap();
        worktree.write(ino, 0, &noise(number, 3000), false).unwrap();
        worktree.sync().unwrap();
    }
    // States that the last one is.
    let last = worktree.lookup(Ino::ROOT, fresh_name(FRESH - 1).as_bytes()).unwrap().unwrap().ino;
    worktree.set_xattr(last, b"user.last", b"", super::XattrMode::Any).unwrap();
}

#[test]
fn a_damaged_record_costs_what_it_said_and_a_damaged_header_nothing() {
    let whole = {
        let Fixture { storage, worktree, .. } = Fixture::new();
        write_fresh(&worktree);
        drop(worktree);
        storage
    };
    let path = {
        let store = Store::open_on(Arc::new(whole.after_crash(0)), &dir()).unwrap();
        let outbox = store.outbox_dir(BRANCH);
        let names = whole.list(&outbox).unwrap();
        names.into_iter().map(|name| outbox.join(name)).max().unwrap()
    };
    let len = whole.contents(&path).unwrap().len();
    let mut losses = 0;
    for at in (0..len).step_by(97) {
        let storage = whole.after_crash(0);
        storage.tamper(&path, |bytes| bytes[at] ^= 4);
        let store = Store::open_on(Arc::new(storage.clone()), &dir()).unwrap();
        let found = findings(&store);
        if found.is_empty() {
            continue;
        }
        assert!(matches!(&found[..], [Finding::BadOutbox { .. }]), "{at}: {found:?}");
        assert!(refused(repair(&store, None, true)).contains("unmount it first"));
        assert_eq!(findings(&store), found);
        let taken = repair(&store, None, false);
        let lost = taken[0].lost.clone();
        assert_eq!(steps(taken), [Step::Outbox { branch: NAME.into() }]);
        assert_eq!(findings(&store), [], "{at}");
        drop(store);
        let worktree = open(Arc::new(storage.clone()), &dir()).unwrap();
        let mut gone = Vec::new();
        for number in 0..FRESH {
            let found = worktree.lookup(Ino::ROOT, fresh_name(number).as_bytes()).unwrap();
            let bytes = found.map(|found| bytes_of(&worktree, found.ino, 4000).unwrap());
            match bytes {
                Some(bytes) if bytes == noise(number, 3000) => {}
                None => gone.push(number),
                Some(bytes) => {
                    assert_eq!(bytes, [], "file {number} at {at}");
                    gone.push(number);
                }
            }
        }
        match lost {
            None => assert_eq!(gone, [], "{at}"),
            Some(lost) => {
                assert_eq!(gone.len(), 1, "{at}: {lost}");
                assert!(lost.contains("lost record"), "{lost}");
                losses += 1;
            }
        }
        worktree.drain().unwrap();
        let store = Arc::clone(worktree.clean.contents.store());
        assert_eq!(findings(&store), [], "{at}");
    }
    assert!(losses > 100, "{losses}");
}

/// Takes a chunk away.
fn lose(fixture: &Fixture, id: ChunkId) {
    fixture.change(|batch| batch.put_row(Table::Chunks, id.as_bytes().to_vec(), None));
}

fn bytes_of(worktree: &Worktree, ino: Ino, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0xee; len];
    let read = worktree.read(ino, 0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

#[test]
fn a_lost_chunk_is_found_in_an_outbox_or_in_git_or_stays_lost() {
    let bytes = noise(1, 5000);
    let id = ChunkId::of(&bytes);
    let fixture = Fixture::new();
    lose(&fixture, id);
    let before = fixture.report().findings;
    let lost = Finding::LostBytes { branch: NAME.into(), ino: fixture.a, chunk: id };
    assert_eq!(before, [lost]);
    // Nobody has it: it stays lost, and is an error, not empty.
    let why = refused(repair(fixture.store(), Some(Arc::default()), true));
    assert!(why.contains("is missing"), "{why}");
    assert_eq!(fixture.report().findings, before);
    assert!(bytes_of(&fixture.worktree, fixture.a, 5000).unwrap_err().is_corruption());

    // A record that has the same bytes, of whatever file.
    fixture.worktree.write(fixture.b, 0, &bytes, false).unwrap();
    assert_eq!(steps(repair(fixture.store(), None, true)), [Step::Chunk(id)]);
    assert_eq!(fixture.report().findings, []);
    assert!(bytes_of(&fixture.worktree, fixture.a, 5000).unwrap() == bytes);

    // A git blob that is the same bytes.
    let fixture = Fixture::new();
    let oid = fake_oid(id.as_bytes());
    let stored = Stored { id: ContentId::from(id), size: 5000 };
    fixture.change(|batch| batch.map_blob(&oid, stored));
    lose(&fixture, id);
    assert_eq!(fixture.report().findings.len(), 2);
    let forged = Arc::new(Blobs([(oid, noise(2, 5000))].into()));
    let taken = repair(fixture.store(), Some(forged), true);
    assert!(taken.iter().all(|taken| taken.outcome.is_err()), "{taken:?}");
    let blobs = Arc::new(Blobs([(oid, bytes.clone())].into()));
    let expected = [Step::Content(id.into()), Step::Chunk(id)];
    assert_eq!(steps(repair(fixture.store(), Some(blobs), true)), expected);
    assert_eq!(fixture.report().findings, []);
    assert!(bytes_of(&fixture.worktree, fixture.a, 5000).unwrap() == bytes);
}

#[test]
fn a_chunk_of_a_large_blob_is_cut_out_of_it_again() {
    let fixture = Fixture::new();
    let bytes = noise(9, 2_500_000);
    let content = crate::content::Preparer::new().content(&bytes);
    let (oid, lost) = (fake_oid(content.id.as_bytes()), content.chunks[1].id);
    fixture.change(|batch| {
        batch.put_content(&content).unwrap();
        batch.map_blob(&oid, Stored { id: content.id, size: content.size });
    });
    lose(&fixture, lost);
    let missing = Finding::MissingChunk { content: content.id, chunk: lost };
    assert_eq!(fixture.report().findings, [missing]);
    let blobs = Arc::new(Blobs([(oid, bytes)].into()));
    assert_eq!(steps(repair(fixture.store(), Some(blobs), true)), [Step::Chunk(lost)]);
    assert_eq!(fixture.report().findings, []);
}

#[test]
fn a_power_failure_during_a_repair_costs_nothing() {
    let number = BranchNumber(9);
    let broken = || {
        let fixture = Fixture::new();
        let bytes = noise(1, 5000);
        let oid = fake_oid(ChunkId::of(&bytes).as_bytes());
        fixture.edit(fixture.a, |node| node.inode.nlink = 7);
        highest_too_low(&fixture);
        fixture.change(|batch| {
            batch.put_layer(LayerNumber(8), None, 5);
            batch.put_head(number, LayerNumber(8), Sequence(1));
            batch.map_blob(&oid, Stored { id: ContentId::of(&bytes), size: 5000 });
        });
        lose(&fixture, ChunkId::of(&bytes));
        let Fixture { storage, .. } = fixture;
        (storage, Arc::new(Blobs([(oid, bytes)].into())))
    };
    let opened = |storage: &FaultyStorage| Store::open_on(Arc::new(storage.clone()), &dir());
    let (storage, blobs) = broken();
    let store = opened(&storage).unwrap();
    let found = findings(&store).len();
    let from = storage.syncs();
    assert_eq!(steps(repair(&store, Some(blobs), false)).len(), 6);
    assert_eq!((found, findings(&store)), (6, vec![]));
    let syncs = storage.syncs() - from;
    drop(store);
    let mut points = 0;
    for sync in 0..syncs {
        for seed in 0..4 {
            let (storage, blobs) = broken();
            let store = opened(&storage).unwrap();
            let steps = plan(&findings(&store));
            storage.fail_at(storage.syncs() + sync);
            let around =
                Around { store: Arc::clone(&store), blobs: Some(Arc::clone(&blobs)), open: false };
            let _ = execute(&store, &steps, &around, &Cancel::default());
            drop((store, around));
            let crashed = storage.after_crash(seed);
            let store = opened(&crashed).unwrap();
            assert!(findings(&store).len() <= found, "sync {sync}, seed {seed}");
            repair(&store, Some(blobs), false);
            assert_eq!(findings(&store), [], "sync {sync}, seed {seed}");
            points += 1;
        }
    }
    assert!(points >= 20, "{points}");
}
