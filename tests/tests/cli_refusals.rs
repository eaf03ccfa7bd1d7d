//! Bad input: each has one clear message with what to do, an exit code of its own kind, and leaves
//! the store and the file system as they were.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use agentfs_tests::{Connection, TestStore, fixture, fuse_available, git, mounts, tree};
use serde_json::json;

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
    git(&taken, &["branch", "over/main"]);
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
        (3, "not a worktree", vec!["worktree", "remove", &new]),
        (3, "not a worktree", vec!["worktree", "remove", &source]),
        (4, "cannot name a branch", vec!["branch", "create", "a..b", "--from", "source@main"]),
        (4, "cannot name a branch", vec!["branch", "create", "a b", "--from", "source@main"]),
        (4, "cannot name a branch", vec!["branch", "create", "HEAD", "--from", "source@main"]),
        (4, "cannot name a branch", vec!["branch", "create", "", "--from", "source@main"]),
        (4, "beside main", vec!["branch", "create", "main/sub", "--from", "source@main"]),
        (4, "beside over/main", vec!["branch", "create", "over", "--from", "source@main"]),
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
fn a_worktree_is_not_removed_unless_git_says_of_it_that_nothing_has_changed() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let taken = store.clone(source(&store).dir(), "taken");
    fs::write(taken.join("mine"), "m").unwrap();
    let args = ["worktree", "remove", &text(&taken)];
    // Hooks are called with the repository that they are of.
    let other = fixture::Builder::new(&store.path("other"));
    other.file("b", "x").commit("x");
    let other = text(other.dir());
    let mut command = store.command(&args);
    command.env("GIT_DIR", format!("{other}/.git")).env("GIT_WORK_TREE", &other);
    let finished = store.finish(command);
    assert_eq!(finished.code, 4, "{}", finished.stderr);
    assert!(finished.stderr.contains("modified or untracked"), "{}", finished.stderr);
    fs::remove_file(taken.join("mine")).unwrap();
    let index = git(&taken, &["rev-parse", "--git-path", "index"]);
    let whole = fs::read(&index).unwrap();
    fs::write(&index, "no index").unwrap();
    let said = store.fails(4, &args);
    assert!(said.contains("git cannot say") && said.contains("--force"), "{said}");
    fs::write(&index, whole).unwrap();
    store.ok(&args);
    assert!(!taken.exists());
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
    let medium = store.set_medium("ro,size=1m");
    let clone = ["clone", "--no-mount", &text(source.dir())];
    let said = store.fails(6, &clone);
    assert!(said.contains("read-only") || said.contains("Read-only"), "{said}");
    assert!(said.contains("AGENTFS_HOME"), "{said}");
    mounts::detach_all(&medium);
}

#[test]
fn a_store_that_can_no_longer_be_written_is_told_and_works_when_it_can() {
    if !fuse_available() || !mounts::is_root() {
        return;
    }
    let mut store = TestStore::new();
    let source = source(&store);
    store.set_medium("rw,size=16m");
    let dir = store.clone(source.dir(), "worktree");
    store.ok(&["daemon", "stop"]);
    store.set_medium("ro");
    let before = tree::read(store.home());
    let new = store.path_text("new");
    let dir = text(&dir);
    let commands: [&[&str]; 5] = [
        &["ps"],
        &["clone", &text(source.dir()), &new],
        &["attach", &text(source.dir())],
        &["mount", "source@main", &new],
        &["umount", &dir],
    ];
    for args in commands {
        let said = store.fails(6, args);
        assert!(said.contains("Read-only"), "{args:?}: {said}");
        assert!(said.contains("hint:") && said.contains("AGENTFS_HOME"), "{args:?}: {said}");
    }
    assert_eq!(tree::read(store.home()), before);
    assert!(!Path::new(&new).exists());
    assert_eq!(store.daemon(), None);
    store.set_medium("rw");
    store.ok(&["ps"]);
    assert_eq!(fs::read_to_string(Path::new(&dir).join("a")).unwrap(), "one");
    store.ok(&["fsck"]);
}

#[test]
fn a_directory_in_a_worktree_of_another_store_is_refused() {
    if !fuse_available() {
        return;
    }
    let (other, store) = (TestStore::new(), TestStore::new());
    let taken = other.clone(source(&other).dir(), "worktree");
    let source = text(source(&store).dir());
    store.ok(&["clone", "--no-mount", "--wait", &source]);
    let before = snapshot(&store);
    let inside = text(&taken.join("sub"));
    let commands: [&[&str]; 3] = [
        &["clone", &source, &text(&taken)],
        &["clone", &source, &inside],
        &["mount", "source@main", &inside],
    ];
    for args in commands {
        let said = store.fails(4, args);
        assert!(said.contains(&text(&taken)) && said.contains("hint:"), "{args:?}: {said}");
    }
    assert_eq!(snapshot(&store), before);
    assert!(!Path::new(&inside).exists());
    assert_eq!(git(&taken, &["status", "--porcelain"]), "");
    store.ok(&["fsck"]);
}

/// A repository with three million bytes that cannot be compressed.
fn noise(store: &TestStore) -> fixture::Builder {
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
    large
}

#[test]
fn a_full_disk_is_told_and_the_store_works_when_there_is_room() {
    if !fuse_available() || !mounts::is_root() {
        return;
    }
    let mut store = TestStore::new();
    let small = source(&store);
    let large = noise(&store);
    store.set_medium("size=5m");
    store.clone(small.dir(), "small");
    let daemon = store.daemon();
    let said = store.fails(6, &["clone", "--wait", &text(large.dir()), &store.path_text("new")]);
    assert!(said.contains("No space left") && said.contains("hint:"), "{said}");
    assert!(!store.path("new").exists());
    let listed = store.json(&["ps"]);
    assert_eq!(listed["repositories"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(fs::read_to_string(store.path("small/a")).unwrap(), "one");
    store.set_medium("size=64m");
    store.ok(&["clone", "--wait", &text(large.dir()), &store.path_text("new")]);
    assert_eq!(git(&store.path("new"), &["status", "--porcelain"]), "");
    store.ok(&["fsck"]);
    assert_eq!(store.daemon(), daemon, "no other daemon was needed");
}

#[test]
fn an_ingest_that_finds_the_disk_full_goes_on_when_there_is_room() {
    if !fuse_available() || !mounts::is_root() {
        return;
    }
    let mut store = TestStore::new();
    let large = noise(&store);
    let medium = store.set_medium("size=32m");
    store.ok(&["daemon", "start"]);
    let daemon = store.daemon();
    // The ingest begins when the answer is confirmed: by then the disk is full.
    let dir = store.path("worktree");
    let mut client = Connection::new(&store);
    let params = json!({"source": large.dir(), "mount": {"dir": dir}, "confirm": true});
    client.call("clone", &params);
    let mut filler = fs::File::create(medium.join("filler")).unwrap();
    while filler.write_all(&[7; 1 << 16]).is_ok() {}
    filler.set_len(filler.metadata().unwrap().len().saturating_sub(500_000)).unwrap();
    drop(filler);
    client.confirm();
    let branch = || store.json(&["ps"])["repositories"][0]["branches"][0].clone();
    store.wait_until("the disk is full", || branch()["failure"].is_string());
    let why = branch()["failure"].as_str().unwrap().to_owned();
    assert!(why.contains("No space left"), "{why}");
    assert_eq!(branch()["ingested"], false);
    // Everything can be read meanwhile, and checked.
    let native = fs::read(large.dir().join("part-7")).unwrap();
    assert!(fs::read(dir.join("part-7")).unwrap() == native);
    assert_eq!(store.run(&["fsck"]).code, 0);
    fs::remove_file(medium.join("filler")).unwrap();
    store.wait_until("it goes on", || branch()["ingested"] == true);
    assert!(branch()["failure"].is_null(), "{}", branch());
    assert_eq!(store.daemon(), daemon, "no other daemon was needed");
    store.ok(&["fsck"]);
    tree::assert_same(large.dir(), &dir);
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
