//! Goal: a repository has as many branches of agentfs as anybody wants. Each begins with all that its origin has, costs
//! little of the disk, and of the daemon's memory only where it is mounted.
//!
//! `AGENTFS_TEST_BRANCHES` (60) says how many are begun; a tenth of them is mounted. With `--nocapture` the test says
//! what they cost: time and room on the disk for each, and the memory of the daemon.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use agentfs_tests::fleet::{assert_sound, status};
use agentfs_tests::{TestStore, campaign, fixture, fixture::git, fuse_available, tree};

/// What the daemon may take with a hundred branches mounted, in bytes.
const MEMORY_MAX: u64 = 200_000_000;
/// What a branch that is not mounted may take of the disk, in bytes. Eight files and directories of git that have 4 KiB
/// each are most of it, its reference, that one's log, and its git directory.
const DISK_EACH_MAX: u64 = 40 << 10;

/// What is used of the disk below `dir`, in bytes: a file that has several names counts once.
fn used(dir: &Path) -> u64 {
    let du = Command::new("du").args(["-s", "--block-size=1"]).arg(dir).output().unwrap();
    let said = String::from_utf8(du.stdout).unwrap();
    said.split_whitespace().next().unwrap().parse().unwrap()
}

fn memory(store: &TestStore) -> u64 {
    store.json(&["stats"])["process"]["memory_bytes"].as_u64().unwrap()
}

#[test]
#[expect(clippy::print_stderr, reason = "figures for whoever asks for them")]
fn a_thousand_branches_cost_little() {
    if !fuse_available() {
        return;
    }
    let branches = campaign::number_of("AGENTFS_TEST_BRANCHES", 60);
    let limit = Duration::from_secs(300 + branches);
    let store = TestStore::with_limit(limit);
    let main = store.clone(fixture::codex(), "main");
    store.wait_until("everything is stored", || {
        store.json(&["status"])["worktrees"][0]["ingested"] == true
    });
    let branch = git(&main, &["branch", "--show-current"]);
    let repository = store.json(&["status"])["worktrees"][0]["repository"].clone();
    let from = format!("{}@{branch}", repository.as_str().unwrap());
    fs::write(main.join("untracked"), "u\n").unwrap();
    let before = status(&main);
    // The first one drains what was written.
    store.ok(&["branch", "create", "first", "--from", &from]);
    let disk = used(store.home());

    let start = Instant::now();
    for number in 0..branches {
        store.ok(&["branch", "create", &format!("b{number}"), "--from", &from]);
    }
    let took = start.elapsed();
    let each = used(store.home()).saturating_sub(disk) / branches;
    eprintln!("{branches} branches: {took:.2?}, {each} bytes of the disk each");
    assert!(each <= DISK_EACH_MAX, "{each} bytes of the disk for each branch");
    let listed = git(&main, &["branch", "--list", "b*"]);
    assert_eq!(listed.lines().count() as u64, branches);

    let mounted = branches / 10;
    let start = Instant::now();
    for number in 0..mounted {
        let dir = store.path_text(&format!("m{number}"));
        store.ok(&["mount", &format!("b{number}"), &dir]);
    }
    let took = start.elapsed();
    let inode = |dir: &Path| fs::metadata(dir.join("untracked")).unwrap().ino();
    for number in 0..mounted {
        let dir = store.path(&format!("m{number}"));
        assert_eq!(fs::read(dir.join("untracked")).unwrap(), b"u\n");
        assert_eq!(inode(&dir), inode(&main));
        fs::write(dir.join("untracked"), format!("{number}\n")).unwrap();
    }
    let bytes = memory(&store);
    eprintln!("{mounted} of them mounted: {took:.2?}, the daemon has {} MiB", bytes >> 20);
    assert!(bytes < MEMORY_MAX, "the daemon has {bytes} bytes with {mounted} branches mounted");
    for number in 0..mounted {
        let dir = store.path(&format!("m{number}"));
        assert_eq!(fs::read_to_string(dir.join("untracked")).unwrap(), format!("{number}\n"));
    }
    let last = store.path(&format!("m{}", mounted - 1));
    assert_eq!(status(&last), before);
    assert_eq!(fs::read_to_string(main.join("untracked")).unwrap(), "u\n");
    fs::write(last.join("untracked"), "u\n").unwrap();
    tree::assert_same(&main, &last);
    assert_sound(&store);
}
