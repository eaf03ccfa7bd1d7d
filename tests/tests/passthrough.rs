//! Goal: with the lever `passthrough`, branches read the large files that they have in common from one file, over each
//! transport; whatever happens to that file, to the daemon that makes it or to the branch, nobody reads anything
//! wrong.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agentfs_tests::fixture::Builder;
use agentfs_tests::fleet::{assert_sound, fork, status};
use agentfs_tests::{TestStore, campaign, fuse_available, git, mounts, tree};

const LARGE: usize = 12 << 20;

/// Bytes that do not compress, other ones for each seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The levers of each transport that can be had here, with passthrough; none where that cannot be.
fn transports() -> Vec<&'static str> {
    let store = TestStore::new();
    let doctor = || store.run(&["doctor", "--json"]).events().pop().unwrap_or_default();
    let findings = doctor()["findings"].as_array().cloned().unwrap_or_default();
    let can = |name: &str| findings.iter().any(|one| one["name"] == name && one["state"] == "ok");
    match (fuse_available() && can("FUSE passthrough"), can("FUSE over io_uring")) {
        (false, _) => Vec::new(),
        (true, false) => vec!["passthrough"],
        (true, true) => vec!["passthrough", "passthrough,io_uring"],
    }
}

/// A store with a mounted worktree of a repository with two large files; the second commit changes one.
fn mounted(levers: &str) -> (TestStore, PathBuf) {
    let mut store = TestStore::with_limit(Duration::from_secs(600));
    store.set_levers_on(levers);
    let source = Builder::new(&store.path("source"));
    source.file("large", noise(1, LARGE)).file("other", noise(2, 3 << 20));
    // A program, with room behind it.
    let mut program = fs::read("/bin/sh").unwrap();
    program.resize(program.len().max(1 << 21), 0);
    source.file("program", program).file("small", "small\n");
    fs::set_permissions(source.dir().join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    source.commit("first");
    source.file("large", noise(3, LARGE)).commit("second");
    let dir = store.path("main");
    store.ok(&["clone", "--wait", &source.dir().display().to_string(), &dir.display().to_string()]);
    (store, dir)
}

fn reads(file: &File, expected: &[u8]) -> bool {
    let mut bytes = vec![0; expected.len()];
    file.read_exact_at(&mut bytes, 0).is_ok() && bytes == expected
}

/// The plain files of the cache, and those that are being made.
fn cached(store: &TestStore) -> (Vec<PathBuf>, usize) {
    let listed = fs::read_dir(store.home().join("files")).into_iter().flatten().flatten();
    let (new, there): (Vec<_>, _) = listed
        .map(|entry| entry.path())
        .partition(|path| path.file_name().unwrap().as_encoded_bytes().starts_with(b"."));
    (there, new.len())
}

fn damage(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1_000_001).unwrap();
    file.write_all_at(&[byte[0] ^ 8], 1_000_001).unwrap();
}

#[test]
fn branches_read_one_file_and_git_and_everybody_sees_the_same() {
    for levers in transports() {
        let (store, main) = mounted(levers);
        let side = fork(&store, "side", "main");
        let (first, second) = (File::open(main.join("large")), File::open(side.join("large")));
        assert!(reads(&first.unwrap(), &noise(3, LARGE)));
        assert!(reads(&second.unwrap(), &noise(3, LARGE)));
        assert_eq!(cached(&store).0.len(), 1);
        for dir in [&main, &side] {
            let counters = store.counters(dir);
            assert_eq!((counters["read"], counters["files_passed"]), (0, 1), "{counters:?}");
        }
        assert_eq!(tree::read(&main), tree::read(&side));
        let ran = Command::new(main.join("program")).args(["-c", "exit 7"]).status().unwrap();
        assert_eq!(ran.code(), Some(7));
        assert_eq!(status(&main), "");
        git(&main, &["fsck", "--no-progress"]);
        // git hashes what it is made to read.
        let hash = |dir: &Path| git(dir, &["hash-object", "large"]);
        assert_eq!(hash(&main), git(&main, &["rev-parse", "HEAD:large"]));
        assert_eq!(cached(&store).0.len(), 3);
        let du = store.json(&["du"]);
        assert_eq!(du["files"]["count"], 3, "{du}");
        assert!(du["files"]["bytes"].as_u64() >= Some((LARGE + (5 << 20)) as u64));
        // What a branch writes is its own.
        fs::write(side.join("large"), "written").unwrap();
        assert!(reads(&File::open(main.join("large")).unwrap(), &noise(3, LARGE)));
        assert_eq!(fs::read(side.join("large")).unwrap(), b"written");
        assert_eq!(status(&side), " M large");
        // A backup has nothing of it.
        let backup = |name| {
            let path = store.path_text(name);
            store.ok(&["backup", &path]);
            fs::metadata(&path).unwrap().len()
        };
        let with = backup("with");
        cached(&store).0.iter().for_each(|path| fs::remove_file(path).unwrap());
        assert!(with.abs_diff(backup("without")) < 1 << 20);
        assert_sound(&store);
    }
}

#[test]
fn what_changes_a_file_that_is_read_past_the_daemon_is_right_or_refused_by_name() {
    for levers in transports() {
        let (store, main) = mounted(levers);
        let path = main.join("large");
        let take =
            || store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
        let clean = take();
        fs::write(&path, noise(4, LARGE / 2)).unwrap();
        let changed = take();
        store.ok(&["snapshot", "restore", &clean]);
        let reader = File::open(&path).unwrap();
        assert!(reads(&reader, &noise(3, LARGE)));
        // In place: the reader would not see it.
        let before = store.json(&["snapshot", "list"]).to_string();
        let why = store.fails(1, &["snapshot", "restore", &changed]);
        assert!(why.contains("large"), "{why}");
        assert_eq!(store.json(&["snapshot", "list"]).to_string(), before);
        assert!(reads(&reader, &noise(3, LARGE)));
        assert!(reads(&File::open(&path).unwrap(), &noise(3, LARGE)));
        let refused = File::options().write(true).open(&path).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(26));
        // A snapshot and a fork change nothing that is read.
        take();
        let side = fork(&store, "side", "main");
        assert!(reads(&File::open(side.join("large")).unwrap(), &noise(3, LARGE)));
        fs::write(side.join("large"), "in the fork").unwrap();
        assert!(reads(&reader, &noise(3, LARGE)));
        // A switch puts another file in its place, as git does.
        store.ok(&["switch", &main.display().to_string(), "HEAD~1"]);
        assert!(reads(&reader, &noise(3, LARGE)));
        assert!(reads(&File::open(&path).unwrap(), &noise(1, LARGE)));
        assert_eq!(status(&main), "");
        store.ok(&["switch", &main.display().to_string(), "main"]);
        drop(reader);
        store.ok(&["snapshot", "restore", &changed]);
        assert!(reads(&File::open(&path).unwrap(), &noise(4, LARGE / 2)));
        assert_eq!(fs::metadata(&path).unwrap().len() as usize, LARGE / 2);
        store.ok(&["snapshot", "restore", &clean]);
        assert!(reads(&File::open(&path).unwrap(), &noise(3, LARGE)));
        // git has a look again at what is another file.
        assert_eq!(status(&main), "");
        assert_sound(&store);
    }
}

#[test]
fn a_daemon_that_is_killed_while_it_makes_a_file_leaves_none_that_is_half() {
    for levers in transports() {
        let (store, main) = mounted(levers);
        let mut in_the_making = 0;
        for round in 0..campaign::rounds(6) {
            store.ok(&["status"]);
            cached(&store).0.iter().for_each(|path| fs::remove_file(path).unwrap());
            let reader = File::open(main.join("other")).unwrap();
            let mut cat = Command::new("cat");
            cat.arg(main.join("large")).stdout(Stdio::null()).stderr(Stdio::null());
            let mut cat = cat.spawn().unwrap();
            let begun = Instant::now();
            while cached(&store).1 == 0 && begun.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_micros(100));
            }
            std::thread::sleep(Duration::from_micros(round * 3571 % 20_000));
            in_the_making += cached(&store).1;
            store.kill_daemon();
            cat.wait().unwrap();
            // Who has a file open so goes on without us.
            assert!(reads(&reader, &noise(2, 3 << 20)));
            drop(reader);
            store.ok(&["status"]);
            assert_eq!(cached(&store).1, 0, "round {round}");
            assert!(reads(&File::open(main.join("large")).unwrap(), &noise(3, LARGE)));
        }
        assert!(in_the_making > 0, "no file was half made when the daemon was killed");
        assert_eq!(status(&main), "");
        assert_sound(&store);
    }
}

#[test]
fn damage_in_the_cache_is_told_repaired_and_never_read() {
    for levers in transports() {
        let (store, main) = mounted(levers);
        let read = || reads(&File::open(main.join("large")).unwrap(), &noise(3, LARGE));
        assert!(read());
        let path = cached(&store).0.remove(0);
        for stopped in [false, true] {
            if stopped {
                store.ok(&["daemon", "stop"]);
            }
            damage(&path);
            let checked = store.run(&["fsck"]);
            assert!(
                checked.code == 5 && checked.stdout.contains("plain file"),
                "{}",
                checked.stdout
            );
            assert_eq!(store.run(&["fsck", "--repair"]).code, 9);
            assert!(!path.exists());
            assert!(read() && path.exists());
            assert_sound(&store);
            // Nor without a check.
            if stopped {
                store.ok(&["daemon", "stop"]);
            }
            damage(&path);
            store.ok(&["status"]);
            assert!(read());
            assert_sound(&store);
        }
        assert!(mounts::is_mounted(&main));
        // `gc` takes it when nothing leads to its content any more.
        store.ok(&["gc"]);
        assert!(path.exists());
    }
}
