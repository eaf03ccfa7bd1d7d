//! Goal: a writable worktree means what POSIX says, and a drain, a restart or both change nothing
//! that can be seen.

use std::path::PathBuf;

use super::*;
use crate::content::Preparer;
use crate::error::Denial;
use crate::id::{GitOid, HashKind};
use crate::limits::LINKS_MAX;
use crate::store::{Store, WriteItem};
use crate::testing::FaultyStorage;
use crate::tree::{Entry, TreeBuilder};

const BRANCH: BranchNumber = BranchNumber(3);
const ROOT: Caller = Caller { uid: 0, gid: 0 };
const USER: Caller = Caller { uid: 1000, gid: 100 };

/// A writable worktree over a small base, on a storage that can lose power.
struct Fixture {
    storage: FaultyStorage,
    worktree: Arc<Worktree>,
}

fn dir() -> PathBuf {
    "/store".into()
}

fn open(storage: &FaultyStorage) -> Result<Arc<Worktree>> {
    let store = Store::open_on(Arc::new(storage.clone()), &dir())?;
    let oid = |byte| GitOid::from_slice(HashKind::Sha1, &[byte; 20]).expect("20 bytes");
    let file = |name, bytes: &[u8]| Entry {
        kind: EntryKind::File,
        name,
        size: bytes.len() as u64,
        oid: Some(oid(bytes.len() as u8)),
        content: Some(crate::ContentId::of(bytes)),
        subtree: None,
    };
    let mut batch = store.batch()?;
    let mut preparer = Preparer::new();
    for bytes in [&b"hello"[..], b"inner!"] {
        batch.put_content(&preparer.content(bytes))?;
    }
    let mut sub = TreeBuilder::new(Some(HashKind::Sha1));
    sub.push(&file(b"inner", b"inner!"))?;
    let sub = sub.finish();
    let mut root = TreeBuilder::new(Some(HashKind::Sha1));
    root.push(&file(b"file", b"hello"))?;
    root.push(&Entry {
        kind: EntryKind::Directory,
        name: b"sub",
        size: sub.subtree.size,
        oid: Some(oid(9)),
        content: None,
        subtree: Some(sub.subtree),
    })?;
    let root = root.finish();
    batch.put_tree(&sub)?;
    batch.put_tree(&root)?;
    batch.commit()?;
    let base = Base::open(Arc::clone(&store), None, root.subtree.id)?;
    let contents = Contents::new(store, None);
    let git_file = Some(b"gitdir: /g\n".to_vec());
    let options = WorktreeOptions { uid: 7, gid: 8, time: 1234, git_file };
    let outbox = dir().join("outbox/3");
    Worktree::writable(base, contents, options, BRANCH, Arc::new(storage.clone()), &outbox)
}

impl Fixture {
    fn new() -> Self {
        let storage = FaultyStorage::new();
        let worktree = open(&storage).expect("a fresh worktree");
        Self { storage, worktree }
    }

    /// Ends and begins anew, as after a kill: everything acknowledged is there.
    fn restart(self) -> Self {
        drop(self.worktree);
        let worktree = open(&self.storage).expect("it opens again");
        Self { storage: self.storage, worktree }
    }
}

impl std::ops::Deref for Fixture {
    type Target = Worktree;

    fn deref(&self) -> &Worktree {
        &self.worktree
    }
}

fn ino(worktree: &Worktree, path: &str) -> Ino {
    path.split('/').fold(Ino::ROOT, |dir, name| {
        let found = worktree.lookup(dir, name.as_bytes()).expect("a lookup");
        found.unwrap_or_else(|| panic!("there is no {path}")).ino
    })
}

fn text(worktree: &Worktree, path: &str) -> String {
    let ino = ino(worktree, path);
    let mut bytes = vec![0; worktree.attributes(ino).expect("attributes").size as usize + 1];
    let len = worktree.read(ino, 0, &mut bytes).expect("a read");
    bytes.truncate(len);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn names(worktree: &Worktree, dir: Ino) -> Vec<String> {
    let mut names = Vec::new();
    worktree
        .read_directory(dir, 0, true, &mut |entry| {
            names.push(String::from_utf8_lossy(entry.name).into_owned());
            true
        })
        .expect("a listing");
    names.sort();
    names
}

fn denial<T: std::fmt::Debug>(result: Result<T>) -> Denial {
    match result {
        Err(Error::Denied(_, denial)) => denial,
        other => panic!("{other:?}"),
    }
}

/// Everything that can be seen of a worktree: paths with attributes and contents.
fn seen(worktree: &Worktree) -> Vec<String> {
    fn below(worktree: &Worktree, dir: Ino, path: &str, out: &mut Vec<String>) {
        for name in names(worktree, dir) {
            if name == "." || name == ".." {
                continue;
            }
            let path = format!("{path}/{name}");
            let found = worktree.lookup(dir, name.as_bytes()).unwrap().unwrap();
            let content = match found.kind {
                NodeKind::File => text(worktree, &path[1..]),
                NodeKind::Symlink => format!("{:?}", worktree.read_link(found.ino).unwrap()),
                _ => String::new(),
            };
            let xattrs = worktree.xattr_names(found.ino).unwrap();
            out.push(format!("{path} {found:?} {content} {xattrs:?}"));
            if found.kind == NodeKind::Directory {
                below(worktree, found.ino, &path, out);
            }
        }
    }
    let mut out = vec![format!("{:?}", worktree.attributes(Ino::ROOT).unwrap())];
    below(worktree, Ino::ROOT, "", &mut out);
    out
}

fn make(worktree: &Worktree, dir: Ino, name: &str, new: NewNode<'_>) -> Ino {
    worktree.create(USER, dir, name.as_bytes(), 0o644, new).expect("it can be made").ino
}

#[test]
fn what_is_written_is_read_before_during_and_after_a_drain_and_a_restart() {
    let fixture = Fixture::new();
    let new = make(&fixture, Ino::ROOT, "new", NewNode::File);
    fixture.write(new, 0, b"first", false).unwrap();
    fixture.write(new, 8, b"third", false).unwrap();
    let file = ino(&fixture, "file");
    fixture.write(file, 1, b"EL", false).unwrap();
    let dir = make(&fixture, ino(&fixture, "sub"), "dir", NewNode::Directory);
    make(&fixture, dir, "link", NewNode::Symlink(b"../../file"));
    fixture
        .rename(ino(&fixture, "sub"), b"inner", Ino::ROOT, b"outer", RenameMode::Replace)
        .unwrap();
    fixture.unlink(Ino::ROOT, b".git").unwrap();
    assert_eq!(text(&fixture, "new"), "first\0\0\0third");
    assert_eq!(text(&fixture, "file"), "hELlo");
    assert_eq!(text(&fixture, "outer"), "inner!");
    let before = seen(&fixture);
    let fixture = fixture.restart();
    assert_eq!(seen(&fixture), before, "after a restart");
    let drained = fixture.drain().unwrap();
    assert_eq!((drained.inodes, drained.names), (8, 6));
    assert_eq!(seen(&fixture), before, "after a drain");
    assert_eq!(fixture.drain().unwrap().inodes, 0, "nothing is left to drain");
    let fixture = fixture.restart();
    assert_eq!(seen(&fixture), before, "after a drain and a restart");
    assert_eq!(ino(&fixture, "file"), file, "inode numbers stay");
    assert_eq!(ino(&fixture, "new"), new);
    let next = make(&fixture, Ino::ROOT, "next", NewNode::File);
    assert!(next > new && next > dir, "numbers are not used again");
}

#[test]
fn names_are_refused_as_posix_says() {
    let fixture = Fixture::new();
    let create = |dir, name: &[u8]| fixture.create(USER, dir, name, 0o644, NewNode::File);
    assert_eq!(denial(create(Ino::ROOT, b"file")), Denial::Exists);
    assert_eq!(denial(create(Ino::ROOT, &[b'n'; 256])), Denial::NameTooLong);
    assert!(matches!(create(ino(&fixture, "file"), b"x"), Err(Error::NotDirectory(_))));
    assert_eq!(denial(fixture.unlink(Ino::ROOT, b"none")), Denial::NoEntry);
    assert!(matches!(fixture.unlink(Ino::ROOT, b"sub"), Err(Error::IsDirectory(_))));
    assert_eq!(denial(fixture.remove_directory(Ino::ROOT, b"sub")), Denial::NotEmpty);
    assert!(matches!(fixture.remove_directory(Ino::ROOT, b"file"), Err(Error::NotDirectory(_))));
    let sub = ino(&fixture, "sub");
    let deep = make(&fixture, sub, "deep", NewNode::Directory);
    let into_itself = fixture.rename(Ino::ROOT, b"sub", deep, b"x", RenameMode::Replace);
    assert_eq!(denial(into_itself), Denial::Invalid);
    assert_eq!(denial(fixture.link(sub, Ino::ROOT, b"hard")), Denial::NotPermitted);
    let over = |mode| fixture.rename(Ino::ROOT, b"file", sub, b"inner", mode);
    assert_eq!(denial(over(RenameMode::NoReplace)), Denial::Exists);
    over(RenameMode::Exchange).unwrap();
    assert_eq!(
        (text(&fixture, "file"), text(&fixture, "sub/inner")),
        ("inner!".into(), "hello".into())
    );
}

#[test]
fn links_are_counted() {
    let fixture = Fixture::new();
    let nlink = |ino| fixture.attributes(ino).map(|attributes| attributes.nlink).ok();
    let file = ino(&fixture, "file");
    assert_eq!(fixture.link(file, Ino::ROOT, b"hard").unwrap().nlink, 2);
    fixture.unlink(Ino::ROOT, b"file").unwrap();
    assert_eq!((nlink(file), text(&fixture, "hard")), (Some(1), "hello".into()));
    assert_eq!(nlink(Ino::ROOT), Some(3));
    let dir = make(&fixture, Ino::ROOT, "dir", NewNode::Directory);
    assert_eq!((nlink(Ino::ROOT), nlink(dir)), (Some(4), Some(2)));
    fixture.rename(Ino::ROOT, b"dir", ino(&fixture, "sub"), b"dir", RenameMode::Replace).unwrap();
    assert_eq!((nlink(Ino::ROOT), nlink(ino(&fixture, "sub"))), (Some(3), Some(3)));
    fixture.remove_directory(ino(&fixture, "sub"), b"dir").unwrap();
    assert_eq!((nlink(dir), nlink(ino(&fixture, "sub"))), (Some(0), Some(2)));
    // A removed file is there until nobody has it open, but not after a restart.
    fixture.unlink(Ino::ROOT, b"hard").unwrap();
    fixture.write(file, 0, b"J", false).unwrap();
    let mut bytes = [0; 5];
    fixture.read(file, 0, &mut bytes).unwrap();
    assert_eq!((&bytes, nlink(file)), (b"Jello", Some(0)));
    let new = make(&fixture, Ino::ROOT, "new", NewNode::File);
    fixture.unlink(Ino::ROOT, b"new").unwrap();
    assert_eq!(nlink(new), Some(0));
    fixture.release(new);
    assert_eq!(nlink(new), None);
    let fixture = fixture.restart();
    assert_eq!(names(&fixture, Ino::ROOT), [".", "..", ".git", "sub"]);
    assert!(fixture.attributes(dir).is_err());
}

#[test]
fn a_branch_is_written_by_one_at_a_time() {
    let fixture = Fixture::new();
    let store = fixture.clean.contents.store();
    assert!(matches!(store.claim(BRANCH), Err(Error::BranchInUse(BRANCH))));
    let free = store.claim(BranchNumber(4)).unwrap();
    assert!(matches!(store.claim(BranchNumber(4)), Err(Error::BranchInUse(_))));
    drop(free);
    store.claim(BranchNumber(4)).unwrap();
    fixture.restart();
}

#[test]
fn a_file_may_begin_without_a_name() {
    let fixture = Fixture::new();
    let dir = fixture.create(ROOT, Ino::ROOT, b"d", 0o2755, NewNode::Directory).unwrap();
    let set_gid = SetAttributes { gid: Some(55), ..Default::default() };
    let dir = fixture.set_attributes(ROOT, dir.ino, &set_gid).unwrap();
    let unnamed = || fixture.create_unnamed(USER, dir.ino, 0o640).unwrap();
    let (named, kept, dropped) = (unnamed(), unnamed().ino, unnamed().ino);
    assert_eq!((named.kind, named.nlink, named.permissions), (NodeKind::File, 0, 0o640));
    assert_eq!((named.uid, named.gid), (USER.uid, 55));
    // The directory is as it was: nothing in it has changed.
    assert_eq!(fixture.attributes(dir.ino).unwrap(), dir);
    assert_eq!(names(&fixture, dir.ino), [".", ".."]);
    fixture.write(named.ino, 0, b"bytes", false).unwrap();
    fixture.drain().unwrap();
    assert_eq!(fixture.link(named.ino, Ino::ROOT, b"name").unwrap().nlink, 1);
    assert_eq!(text(&fixture, "name"), "bytes");
    fixture.release(named.ino);
    fixture.release(dropped);
    assert!(matches!(fixture.attributes(dropped), Err(Error::NoInode(_))));
    fixture.write(kept, 0, b"lost", false).unwrap();
    // One that has lost its last name gets none again.
    fixture.link(named.ino, Ino::ROOT, b"second").unwrap();
    fixture.unlink(Ino::ROOT, b"name").unwrap();
    assert_eq!(text(&fixture, "second"), "bytes");
    fixture.unlink(Ino::ROOT, b"second").unwrap();
    assert_eq!(denial(fixture.link(named.ino, Ino::ROOT, b"third")), Denial::NoEntry);
    let file = ino(&fixture, "file");
    let nowhere = fixture.create_unnamed(USER, file, 0o600);
    assert!(matches!(nowhere, Err(Error::NotDirectory(_))), "{nowhere:?}");
    fixture.remove_directory(Ino::ROOT, b"d").unwrap();
    assert_eq!(denial(fixture.create_unnamed(USER, dir.ino, 0o600)), Denial::NoEntry);
    // Nobody has one open after a restart.
    let fixture = fixture.restart();
    assert!(matches!(fixture.attributes(kept), Err(Error::NoInode(_))));
    assert_eq!(names(&fixture, Ino::ROOT), [".", "..", ".git", "file", "sub"]);
}

#[test]
fn an_inode_has_no_more_names_than_links_max() {
    let fixture = Fixture::new();
    let (file, sub) = (ino(&fixture, "file"), ino(&fixture, "sub"));
    let nlink = |ino| fixture.attributes(ino).unwrap().nlink;
    let mut change = fixture.change().unwrap();
    for ino in [file, sub] {
        change.inode(ino).unwrap().nlink = LINKS_MAX - 1;
    }
    change.commit(&[]).unwrap();
    let mkdir = |name: &[u8]| fixture.create(USER, sub, name, 0o755, NewNode::Directory);
    assert_eq!(fixture.link(file, Ino::ROOT, b"last").unwrap().nlink, LINKS_MAX);
    assert_eq!(denial(fixture.link(file, Ino::ROOT, b"more")), Denial::TooManyLinks);
    mkdir(b"last").unwrap();
    assert_eq!(denial(mkdir(b"more")), Denial::TooManyLinks);
    let other = make(&fixture, Ino::ROOT, "other", NewNode::Directory);
    let moved = fixture.rename(Ino::ROOT, b"other", sub, b"other", RenameMode::Replace);
    assert_eq!(denial(moved), Denial::TooManyLinks);
    assert_eq!((nlink(file), nlink(sub), nlink(other)), (LINKS_MAX, LINKS_MAX, 2));
    assert_eq!(names(&fixture, sub), [".", "..", "inner", "last"]);
    fixture.unlink(Ino::ROOT, b"file").unwrap();
    fixture.link(file, Ino::ROOT, b"more").unwrap();
}

#[test]
fn set_id_bits_fall_where_posix_says() {
    let fixture = Fixture::new();
    let file = make(&fixture, Ino::ROOT, "f", NewNode::File);
    let set = |caller, set: SetAttributes| fixture.set_attributes(caller, file, &set).unwrap();
    let chmod = || set(ROOT, SetAttributes { permissions: Some(0o6775), ..Default::default() });
    assert_eq!(chmod().permissions, 0o6775);
    fixture.write(file, 0, b"x", true).unwrap();
    assert_eq!(fixture.attributes(file).unwrap().permissions, 0o775);
    chmod();
    let shorter = SetAttributes { size: Some(0), ..Default::default() };
    assert_eq!(set(ROOT, shorter).permissions, 0o6775);
    assert_eq!(set(USER, shorter).permissions, 0o775);
    chmod();
    assert_eq!(set(ROOT, SetAttributes { gid: Some(5), ..Default::default() }).permissions, 0o775);
    let dir = fixture.create(ROOT, Ino::ROOT, b"d", 0o2775, NewNode::Directory).unwrap();
    let set_gid = SetAttributes { gid: Some(55), ..Default::default() };
    fixture.set_attributes(ROOT, dir.ino, &set_gid).unwrap();
    let inner = fixture.create(USER, dir.ino, b"i", 0o755, NewNode::Directory).unwrap();
    assert_eq!((inner.gid, inner.permissions), (55, 0o2755));
}

#[test]
fn holes_are_seen_and_cost_nothing() {
    let fixture = Fixture::new();
    let file = make(&fixture, Ino::ROOT, "f", NewNode::File);
    fixture.write(file, 10_000, b"data", false).unwrap();
    let attributes = fixture.attributes(file).unwrap();
    assert_eq!((attributes.size, attributes.blocks), (10_004, 1));
    let seek = |offset, what| fixture.seek(file, offset, what).unwrap();
    assert_eq!((seek(0, Seek::Data), seek(0, Seek::Hole)), (Some(10_000), Some(0)));
    assert_eq!((seek(10_001, Seek::Hole), seek(10_004, Seek::Data)), (Some(10_004), None));
    fixture.allocate(ROOT, file, Allocate::PunchHole, 10_001, 2).unwrap();
    fixture.allocate(ROOT, file, Allocate::Reserve(false), 0, 20_000).unwrap();
    let mut bytes = [1; 6];
    assert_eq!(fixture.read(file, 10_000, &mut bytes).unwrap(), 6);
    assert_eq!(&bytes, b"d\0\0a\0\0");
    assert_eq!(fixture.attributes(file).unwrap().size, 20_000);
}

#[test]
fn copies_share_what_is_stored() {
    let fixture = Fixture::new();
    let big: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let from = make(&fixture, Ino::ROOT, "from", NewNode::File);
    fixture.write(from, 0, &big, false).unwrap();
    fixture.drain().unwrap();
    let to = make(&fixture, Ino::ROOT, "to", NewNode::File);
    let before = fixture.state().unwrap().outbox.bytes;
    let copied = fixture.copy_range(ROOT, from, 5, to, 0, u64::MAX / 4).unwrap();
    assert_eq!(copied, big.len() as u64 - 5);
    let written = fixture.state().unwrap().outbox.bytes - before;
    assert!(written < 16_384, "{written} bytes were written");
    let file = ino(&fixture, "file");
    assert_eq!(fixture.copy_range(ROOT, file, 1, to, 3, 100).unwrap(), 4);
    let fixture = fixture.restart();
    fixture.drain().unwrap();
    let mut bytes = vec![0; big.len()];
    assert_eq!(fixture.read(to, 0, &mut bytes).unwrap(), big.len() - 5);
    let mut expected = big[5..].to_vec();
    expected[3..7].copy_from_slice(b"ello");
    assert!(bytes[..expected.len()] == expected[..]);
}

#[test]
fn a_drain_costs_the_same_syncs_for_any_number_of_records() {
    let fixture = Fixture::new();
    let mut next = 0;
    let mut syncs = |records: u32| {
        for _ in 0..records {
            next += 1;
            let file = make(&fixture, Ino::ROOT, &format!("f{next}"), NewNode::File);
            fixture.write(file, 0, b"some bytes", false).unwrap();
        }
        let before = fixture.storage.syncs();
        fixture.drain().unwrap();
        fixture.storage.syncs() - before
    };
    // Whenever the database doubles its file, it syncs twice more: that is over after this.
    syncs(20_000);
    assert_eq!(syncs(1), syncs(10_000));
}

#[test]
fn a_small_edit_of_a_large_file_grows_the_store_little() {
    let fixture = Fixture::new();
    let noise = |len: usize| {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    };
    let file = make(&fixture, Ino::ROOT, "f", NewNode::File);
    for part in noise(50 << 20).chunks(1 << 20).enumerate() {
        fixture.write(file, (part.0 as u64) << 20, part.1, false).unwrap();
    }
    fixture.drain().unwrap();
    let stored = || fixture.clean.contents.store().statistics().unwrap().stored_bytes;
    let before = stored();
    fixture.write(file, 25_000_000, b"!", false).unwrap();
    fixture.drain().unwrap();
    assert!(stored() - before < 1 << 20, "{} bytes", stored() - before);
    let mut byte = [0; 3];
    fixture.read(file, 24_999_999, &mut byte).unwrap();
    assert_eq!(byte[1], b'!');
}

/// A listing that goes on while others add and remove neither misses nor repeats what stays.
#[test]
fn a_listing_goes_on_over_changes() {
    let fixture = Fixture::new();
    for number in 0..100 {
        make(&fixture, Ino::ROOT, &format!("f{number:03}"), NewNode::File);
    }
    let mut listed = Vec::new();
    let mut cookie = 0;
    for round in 0.. {
        let mut some = 0;
        fixture
            .read_directory(Ino::ROOT, cookie, round % 2 == 0, &mut |entry| {
                listed.push(String::from_utf8_lossy(entry.name).into_owned());
                cookie = entry.cookie;
                some += 1;
                some < 7
            })
            .unwrap();
        if some == 0 {
            break;
        }
        if round < 40 {
            fixture.unlink(Ino::ROOT, format!("f{:03}", round * 2).as_bytes()).unwrap();
            make(&fixture, Ino::ROOT, &format!("new{round}"), NewNode::File);
        }
        if round == 5 {
            fixture.drain().unwrap();
        }
    }
    for number in (1..100).step_by(2) {
        let name = format!("f{number:03}");
        assert_eq!(listed.iter().filter(|listed| **listed == name).count(), 1, "{name}");
    }
}

#[test]
fn attributes_of_base_and_extended_ones_are_kept() {
    let fixture = Fixture::new();
    let file = ino(&fixture, "file");
    assert_eq!(fixture.attributes(file).unwrap().modified.seconds, 1234);
    fixture.set_xattr(file, b"user.a", b"1", XattrMode::Create).unwrap();
    assert_eq!(denial(fixture.set_xattr(file, b"user.a", b"1", XattrMode::Create)), Denial::Exists);
    let absent = fixture.set_xattr(file, b"user.b", b"1", XattrMode::Replace);
    assert_eq!(denial(absent), Denial::NoAttribute);
    let attributes = fixture.attributes(file).unwrap();
    assert_eq!((attributes.modified.seconds, attributes.size, attributes.blocks), (1234, 5, 1));
    assert!(attributes.changed.seconds > 1234);
    fixture.drain().unwrap();
    let fixture = fixture.restart();
    assert_eq!(fixture.xattr(file, b"user.a").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(text(&fixture, "file"), "hello");
    fixture.remove_xattr(file, b"user.a").unwrap();
    assert_eq!(fixture.xattr_names(file).unwrap(), Vec::<Vec<u8>>::new());
}

#[test]
fn a_full_device_refuses_and_goes_on_when_there_is_room() {
    let fixture = Fixture::new();
    let file = make(&fixture, Ino::ROOT, "f", NewNode::File);
    fixture.write(file, 0, b"before", false).unwrap();
    fixture.storage.set_full(true);
    let refused = std::iter::repeat_with(|| fixture.write(file, 0, &[1; 1 << 20], false))
        .take(10)
        .find_map(Result::err);
    assert!(refused.expect("the device is full").is_full());
    assert!(text(&fixture, "f").starts_with(['b', '\u{1}']), "reads go on");
    fixture.storage.set_full(false);
    fixture.write(file, 0, b"after!", false).unwrap();
    fixture.drain().unwrap();
    let fixture = fixture.restart();
    assert!(text(&fixture, "f").starts_with("after!"));
    // Used by nothing else: content of a base is not needed to open a branch.
    let item = Preparer::new().content(b"later");
    let store = fixture.clean.contents.store();
    assert!(store.writer().try_send(WriteItem::ConvertedContent(item)));
}
