//! Bad input: each has one clear message with what to do, an exit code of its own kind, and leaves
//! the store and the file system as they were.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use agentfs_tests::{TestStore, fixture, fuse_available, git, mounts};

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Every path below the store but the daemon's own files.
fn snapshot(store: &TestStore) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut pending = vec![store.home().to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(path.clone());
            }
            if !entry.file_name().to_string_lossy().starts_with("daemon.") {
                found.insert(path);
            }
        }
    }
    found
}

fn source(store: &TestStore) -> fixture::Builder {
    let source = fixture::Builder::new(&store.path("source"));
    source.file("a", "one").commit("one");
    source
}

#[test]
fn what_is_wrong_is_told_and_nothing_is_left() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = source(&store);
    let source = text(source.dir());
    let taken = store.clone(Path::new(&source), "taken");
    fs::create_dir(store.path("full")).unwrap();
    fs::write(store.path("full/file"), "").unwrap();
    fs::create_dir(store.path("plain")).unwrap();
    let before = snapshot(&store);
    let new = store.path_text("new");
    let path = |name: &str| store.path_text(name);
    let inside = format!("{}/sub", text(&taken));
    let in_store = text(&store.home().join("x"));
    for (code, words, args) in [
        (4, "not a git repository", vec!["clone", &path("plain"), &new]),
        (3, "does not exist", vec!["clone", &path("missing"), &new]),
        (4, "not empty", vec!["clone", &source, &path("full")]),
        (4, "not a directory", vec!["clone", &source, &path("full/file")]),
        (3, "does not exist", vec!["clone", &source, &path("no/such/dir")]),
        (4, "already", vec!["clone", &source, &text(&taken)]),
        (4, "lies in", vec!["clone", &source, &inside]),
        (4, "inside the store", vec!["clone", &source, &in_store]),
        (3, "nope", vec!["clone", "--rev", "nope", &source, &new]),
        (3, "nope", vec!["clone", "--branch", "nope", &source, &new]),
        (2, "cannot be used with", vec!["clone", "--branch", "b", "--rev", "r", &source, &new]),
        (3, "nope", vec!["mount", "source@nope", &new]),
        (3, "nope", vec!["mount", "nope@main", &new]),
        (4, "not empty", vec!["mount", "source@main", &path("full")]),
        (3, "not a worktree", vec!["umount", &path("full")]),
        (3, "in no worktree", vec!["status", &path("full")]),
        (4, "not a git repository", vec!["attach", &path("plain")]),
        (3, "No such file", vec!["attach", &path("missing")]),
        (2, "unrecognized", vec!["nope"]),
    ] {
        let said = store.fails(code, &args);
        assert!(said.contains(words), "agentfs {args:?} says {said:?}, not {words:?}");
        if code != 2 {
            assert!(said.contains("hint:"), "agentfs {args:?} does not say what to do: {said}");
        }
    }
    assert!(!Path::new(&new).exists());
    assert_eq!(snapshot(&store), before);
    assert_eq!(mounts::below(&store.path("")).len(), 1);
    let listed = store.json(&["ps"]);
    assert_eq!(listed["repositories"].as_array().unwrap().len(), 1);
}

#[test]
fn a_machine_without_fuse_is_told_before_anything_is_done() {
    // Only a private mount namespace can hide the device.
    if !fuse_available() || !mounts::is_root() || !mounts::installed("unshare") {
        return;
    }
    let store = TestStore::new();
    let source = source(&store);
    let hide = "mount -t tmpfs none /dev && exec \"$0\" \"$@\"";
    let run = |args: &[&str]| {
        let plain = store.command(args);
        let mut hidden = std::process::Command::new("unshare");
        hidden.args(["--mount", "sh", "-c", hide]).arg(plain.get_program()).args(plain.get_args());
        plain.get_envs().for_each(|(name, value)| {
            value.map(|value| hidden.env(name, value));
        });
        store.finish(hidden)
    };
    let refused = run(&["clone", &text(source.dir()), &store.path_text("new")]);
    assert_eq!(refused.code, 8, "{}", refused.stderr);
    assert!(refused.stderr.contains("/dev/fuse"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--no-mount"), "{}", refused.stderr);
    assert!(!store.path("new").exists() && !store.home().exists());
    let doctor = run(&["doctor"]);
    assert_eq!(doctor.code, 8);
    assert!(doctor.stdout.contains("modprobe fuse"), "{}", doctor.stdout);
}

#[test]
fn a_store_that_cannot_be_written_is_told() {
    if !mounts::is_root() || !mounts::installed("unshare") {
        return;
    }
    // Root may write everywhere but to a file system that is mounted read-only.
    let mut store = TestStore::new();
    let source = source(&store);
    let medium = store.path("medium");
    fs::create_dir(&medium).unwrap();
    let mount = |options: &str, what: &str| {
        let mut command = std::process::Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, what]).arg(&medium);
        assert!(command.status().unwrap().success());
    };
    store.set_home(medium.join("store"));
    mount("ro,size=1m", "none");
    let clone = ["clone", "--no-mount", &text(source.dir())];
    let said = store.fails(6, &clone);
    assert!(said.contains("read-only") || said.contains("Read-only"), "{said}");
    assert!(said.contains("AGENTFS_HOME"), "{said}");
    mounts::detach_all(&medium);
}

#[test]
fn a_full_disk_is_told_and_the_store_works_when_there_is_room() {
    if !fuse_available() || !mounts::is_root() {
        return;
    }
    let mut store = TestStore::new();
    let small = source(&store);
    let large = fixture::Builder::new(&store.path("large"));
    let mut noise = Vec::new();
    let mut seed = 7_u64;
    for _ in 0..3_000_000 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        noise.push(seed as u8);
    }
    for part in noise.chunks(100_000).enumerate() {
        large.file(format!("part-{}", part.0), part.1);
    }
    large.commit("noise");
    let medium = store.path("medium");
    fs::create_dir(&medium).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=5m", "none"])
        .arg(&medium)
        .status();
    assert!(mounted.unwrap().success());
    store.set_home(medium.join("store"));
    store.clone(small.dir(), "small");
    let said = store.fails(6, &["clone", "--wait", &text(large.dir()), &store.path_text("new")]);
    assert!(said.contains("No space left") && said.contains("hint:"), "{said}");
    assert!(!store.path("new").exists());
    let listed = store.json(&["ps"]);
    assert_eq!(listed["repositories"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(fs::read_to_string(store.path("small/a")).unwrap(), "one");
    let grown =
        std::process::Command::new("mount").args(["-o", "remount,size=64m"]).arg(&medium).status();
    assert!(grown.unwrap().success());
    store.ok(&["daemon", "stop"]);
    store.ok(&["clone", "--wait", &text(large.dir()), &store.path_text("new")]);
    assert_eq!(git(&store.path("new"), &["status", "--porcelain"]), "");
    store.ok(&["fsck"]);
}

#[test]
fn a_directory_that_cannot_be_entered_is_told() {
    if mounts::is_root() || !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = source(&store);
    let closed = store.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let said = store.fails(1, &["clone", &text(source.dir()), &text(&closed.join("new"))]);
    assert!(said.contains("closed"), "{said}");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
}
