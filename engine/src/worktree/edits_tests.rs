//! Goal: edits of many paths are made together or not at all, whatever ends them: the device, the power, or
//! somebody who was faster.

use std::sync::Arc;

use super::fixture::{ROOT, dir, noise, open};
use super::*;
use crate::content::Preparer;
use crate::id::{ChunkId, LayerNumber};
use crate::testing::FaultyStorage;

/// More than one record has room for.
const MANY: usize = 6_000;

fn find(worktree: &Worktree, path: &str) -> Option<Attributes> {
    let mut at = None;
    for name in path.split('/') {
        let dir = at.map_or(Ino::ROOT, |found: Attributes| found.ino);
        at = Some(worktree.lookup(dir, name.as_bytes()).ok()??);
    }
    at
}

fn bytes(worktree: &Worktree, path: &str) -> Vec<u8> {
    let found = find(worktree, path).unwrap_or_else(|| panic!("there is no {path}"));
    let mut bytes = vec![0; found.size as usize];
    assert_eq!(worktree.read(found.ino, 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

/// A content that the store has.
fn stored(worktree: &Worktree, bytes: &[u8]) -> Vec<(ChunkId, u32)> {
    let store = worktree.clean.contents.store();
    let content = Preparer::new().content(bytes);
    let mut batch = store.batch().unwrap();
    batch.put_content(&content).unwrap();
    batch.commit().unwrap();
    store.chunks_of(content.id).unwrap().expect("it is stored")
}

fn edit(worktree: &Worktree, path: &str, new: Become) -> Edit {
    Edit { path: path.as_bytes().to_vec(), found: find(worktree, path), new }
}

fn file(chunks: Vec<(ChunkId, u32)>) -> Become {
    Become::File { executable: false, chunks }
}

fn made(worktree: &Worktree, edits: &[Edit], layer: u64) -> Vec<Option<Attributes>> {
    match worktree.edit(edits, false, LayerNumber(layer)).unwrap() {
        Edited::Done { made, .. } => made,
        other => panic!("{other:?}"),
    }
}

#[test]
fn everything_becomes_what_it_is_to_be_and_stays_that() {
    let storage = FaultyStorage::new();
    let worktree = open(Arc::new(storage.clone()), &dir()).unwrap();
    let large = noise(5, 700_000);
    let new = stored(&worktree, b"new content");
    let chunks = stored(&worktree, &large);
    assert!(chunks.len() > 1);
    let sub = find(&worktree, "sub").unwrap();
    let edits = [
        edit(&worktree, "file", file(new.clone())),
        edit(&worktree, "exec", Become::Nothing),
        edit(&worktree, "sub/deep/leaf", Become::Nothing),
        edit(&worktree, "link", file(Vec::new())),
        edit(&worktree, "module", Become::Nothing),
        edit(&worktree, "large", Become::File { executable: true, chunks }),
        edit(&worktree, "sub/inner/below/it", Become::Link(b"../target".to_vec())),
        edit(&worktree, "sub/inner", Become::Nothing),
        edit(&worktree, "a/b/c", Become::Directory),
    ];
    let unchanged = find(&worktree, "empty").unwrap();
    let stats = made(&worktree, &edits, 77);
    let look = |worktree: &Worktree| {
        assert_eq!(bytes(worktree, "file"), b"new content");
        assert_eq!(bytes(worktree, "large"), large);
        assert_eq!(find(worktree, "large").unwrap().permissions, 0o755);
        assert_eq!(find(worktree, "link").unwrap().kind, NodeKind::File);
        for gone in ["exec", "sub/deep", "module"] {
            assert_eq!(find(worktree, gone), None, "{gone}");
        }
        let link = find(worktree, "sub/inner/below/it").unwrap();
        assert_eq!(worktree.read_link(link.ino).unwrap(), b"../target");
        assert_eq!(find(worktree, "sub").unwrap().nlink, 3);
        assert_eq!(find(worktree, "sub").unwrap().ino, sub.ino);
        assert_eq!(find(worktree, "a/b").unwrap().nlink, 3);
        assert_eq!(find(worktree, "empty"), Some(unchanged));
        for (edit, stat) in edits.iter().zip(&stats) {
            let path = String::from_utf8_lossy(&edit.path);
            if edit.new != Become::Nothing {
                assert_eq!(find(worktree, &path), *stat, "{path}");
            }
        }
        assert_eq!(worktree.head_layer(), Some(LayerNumber(77)));
    };
    look(&worktree);
    drop(worktree);
    let worktree = open(Arc::new(storage.clone()), &dir()).unwrap();
    look(&worktree);
    worktree.drain().unwrap();
    look(&worktree);
    drop(worktree);
    look(&open(Arc::new(storage), &dir()).unwrap());
}

#[test]
fn what_is_not_as_it_was_found_stops_all() {
    let storage = FaultyStorage::new();
    let worktree = open(Arc::new(storage), &dir()).unwrap();
    let new = stored(&worktree, b"new");
    let both = |worktree: &Worktree| {
        [edit(worktree, "sub/inner", Become::Nothing), edit(worktree, "file", file(new.clone()))]
    };
    let stale = both(&worktree);
    let head = worktree.head_layer();
    worktree.write(find(&worktree, "file").unwrap().ino, 0, b"mine", false).unwrap();
    let outcome = worktree.edit(&stale, false, LayerNumber(77)).unwrap();
    assert!(matches!(&outcome, Edited::Changed(path) if path == b"file"), "{outcome:?}");
    // In a directory that is to be a file is something of somebody else.
    let edits = [
        edit(&worktree, "sub/inner", Become::Nothing),
        edit(&worktree, "sub/deep/leaf", Become::Nothing),
        edit(&worktree, "sub", file(new.clone())),
    ];
    let deep = find(&worktree, "sub/deep").unwrap().ino;
    worktree.create(ROOT, deep, b"untracked", 0o644, NewNode::File).unwrap();
    let outcome = worktree.edit(&edits, false, LayerNumber(77)).unwrap();
    assert!(matches!(&outcome, Edited::NotEmpty(path) if path == b"sub/deep"), "{outcome:?}");
    assert_eq!(bytes(&worktree, "file"), b"mineo");
    assert_eq!(bytes(&worktree, "sub/inner"), b"inner!");
    assert_eq!(worktree.head_layer(), head);
    let Edited::Done { .. } = worktree.edit(&edits, true, LayerNumber(77)).unwrap() else {
        panic!("it is to go");
    };
    assert_eq!(bytes(&worktree, "sub"), b"new");
}

/// Edits of so many paths that they take several records, beside one of a file that was there.
fn many(worktree: &Worktree) -> Vec<Edit> {
    let chunks = stored(worktree, b"one of many");
    let mut edits: Vec<_> = (0..MANY)
        .map(|number| {
            edit(worktree, &format!("many/d{}/f{number}", number % 7), file(chunks.clone()))
        })
        .collect();
    edits.push(edit(worktree, "file", Become::Nothing));
    edits
}

/// Whether the edits of [`many`] are made; panics if some are.
fn are_made(worktree: &Worktree) -> bool {
    let gone = find(worktree, "file").is_none();
    for number in 0..MANY {
        let found = find(worktree, &format!("many/d{}/f{number}", number % 7));
        assert_eq!(found.is_some(), gone, "{number} of {MANY}");
    }
    assert_eq!(worktree.head_layer() == Some(LayerNumber(77)), gone);
    gone
}

#[test]
fn a_power_failure_leaves_all_of_them_or_none() {
    let mut outcomes = [0; 2];
    for seed in 0..40 {
        let storage = FaultyStorage::new();
        let worktree = open(Arc::new(storage.clone()), &dir()).unwrap();
        worktree.write(find(&worktree, "empty").unwrap().ino, 0, b"before", false).unwrap();
        worktree.sync().unwrap();
        let edits = many(&worktree);
        made(&worktree, &edits, 77);
        assert!(are_made(&worktree));
        assert!(worktree.outbox_bytes() > 1 << 20, "it takes several records");
        // Nothing of them was synced.
        let after = Arc::new(storage.after_crash(seed));
        let worktree = open(Arc::clone(&after) as _, &dir()).unwrap();
        outcomes[usize::from(are_made(&worktree))] += 1;
        assert_eq!(bytes(&worktree, "empty"), b"before");
        // What is left of them is nothing, whatever follows.
        let is_made = are_made(&worktree);
        worktree.write(find(&worktree, "empty").unwrap().ino, 0, b"behind", false).unwrap();
        worktree.sync().unwrap();
        drop(worktree);
        let worktree = open(after, &dir()).unwrap();
        assert_eq!(are_made(&worktree), is_made);
        assert_eq!(bytes(&worktree, "empty"), b"behind");
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}

#[test]
fn a_full_device_leaves_none_and_they_can_be_made_later() {
    let mut parts = 0;
    for room in (0..24).map(|step| step * 100_000) {
        let storage = FaultyStorage::new();
        let worktree = open(Arc::new(storage.clone()), &dir()).unwrap();
        let edits = many(&worktree);
        worktree.write(find(&worktree, "empty").unwrap().ino, 0, b"before", false).unwrap();
        let before = worktree.outbox_bytes();
        storage.set_room(Some(room));
        let full = worktree.edit(&edits, false, LayerNumber(77)).is_err();
        storage.set_room(None);
        assert_eq!(are_made(&worktree), !full);
        parts += u32::from(full && worktree.outbox_bytes() > before + 100_000);
        worktree.write(find(&worktree, "empty").unwrap().ino, 0, b"behind", false).unwrap();
        drop(worktree);
        let worktree = open(Arc::new(storage.clone()), &dir()).unwrap();
        assert_eq!(are_made(&worktree), !full);
        assert_eq!(bytes(&worktree, "empty"), b"behind");
        if full {
            made(&worktree, &edits, 77);
            assert!(are_made(&worktree));
            drop(worktree);
            assert!(are_made(&open(Arc::new(storage), &dir()).unwrap()));
        }
    }
    assert!(parts > 0, "none was left in between");
}

#[test]
fn files_that_are_open_go_on_and_go_when_they_are_closed() {
    let storage = FaultyStorage::new();
    let worktree = open(Arc::new(storage.clone()), &dir()).unwrap();
    let old = find(&worktree, "file").unwrap().ino;
    let edits = [edit(&worktree, "file", file(stored(&worktree, b"new")))];
    let Edited::Done { unnamed, difference, .. } =
        worktree.edit(&edits, false, LayerNumber(77)).unwrap()
    else {
        panic!("nothing is in the way");
    };
    assert_eq!(unnamed, [old]);
    assert_eq!(difference.names, [(Ino::ROOT, b"file"[..].into())]);
    let mut text = [0; 5];
    worktree.read(old, 0, &mut text).unwrap();
    assert_eq!(&text, b"hello");
    worktree.write(old, 0, b"J", false).unwrap();
    assert_eq!(bytes(&worktree, "file"), b"new");
    worktree.release(old);
    assert!(worktree.attributes(old).is_err() || find(&worktree, "file").unwrap().ino != old);
    drop(worktree);
    assert_eq!(bytes(&open(Arc::new(storage), &dir()).unwrap(), "file"), b"new");
}
