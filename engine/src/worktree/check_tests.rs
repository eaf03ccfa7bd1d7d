//! One thing is broken at a time in what a branch has changed, and the full set of findings is
//! compared.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fixture::{BRANCH, USER, dir, noise, open, snapshot};
use super::{NewNode, RenameMode, Worktree, XattrMode};
use crate::check::tests::FakeGit;
use crate::check::{CheckReport, Finding, check};
use crate::id::{BranchNumber, ChunkId, Ino, LayerNumber, Sequence};
use crate::outbox::Outbox;
use crate::overlay::{Body, Known, Node, Overlay, Source};
use crate::progress::{Cancel, Silent};
use crate::store::{Batch, Store, Table};
use crate::testing::FaultyStorage;

pub(super) const NAME: &str = "demo:main";

/// The first layer of [`BRANCH`], and that it lies on none.
pub(super) const LAYER: (LayerNumber, Option<LayerNumber>) = (LayerNumber::first_of(BRANCH), None);

/// A branch that has changed one of everything, all of it drained.
pub(super) struct Fixture {
    pub(super) storage: FaultyStorage,
    pub(super) worktree: Arc<Worktree>,
    /// `d`, a directory, with `a`, which is `a2` too, `b` and what was `sub/deep`.
    pub(super) d: Ino,
    pub(super) a: Ino,
    pub(super) b: Ino,
    deep: Ino,
    /// A symbolic link.
    s: Ino,
    /// Of the base: `file`, which was written, and `exec`, which was made private.
    file: Ino,
    exec: Ino,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let storage = FaultyStorage::new();
        let worktree = open(Arc::new(storage.clone()), &dir()).unwrap();
        let make =
            |parent, name: &[u8], new| worktree.create(USER, parent, name, 0o755, new).unwrap().ino;
        let find = |parent, name: &[u8]| worktree.lookup(parent, name).unwrap().unwrap().ino;
        let d = make(Ino::ROOT, b"d", NewNode::Directory);
        let (a, b) = (make(d, b"a", NewNode::File), make(d, b"b", NewNode::File));
        let s = make(Ino::ROOT, b"s", NewNode::Symlink(b"target"));
        worktree.link(a, d, b"a2").unwrap();
        worktree.write(a, 0, &noise(1, 5000), false).unwrap();
        worktree.set_xattr(b, b"user.x", b"value", XattrMode::Any).unwrap();
        let sub = find(Ino::ROOT, b"sub");
        let deep = find(sub, b"deep");
        worktree.rename(sub, b"deep", d, b"deep", RenameMode::Replace).unwrap();
        let (file, exec) = (find(Ino::ROOT, b"file"), find(Ino::ROOT, b"exec"));
        worktree.write(file, 3, b"written", false).unwrap();
        let set = super::SetAttributes { permissions: Some(0o700), ..Default::default() };
        worktree.set_attributes(USER, exec, &set).unwrap();
        worktree.unlink(Ino::ROOT, b"link").unwrap();
        worktree.drain().unwrap();
        Self { storage, worktree, d, a, b, deep, s, file, exec }
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        self.worktree.clean.contents.store()
    }

    fn overlay(&self) -> Overlay {
        self.store().head(BRANCH).unwrap().0
    }

    pub(super) fn report(&self) -> CheckReport {
        check(self.store(), &FakeGit, &Silent, &Cancel::default()).unwrap()
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.store().outbox_dir(BRANCH).join(format!("{number:08}.obx"))
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Batch<'_>)) -> Vec<Finding> {
        let mut batch = self.store().batch().unwrap();
        change(&mut batch);
        batch.commit().unwrap();
        self.report().findings
    }

    /// What is found when the row of `ino` is changed.
    pub(super) fn edit(&self, ino: Ino, edit: impl FnOnce(&mut Node)) -> Vec<Finding> {
        let mut node = self.overlay().node(ino).unwrap().clone();
        edit(&mut node);
        self.change(|batch| assert!(batch.put_inode(LAYER, ino, Some(&node))))
    }

    /// What is found when a row of a name is changed.
    fn entry(&self, dir: Ino, name: &[u8], known: Option<Known>) -> Vec<Finding> {
        self.change(|batch| batch.put_entry(LAYER, dir, name, known))
    }

    fn position(&self, dir: Ino, name: &[u8]) -> u64 {
        match self.overlay().directory(dir).unwrap().find(name) {
            Some(Known::Added(_, position)) => position,
            other => panic!("{other:?}"),
        }
    }
}

fn bad_inode(ino: Ino, why: impl Into<String>) -> Finding {
    Finding::BadInode { branch: NAME.into(), ino, why: why.into() }
}

fn bad_name(dir: Ino, name: &str, why: impl Into<String>) -> Finding {
    Finding::BadName { branch: NAME.into(), dir, name: name.into(), why: why.into() }
}

fn wrong_links(ino: Ino, stated: u32, found: u32) -> Finding {
    Finding::WrongLinks { branch: NAME.into(), ino, stated, found }
}

#[track_caller]
fn assert_found(mut found: Vec<Finding>, mut expected: Vec<Finding>) {
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn what_is_whole_is_counted_and_has_no_findings() {
    let fixture = Fixture::new();
    let report = fixture.report();
    assert_eq!(report.findings, []);
    // The root, `sub`, `d`, `a`, `b`, `s`, `deep`, `file`, `exec`, and the removed `link`.
    assert_eq!((report.branches, report.inodes, report.records), (1, 10, 0));
    // Added: `d`, `s`, `a`, `a2`, `b`, `d/deep`; hidden: `sub/deep`, `link`.
    assert_eq!(report.names, 8);
    fixture.worktree.write(fixture.a, 9, b"more", false).unwrap();
    fixture.worktree.unlink(fixture.d, b"a2").unwrap();
    let report = fixture.report();
    assert_eq!((report.findings, report.records), (vec![], 2));
}

#[test]
fn wrong_counts_are_found() {
    let Fixture { d, a, .. } = Fixture::new();
    let with = |ino, nlink| Fixture::new().edit(ino, |node| node.inode.nlink = nlink);
    assert_found(with(a, 5), vec![wrong_links(a, 5, 2)]);
    assert_found(with(d, 2), vec![wrong_links(d, 2, 3)]);
    assert_found(with(Ino::ROOT, 9), vec![wrong_links(Ino::ROOT, 9, 5)]);
    assert_found(with(a, 0), vec![wrong_links(a, 0, 2)]);
    let fixture = Fixture::new();
    let found = fixture.entry(d, b"a2", None);
    assert_found(found, vec![wrong_links(a, 2, 1)]);
}

#[test]
fn a_highest_number_that_is_too_low_and_a_missing_position_are_found() {
    let fixture = Fixture::new();
    let found = fixture.overlay().last_new();
    let stated = found - 1;
    let branch = || NAME.to_owned();
    let findings = fixture.change(|batch| batch.put_layer(LAYER.0, None, stated));
    assert_found(findings, vec![Finding::WrongHighest { branch: branch(), stated, found }]);

    let key = BRANCH.0.to_be_bytes().to_vec();
    let found = fixture.change(|batch| batch.put_row(Table::Heads, key, None));
    assert_found(found, vec![Finding::NotDrained { branch: branch() }]);
}

#[test]
fn names_that_lead_nowhere_are_found() {
    let fixture = Fixture::new();
    let Fixture { d, a, b, deep, .. } = fixture;
    let missing = |ino| format!("is inode {ino}, which is missing");
    let found = fixture.change(|batch| assert!(batch.put_inode(LAYER, a, None)));
    assert_found(found, vec![bad_name(d, "a", missing(a)), bad_name(d, "a2", missing(a))]);

    let fixture = Fixture::new();
    let found = fixture.change(|batch| assert!(batch.put_inode(LAYER, d, None)));
    let mut expected: Vec<_> =
        ["a", "a2", "b", "deep"].map(|name| bad_name(d, name, "is in what is no directory")).into();
    expected.push(bad_name(Ino::ROOT, "d", missing(d)));
    expected.push(wrong_links(Ino::ROOT, 5, 4));
    assert_found(found, expected);

    let fixture = Fixture::new();
    let position = fixture.position(d, b"a");
    let found = fixture.entry(d, b"b", Some(Known::Added(b, position)));
    let why = format!("is listed at position {position} like another name");
    assert_found(found, vec![bad_name(d, "b", why)]);

    let fixture = Fixture::new();
    let found = fixture.entry(Ino::ROOT, b"none", Some(Known::Hidden));
    let why = "is hidden, and the base has no such name";
    assert_found(found, vec![bad_name(Ino::ROOT, "none", why)]);

    for name in ["..", "a/b", "a\0b"] {
        let fixture = Fixture::new();
        fixture.edit(a, |node| node.inode.nlink = 3);
        let found = fixture.entry(d, name.as_bytes(), Some(Known::Added(a, 99)));
        assert_found(found, vec![bad_name(d, name, "is not a name")]);
    }

    let fixture = Fixture::new();
    let found = fixture.edit(deep, |node| node.inode.parent = Ino::ROOT);
    let why = format!("is in directory {d} and states 1 above it");
    assert_found(found, vec![bad_inode(deep, why)]);

    let fixture = Fixture::new();
    let found = fixture.entry(Ino::ROOT, b"deep", Some(Known::Added(deep, 99)));
    let expected =
        vec![bad_inode(deep, "is a directory with 2 names"), wrong_links(Ino::ROOT, 5, 6)];
    assert_found(found, expected);
}

#[test]
fn a_directory_within_itself_and_one_without_a_name_are_found() {
    let fixture = Fixture::new();
    let Fixture { d, deep, .. } = fixture;
    // `d` goes into `deep`, which is in `d`.
    fixture.edit(d, |node| node.inode.parent = deep);
    fixture.edit(deep, |node| node.inode.nlink += 1);
    fixture.edit(Ino::ROOT, |node| node.inode.nlink -= 1);
    fixture.entry(deep, b"d", Some(Known::Added(d, 0)));
    let found = fixture.entry(Ino::ROOT, b"d", None);
    assert_found(found, vec![bad_inode(deep.min(d), "is a directory within itself")]);

    let fixture = Fixture::new();
    let found = fixture.entry(Ino::ROOT, b"d", None);
    let nameless = bad_inode(d, "is a directory without a name");
    assert_found(found, vec![nameless, wrong_links(Ino::ROOT, 5, 4)]);
}

#[test]
fn impossible_content_is_found() {
    let Fixture { a, b, s, d, file, exec, .. } = Fixture::new();
    let with = |ino, edit: &dyn Fn(&mut Node)| Fixture::new().edit(ino, edit);
    let extend = |source: Source| {
        with(b, &move |node: &mut Node| {
            node.inode.size = 10;
            let Body::File(extents) = &mut node.body else { panic!("{node:?}") };
            extents.set(0..10, source.clone());
        })
    };
    assert_found(
        with(a, &|node| node.inode.size = 4999),
        vec![bad_inode(a, "has 4999 bytes and data up to byte 5000")],
    );
    let chunk = ChunkId::of(b"nowhere");
    assert_found(
        extend(Source::Chunk(chunk, 0)),
        vec![Finding::LostBytes { branch: NAME.into(), ino: b, chunk }],
    );
    let whole = ChunkId::of(&noise(1, 5000));
    assert_found(extend(Source::Chunk(whole, 4990)), vec![]);
    let why = format!("has bytes up to 5001 of chunk {whole}, which has 5000");
    assert_found(extend(Source::Chunk(whole, 4991)), vec![bad_inode(b, why)]);
    // `exec` has 10 bytes in the base, `d` is new, `file` has 5.
    assert_found(extend(Source::Base(exec, 0)), vec![]);
    let why = format!("has bytes up to 10 of inode {file} of the base, which ends before");
    assert_found(extend(Source::Base(file, 0)), vec![bad_inode(b, why)]);
    let why = format!("has bytes of {d}, which is no file of the base");
    assert_found(extend(Source::Base(d, 0)), vec![bad_inode(b, why)]);

    assert_found(
        with(exec, &|node| node.inode.size = 11),
        vec![bad_inode(exec, "has 11 bytes and the content of the base has 10")],
    );
    assert_found(
        with(s, &|node| node.inode.size = 7),
        vec![bad_inode(s, "has 7 bytes and a target of 6")],
    );
    assert_found(
        with(b, &|node| node.body = Body::Base),
        vec![bad_inode(b, "has the content of the base, which has none")],
    );
    assert_found(
        with(s, &|node| node.body = Body::Nothing),
        vec![bad_inode(s, "is a Symlink and has other content")],
    );
    assert_found(
        with(exec, &|node| {
            node.inode.kind = super::NodeKind::Fifo;
            node.body = Body::Nothing;
        }),
        vec![bad_inode(exec, "is a Fifo, and in the base a File")],
    );
    let links = u32::MAX;
    assert_found(
        with(b, &|node| node.inode.nlink = links),
        vec![bad_inode(b, format!("counts {links} links")), wrong_links(b, links, 1)],
    );
    assert_found(
        with(b, &|node| {
            let xattrs = node.xattrs.get_or_insert_default();
            xattrs.insert(b"user.1".as_slice().into(), vec![0; 65_536].into());
            xattrs.insert(b"user.2".as_slice().into(), vec![0; 65_536].into());
        }),
        vec![bad_inode(b, format!("has {} bytes of extended attributes", 2 * (65_536 + 6) + 11))],
    );
    assert_found(
        with(b, &|node| {
            node.xattrs.get_or_insert_default().insert((*b"").into(), (*b"").into());
        }),
        vec![bad_inode(b, "has an extended attribute without a proper name")],
    );
    let fixture = Fixture::new();
    let node = fixture.overlay().node(b).unwrap().clone();
    let absent = Ino(4_000_000);
    let found = fixture.change(|batch| assert!(batch.put_inode(LAYER, absent, Some(&node))));
    assert_found(found, vec![bad_inode(absent, "is not in the base"), wrong_links(absent, 1, 0)]);
}

#[test]
fn what_a_snapshot_alone_has_is_verified() {
    let fixture = Fixture::new();
    let point = fixture.worktree.seal().unwrap();
    fixture.worktree.drain().unwrap();
    let branch = fixture.store().branches().unwrap().pop().unwrap();
    let record = snapshot(BRANCH, 77, branch.root, &point);
    assert_eq!(fixture.change(|batch| batch.put_snapshot(&record)), []);
    // The branch goes elsewhere, and the snapshot is the only one to stand there.
    let elsewhere = LayerNumber(5);
    fixture.change(|batch| {
        batch.put_layer(elsewhere, None, 0);
        batch.put_head(BRANCH, elsewhere, Sequence(u64::MAX));
    });
    assert_eq!(fixture.change(|batch| assert_eq!(batch.sweep_layers().unwrap(), 1)), []);
    let chunk = ChunkId::of(&noise(1, 5000));
    let key = chunk.as_bytes().to_vec();
    let found = fixture.change(|batch| batch.put_row(Table::Chunks, key, None));
    let branch = format!("{NAME} at snapshot 77");
    assert_found(found, vec![Finding::LostBytes { branch, ino: fixture.a, chunk }]);
}

#[test]
fn a_row_that_cannot_be_read_is_the_only_finding() {
    let fixture = Fixture::new();
    let key = [BRANCH.0.to_be_bytes(), fixture.a.0.to_be_bytes()].concat();
    for table in [Table::LayerInodes, Table::LayerEntries] {
        let fixture = Fixture::new();
        let key = match table {
            Table::LayerInodes => key.clone(),
            _ => [&BRANCH.0.to_be_bytes()[..], &fixture.d.0.to_be_bytes(), b"a"].concat(),
        };
        let shown: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let found = fixture.change(|batch| batch.put_row(table, key, Some(vec![9; 3])));
        match found.as_slice() {
            [Finding::BadEntry { why, .. }] => assert!(why.contains(&shown), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_belongs_to_no_branch_is_found_unless_it_holds_nothing() {
    let fixture = Fixture::new();
    let number = BranchNumber(9);
    let node = fixture.overlay().node(fixture.b).unwrap().clone();
    let layer = LayerNumber(8);
    let found = fixture.change(|batch| {
        assert!(batch.put_inode((layer, None), fixture.b, Some(&node)));
        batch.put_layer(layer, None, fixture.b.0);
        batch.put_head(number, layer, Sequence(1));
    });
    let nobody = Finding::LayerOfNobody { layer, rows: 2 };
    assert_found(found, vec![Finding::HeadOfNoBranch { number }, nobody]);

    let fixture = Fixture::new();
    let path = fixture.store().outbox_dir(number);
    let storage = Arc::new(fixture.storage.clone());
    let outbox = Outbox::open(storage, &path, Sequence::NONE, &mut |_| Ok(())).unwrap();
    assert_found(fixture.report().findings, vec![]);
    outbox.append(b"a change", &[]).unwrap();
    assert_found(fixture.report().findings, vec![Finding::OutboxOfNoBranch { number }]);
    crate::storage::Storage::create_dir(&fixture.storage, &dir().join("outbox/not a number"))
        .unwrap();
    assert_found(fixture.report().findings, vec![Finding::OutboxOfNoBranch { number }]);
}

#[test]
fn a_damaged_outbox_is_reported_with_its_place_and_left_as_it_is() {
    let fixture = Fixture::new();
    let drained = fixture.store().head(BRANCH).unwrap().1.drained;
    fixture.worktree.write(fixture.a, 0, b"one", false).unwrap();
    fixture.worktree.sync().unwrap();
    fixture.worktree.write(fixture.a, 0, b"two", false).unwrap();
    let path = fixture.segment(2);
    let whole = fixture.storage.contents(&path).expect("the drain began the second segment");
    assert_eq!(fixture.report().records, 2);
    fixture.storage.tamper(&path, |bytes| bytes[64 + 40] ^= 1);
    let damaged = fixture.storage.contents(&path);
    let found = fixture.report().findings;
    match found.as_slice() {
        [Finding::BadOutbox { branch, place, record, why }] => {
            assert_eq!((branch.as_str(), *place), (NAME, Some((2, 64))));
            assert_eq!(*record, Some(drained.next()));
            assert!(why.contains("00000002.obx at byte 64"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.storage.contents(&path), damaged);
    // The end of the log may be torn.
    fixture.storage.tamper(&path, |bytes| {
        *bytes = whole;
        let last = bytes.iter().rposition(|&byte| byte != 0).expect("the end of a record");
        bytes[last] ^= 1;
    });
    let report = fixture.report();
    assert_eq!((report.findings, report.records), (vec![], 1));
}

#[test]
fn a_record_that_is_no_change_is_reported() {
    let Fixture { storage, worktree, .. } = Fixture::new();
    let store = Arc::clone(worktree.clean.contents.store());
    let path = store.outbox_dir(BRANCH);
    let drained = store.head(BRANCH).unwrap().1.drained;
    drop(worktree);
    let storage = Arc::new(storage);
    let outbox = Outbox::open(storage, &path, drained, &mut |_| Ok(())).unwrap();
    outbox.append(b"no change", &[]).unwrap();
    let report = check(&store, &FakeGit, &Silent, &Cancel::default()).unwrap();
    match report.findings.as_slice() {
        [Finding::BadOutbox { place: Some((3, _)), record, why, .. }] => {
            assert_eq!(*record, Some(drained.next()));
            assert!(why.contains("it is no change"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

/// Neither does the check disturb a worktree that is written and drained, nor is it misled by it.
#[test]
fn a_check_beside_a_running_worktree_finds_nothing() {
    let fixture = Fixture::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let worktree = &fixture.worktree;
            let mut round = 0_u64;
            while round < 50 || !done.load(Ordering::Relaxed) {
                let name = format!("n{}", round % 7);
                let made = worktree.create(USER, fixture.d, name.as_bytes(), 0o644, NewNode::File);
                match made {
                    Ok(made) => worktree.write(made.ino, 0, &noise(round, 3000), false).unwrap(),
                    Err(_) => {
                        let ino = worktree.lookup(fixture.d, name.as_bytes()).unwrap().unwrap().ino;
                        let other = format!("m{}", round % 5);
                        let _ = worktree.link(ino, Ino::ROOT, other.as_bytes());
                        worktree.unlink(fixture.d, name.as_bytes()).unwrap();
                        let _ = worktree.unlink(Ino::ROOT, format!("m{}", round % 3).as_bytes());
                        worktree.release(ino);
                    }
                }
                if round.is_multiple_of(4) {
                    worktree.drain().unwrap();
                }
                round += 1;
            }
        });
        let mut records = 0;
        for _ in 0..40 {
            let report = fixture.report();
            assert_eq!(report.findings, []);
            records += report.records;
        }
        done.store(true, Ordering::Relaxed);
        assert!(records > 0, "it never saw what was not drained");
    });
    assert!(fixture.worktree.state().unwrap().failure.is_none());
}
