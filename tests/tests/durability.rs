//! Goal: what git needs of a worktree is durable before its branch counts as taken in, and nobody who
//! waits for a worktree waits for that.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use agentfs_tests::{Connection, TestStore, fixture, fuse_available, git};
use serde_json::json;

fn synced(store: &TestStore) -> u64 {
    store.json(&["stats"])["counters"]["git_files_synced"].as_u64().expect("a counter")
}

/// Directories below `dir`, itself included, and files in them that have no other link.
fn own_files(dir: &Path) -> u64 {
    let mut own = 1;
    for entry in fs::read_dir(dir).expect("a directory") {
        let entry = entry.expect("an entry");
        let metadata = entry.metadata().expect("an entry");
        own += match metadata {
            metadata if metadata.is_dir() => own_files(&entry.path()),
            metadata if metadata.is_file() && metadata.nlink() == 1 => 1,
            _ => 0,
        };
    }
    own
}

#[test]
fn a_clone_is_usable_before_git_directories_are_durable_and_taken_in_after() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = fixture::Builder::new(&store.path("source"));
    source.file("a", "one").file("b/c", "two").commit("one");
    let dir = store.path("worktree");
    store.ok(&["daemon", "start"]);
    // The daemon takes nothing in before it knows that the client has its answer.
    let mut client = Connection::new(&store);
    let params = json!({"source": source.dir(), "mount": {"dir": dir}, "confirm": true});
    let opened = client.call("clone", &params);
    assert_eq!(opened["ingested"], false, "{opened}");
    assert_eq!(fs::read_to_string(dir.join("b/c")).expect("the worktree is usable"), "two");
    assert_eq!(synced(&store), 0, "usable comes first");
    client.confirm();
    let status = || store.json(&["status", &dir.display().to_string()])["worktrees"][0].clone();
    store.wait_until("the content is in", || status()["ingested"] == true);
    // All of it, with the git directory and the index of the worktree, and the name of it.
    let repository = store.home().join("repos/source");
    assert!(repository.join("worktrees/worktree/index").is_file());
    assert_eq!(synced(&store), own_files(&repository) + 1);

    // Of a worktree more, its git directory and the two directories that lead to it.
    let before = synced(&store);
    let other = store.path_text("other");
    store.ok(&["mount", "source@main", &other]);
    let own = own_files(&repository.join("worktrees/other"));
    store.wait_until("its git directory is durable", || synced(&store) == before + own + 2);
    assert_eq!(git(&dir, &["status", "--porcelain"]), "");
}

#[test]
fn of_a_repository_in_place_only_our_part_is_synced() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = fixture::Builder::new(&store.path("source"));
    source.file("a", "one").commit("one");
    store.ok(&["attach", &source.dir().display().to_string(), "--wait"]);
    assert_eq!(synced(&store), 0);
    store.ok(&["mount", "source@main", &store.path_text("worktree")]);
    let own = own_files(&source.dir().join(".git/worktrees/worktree"));
    store.wait_until("its git directory is durable", || synced(&store) == own + 2);
}

/// What the outbox of the worktree at `dir` counts.
fn outbox(store: &TestStore, dir: &Path, name: &str) -> u64 {
    let stats = store.json(&["stats"]);
    let worktrees = stats["worktrees"].as_array().expect("a list of worktrees");
    let own = worktrees.iter().find(|worktree| worktree["dir"] == dir.display().to_string());
    own.and_then(|own| own["outbox"][name].as_u64()).unwrap_or_else(|| panic!("{name}: {stats}"))
}

#[test]
fn what_fsync_costs_the_disk_is_told() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = fixture::Builder::new(&store.path("source"));
    source.file("a", "one").commit("one");
    let dir = store.clone(source.dir(), "worktree");
    let counts = || ["records", "syncs_asked", "file_syncs"].map(|name| outbox(&store, &dir, name));
    let before = counts();
    const ROUNDS: u64 = 20;
    for round in 0..ROUNDS {
        let file = fs::File::create(dir.join("a")).expect("a worktree that is writable");
        file.write_all_at(&[b'x'; 100], round).expect("room");
        file.sync_all().expect("a sync");
    }
    let after = counts();
    // A drain may have added to them, and nothing takes away.
    for (name, before, after) in [0, 1, 2].map(|i| (i, before[i], after[i])) {
        assert!(after >= before + ROUNDS, "counter {name}: {before} to {after}");
    }

    let frozen = store.path("frozen");
    store.ok(&["mount", "--read-only", "source@main", &frozen.display().to_string()]);
    let stats = store.json(&["stats"]);
    let worktrees = stats["worktrees"].as_array().expect("a list of worktrees");
    let own = worktrees.iter().find(|worktree| worktree["dir"] == frozen.display().to_string());
    assert_eq!(own.expect("it is mounted")["outbox"], json!({}));
}
