//! Garbage collections, beside writers and at every point at which they can be cut short.
//!
//! - What a branch has stays, byte for byte; what none has any more goes, with every entry about it.
//! - What somebody finds and refers to while a collection marks or sweeps is not taken from him.
//! - A check finds nothing wrong after the power has failed at any sync of a collection, and the next
//!   one does the rest.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::{Amount, Collection, GcReport, Usage, usage};
use crate::BranchNumber;
use crate::check::check;
use crate::check::tests::{FakeGit, fake_oid, noise};
use crate::content::Preparer;
use crate::error::Result;
use crate::id::{ContentId, HashKind, TreeId};
use crate::progress::{Cancel, Phase, Progress, Silent};
use crate::store::{Branch, Repository, Store, Stored};
use crate::testing::FaultyStorage;
use crate::tree::{EncodedTree, Entry, EntryKind, TreeBuilder};

/// Sizes of the files of a branch: some in the database, some in segments, one of several chunks.
const SIZES: [usize; 8] = [10, 20, 30, 40, 300, 3000, 40_000, 700_000];

/// A branch whose root has one directory with all its files.
struct Line {
    name: String,
    files: Vec<Vec<u8>>,
    inner: EncodedTree,
    root: EncodedTree,
}

impl Line {
    fn new(name: &str, seed: u64) -> Self {
        Self::with(name, seed, |_| {})
    }

    fn with(name: &str, seed: u64, change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Self {
        let file = |(index, size): (usize, &usize)| noise(seed * 100 + index as u64, *size);
        let mut files: Vec<_> = SIZES.iter().enumerate().map(file).collect();
        change(&mut files);
        let mut inner = TreeBuilder::new(Some(HashKind::Sha1));
        for (index, bytes) in files.iter().enumerate() {
            let name = format!("file{index}");
            let (name, size) = (name.as_bytes(), bytes.len() as u64);
            let oid = Some(fake_oid(ContentId::of(bytes).as_bytes()));
            let kind = EntryKind::File;
            inner.push(&Entry { kind, name, size, oid, content: None, subtree: None }).unwrap();
        }
        let inner = inner.finish();
        let mut root = TreeBuilder::new(Some(HashKind::Sha1));
        let subtree = Some(inner.subtree);
        let (kind, size) = (EntryKind::Directory, inner.subtree.size);
        let oid = Some(fake_oid(inner.subtree.id.as_bytes()));
        root.push(&Entry { kind, name: b"inner", size, oid, content: None, subtree }).unwrap();
        Self { name: name.into(), files, inner, root: root.finish() }
    }

    fn put_contents(&self, store: &Store) -> Result<()> {
        let mut preparer = Preparer::new();
        let mut batch = store.batch()?;
        for bytes in &self.files {
            let content = preparer.content(bytes);
            batch.put_content(&content)?;
            let stored = Stored { id: content.id, size: content.size };
            batch.map_blob(&fake_oid(content.id.as_bytes()), stored);
        }
        batch.commit()
    }

    fn put_trees(&self, store: &Store) -> Result<()> {
        let mut batch = store.batch()?;
        for tree in [&self.inner, &self.root] {
            batch.put_tree(tree)?;
            batch.map_tree(&fake_oid(tree.subtree.id.as_bytes()), &[0; 32], &tree.subtree)?;
        }
        batch.commit()
    }

    fn put_branch(&self, store: &Store) -> Result<()> {
        let mut batch = store.batch()?;
        batch.put_repository(&Repository {
            name: "demo".into(),
            git_dir: "/r".into(),
            origin: None,
            hash: HashKind::Sha1,
            attached: false,
        });
        batch.put_branch(&Branch {
            repository: "demo".into(),
            name: self.name.clone(),
            root: self.root.subtree.id,
            root_oid: None,
            commit: None,
            time: 0,
            ingested: true,
            detached: false,
            git: None,
            number: self.number(),
        });
        batch.commit()
    }

    fn number(&self) -> BranchNumber {
        BranchNumber(u64::from(*self.name.as_bytes().last().unwrap()))
    }

    fn put(&self, store: &Store) -> Result<()> {
        self.put_contents(store)?;
        self.put_trees(store)?;
        self.put_branch(store)
    }

    fn remove(&self, store: &Store) -> Result<()> {
        let mut batch = store.batch()?;
        batch.remove_branch("demo", &self.name);
        batch.commit()
    }

    /// Reads all of it.
    fn verify(&self, store: &Store) -> Result<()> {
        store.tree(self.inner.subtree.id)?;
        store.tree(self.root.subtree.id)?;
        for bytes in &self.files {
            let mut out = vec![0; bytes.len()];
            let id = ContentId::of(bytes);
            assert!(store.content_of(&fake_oid(id.as_bytes()))?.is_some());
            assert_eq!(store.read_at(id, 0, &mut out)?, bytes.len());
            assert!(out == *bytes, "{}: wrong bytes of {id}", self.name);
        }
        Ok(())
    }

    /// Whether anything of it is in the store.
    fn is_gone(&self, store: &Store) -> bool {
        let gone = |id: TreeId| {
            store.tree(id).is_err()
                && store.tree_of(&fake_oid(id.as_bytes()), &[0; 32]).unwrap().is_none()
        };
        self.files.iter().all(|bytes| {
            let id = ContentId::of(bytes);
            !store.has_content(id).unwrap()
                && store.content_of(&fake_oid(id.as_bytes())).unwrap().is_none()
                && store.oid_of(id).unwrap().is_none()
        }) && gone(self.inner.subtree.id)
            && gone(self.root.subtree.id)
    }
}

/// Does something once, when a phase begins or ends.
struct At<F> {
    phase: Phase,
    end: bool,
    work: Mutex<Option<F>>,
}

impl<F: FnOnce()> At<F> {
    fn begin(phase: Phase, work: F) -> Self {
        Self { phase, end: false, work: Mutex::new(Some(work)) }
    }

    fn end(phase: Phase, work: F) -> Self {
        Self { phase, end: true, work: Mutex::new(Some(work)) }
    }

    fn step(&self, phase: Phase, end: bool) {
        if (phase, end) == (self.phase, self.end)
            && let Some(work) = self.work.lock().unwrap().take()
        {
            work();
        }
    }
}

impl<F: FnOnce() + Send> Progress for At<F> {
    fn begin(&self, phase: Phase, _: Option<u64>, _: Option<u64>) {
        self.step(phase, false);
    }

    fn advance(&self, _: Phase, _: u64, _: u64) {}

    fn end(&self, phase: Phase) {
        self.step(phase, true);
    }
}

fn open(storage: &FaultyStorage) -> Result<Arc<Store>> {
    Store::open_on(Arc::new(storage.clone()), Path::new("/home/store"))
}

fn collect_with(store: &Arc<Store>, progress: &dyn Progress) -> Result<GcReport> {
    let upkeep = store.upkeep();
    Collection::begin(store, &upkeep, false)?.run(progress, &Cancel::default())
}

fn collect(store: &Arc<Store>) -> Result<GcReport> {
    collect_with(store, &Silent)
}

fn foresee(store: &Arc<Store>) -> GcReport {
    let upkeep = store.upkeep();
    let begun = Collection::begin(store, &upkeep, true).unwrap();
    begun.run(&Silent, &Cancel::default()).unwrap()
}

fn assert_sound(store: &Arc<Store>) {
    let report = check(store, &FakeGit, &Silent, &Cancel::default()).unwrap();
    assert_eq!(report.findings, []);
}

fn fresh() -> (FaultyStorage, Arc<Store>) {
    let storage = FaultyStorage::new();
    let store = open(&storage).unwrap();
    (storage, store)
}

#[test]
fn what_no_branch_has_goes_and_the_rest_stays() {
    let (storage, store) = fresh();
    let (kept, gone) = (Line::new("kept", 1), Line::new("gone", 2));
    kept.put(&store).unwrap();
    assert_eq!(collect(&store).unwrap().freed.total(), Amount::default());
    let before = store.statistics().unwrap();
    gone.put(&store).unwrap();
    gone.remove(&store).unwrap();

    let foreseen = foresee(&store);
    assert_eq!(foreseen, foresee(&store), "a dry run changes nothing");
    gone.verify(&store).unwrap();
    let report = collect(&store).unwrap();
    assert_eq!((report.freed, report.kept), (foreseen.freed, foreseen.kept));
    assert_eq!((report.segments, report.moved), (foreseen.segments, foreseen.moved));
    assert_eq!(report.freed.trees.count, 2);
    assert_eq!(report.freed.manifests.count, 1);
    assert_eq!(report.freed.mapped.count, 2 + 2 * SIZES.len() as u64);
    let size = SIZES.iter().sum::<usize>() as u64;
    assert!(report.freed.total().bytes > size, "{report:?}");

    assert!(gone.is_gone(&store));
    kept.verify(&store).unwrap();
    let after = store.statistics().unwrap();
    assert_eq!(
        (after.chunks, after.trees, after.blobs),
        (before.chunks, before.trees, before.blobs)
    );
    assert_eq!(after.stored_bytes, before.stored_bytes);
    assert!(after.segment_bytes < before.segment_bytes + 1000, "{after:?}, before {before:?}");
    assert_sound(&store);
    assert_eq!(collect(&store).unwrap().freed.total(), Amount::default());
    drop(store);
    let store = open(&storage).unwrap();
    kept.verify(&store).unwrap();
    assert_sound(&store);
    let database = store.statistics().unwrap().database_bytes;
    assert!(database <= before.database_bytes, "it is compacted when it is opened: {database}");
    gone.put(&store).unwrap();
    gone.verify(&store).unwrap();
}

#[test]
fn what_is_shared_stays_as_long_as_one_has_it() {
    let (_, store) = fresh();
    let (one, other) = (Line::new("one", 1), Line::new("other", 1));
    one.put(&store).unwrap();
    other.put(&store).unwrap();
    one.remove(&store).unwrap();
    assert_eq!(collect(&store).unwrap().freed.total(), Amount::default());
    other.verify(&store).unwrap();
    other.remove(&store).unwrap();
    collect(&store).unwrap();
    assert!(one.is_gone(&store));
    let left = store.statistics().unwrap();
    assert_eq!((left.chunks, left.trees, left.manifests, left.blobs), (0, 0, 0, 0));
}

/// What is said of a branch is what a collection frees when it is gone.
#[test]
fn what_a_branch_takes_is_what_is_freed_with_it() {
    let (_, store) = fresh();
    // Two are the same, one has a part of another, one has its own.
    let mut lines = [Line::new("a", 1), Line::new("b", 1), Line::new("c", 2), Line::new("d", 3)];
    let shared = lines[2].files[7].clone();
    lines[3] = Line::with(&lines[3].name, 3, |files| files[7] = shared);
    lines.iter().for_each(|line| line.put(&store).unwrap());
    let of = |line: &Line| -> Usage {
        let upkeep = store.upkeep();
        let all = usage(&store, &upkeep, &Silent, &Cancel::default()).unwrap();
        *all.iter().find(|one| one.branch == line.number()).unwrap()
    };
    let total = |usage: Usage| usage.own.bytes + usage.shared.bytes;
    assert_eq!(of(&lines[0]).own, Amount::default());
    assert!(of(&lines[2]).shared.bytes > SIZES[7] as u64);
    assert!(of(&lines[3]).own.bytes > SIZES[6] as u64);
    for line in &lines {
        let promised = of(line);
        assert!(total(promised) > SIZES.iter().sum::<usize>() as u64);
        line.remove(&store).unwrap();
        let freed = collect(&store).unwrap().freed.total();
        assert_eq!(freed.bytes, promised.own.bytes, "{}", line.name);
    }
    assert_eq!(store.statistics().unwrap().stored_bytes, 0);
}

/// Refers to the garbage `line` anew, as an import does: what is found is not stored again.
fn find_again(store: &Store, line: &Line) {
    let hold = store.hold();
    let root = store.tree_of(&fake_oid(line.root.subtree.id.as_bytes()), &[0; 32]).unwrap();
    if root.is_none() {
        line.put_trees(store).unwrap();
    }
    let missing = |bytes: &Vec<u8>| {
        let oid = fake_oid(ContentId::of(bytes).as_bytes());
        store.content_of(&oid).unwrap().is_none()
    };
    if line.files.iter().any(missing) {
        line.put_contents(store).unwrap();
    }
    line.put_branch(store).unwrap();
    drop(hold);
}

#[test]
fn what_is_found_while_a_collection_runs_is_not_taken_away() {
    for (phase, end) in [
        (Phase::Mark, false),
        (Phase::Mark, true),
        (Phase::Sweep, false),
        (Phase::Sweep, true),
        (Phase::Compact, true),
    ] {
        let (_, store) = fresh();
        let line = Line::new("again", 3);
        line.put(&store).unwrap();
        line.remove(&store).unwrap();
        let work = || find_again(&store, &line);
        let at = if end { At::end(phase, work) } else { At::begin(phase, work) };
        let freed = collect_with(&store, &at).unwrap().freed.total();
        line.verify(&store).unwrap_or_else(|error| panic!("{phase:?}, {end}: {error}"));
        let swept = (phase, end) == (Phase::Sweep, true) || phase == Phase::Compact;
        assert_eq!(freed.count > 0, swept, "{phase:?}, {end}");
        assert_sound(&store);
        collect(&store).unwrap();
        line.verify(&store).unwrap();
    }
}

/// That the test above can fail.
#[test]
fn a_collection_that_is_not_told_of_what_is_found_is_noticed() {
    let (_, store) = fresh();
    let line = Line::new("again", 3);
    line.put(&store).unwrap();
    line.remove(&store).unwrap();
    store.core().collector().deaf.store(true, std::sync::atomic::Ordering::Relaxed);
    // After what is on record was looked at for the last time.
    collect_with(&store, &At::end(Phase::Mark, || find_again(&store, &line))).unwrap();
    assert!(line.verify(&store).is_err());
}

/// As [`find_again`] does it, but each part is found before the collection begins or is written in a
/// batch before it, and the branch is on record only when it has marked everything else.
#[test]
fn nothing_is_condemned_before_those_have_ended_who_found_something_earlier() {
    let (_, store) = fresh();
    let line = Line::new("slow", 4);
    let hold = store.hold();
    line.put_contents(&store).unwrap();
    line.put_trees(&store).unwrap();
    let upkeep = store.upkeep();
    let begun = Collection::begin(&store, &upkeep, false).unwrap();
    let report = std::thread::scope(|scope| {
        let collected = scope.spawn(|| begun.run(&Silent, &Cancel::default()));
        for _ in 0..5 {
            assert!(!collected.is_finished());
            std::thread::sleep(super::WAIT);
        }
        line.put_branch(&store).unwrap();
        drop(hold);
        collected.join().unwrap().unwrap()
    });
    assert_eq!(report.freed.total(), Amount::default());
    line.verify(&store).unwrap();
}

#[test]
fn one_who_waits_can_be_cancelled_and_leaves_all_as_it_was() {
    let (_, store) = fresh();
    let line = Line::new("gone", 5);
    line.put(&store).unwrap();
    line.remove(&store).unwrap();
    let hold = store.hold();
    let (upkeep, cancel) = (store.upkeep(), Cancel::default());
    let begun = Collection::begin(&store, &upkeep, false).unwrap();
    cancel.cancel();
    assert!(matches!(begun.run(&Silent, &cancel), Err(crate::Error::Cancelled)));
    drop((hold, upkeep));
    line.verify(&store).unwrap();
    collect(&store).unwrap();
    assert!(line.is_gone(&store));
}

#[test]
fn a_second_collection_and_damage_of_what_is_needed_are_refused() {
    let (storage, store) = fresh();
    let (line, gone) = (Line::new("kept", 6), Line::new("gone", 7));
    line.put(&store).unwrap();
    gone.put(&store).unwrap();
    gone.remove(&store).unwrap();
    let upkeep = store.upkeep();
    let begun = Collection::begin(&store, &upkeep, false).unwrap();
    assert!(matches!(Collection::begin(&store, &upkeep, false), Err(crate::Error::Refused(_))));
    drop(begun);
    drop(upkeep);
    let tree = line.inner.bytes.clone();
    storage.tamper(Path::new("/home/store/segments/00000001.seg"), |bytes| {
        let at = bytes.windows(tree.len()).position(|part| part == tree).unwrap();
        bytes[at + 40] ^= 1;
    });
    assert!(collect(&store).unwrap_err().is_corruption());
    gone.verify(&store).unwrap();
}

/// A store with garbage in every table and in every segment.
fn littered(storage: &FaultyStorage) -> Result<(Arc<Store>, [Line; 2])> {
    let store = open(storage)?;
    let kept = [Line::new("kept", 10), Line::new("kept too", 11)];
    let gone = [Line::new("gone", 12), Line::new("gone too", 13)];
    [&gone[0], &kept[0], &kept[1], &gone[1]].iter().try_for_each(|line| line.put(&store))?;
    gone.iter().try_for_each(|line| line.remove(&store))?;
    Ok((store, kept))
}

#[test]
fn a_power_failure_at_any_sync_of_a_collection_leaves_nothing_but_garbage() {
    let whole = FaultyStorage::new();
    let (store, _) = littered(&whole).unwrap();
    let first = whole.syncs();
    let report = collect(&store).unwrap();
    assert!(report.segments.count > 1, "{report:?}");
    let syncs = first..whole.syncs();
    assert!(syncs.end - syncs.start > 15, "{syncs:?}");
    drop(store);
    for sync in syncs {
        let storage = FaultyStorage::new();
        let (store, kept) = littered(&storage).unwrap();
        storage.fail_at(sync);
        collect(&store).unwrap_err();
        drop(store);
        for seed in 0..4 {
            let crashed = storage.after_crash(seed);
            let store = open(&crashed).unwrap();
            assert_sound(&store);
            kept.iter().for_each(|line| line.verify(&store).unwrap());
            // What is found there has all that it needs.
            let again = [Line::new("gone", 12), Line::new("gone too", 13)];
            again.iter().for_each(|line| find_again(&store, line));
            again.iter().for_each(|line| line.verify(&store).unwrap());
            again.iter().for_each(|line| line.remove(&store).unwrap());
            let next = collect(&store).unwrap();
            assert!(again.iter().all(|line| line.is_gone(&store)), "sync {sync}, seed {seed}");
            kept.iter().for_each(|line| line.verify(&store).unwrap());
            assert_eq!(next.kept, report.kept);
            assert_sound(&store);
        }
    }
}

/// That the test above can fail.
#[test]
fn a_missing_sync_of_what_was_moved_is_noticed() {
    let storage = FaultyStorage::new();
    let (store, kept) = littered(&storage).unwrap();
    storage.ignore_syncs_of(".seg");
    collect(&store).unwrap();
    drop(store);
    let store = open(&storage.after_crash(0)).unwrap();
    assert!(kept.iter().any(|line| line.verify(&store).is_err()));
}
