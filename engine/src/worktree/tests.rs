//! Goal: a worktree shows exactly its tree, reads what is not stored yet from the repository
//! once, and never serves a byte that its hash does not vouch for.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::content::Preparer;
use crate::id::{GitOid, HashKind, TreeId};
use crate::source::{Blob, ObjectSource};
use crate::store::{Store, WriteItem};
use crate::tree::{EncodedTree, Entry, TreeBuilder};

/// Blobs by the first byte of their id, and directory objects by path.
#[derive(Default)]
struct FakeRepository {
    blobs: std::collections::BTreeMap<u8, Vec<u8>>,
    trees: std::collections::BTreeMap<&'static [u8], EncodedTree>,
    reads: AtomicUsize,
    stream: bool,
}

impl ObjectSource for FakeRepository {
    fn blob(&self, oid: &GitOid) -> Result<Blob> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let bytes = self.blobs.get(&oid.as_bytes()[0]).ok_or(Error::MissingObject(*oid))?.clone();
        Ok(if self.stream {
            Blob::Stream(Box::new(std::io::Cursor::new(bytes)))
        } else {
            Blob::Whole(bytes)
        })
    }

    fn converted(&self, oid: &GitOid, path: &[u8]) -> Result<Blob> {
        assert_eq!(path, b"dir/converted");
        let Blob::Whole(bytes) = self.blob(oid)? else {
            unreachable!("the fake is asked for it whole")
        };
        Ok(Blob::Whole(bytes.to_ascii_uppercase()))
    }

    fn rebuild_tree(&self, store: &Store, path: &[u8], id: TreeId) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let tree = self.trees.get(path).filter(|tree| tree.subtree.id == id);
        let tree = tree.ok_or_else(|| Error::corrupt(format!("tree {id}"), "it is another"))?;
        let mut batch = store.batch()?;
        batch.replace_tree(tree)?;
        batch.commit()
    }
}

struct Fixture {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    repository: Arc<FakeRepository>,
    worktree: Arc<Worktree>,
}

fn oid(byte: u8) -> GitOid {
    GitOid::from_slice(HashKind::Sha1, &[byte; 20]).expect("20 bytes")
}

fn file(name: &[u8], byte: u8, size: usize) -> Entry<'_> {
    let size = size as u64;
    Entry { kind: EntryKind::File, name, size, oid: Some(oid(byte)), content: None, subtree: None }
}

fn encode(entries: &[Entry<'_>]) -> EncodedTree {
    let mut builder = TreeBuilder::new(Some(HashKind::Sha1));
    entries.iter().for_each(|entry| builder.push(entry).expect("a valid entry"));
    builder.finish()
}

fn put(store: &Store, entries: &[Entry<'_>]) -> EncodedTree {
    let tree = encode(entries);
    let mut batch = store.batch().expect("a batch");
    batch.put_tree(&tree).expect("a tree");
    batch.commit().expect("a commit");
    tree
}

/// `a`, `dir/` with `converted`, `deep/` and `link`, `run`, `sub` (a gitlink).
fn fixture(stream: bool) -> Fixture {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let big = (0..3_000_000_u32).flat_map(|i| i.wrapping_mul(i).to_le_bytes()).collect::<Vec<u8>>();
    let blobs = [(1, b"first".to_vec()), (2, b"text".to_vec()), (3, b"target".to_vec()), (4, big)];
    let repository =
        Arc::new(FakeRepository { blobs: blobs.into(), stream, ..FakeRepository::default() });
    let size = |byte: u8| repository.blobs[&byte].len();

    let prepared = Preparer::new().content(b"TEXT");
    let converted = Some(prepared.id);
    let mut batch = store.batch().expect("a batch");
    batch.put_content(&prepared).expect("a content");
    batch.commit().expect("a commit");

    let deep = put(&store, &[file(b"big", 4, size(4))]).subtree;
    let directory = |name, subtree: crate::tree::Subtree| Entry {
        kind: EntryKind::Directory,
        name,
        size: subtree.size,
        oid: None,
        content: None,
        subtree: Some(subtree),
    };
    let inner = put(
        &store,
        &[
            Entry { content: converted, ..file(b"converted", 2, 4) },
            directory(b"deep", deep),
            Entry { kind: EntryKind::Symlink, ..file(b"link", 3, size(3)) },
        ],
    )
    .subtree;
    let root = put(
        &store,
        &[
            file(b"a", 1, size(1)),
            directory(b"dir", inner),
            Entry { kind: EntryKind::Executable, ..file(b"run", 1, size(1)) },
            Entry { kind: EntryKind::Gitlink, ..file(b"sub", 9, 0) },
        ],
    )
    .subtree;
    let worktree = open(&store, &repository, root.id);
    Fixture { _dir: dir, store, repository, worktree }
}

fn open(store: &Arc<Store>, repository: &Arc<FakeRepository>, root: TreeId) -> Arc<Worktree> {
    let source: Arc<dyn ObjectSource> = Arc::<FakeRepository>::clone(repository);
    let base = Base::open(Arc::clone(store), Some(Arc::clone(&source)), root).expect("a base");
    let contents = Contents::new(Arc::clone(store), Some(source));
    let git_file = Some(b"gitdir: elsewhere\n".to_vec());
    Worktree::new(base, contents, WorktreeOptions { uid: 7, gid: 8, time: 1234, git_file })
}

fn find(worktree: &Worktree, path: &str) -> Attributes {
    let mut found = worktree.attributes(Ino::ROOT).expect("the root");
    for name in path.split('/') {
        found = worktree.lookup(found.ino, name.as_bytes()).expect("a lookup").expect("a name");
    }
    found
}

fn read_all(worktree: &Worktree, path: &str) -> Result<Vec<u8>> {
    let found = find(worktree, path);
    let mut bytes = vec![0; found.size as usize + 10];
    let read = worktree.read(found.ino, 0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

fn list(worktree: &Worktree, ino: Ino, cookie: u64, most: usize) -> Vec<(Vec<u8>, Ino, u64)> {
    let mut listed = Vec::new();
    worktree
        .read_directory(ino, cookie, true, &mut |entry| {
            if listed.len() == most {
                return false;
            }
            if let Some(attributes) = entry.attributes {
                assert_eq!(worktree.attributes(entry.ino).expect("attributes"), attributes);
            }
            listed.push((entry.name.to_vec(), entry.ino, entry.cookie));
            true
        })
        .expect("a listing");
    listed
}

#[test]
fn attributes_are_those_of_the_tree() {
    let fixture = fixture(false);
    let root = fixture.worktree.attributes(Ino::ROOT).expect("the root");
    assert_eq!((root.ino, root.nlink, root.permissions), (Ino::ROOT, 4, 0o755));
    let run = find(&fixture.worktree, "run");
    assert_eq!((run.permissions, run.size, run.blocks, run.nlink), (0o755, 5, 1, 1));
    assert_eq!((run.uid, run.gid, run.modified.seconds), (7, 8, 1234));
    assert_eq!(find(&fixture.worktree, "a").permissions, 0o644);
    let link = find(&fixture.worktree, "dir/link");
    assert_eq!((link.kind, link.permissions, link.size), (NodeKind::Symlink, 0o777, 6));
    let sub = find(&fixture.worktree, "sub");
    assert_eq!((sub.kind, sub.nlink, sub.size), (NodeKind::Directory, 2, 0));
    assert_eq!(find(&fixture.worktree, "dir").nlink, 3);
    assert_eq!(find(&fixture.worktree, "dir/deep/big").blocks, 12_000_000_u64.div_ceil(512));
}

#[test]
fn numbers_are_positions_in_the_pre_order_and_lead_back() {
    let fixture = fixture(false);
    let order = ["a", "dir", "dir/converted", "dir/deep", "dir/deep/big", "dir/link", "run", "sub"];
    for (position, path) in order.iter().enumerate() {
        let ino = find(&fixture.worktree, path).ino;
        assert_eq!(ino.0, Ino::FIRST.0 + position as u64, "{path}");
        assert_eq!(fixture.worktree.base().path(ino).expect("a path"), path.as_bytes());
    }
    for ino in [0, 3, Ino::FIRST.0 + 8, u64::MAX] {
        assert!(matches!(fixture.worktree.attributes(Ino(ino)), Err(Error::NoInode(_))), "{ino}");
    }
}

#[test]
fn a_listing_stops_and_resumes_anywhere() {
    let fixture = fixture(false);
    for ino in [Ino::ROOT, find(&fixture.worktree, "dir").ino, find(&fixture.worktree, "sub").ino] {
        let whole = list(&fixture.worktree, ino, 0, usize::MAX);
        for (index, (_, _, cookie)) in whole.iter().enumerate() {
            assert_eq!(list(&fixture.worktree, ino, *cookie, usize::MAX), whole[index + 1..]);
            assert_eq!(list(&fixture.worktree, ino, 0, index), whole[..index]);
        }
    }
    let names = list(&fixture.worktree, Ino::ROOT, 0, usize::MAX);
    let names = names.iter().map(|(name, ..)| name.as_slice()).collect::<Vec<_>>();
    assert_eq!(names, [&b"."[..], b"..", b".git", b"a", b"dir", b"run", b"sub"]);
    let sub = list(&fixture.worktree, find(&fixture.worktree, "sub").ino, 0, usize::MAX);
    assert_eq!(sub[1].1, Ino::ROOT);
}

#[test]
fn operations_on_the_wrong_kind_are_errors() {
    let fixture = fixture(false);
    let worktree = &fixture.worktree;
    let (a, dir, link) =
        (find(worktree, "a").ino, find(worktree, "dir").ino, find(worktree, "dir/link").ino);
    let mut out = [0; 8];
    assert!(matches!(worktree.lookup(a, b"x"), Err(Error::NotDirectory(_))));
    assert!(matches!(worktree.lookup(Ino::GIT_FILE, b"x"), Err(Error::NotDirectory(_))));
    assert!(matches!(worktree.read(dir, 0, &mut out), Err(Error::IsDirectory(_))));
    assert!(matches!(worktree.read(link, 0, &mut out), Err(Error::WrongKind(_))));
    assert!(matches!(worktree.read_link(a), Err(Error::WrongKind(_))));
    assert!(worktree.read_directory(a, 0, false, &mut |_| true).is_err());
    assert_eq!(worktree.lookup(dir, b"missing").expect("a lookup"), None);
    assert_eq!(worktree.lookup(find(worktree, "sub").ino, b"x").expect("a lookup"), None);
}

#[test]
fn unstored_content_comes_from_the_repository_once() {
    for stream in [false, true] {
        let fixture = fixture(stream);
        let (worktree, repository) = (&fixture.worktree, &fixture.repository);
        assert_eq!(read_all(worktree, "a").expect("a"), b"first");
        assert_eq!(read_all(worktree, "run").expect("run"), b"first");
        assert_eq!(read_all(worktree, "dir/deep/big").expect("big"), repository.blobs[&4]);
        let mut part = [0; 1000];
        let big = find(worktree, "dir/deep/big").ino;
        assert_eq!(worktree.read(big, 11_999_990, &mut part).expect("a part"), 10);
        assert_eq!(part[..10], repository.blobs[&4][11_999_990..]);
        assert_eq!(worktree.read(big, 12_000_000, &mut part).expect("the end"), 0);
        assert_eq!(worktree.read(big, u64::MAX, &mut part).expect("past the end"), 0);
        let link = worktree.read_link(find(worktree, "dir/link").ino).expect("a link");
        assert_eq!(link, b"target");
        assert_eq!(repository.reads.load(Ordering::Relaxed), 3, "streamed: {stream}");
        fixture.store.writer().flush().expect("a flush");
        assert!(fixture.store.content_of(&oid(4)).expect("the map").is_some());
    }
}

#[test]
fn readers_of_one_unstored_file_share_one_fetch() {
    let fixture = fixture(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let bytes = read_all(&fixture.worktree, "dir/deep/big").expect("big");
                assert!(bytes == fixture.repository.blobs[&4]);
            });
        }
    });
    assert_eq!(fixture.repository.reads.load(Ordering::Relaxed), 1);
}

#[test]
fn a_blob_of_another_size_than_the_tree_states_is_refused() {
    let mut fixture = fixture(false);
    let root = put(&fixture.store, &[file(b"liar", 1, 4)]).subtree;
    fixture.worktree = open(&fixture.store, &fixture.repository, root.id);
    let refused = read_all(&fixture.worktree, "liar").expect_err("a refusal");
    assert!(refused.is_corruption(), "{refused}");
    fixture.store.writer().flush().expect("a flush");
    let refused = read_all(&fixture.worktree, "liar").expect_err("a refusal, once stored too");
    assert!(refused.is_corruption(), "{refused}");
}

#[test]
fn what_neither_store_nor_repository_has_is_named() {
    let mut fixture = fixture(false);
    let root = put(&fixture.store, &[file(b"gone", 42, 4)]).subtree;
    fixture.worktree = open(&fixture.store, &fixture.repository, root.id);
    let missing = read_all(&fixture.worktree, "gone").expect_err("an error");
    assert!(missing.to_string().contains(&oid(42).to_string()), "{missing}");
}

/// Overwrites every segment file with zeros behind its first page, so that no record survives.
fn damage(fixture: &Fixture) {
    for segment in std::fs::read_dir(fixture.store.dir().join("segments")).expect("segments") {
        let path = segment.expect("an entry").path();
        let len = std::fs::metadata(&path).expect("a segment").len() as usize;
        let mut bytes = std::fs::read(&path).expect("a segment");
        bytes[64.min(len)..].fill(0);
        std::fs::write(&path, bytes).expect("a damaged segment");
    }
}

#[test]
fn damaged_content_is_rebuilt_from_the_repository_and_never_served() {
    let fixture = fixture(false);
    let worktree = &fixture.worktree;
    let big = read_all(worktree, "dir/deep/big").expect("big");
    fixture.store.writer().flush().expect("a flush");
    damage(&fixture);

    // A second handle on the same store has none of its chunks in memory.
    let Fixture { _dir: dir, store, repository, worktree } = fixture;
    let root = worktree.base().id();
    drop((worktree, store));
    let store = Store::open(dir.path()).expect("the store again");
    let reads = repository.reads.load(Ordering::Relaxed);
    let worktree = open(&store, &repository, root);
    assert!(read_all(&worktree, "dir/deep/big").expect("big, rebuilt") == big);
    assert_eq!(read_all(&worktree, "dir/converted").expect("converted"), b"TEXT");
    assert_eq!(repository.reads.load(Ordering::Relaxed), reads + 1);
    assert!(read_all(&worktree, "dir/deep/big").expect("big, healed") == big);
    assert_eq!(repository.reads.load(Ordering::Relaxed), reads + 1, "it was stored anew");
}

#[test]
fn damaged_content_without_a_repository_is_an_error() {
    let fixture = fixture(false);
    assert_eq!(read_all(&fixture.worktree, "dir/deep/big").expect("big").len(), 12_000_000);
    fixture.store.writer().flush().expect("a flush");
    damage(&fixture);
    let Fixture { _dir: dir, store, worktree, .. } = fixture;
    let root = worktree.base().id();
    drop((worktree, store));
    let store = Store::open(dir.path()).expect("the store again");
    let base = Base::open(Arc::clone(&store), None, root).expect("a base");
    let contents = Contents::new(Arc::clone(&store), None);
    let options = WorktreeOptions { uid: 0, gid: 0, time: 0, git_file: None };
    let worktree = Worktree::new(base, contents, options);
    let refused = read_all(&worktree, "dir/deep/big").expect_err("damage");
    assert!(refused.is_corruption(), "{refused}");
}

#[test]
fn converted_content_is_rebuilt_by_converting_again() {
    let mut fixture = fixture(false);
    // A content id that nothing stores stands for a chunk that was lost.
    let lost = Preparer::new().content(b"FIRST").id;
    let inner =
        put(&fixture.store, &[Entry { content: Some(lost), ..file(b"converted", 1, 5) }]).subtree;
    let root = put(
        &fixture.store,
        &[Entry {
            kind: EntryKind::Directory,
            size: inner.size,
            oid: None,
            subtree: Some(inner),
            ..file(b"dir", 0, 0)
        }],
    )
    .subtree;
    fixture.worktree = open(&fixture.store, &fixture.repository, root.id);
    assert_eq!(read_all(&fixture.worktree, "dir/converted").expect("rebuilt"), b"FIRST");
    assert!(fixture.store.has_content(lost).expect("the store"));
}

#[test]
fn a_lost_directory_is_rebuilt_from_the_repository_once() {
    let fixture = fixture(false);
    // None of these is in the store.
    let directory = |name, tree: &EncodedTree| Entry {
        kind: EntryKind::Directory,
        size: tree.subtree.size,
        oid: None,
        subtree: Some(tree.subtree),
        ..file(name, 0, 0)
    };
    let inner = encode(&[file(b"a", 1, 5)]);
    let outer = encode(&[file(b"b", 2, 4), directory(b"inner", &inner)]);
    let root = encode(&[directory(b"outer", &outer)]);
    let ids = [&inner, &outer, &root].map(|tree| tree.subtree.id);
    let trees = [(&b""[..], root), (b"outer", outer), (b"outer/inner", inner)];
    let repository = FakeRepository { trees: trees.into(), ..FakeRepository::default() };
    let repository = Arc::new(repository);
    let worktree = open(&fixture.store, &repository, ids[2]);
    assert_eq!(find(&worktree, "outer/inner/a").size, 5);
    assert_eq!(find(&worktree, "outer/inner/a").size, 5);
    assert_eq!(repository.reads.load(Ordering::Relaxed), 3);
    assert_eq!(fixture.store.counters().trees_healed, 3);
    for id in ids {
        fixture.store.tree(id).expect("it is stored again");
    }
}

#[test]
fn a_lost_directory_that_the_repository_does_not_have_is_an_error() {
    let fixture = fixture(false);
    let lost = encode(&[file(b"a", 1, 5)]);
    let root = put(
        &fixture.store,
        &[Entry {
            kind: EntryKind::Directory,
            size: lost.subtree.size,
            oid: None,
            subtree: Some(lost.subtree),
            ..file(b"lost", 0, 0)
        }],
    )
    .subtree;
    let lost = lost.subtree.id;
    let other = encode(&[file(b"other", 1, 5)]);
    let trees = [(&b"lost"[..], other)];
    let repository = FakeRepository { trees: trees.into(), ..FakeRepository::default() };
    let worktree = open(&fixture.store, &Arc::new(repository), root.id);
    let found = find(&worktree, "lost").ino;
    let error = worktree.lookup(found, b"a").expect_err("an error");
    assert!(matches!(error, Error::MissingTree(id) if id == lost), "{error}");
    let base = Base::open(Arc::clone(&fixture.store), None, root.id).expect("a base");
    assert!(base.directory(found).expect_err("an error").is_corruption());
    assert!(Base::open(Arc::clone(&fixture.store), None, lost).is_err());
}

#[test]
fn one_directory_object_in_memory_serves_every_commit_that_holds_it() {
    let fixture = fixture(false);
    let dir = fixture.worktree.base().root().tree().find(b"dir").expect("dir");
    let shared = fixture.worktree.base().root().entry(dir).subtree.expect("a subtree");
    let other = put(
        &fixture.store,
        &[
            file(b"0", 1, 5),
            file(b"1", 1, 5),
            Entry {
                kind: EntryKind::Directory,
                size: shared.size,
                oid: None,
                subtree: Some(shared),
                ..file(b"dir", 0, 0)
            },
        ],
    )
    .subtree;
    let other = Base::open(Arc::clone(&fixture.store), None, other.id).expect("another base");
    let one = fixture.worktree.base().root().child(dir).expect("dir");
    let two = other.root().child(2).expect("dir");
    assert!(std::ptr::eq(one.tree(), two.tree()));
    assert_ne!(one.ino(), two.ino());
}

#[test]
fn a_tree_that_contradicts_its_parent_is_reported() {
    let fixture = fixture(false);
    let dir = fixture.worktree.base().root().tree().find(b"dir").expect("dir");
    let mut forged = fixture.worktree.base().root().entry(dir).subtree.expect("a subtree");
    forged.descendants += 3;
    let root = put(
        &fixture.store,
        &[Entry {
            kind: EntryKind::Directory,
            size: forged.size,
            oid: None,
            subtree: Some(forged),
            ..file(b"dir", 0, 0)
        }],
    )
    .subtree;
    let worktree = open(&fixture.store, &fixture.repository, root.id);
    let found = find(&worktree, "dir");
    assert!(worktree.lookup(found.ino, b"link").expect_err("a contradiction").is_corruption());
}

#[test]
fn items_sent_to_the_writer_are_readable_after_a_flush() {
    let fixture = fixture(false);
    let content = Preparer::new().content(b"sent");
    let id = content.id;
    let session = fixture.store.writer().session();
    session.send(WriteItem::ConvertedContent(content)).expect("sent");
    session.flush().expect("a flush");
    assert!(fixture.store.has_content(id).expect("the store"));
}
