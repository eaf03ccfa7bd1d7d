//! Killed at any time, a clone leaves nothing half-made, and the next one does the whole work.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use agentfs_tests::{TestStore, fixture, fuse_available, git, mounts};
use rustix::process::{Pid, Signal, kill_process};

/// Names in the directory of the repositories.
fn repositories(store: &TestStore) -> Vec<String> {
    let entries = fs::read_dir(store.home().join("repos")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Asserts that the store knows of nothing, nothing is mounted, and no trace is on disk.
fn assert_untouched(store: &TestStore, dir: &Path) {
    let nothing = || {
        let listed = store.json(&["ps"]);
        listed["repositories"].as_array().unwrap().is_empty()
            && listed["worktrees"].as_array().unwrap().is_empty()
            // What was being fetched is removed by the next clone at the latest.
            && repositories(store).iter().all(|name| name.starts_with(".incoming-"))
            && !dir.exists()
            && fs::read_dir(store.home().join("pending")).into_iter().flatten().next().is_none()
    };
    store.wait_until("what was begun is undone", nothing);
    assert_eq!(mounts::below(&store.path("")), []);
}

/// Whether the worktree is there, and not about to be undone.
fn stays(store: &TestStore, dir: &Path) -> bool {
    let is_there = || {
        let listed = store.json(&["ps"]);
        listed["worktrees"].as_array().unwrap().iter().any(|one| one["mounted"] == true)
    };
    (0..20).all(|_| {
        std::thread::sleep(Duration::from_millis(50));
        dir.exists() && is_there()
    })
}

fn start(mut command: Command, after: Duration) -> (std::process::Child, Pid) {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(after);
    let pid = Pid::from_child(&child);
    (child, pid)
}

/// Kills clones with `signal` at one moment after the other; those that were fast enough have left a
/// whole worktree.
fn interrupt_clones(signal: Signal, options: &[&str]) {
    if !fuse_available() {
        return;
    }
    let source = fixture::codex().display().to_string();
    let store = TestStore::with_limit(Duration::from_secs(600));
    let dir = store.path("worktree");
    let shown = dir.display().to_string();
    let args = [&["clone", source.as_str(), &shown], options].concat();
    let mut interrupted = 0;
    for millis in (0..200).step_by(8) {
        let (child, pid) = start(store.command(&args), Duration::from_millis(millis));
        let _ = kill_process(pid, signal);
        let ended = child.wait_with_output().unwrap();
        // One that has said that it is done may be killed after that, or before the daemon knows.
        let said = !ended.stdout.is_empty() && stays(&store, &dir);
        if ended.status.success() || said {
            assert_eq!(git(&dir, &["status", "--porcelain"]), "");
            store.ok(&["umount", &dir.display().to_string()]);
            store.ok(&["daemon", "stop"]);
            fs::remove_dir_all(store.home()).unwrap();
            fs::remove_dir(&dir).unwrap();
            break;
        }
        interrupted += 1;
        assert_untouched(&store, &dir);
    }
    assert!(interrupted > 0);
    store.ok(&args);
    assert_eq!(repositories(&store).len(), 1, "{:?}", repositories(&store));
    assert_eq!(git(&dir, &["status", "--porcelain"]), "");
    store.ok(&["fsck"]);
}

#[test]
fn a_clone_that_is_killed_leaves_nothing() {
    interrupt_clones(Signal::KILL, &[]);
}

#[test]
fn a_clone_that_is_interrupted_leaves_nothing() {
    interrupt_clones(Signal::INT, &["--wait"]);
}

#[test]
fn a_daemon_that_is_killed_during_a_clone_leaves_nothing() {
    if !fuse_available() {
        return;
    }
    let source = fixture::codex().display().to_string();
    let store = TestStore::with_limit(Duration::from_secs(600));
    let dir = store.path("worktree");
    let shown = dir.display().to_string();
    let args = ["clone", "--wait", &source, &shown];
    for millis in (5..150).step_by(12) {
        store.ok(&["daemon", "start"]);
        let (mut child, _) = start(store.command(&args), Duration::from_millis(millis));
        if let Some(pid) = store.daemon() {
            store.signal(pid, Signal::KILL);
        }
        let whole = child.wait().unwrap().success();
        let listed = store.json(&["ps"]);
        let worktrees = listed["worktrees"].as_array().unwrap();
        if whole || !worktrees.is_empty() {
            // It was on record already: then it is whole.
            assert_eq!(worktrees[0]["mounted"], true, "{listed}");
            assert_eq!(git(&dir, &["status", "--porcelain"]), "");
            store.ok(&["umount", &dir.display().to_string()]);
            store.ok(&["daemon", "stop"]);
            fs::remove_dir_all(store.home()).unwrap();
            fs::remove_dir(&dir).unwrap();
        } else {
            assert_untouched(&store, &dir);
        }
    }
    store.ok(&args);
    assert_eq!(repositories(&store).len(), 1, "{:?}", repositories(&store));
    assert_eq!(git(&dir, &["status", "--porcelain"]), "");
    store.ok(&["fsck"]);
}

#[test]
fn a_clone_whose_daemon_is_stopped_says_so() {
    let store = TestStore::new();
    store.ok(&["daemon", "start"]);
    let source = fixture::Builder::new(&store.path("source"));
    source.file("a", "one").commit("one");
    store.ok(&["daemon", "stop"]);
    store.ok(&["clone", "--no-mount", &source.dir().display().to_string()]);
}
