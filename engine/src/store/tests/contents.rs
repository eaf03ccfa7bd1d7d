//! What is put into a store comes out of it again.

use super::*;

#[test]
fn contents_of_every_size_read_back() {
    let (_storage, store) = fresh();
    for size in [0, 1, 63, 64, 255, 257, 70_000, CHUNK_WHOLE_MAX, CHUNK_WHOLE_MAX + 1, 5_000_000] {
        for bytes in [noise(size as u64, size), b"text ".repeat(size / 5 + 1)] {
            let id = put(&store, &bytes);
            assert_eq!(id, ContentId::of(&bytes));
            assert!(store.has_content(id).unwrap());
            assert!(read_all(&store, id, bytes.len()).unwrap() == bytes, "{size}");
        }
    }
    let unknown = ContentId::of(b"unknown");
    assert!(!store.has_content(unknown).unwrap());
    assert!(matches!(store.read_at(unknown, 0, &mut [0]), Err(Error::MissingContent(_))));
    assert!(store.has_content(ContentId::of(b"")).unwrap(), "the empty file is always there");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Bias: reads that begin or end at the bounds of the content, and short ones anywhere.
    #[test]
    fn reads_give_what_a_slice_would(
        size in prop_oneof![1..2000_usize, 300_000..700_000_usize, 2_000_000..4_000_000_usize],
        reads in prop::collection::vec((0.0..1.1_f64, 0..300_000_usize), 1..40),
    ) {
        let (_storage, store) = fresh();
        let bytes = noise(1, size);
        let id = put(&store, &bytes);
        for (part, len) in reads {
            let offset = (size as f64 * part) as usize;
            let expected = &bytes[offset.min(size)..(offset + len).min(size).max(offset.min(size))];
            let mut out = vec![0; len];
            let read = store.read_at(id, offset as u64, &mut out).unwrap();
            prop_assert_eq!(read, expected.len());
            prop_assert!(out[..read] == *expected);
        }
        prop_assert_eq!(store.read_at(id, u64::MAX, &mut [0; 8]).unwrap(), 0);
    }
}

#[test]
fn a_batch_is_visible_only_once_it_is_committed() {
    let (storage, store) = fresh();
    let content = Preparer::new().content(&noise(1, 5000));
    let mut batch = store.batch().unwrap();
    batch.put_content(&content).unwrap();
    batch.put_branch(&branch("main"));
    assert!(!store.has_content(content.id).unwrap());
    drop(batch);
    assert!(!store.has_content(content.id).unwrap());
    assert_eq!(store.branches().unwrap(), []);
    assert_eq!(storage.contents(&segment(1)), None, "what was appended is taken back");

    let mut batch = store.batch().unwrap();
    batch.put_content(&content).unwrap();
    batch.put_branch(&branch("main"));
    batch.commit().unwrap();
    assert!(store.has_content(content.id).unwrap());
    assert_eq!(store.branches().unwrap(), [branch("main")]);
}

#[test]
fn what_is_stored_is_not_stored_again() {
    let (storage, store) = fresh();
    let bytes = noise(1, 100_000);
    put(&store, &bytes);
    let before = storage.contents(&segment(1)).unwrap().len();
    put(&store, &bytes);
    let content = Preparer::new().content(&bytes);
    let mut batch = store.batch().unwrap();
    batch.put_chunk(&content.chunks[0]).unwrap();
    batch.put_chunk(&content.chunks[0]).unwrap();
    batch.commit().unwrap();
    assert_eq!(storage.contents(&segment(1)).unwrap().len(), before);
}

#[test]
fn a_one_byte_edit_of_a_large_file_costs_little() {
    let (_storage, store) = fresh();
    let mut bytes = noise(1, 20_000_000);
    put(&store, &bytes);
    let before = store.statistics().unwrap().segment_bytes;
    bytes[9_999_999] ^= 1;
    let id = put(&store, &bytes);
    assert!(store.statistics().unwrap().segment_bytes - before < 1 << 20);
    assert!(read_all(&store, id, bytes.len()).unwrap() == bytes);
}

#[test]
fn the_git_map_leads_both_ways() {
    let (_storage, store) = fresh();
    let stored = Stored { id: ContentId::of(b"x"), size: 1 };
    let (sha1, sha256) = (oid(HashKind::Sha1, 1), oid(HashKind::Sha256, 2));
    let tree = tree(1);
    let context = [5; 32];
    let mut batch = store.batch().unwrap();
    batch.map_blob(&sha256, stored);
    batch.map_tree(&sha1, &context, &tree.subtree).unwrap();
    batch.commit().unwrap();
    assert_eq!(store.tree_of(&sha1, &context).unwrap(), None, "it is not stored");
    let mut batch = store.batch().unwrap();
    batch.put_tree(&tree).unwrap();
    batch.map_tree(&sha1, &context, &tree.subtree).unwrap();
    batch.commit().unwrap();
    assert_eq!(store.oid_of(stored.id).unwrap(), Some(sha256));
    let mut batch = store.batch().unwrap();
    batch.map_blob(&sha1, stored);
    batch.commit().unwrap();
    assert_eq!(store.content_of(&sha1).unwrap(), Some(stored));
    assert_eq!(store.content_of(&sha256).unwrap(), Some(stored));
    assert!([sha1, sha256].contains(&store.oid_of(stored.id).unwrap().unwrap()));
    assert_eq!(store.content_of(&oid(HashKind::Sha1, 3)).unwrap(), None);
    assert_eq!(store.oid_of(ContentId::of(b"y")).unwrap(), None);
    assert_eq!(store.tree_of(&sha1, &context).unwrap(), Some(tree.subtree));
    assert_eq!(store.tree_of(&sha1, &[0; 32]).unwrap(), None);
}

#[test]
fn a_manifest_names_only_chunks_that_are_there() {
    let (_storage, store) = fresh();
    let content = Preparer::new().content(&noise(1, 3_000_000));
    let mut batch = store.batch().unwrap();
    let missing = batch.put_manifest(&content.manifest());
    assert!(matches!(missing, Err(Error::MissingChunk(id)) if id == content.chunks[0].id));
    batch.put_chunk(&content.chunks[0]).unwrap();
    let mut wrong = content.manifest();
    wrong.size -= 1;
    assert!(matches!(batch.put_manifest(&wrong), Err(Error::Refused(_))));
    let single = StreamedContent { chunks: wrong.chunks[..1].to_vec(), ..wrong };
    let single = StreamedContent { size: u64::from(single.chunks[0].1), ..single };
    assert!(matches!(batch.put_manifest(&single), Err(Error::Refused(_))));
}

#[test]
fn records_are_put_replaced_and_removed() {
    let (storage, store) = fresh();
    let repository = Repository {
        name: "demo".into(),
        git_dir: "/r".into(),
        origin: None,
        hash: HashKind::Sha1,
        attached: false,
    };
    let worktree = WorktreeRecord {
        dir: "/w".into(),
        repository: "demo".into(),
        branch: "main".into(),
        read_only: true,
        allow_other: false,
        git_dir: "/g".into(),
    };
    let mut batch = store.batch().unwrap();
    batch.put_repository(&repository);
    batch.put_worktree(&worktree);
    batch.put_branch(&branch("b"));
    batch.put_branch(&branch("a"));
    batch.put_branch(&Branch { time: 99, ..branch("b") });
    batch.commit().unwrap();
    drop(store);
    let store = open(&storage).unwrap();
    assert_eq!(store.repository("demo").unwrap(), Some(repository.clone()));
    assert_eq!(store.repository("dem").unwrap(), None);
    assert_eq!(store.repositories().unwrap(), [repository]);
    assert_eq!(store.worktree(Path::new("/w")).unwrap(), Some(worktree.clone()));
    assert_eq!(store.worktrees().unwrap(), [worktree]);
    assert_eq!(store.branch("demo", "b").unwrap().unwrap().time, 99);
    assert_eq!(store.branches().unwrap().len(), 2);

    let mut batch = store.batch().unwrap();
    batch.remove_repository("demo");
    batch.remove_repository("none");
    batch.remove_branch("demo", "a");
    batch.remove_worktree(Path::new("/w"));
    batch.commit().unwrap();
    assert_eq!(store.repositories().unwrap(), []);
    assert_eq!(store.worktrees().unwrap(), []);
    assert_eq!(store.branches().unwrap().len(), 1);
}

#[test]
fn small_files_cost_one_read_and_pieces_of_large_ones_are_cached() {
    let (_storage, store) = fresh();
    let small = put(&store, &noise(1, 9000));
    let large = put(&store, &noise(2, 3_000_000));
    let chunks = store.statistics().unwrap().chunks - 1;
    for _ in 0..3 {
        read_all(&store, small, 9000).unwrap();
    }
    assert_eq!(store.counters().chunks_read, 3);
    assert_eq!(store.counters().cache_hits, 0);
    let mut piece = vec![0; 100_000];
    for offset in (0..3_000_000).step_by(100_000) {
        assert_eq!(store.read_at(large, offset, &mut piece).unwrap(), 100_000);
    }
    assert_eq!(store.counters().chunks_read, 3 + chunks, "each chunk is read once");
    assert!(store.counters().cache_hits >= 30 - chunks);
}

#[test]
fn one_commit_costs_a_constant_number_of_syncs() {
    let (_storage, store) = fresh();
    put(&store, &noise(0, 1000));
    let cost = |files: u64| {
        let before = store.counters();
        let mut preparer = Preparer::new();
        let mut batch = store.batch().unwrap();
        for file in 0..files {
            batch.put_content(&preparer.content(&noise(files * 1000 + file, 3000))).unwrap();
        }
        batch.commit().unwrap();
        let after = store.counters();
        assert_eq!(after.commits - before.commits, 1);
        after.syncs - before.syncs
    };
    let one = cost(1);
    assert!(one <= 4, "{one}");
    assert_eq!(cost(500), one);
}

#[test]
fn readers_never_wait_and_never_see_half_a_batch() {
    let (_storage, store) = fresh();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let branches = store.branches().unwrap();
                    let times: BTreeSet<i64> = branches.iter().map(|branch| branch.time).collect();
                    assert!(times.len() <= 1, "{times:?}");
                    for branch in branches {
                        let bytes = noise(branch.time as u64, 2000);
                        let read = read_all(&store, ContentId::of(&bytes), 2000).unwrap();
                        assert!(read == bytes);
                    }
                }
            });
        }
        let mut preparer = Preparer::new();
        for round in 0..60 {
            let mut batch = store.batch().unwrap();
            batch.put_content(&preparer.content(&noise(round, 2000))).unwrap();
            for name in ["a", "b", "c"] {
                batch.put_branch(&Branch { time: round as i64, ..branch(name) });
            }
            batch.commit().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_batch_knows_when_it_is_large() {
    let (_storage, store) = fresh();
    let mut batch = store.batch().unwrap();
    let stored = Stored { id: ContentId::of(b"x"), size: 1 };
    let filled = (0..).take_while(|seed| {
        batch.map_blob(&oid(HashKind::Sha1, *seed), stored);
        !batch.is_full()
    });
    let entries = filled.count();
    assert!((50_000..300_000).contains(&entries), "{entries}");
    drop(batch);
    let lying = crate::content::PreparedChunk {
        id: ChunkId::of(b""),
        raw_len: crate::limits::CHUNK_BYTES_MAX + 1,
        encoding: crate::content::Encoding::Raw,
        stored: vec![0; 10],
    };
    let mut batch = store.batch().unwrap();
    assert!(matches!(batch.put_chunk(&lying), Err(Error::TooLarge { .. })));
}

#[test]
fn it_works_on_the_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("a/b/store");
    let store = Store::open(&home).unwrap();
    assert_eq!(store.dir(), home);
    let id = put(&store, &noise(1, 3_000_000));
    assert!(matches!(Store::open(&home), Err(Error::InUse { .. })));
    let statistics = store.statistics().unwrap();
    assert!(statistics.segment_bytes > 3_000_000 && statistics.database_bytes > 0);
    assert_eq!((statistics.manifests, statistics.raw_bytes), (1, 3_000_000));
    drop(store);
    let store = Store::open(&home).unwrap();
    assert!(read_all(&store, id, 3_000_000).unwrap() == noise(1, 3_000_000));
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&home).unwrap());
    assert_eq!(mode & 0o777, 0o700);
}
