//! Goal: an ordinary user does everything through fusermount3 that root does without it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use agentfs_tests::{TestStore, fixture, fuse_available, mounts};

/// A store of an ordinary user, and a repository of that user.
fn store_and_source() -> (TestStore, String) {
    let mut store = TestStore::new();
    let home = store.become_ordinary();
    let source = fixture::Builder::new(&home.join("source"));
    source.file("a", "one").file("b/c", "two".repeat(50_000)).link("l", "b/c").commit("one");
    if let Some(user) = store.user() {
        user.own(source.dir());
    }
    (store, source.dir().display().to_string())
}

/// Runs a program as the user and returns what it prints.
fn run(store: &TestStore, program: &[&str]) -> String {
    let mut command = store.program(program[0]);
    command.args(&program[1..]);
    let finished = store.finish(command);
    assert_eq!(finished.code, 0, "{program:?}: {}{}", finished.stdout, finished.stderr);
    finished.stdout
}

/// A worktree is the source, and git finds nothing to say about it.
fn assert_whole(store: &TestStore, source: &str, dir: &str) {
    run(store, &["diff", "-r", "--no-dereference", "--exclude=.git", source, dir]);
    assert_eq!(run(store, &["git", "-C", dir, "status", "--porcelain"]), "");
}

#[test]
fn an_ordinary_user_clones_reads_recovers_and_unmounts() {
    if !fuse_available() {
        return;
    }
    let (store, source) = store_and_source();
    let user = fs::metadata(&source).expect("the source").uid();
    assert_ne!(user, 0, "this is no test of root");
    let dirs = ["one", "two"].map(|name| store.path_text(&format!("user/{name}")));
    store.ok(&["clone", "--wait", &source, &dirs[0]]);
    store.ok(&["mount", "source@main", &dirs[1]]);
    let daemon = store.daemon().expect("a daemon").as_raw_nonzero();
    let process = fs::metadata(format!("/proc/{daemon}")).expect("it runs");
    assert_eq!(process.uid(), user, "the daemon is the user's");
    for dir in &dirs {
        let mounted = store.mounts_below(Path::new(dir));
        assert_eq!(mounted.len(), 1, "{mounted:?}");
        assert_eq!(mounted[0].fstype, "fuse.agentfs");
        assert_whole(&store, &source, dir);
    }
    assert_eq!(run(&store, &["stat", "-c", "%u", &dirs[0]]).trim(), user.to_string());
    assert_eq!(store.run(&["doctor"]).code, 0);
    store.ok(&["fsck"]);

    // Its dead mounts are cleared, and what was mounted comes back.
    store.kill_daemon();
    let listed = store.json(&["ps"]);
    let worktrees = listed["worktrees"].as_array().expect("worktrees");
    assert!(worktrees.iter().all(|worktree| worktree["mounted"] == true), "{listed}");
    assert_eq!(store.mounts_below(&store.path("user")).len(), 2);
    dirs.iter().for_each(|dir| assert_whole(&store, &source, dir));

    store.ok(&["umount", &dirs[0]]);
    assert_eq!(store.mounts_below(&store.path("user")).len(), 1);
    assert_eq!(fs::read_dir(&dirs[0]).expect("the mount point").count(), 0);
    assert_whole(&store, &source, &dirs[1]);
    store.ok(&["daemon", "stop"]);
    assert_eq!(store.mounts_below(&store.path("user")), []);
}

#[test]
fn an_ordinary_user_without_fusermount3_is_told_before_anything_is_done() {
    // Only root can hide it from somebody.
    if !fuse_available() || !mounts::is_root() {
        return;
    }
    let (store, source) = store_and_source();
    store.user().expect("this is root").hide("fusermount3");
    let new = store.path_text("user/new");
    let said = store.fails(8, &["clone", &source, &new]);
    assert!(said.contains("fusermount3") && said.contains("package fuse3"), "{said}");
    assert!(said.contains("--no-mount"), "{said}");
    assert!(!Path::new(&new).exists() && !store.home().exists());
    assert_eq!(store.run(&["doctor"]).code, 8);
    // Everything else works.
    store.ok(&["clone", "--no-mount", "--wait", &source]);
    let said = store.fails(8, &["mount", "source@main", &new]);
    assert!(said.contains("fusermount3"), "{said}");
}
