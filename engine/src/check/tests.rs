//! One thing is broken at a time, and the full set of findings is compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::BranchNumber;
use crate::content::Preparer;
use crate::progress::Silent;
use crate::repair::{Step, Surroundings, execute, plan};
use crate::storage::Storage;
use crate::store::{Batch, Repository};
use crate::testing::{FaultyStorage, tamper_database};
use crate::tree::{EncodedTree, Entry, EntryKind, TreeBuilder};
use crate::worktree::Contents;

pub(super) const DIR: &str = "/home/store";

/// Stands in for git: the object id of anything is the front of its blake3.
pub(crate) struct FakeGit;

struct FakeHasher(blake3::Hasher);

impl BlobHasher for FakeHasher {
    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self: Box<Self>) -> GitOid {
        fake_oid(self.0.finalize().as_bytes())
    }
}

impl GitVerifier for FakeGit {
    fn blob_hasher(&self, _: HashKind, _: u64) -> Box<dyn BlobHasher> {
        Box::new(FakeHasher(blake3::Hasher::new()))
    }

    fn tree_oid(&self, tree: &Tree) -> Option<GitOid> {
        Some(fake_oid(TreeId::of(tree.bytes()).as_bytes()))
    }
}

pub(crate) fn fake_oid(digest: &[u8; 32]) -> GitOid {
    GitOid::from_slice(HashKind::Sha1, &digest[..20]).unwrap()
}

pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub(super) fn open(storage: &FaultyStorage) -> Arc<Store> {
    Store::open_on(Arc::new(storage.clone()), Path::new(DIR)).unwrap()
}

fn segment(number: u32) -> PathBuf {
    Path::new(DIR).join(format!("segments/{number:08}.seg"))
}

pub(super) fn run(store: &Arc<Store>) -> CheckReport {
    check(store, &FakeGit, &Silent, &Cancel::default()).unwrap()
}

pub(super) fn change(store: &Store, with: impl FnOnce(&mut Batch<'_>)) {
    let mut batch = store.batch().unwrap();
    with(&mut batch);
    batch.commit().unwrap();
}

fn encode(entries: &[Entry<'_>]) -> EncodedTree {
    let mut builder = TreeBuilder::new(Some(HashKind::Sha1));
    entries.iter().for_each(|entry| builder.push(entry).unwrap());
    builder.finish()
}

fn blob<'a>(name: &'a str, bytes: &[u8]) -> Entry<'a> {
    Entry {
        kind: EntryKind::File,
        name: name.as_bytes(),
        size: bytes.len() as u64,
        oid: Some(fake_oid(ContentId::of(bytes).as_bytes())),
        content: None,
        subtree: None,
    }
}

fn directory<'a>(name: &'a str, tree: &EncodedTree) -> Entry<'a> {
    Entry {
        kind: EntryKind::Directory,
        name: name.as_bytes(),
        size: tree.subtree.size,
        oid: Some(fake_oid(tree.subtree.id.as_bytes())),
        content: None,
        subtree: Some(tree.subtree),
    }
}

/// What the healthy store of these tests holds.
pub(super) struct Fixture {
    pub(super) storage: FaultyStorage,
    pub(super) store: Arc<Store>,
    inline: Vec<u8>,
    middle: Vec<u8>,
    large: Vec<u8>,
    converted: Vec<u8>,
    inner: EncodedTree,
    root: EncodedTree,
}

pub(super) fn put_blob(batch: &mut Batch<'_>, bytes: &[u8]) {
    let content = Preparer::new().content(bytes);
    batch.put_content(&content).unwrap();
    let stored = Stored { id: content.id, size: content.size };
    batch.map_blob(&fake_oid(content.id.as_bytes()), stored);
}

fn put_tree(batch: &mut Batch<'_>, tree: &EncodedTree) {
    batch.put_tree(tree).unwrap();
    batch.map_tree(&fake_oid(tree.subtree.id.as_bytes()), &[0; 32], &tree.subtree).unwrap();
}

pub(super) fn healthy() -> Fixture {
    let storage = FaultyStorage::new();
    let store = open(&storage);
    let (inline, middle) = (noise(1, 100), noise(2, 5000));
    let (large, converted) = (noise(3, 2_500_000), noise(4, 2000));
    let inner = encode(&[blob("empty", b""), blob("large", &large), blob("unknown", b"no")]);
    let root = encode(&[
        Entry {
            content: Some(ContentId::of(&converted)),
            size: converted.len() as u64,
            ..blob("converted", b"stored otherwise")
        },
        blob("inline", &inline),
        directory("inner", &inner),
        blob("middle", &middle),
    ]);
    change(&store, |batch| {
        for bytes in [&inline[..], &middle, &large, b""] {
            put_blob(batch, bytes);
        }
        batch.put_content(&Preparer::new().content(&converted)).unwrap();
        put_tree(batch, &inner);
        put_tree(batch, &root);
        batch.put_repository(&Repository {
            name: "demo".into(),
            git_dir: "/r".into(),
            origin: None,
            hash: HashKind::Sha1,
            attached: false,
        });
        batch.put_branch(&branch("main", root.subtree.id));
        batch.put_worktree(&worktree("main"));
    });
    Fixture { storage, store, inline, middle, large, converted, inner, root }
}

fn branch(name: &str, root: TreeId) -> Branch {
    Branch {
        repository: "demo".into(),
        name: name.into(),
        root,
        root_oid: None,
        commit: None,
        time: 0,
        ingested: true,
        detached: false,
        git: None,
        number: BranchNumber(1),
    }
}

fn worktree(branch: &str) -> WorktreeRecord {
    WorktreeRecord {
        dir: "/w".into(),
        repository: "demo".into(),
        branch: branch.into(),
        read_only: true,
        allow_other: false,
        git_dir: "/g".into(),
    }
}

#[test]
fn a_healthy_store_has_no_findings() {
    let fixture = healthy();
    let chunks = fixture.store.statistics().unwrap().chunks;
    let report = run(&fixture.store);
    assert_eq!(report.findings, []);
    let bytes = [&fixture.inline, &fixture.middle, &fixture.large, &fixture.converted];
    assert_eq!(
        report,
        CheckReport {
            chunks,
            trees: 2,
            contents: 4,
            // Three files, the empty one, two trees.
            mapped: 6,
            bytes: bytes.iter().map(|bytes| bytes.len() as u64).sum(),
            waste: 0,
            branches: 0,
            inodes: 0,
            names: 0,
            records: 0,
            findings: Vec::new(),
        }
    );
}

#[test]
fn it_tells_its_progress_and_can_be_cancelled() {
    #[derive(Default)]
    struct Sum(Mutex<(u64, u64, u64, u64, bool)>);
    impl Progress for Sum {
        fn begin(&self, phase: Phase, objects: Option<u64>, bytes: Option<u64>) {
            assert_eq!(phase, Phase::Check);
            *lock(&self.0) = (objects.unwrap(), bytes.unwrap(), 0, 0, false);
        }
        fn advance(&self, _: Phase, objects: u64, bytes: u64) {
            let mut sum = lock(&self.0);
            sum.2 += objects;
            sum.3 += bytes;
        }
        fn end(&self, _: Phase) {
            lock(&self.0).4 = true;
        }
    }
    let fixture = healthy();
    let sum = Sum::default();
    check(&fixture.store, &FakeGit, &sum, &Cancel::default()).unwrap();
    let (objects, bytes, done, done_bytes, ended) = *lock(&sum.0);
    assert_eq!((done, done_bytes, ended), (objects, bytes, true));

    let cancel = Cancel::default();
    cancel.cancel();
    let sum = Sum::default();
    let result = check(&fixture.store, &FakeGit, &sum, &cancel);
    assert!(matches!(result, Err(Error::Cancelled)));
    assert!(lock(&sum.0).4);
}

#[test]
fn every_flipped_byte_of_a_segment_is_found() {
    let storage = FaultyStorage::new();
    let store = open(&storage);
    let text: Vec<u8> =
        (0..500_u64).flat_map(|n| format!("{n} {}, ", n * n).into_bytes()).collect();
    let names: Vec<_> = (0..12).map(|n| format!("name{n:02}")).collect();
    let tree = encode(&names.iter().map(|name| blob(name, &text)).collect::<Vec<_>>());
    change(&store, |batch| {
        put_blob(batch, &text);
        put_tree(batch, &tree);
    });
    assert_eq!(run(&store).findings, []);
    let len = storage.contents(&segment(1)).unwrap().len();
    assert!(len > SEGMENT_HEADER_BYTES + 2 * RECORD_HEADER_BYTES + 1000, "both lie in the segment");
    let mut whole = BTreeMap::new();
    for at in 0..len {
        let flip = move |bytes: &mut Vec<u8>| bytes[at] ^= 1 << (at % 8);
        storage.tamper(&segment(1), flip);
        let found = run(&store).findings;
        assert!(!found.is_empty(), "byte {at}");
        if let [Finding::BadRecord { object, .. }] = found.as_slice() {
            whole.insert(*object, flip);
        }
        storage.tamper(&segment(1), flip);
    }
    // What is whole needs nobody to be written anew.
    assert_eq!(whole.len(), 2, "the checksum of the chunk and of the tree");
    whole.values().for_each(|flip| storage.tamper(&segment(1), flip));
    let steps = plan(&run(&store).findings);
    assert_eq!(steps, whole.keys().map(|object| Step::Record(*object)).collect::<Vec<_>>());
    for taken in execute(&store, &steps, &Alone, &Cancel::default()).unwrap() {
        assert_eq!(taken.outcome, Ok(()), "{}", taken.step);
    }
    assert_eq!(run(&store).findings, []);
}

/// Nobody from whom anything could be rebuilt.
pub(super) struct Alone;

impl Surroundings for Alone {
    fn contents(&self, _: &Branch) -> Option<Arc<Contents>> {
        None
    }

    fn is_open(&self, _: &Branch) -> bool {
        false
    }
}

#[test]
fn damage_in_the_database_is_found_or_harmless() {
    let Fixture { storage, store, inline, middle, large, root, .. } = healthy();
    drop(store);
    let path = Path::new(DIR).join("store.redb");
    let good = storage.contents(&path).unwrap();
    let mut found = 0;
    for (seed, dice) in noise(9, 8 * 250).chunks_exact(8).enumerate() {
        let at = u64::from_le_bytes(dice.try_into().unwrap()) as usize % good.len();
        storage.tamper(&path, |bytes| bytes.clone_from(&good));
        // Beyond what the parity can know.
        let flip = |bytes: &mut [u8]| {
            let at = at % bytes.len();
            bytes[at] ^= 1 << (seed % 8);
        };
        tamper_database(&storage, &path, flip).unwrap();
        let Ok(store) = Store::open_on(Arc::new(storage.clone()), Path::new(DIR)) else {
            found += 1;
            continue;
        };
        if !run(&store).findings.is_empty() {
            found += 1;
            continue;
        }
        for bytes in [&inline, &middle, &large] {
            let oid = fake_oid(ContentId::of(bytes).as_bytes());
            let stored = store.content_of(&oid).unwrap().expect("the map is whole");
            let mut out = vec![0; bytes.len()];
            assert_eq!(store.read_at(stored.id, 0, &mut out).unwrap(), bytes.len());
            assert!(out == *bytes);
        }
        assert_eq!(store.branch("demo", "main").unwrap().unwrap().root, root.subtree.id);
        assert!(store.tree(root.subtree.id).is_ok());
    }
    assert!(found > 2, "{found}");
}

fn bad_chunk(id: ChunkId, report: &CheckReport) {
    match report.findings.as_slice() {
        [Finding::BadChunk { id: found, why }] if *found == id => {
            assert!(why.contains("segment"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_damaged_chunk_is_found_alone_or_as_part_of_a_content() {
    let fixture = healthy();
    let content = Preparer::new().content(&fixture.large);
    for (id, bytes) in [
        (ChunkId::of(&fixture.middle), &fixture.middle[..]),
        (content.chunks[1].id, &content.chunks[1].stored),
    ] {
        let damage = |number: u32| {
            let flip = |file: &mut Vec<u8>| {
                let found = file.windows(64).position(|window| window == &bytes[..64]);
                found.map(|at| file[at + 40] ^= 1).is_some()
            };
            let mut hit = false;
            if fixture.storage.contents(&segment(number)).is_some() {
                fixture.storage.tamper(&segment(number), |file| hit = flip(file));
            }
            hit
        };
        let number = (1..4).find(|number| damage(*number)).unwrap();
        bad_chunk(id, &run(&fixture.store));
        fixture.storage.tamper(&segment(number), |file| {
            let found = file.windows(40).position(|window| window == &bytes[..40]);
            file[found.unwrap() + 40] ^= 1;
        });
        assert_eq!(run(&fixture.store).findings, []);
    }
}

#[test]
fn wrong_sizes_ids_and_missing_things_are_found() {
    let fixture = healthy();
    let missing = ContentId::of(b"missing");
    let odd = encode(&[
        blob("middle", &fixture.middle[1..]),
        Entry { content: Some(missing), size: 7, ..blob("missing", b"?") },
        Entry { size: 3, ..blob("short", &fixture.inline) },
    ]);
    let absent = encode(&[blob("a", b"a")]);
    let other = encode(&[directory("absent", &absent)]);
    let wrong_blob = fake_oid(&[8; 32]);
    let wrong_tree = fake_oid(&[9; 32]);
    let middle = Stored { id: ContentId::of(&fixture.middle), size: 5000 };
    let unknown = fake_oid(&[7; 32]);
    change(&fixture.store, |batch| {
        batch.put_tree(&odd).unwrap();
        batch.put_tree(&other).unwrap();
        batch.map_blob(&unknown, Stored { id: missing, size: 7 });
        batch.map_tree(&wrong_tree, &[1; 32], &fixture.inner.subtree).unwrap();
        batch.put_branch(&branch("lost", absent.subtree.id));
        batch.put_branch(&Branch { repository: "gone".into(), ..branch("b", odd.subtree.id) });
        batch.put_worktree(&worktree("nowhere"));
    });
    let missing_why = || "is missing".to_owned();
    let lost = || "is missing or damaged".to_owned();
    let mut expected = vec![
        Finding::WrongContent {
            id: missing,
            by: format!("\"missing\" in tree {}", odd.subtree.id),
            why: missing_why(),
        },
        Finding::WrongContent {
            id: missing,
            by: format!("git blob {unknown}"),
            why: missing_why(),
        },
        Finding::WrongContent {
            id: ContentId::of(&fixture.inline),
            by: format!("\"short\" in tree {}", odd.subtree.id),
            why: "has 100 bytes and not 3".into(),
        },
        Finding::WrongTree {
            id: absent.subtree.id,
            by: format!("tree {}", other.subtree.id),
            why: lost(),
        },
        Finding::WrongTree { id: absent.subtree.id, by: "branch demo:lost".into(), why: lost() },
        Finding::WrongOid {
            oid: wrong_tree,
            of: format!("tree {}", fixture.inner.subtree.id),
            found: fake_oid(fixture.inner.subtree.id.as_bytes()),
        },
        Finding::Dangling { record: "branch gone:b".into(), names: "repository gone".into() },
        Finding::Dangling { record: "worktree /w".into(), names: "branch demo:nowhere".into() },
    ];
    expected.sort();
    assert_eq!(run(&fixture.store).findings, expected);

    let fixture = healthy();
    let large = Stored { id: ContentId::of(&fixture.large), size: 2_500_000 };
    for stored in [middle, large] {
        change(&fixture.store, |batch| batch.map_blob(&wrong_blob, stored));
        let findings = run(&fixture.store).findings;
        let found = fake_oid(stored.id.as_bytes());
        let wrong =
            Finding::WrongOid { oid: wrong_blob, of: format!("content {}", stored.id), found };
        assert!(findings.contains(&wrong), "{findings:?}");
        // The map's way back, one entry a content, now leads elsewhere for one of the two.
        let back = findings.iter().filter(|f| matches!(f, Finding::BadEntry { .. })).count();
        assert_eq!(findings.len(), 1 + back, "{findings:?}");
    }
}

#[test]
fn a_tree_recorded_otherwise_than_it_is_is_found() {
    let fixture = healthy();
    let mut lying = fixture.inner.subtree;
    lying.descendants += 5;
    let tree = EncodedTree { subtree: lying, bytes: Vec::new() };
    let parent = encode(&[directory("inner", &tree)]);
    change(&fixture.store, |batch| batch.put_tree(&parent).unwrap());
    let by = format!("tree {}", parent.subtree.id);
    let why = "is not as recorded".to_owned();
    assert_eq!(run(&fixture.store).findings, [Finding::WrongTree { id: lying.id, by, why }]);
}

#[test]
fn a_chunk_outside_its_segment_and_a_lost_segment_are_found() {
    let fixture = healthy();
    let cut = |len: usize| {
        fixture.storage.tamper(&segment(1), |bytes| bytes.truncate(len));
        run(&fixture.store).findings
    };
    let len = fixture.storage.contents(&segment(1)).unwrap().len();
    let findings = cut(len - 1);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].to_string().contains("the segment file ends before"), "{}", findings[0]);
    assert!(cut(10).iter().any(|finding| matches!(finding, Finding::BadSegment { number: 1, .. })));
    fixture.storage.remove(&segment(1)).unwrap();
    let Fixture { storage, store, .. } = fixture;
    drop(store);
    let findings = run(&open(&storage)).findings;
    assert!(findings.iter().any(|f| f.to_string().contains("the segment file is missing")));
}

#[test]
fn what_nothing_references_is_waste_and_no_damage() {
    let fixture = healthy();
    let middle = Preparer::new().content(&fixture.middle);
    change(&fixture.store, |batch| batch.replace_chunk(&middle.chunks[0]).unwrap());
    let report = run(&fixture.store);
    assert_eq!(report.findings, []);
    assert_eq!(report.waste, (RECORD_HEADER_BYTES + fixture.middle.len()) as u64);
    // Not even when it is damaged.
    fixture.storage.tamper(&segment(1), |bytes| {
        let found = bytes.windows(64).position(|window| window == &fixture.middle[..64]);
        bytes[found.unwrap()] ^= 1;
    });
    assert_eq!(run(&fixture.store), report);
}

#[test]
fn a_check_beside_a_writer_finds_nothing() {
    let fixture = healthy();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let middle = Preparer::new().content(&fixture.middle);
            let mut rounds = 0;
            while rounds < 5 || !done.load(Ordering::Relaxed) {
                change(&fixture.store, |batch| {
                    put_blob(batch, &noise(100 + rounds, 3000));
                    batch.replace_chunk(&middle.chunks[0]).unwrap();
                });
                let mut abandoned = fixture.store.batch().unwrap();
                put_blob(&mut abandoned, &noise(9999, 70_000));
                drop(abandoned);
                rounds += 1;
            }
        });
        for _ in 0..20 {
            assert_eq!(run(&fixture.store).findings, []);
        }
        done.store(true, Ordering::Relaxed);
    });
}
