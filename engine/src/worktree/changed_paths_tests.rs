//! Goal: whatever differs from a moment of the same generation is told, and what is not told git need not
//! look at again.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::fixture::{BRANCH, ROOT, open};
use super::*;
use crate::storage::Storage;
use crate::store::SnapshotRecord;
use crate::testing::FaultyStorage;

/// More paths than there are.
const MAX: usize = 1000;

type State = BTreeMap<Vec<u8>, Attributes>;

fn walk(worktree: &Worktree, dir: Ino, path: &[u8], state: &mut State) {
    let mut below = Vec::new();
    let mut visit = |entry: DirectoryEntry<'_>| {
        if !matches!(entry.name, b"." | b"..") {
            below.push(entry.name.to_vec());
        }
        true
    };
    worktree.read_directory(dir, 0, false, &mut visit).unwrap();
    for name in below {
        let found = worktree.lookup(dir, &name).unwrap().unwrap();
        let path = if path.is_empty() { name } else { [path, b"/", &name].concat() };
        if found.kind == NodeKind::Directory {
            walk(worktree, found.ino, &path, state);
        }
        state.insert(path, found);
    }
}

fn state(worktree: &Worktree) -> State {
    let mut state = State::new();
    // But for what leads git to its directory, which nobody but git asks for.
    walk(worktree, Ino::ROOT, b"", &mut state);
    state.retain(|path, found| found.ino >= Ino::FIRST || path != b".git");
    state
}

fn above(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |at| &path[..at])
}

/// The names in each directory.
fn listings(state: &State) -> BTreeMap<&[u8], BTreeSet<&[u8]>> {
    let mut listings = BTreeMap::from([(&b""[..], BTreeSet::new())]);
    for (path, found) in state {
        listings.entry(above(path)).or_default().insert(&path[..]);
        if found.kind == NodeKind::Directory {
            listings.entry(path).or_default();
        }
    }
    listings
}

/// That `told` has what differs between two moments.
fn check(before: &State, now: &State, told: &[Vec<u8>]) {
    let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let all: Vec<_> = told.iter().map(|path| shown(path)).collect();
    let covers = |path: &[u8], told: &[u8]| match told.last() {
        Some(b'/') => path.starts_with(told),
        _ => path == told,
    };
    for path in before.keys().chain(now.keys()) {
        let (was, is) = (before.get(path), now.get(path));
        let directories =
            [was, is].map(|one| one.is_some_and(|one| one.kind == NodeKind::Directory));
        if was != is && directories != [true, true] {
            let is_told = told.iter().any(|one| covers(path, one));
            assert!(is_told, "{} differs and is not told: {all:?}", shown(path));
        }
    }
    let (before, now) = (listings(before), listings(now));
    for (dir, names) in &before {
        if now.get(dir).is_some_and(|other| other != names) {
            let one = |path: &[u8]| path.strip_suffix(b"/").unwrap_or(path).to_owned();
            let is_told = told.iter().any(|path| above(&one(path)) == *dir);
            assert!(is_told, "names in {:?} differ and none is told: {all:?}", shown(dir));
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize, usize),
    Mkdir(usize, usize),
    Write(usize),
    Remove(usize),
    Rename(usize, usize, usize),
    Exchange(usize, usize),
    Link(usize, usize, usize),
    Drain,
    Seal,
    Restore(usize),
    /// Closes it and opens it again; whether it goes on with its generation.
    Reopen(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let any = || 0..1000_usize;
    prop_oneof![
        3 => (any(), any()).prop_map(|(dir, name)| Step::Create(dir, name)),
        3 => (any(), any()).prop_map(|(dir, name)| Step::Mkdir(dir, name)),
        2 => any().prop_map(Step::Write),
        4 => any().prop_map(Step::Remove),
        4 => (any(), any(), any()).prop_map(|(what, dir, name)| Step::Rename(what, dir, name)),
        1 => (any(), any()).prop_map(|(one, other)| Step::Exchange(one, other)),
        1 => (any(), any(), any()).prop_map(|(what, dir, name)| Step::Link(what, dir, name)),
        1 => Just(Step::Drain),
        1 => Just(Step::Seal),
        1 => any().prop_map(Step::Restore),
        1 => prop::bool::ANY.prop_map(Step::Reopen),
    ]
}

const NAMES: [&[u8]; 8] = [b"a", b"b", b"deep", b"file", b"inner", b"leaf", b"link", b"sub"];

/// Makes a snapshot.
fn keep(worktree: &Worktree, number: u64) -> SnapshotRecord {
    let point = worktree.seal().unwrap();
    let kept = fixture::snapshot(BRANCH, number, worktree.base().id(), &point);
    let mut batch = worktree.clean.contents.store().batch().unwrap();
    batch.name_point(&point).unwrap();
    batch.put_snapshot(&kept);
    batch.commit().unwrap();
    kept
}

/// Takes a step, which may be one that is refused.
fn take(worktree: &Worktree, step: &Step, state: &State, points: &mut Vec<SnapshotRecord>) {
    let paths: Vec<_> = state.iter().collect();
    let dirs: Vec<_> = std::iter::once(Ino::ROOT)
        .chain(
            paths.iter().filter(|(_, one)| one.kind == NodeKind::Directory).map(|(_, one)| one.ino),
        )
        .collect();
    let dir = |number: usize| dirs[number % dirs.len()];
    let place = |number: usize| {
        let (path, found) = paths[number % paths.len()];
        let parent = match above(path) {
            b"" => Ino::ROOT,
            above => state[above].ino,
        };
        (parent, path.rsplit(|byte| *byte == b'/').next().unwrap(), found)
    };
    let name = |number: usize| NAMES[number % NAMES.len()];
    match *step {
        Step::Create(at, called) => {
            drop(worktree.create(ROOT, dir(at), name(called), 0o644, NewNode::File));
        }
        Step::Mkdir(at, called) => {
            drop(worktree.create(ROOT, dir(at), name(called), 0o755, NewNode::Directory));
        }
        Step::Write(what) => drop(worktree.write(place(what).2.ino, 1, b"written", false)),
        Step::Remove(what) => {
            let (parent, name, found) = place(what);
            match found.kind {
                NodeKind::Directory => drop(worktree.remove_directory(parent, name)),
                _ => drop(worktree.unlink(parent, name)),
            }
        }
        Step::Rename(what, to, called) => {
            let (parent, old, _) = place(what);
            drop(worktree.rename(parent, old, dir(to), name(called), RenameMode::Replace));
        }
        Step::Exchange(one, other) => {
            let ((parent, old, _), (to, new, _)) = (place(one), place(other));
            drop(worktree.rename(parent, old, to, new, RenameMode::Exchange));
        }
        Step::Link(what, to, called) => {
            drop(worktree.link(place(what).2.ino, dir(to), name(called)))
        }
        Step::Drain => drop(worktree.drain().unwrap()),
        Step::Seal => points.push(keep(worktree, points.len() as u64)),
        Step::Restore(to) => {
            if let Some(kept) = points.get(to % points.len().max(1)) {
                worktree.drain().unwrap();
                let store = worktree.clean.contents.store();
                worktree.restore(&Point::of(store, worktree.base(), kept).unwrap()).unwrap();
            }
        }
        Step::Reopen(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_differs_from_any_moment_of_a_generation_is_told(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let storage = Arc::new(FaultyStorage::new());
        let dir = fixture::dir();
        let mut worktree = open(Arc::clone(&storage) as Arc<dyn Storage>, &dir).unwrap();
        let mut generation = None;
        let (mut moments, mut points) = (Vec::new(), Vec::new());
        for step in &steps {
            if let Step::Reopen(resumes) = step {
                worktree.drain().unwrap();
                let interrupted = worktree.interrupt().unwrap();
                drop(worktree);
                worktree = open(Arc::clone(&storage) as Arc<dyn Storage>, &dir).unwrap();
                // It does not where opening has removed what only open files had kept.
                if *resumes && worktree.resume(interrupted) {
                    prop_assert!(generation.is_none() || generation == worktree.generation());
                }
            }
            take(&worktree, step, &state(&worktree), &mut points);
            let told = worktree.changed_paths(MAX).unwrap().unwrap();
            let now = state(&worktree);
            if generation.replace(told.generation) != Some(told.generation) {
                moments.clear();
            }
            let paths = told.paths.unwrap();
            moments.iter().for_each(|before| check(before, &now, &paths));
            moments.push(now);
        }
    }
}

/// A generation is not so short that nothing is gained.
#[test]
fn files_that_come_and_go_and_builds_end_no_generation() {
    let worktree = open(Arc::new(FaultyStorage::new()), &fixture::dir()).unwrap();
    let first = worktree.changed_paths(MAX).unwrap().unwrap();
    assert_eq!(first.paths, Some(Vec::new()));
    let make = |dir, name: &[u8], new| worktree.create(ROOT, dir, name, 0o755, new).unwrap().ino;
    let target = make(Ino::ROOT, b"target", NewNode::Directory);
    let working = make(target, b"working", NewNode::Directory);
    make(working, b"object", NewNode::File);
    worktree.rename(target, b"working", target, b"done", RenameMode::Replace).unwrap();
    make(Ino::ROOT, b"file~", NewNode::File);
    worktree.rename(Ino::ROOT, b"file~", Ino::ROOT, b"file", RenameMode::Replace).unwrap();
    let second = worktree.changed_paths(MAX).unwrap().unwrap();
    assert_eq!(second.generation, first.generation);
    let told: Vec<_> =
        second.paths.iter().flatten().map(|path| String::from_utf8_lossy(path)).collect();
    assert_eq!(
        told,
        [
            "file",
            "file~",
            "file~/",
            "target",
            "target/",
            "target/.agentfs-anything",
            "target/done/.agentfs-anything",
        ]
    );
    // As many inodes, and paths that are there.
    assert_eq!(worktree.changed_paths(5).unwrap().unwrap().paths, None);
    assert_eq!(worktree.changed_paths(6).unwrap().unwrap(), second);
    make(Ino::ROOT, b"more", NewNode::Directory);
    assert_eq!(worktree.changed_paths(7).unwrap().unwrap().paths, None);
    assert_ne!(worktree.changed_paths(8).unwrap().unwrap().paths, None);
}

/// What has been seen before is not what is seen after that.
#[test]
fn a_generation_ends_when_it_is_said() {
    let worktree = open(Arc::new(FaultyStorage::new()), &fixture::dir()).unwrap();
    let first = worktree.generation();
    assert_eq!(worktree.generation(), first);
    worktree.begin_generation();
    assert_ne!(worktree.generation(), first);
}

#[test]
fn a_generation_goes_on_where_nothing_has_changed_meanwhile() {
    let storage: Arc<dyn Storage> = Arc::new(FaultyStorage::new());
    let dir = fixture::dir();
    let worktree = open(Arc::clone(&storage), &dir).unwrap();
    let make = |worktree: &Worktree, name: &[u8]| {
        worktree.create(ROOT, Ino::ROOT, name, 0o644, NewNode::File).unwrap();
    };
    make(&worktree, b"made");
    assert_eq!(worktree.interrupt(), None, "what is not drained can be lost");
    worktree.drain().unwrap();
    let (told, interrupted) = (worktree.changed_paths(MAX).unwrap(), worktree.interrupt().unwrap());
    drop(worktree);
    let worktree = open(Arc::clone(&storage), &dir).unwrap();
    assert_ne!(worktree.changed_paths(MAX).unwrap(), told);
    assert!(worktree.resume(interrupted.clone()));
    assert_eq!(worktree.changed_paths(MAX).unwrap(), told);
    make(&worktree, b"more");
    assert!(!worktree.resume(interrupted));
}
