//! Damage is found by `agentfs fsck` and by the read that meets it, and never served.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use agentfs_tests::{TestStore, fixture, fuse_available, git, tree};

/// The largest file of the store's segments.
fn segment(store: &TestStore) -> PathBuf {
    let segments = fs::read_dir(store.home().join("segments")).unwrap();
    let files = segments.map(|entry| entry.unwrap().path());
    files.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

/// A store with the shared repository, all of it ingested, and its daemon stopped.
fn stored() -> (TestStore, PathBuf) {
    let store = TestStore::new();
    let dir = store.path("worktree");
    let source = fixture::codex().display().to_string();
    store.ok(&["clone", "--wait", &source, &dir.display().to_string()]);
    store.ok(&["daemon", "stop"]);
    (store, dir)
}

#[test]
fn a_flipped_byte_is_found_and_healed_by_the_read_that_meets_it() {
    if !fuse_available() {
        return;
    }
    let (store, dir) = stored();
    let path = segment(&store);
    let len = fs::metadata(&path).unwrap().len();
    for part in 1..20 {
        flip(&path, len * part / 20);
    }
    let found = store.run(&["fsck", "--json"]);
    assert_eq!(found.code, 5, "{}{}", found.stdout, store.log());
    let report = found.events().pop().unwrap();
    assert!(report["damaged"].as_u64().unwrap() > 0, "{report}");
    assert!(store.run(&["fsck"]).stdout.contains("damaged:"));
    let native = store.path("native");
    let source = fixture::codex().display().to_string();
    git(&store.path(""), &["clone", "--quiet", &source, &native.display().to_string()]);
    tree::assert_same(&native, &dir);
    assert!(store.json(&["stats"])["counters"]["chunks_healed"].as_u64().unwrap() > 0);
    let after = store.run(&["fsck"]);
    assert_eq!(after.code, 0, "{}", after.stdout);
}

#[test]
fn a_truncated_database_is_told() {
    let store = TestStore::new();
    store.ok(&["daemon", "start"]);
    store.ok(&["daemon", "stop"]);
    let database = store.home().join("store.redb");
    let len = fs::metadata(&database).unwrap().len();
    for part in [0, 100, len / 2] {
        let whole = fs::read(&database).unwrap();
        fs::write(&database, &whole[..part as usize]).unwrap();
        let said = store.fails(5, &["ps"]);
        assert!(said.contains("store.redb"), "{part}: {said}");
        fs::write(&database, whole).unwrap();
    }
    store.ok(&["ps"]);
}

#[test]
fn a_store_of_another_version_is_refused_by_name() {
    let store = TestStore::new();
    store.ok(&["daemon", "start"]);
    store.ok(&["daemon", "stop"]);
    let format = store.home().join("format");
    let mut bytes = fs::read(&format).unwrap();
    let version = bytes.len() - 8;
    bytes[version] ^= 0x55;
    fs::write(&format, bytes).unwrap();
    let refused = store.run(&["ps"]);
    assert!([5, 6].contains(&refused.code), "{}: {}", refused.code, refused.stderr);
    assert!(refused.stderr.contains("hint:"), "{}", refused.stderr);
}
