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

use agentfs_tests::fleet::{assert_sound, change, mounted, status};
use agentfs_tests::{TestStore, campaign, fixture, fixture::git, fuse_available, tree};

/// What the daemon may take with a hundred branches mounted, in bytes.
const MEMORY_MAX: u64 = 200_000_000;
/// What a branch that was never mounted may take of the disk, in bytes, when git has packed its reference. Its git
/// directory is that of all that began alike.
const DISK_EACH_MAX: u64 = 4 << 10;

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
    store.ok(&["gc"]);
    let disk = used(store.home());

    let start = Instant::now();
    for number in 0..branches {
        store.ok(&["branch", "create", &format!("b{number}"), "--from", &from]);
    }
    let took = start.elapsed();
    // The daemon does that by itself every now and then.
    store.ok(&["gc"]);
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

/// The git directories that branches share in the repository of the worktree `dir`.
fn shared(dir: &Path) -> Vec<String> {
    let common = git(dir, &["rev-parse", "--path-format=absolute", "--git-common-dir"]);
    let names = fs::read_dir(Path::new(&common).join("worktrees")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("agentfs-")).collect();
    names.sort_unstable();
    names
}

#[test]
fn branches_that_were_never_mounted_share_what_git_has_of_them() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    let (before, staged) = (status(&main), git(&main, &["diff", "--cached"]));
    let object = git(&main, &["rev-parse", ":dir/one"]);
    for name in ["one", "two", "three", "four"] {
        store.ok(&["branch", "create", name, "--from", "main"]);
    }
    let first = shared(&main);
    assert_eq!(first.len(), 1, "{first:?}");
    // What was staged is in no commit, and in no other index from here on.
    git(&main, &["reset", "-q", "--hard"]);
    git(&main, &["gc", "-q", "--prune=now"]);
    let untracked = status(&main);
    store.ok(&["branch", "create", "clean", "--from", "main"]);
    assert_eq!(shared(&main).len(), 2);

    let mount = |name: &str| {
        let dir = store.path(name);
        store.ok(&["mount", name, &dir.display().to_string()]);
        assert_eq!(git(&dir, &["symbolic-ref", "HEAD"]), format!("refs/heads/{name}"));
        dir
    };
    let one = mount("one");
    assert_eq!((status(&one), git(&one, &["diff", "--cached"])), (before.clone(), staged.clone()));
    assert_eq!(git(&one, &["cat-file", "-p", &object]), "staged");
    git(&one, &["commit", "-qam", "of one"]);
    assert_eq!(git(&one, &["reflog", "show", "--format=%gs", "one"]), "commit: of one");
    // What has come to be under another name, or from one that was never mounted, is the same.
    store.ok(&["branch", "rename", "two", "renamed"]);
    store.ok(&["branch", "create", "next", "--from", "three"]);
    store.ok(&["snapshot", "create", "four", "-m", "never mounted"]);
    store.ok(&["branch", "delete", "four"]);
    store.kill_daemon();
    store.ok(&["branch", "undelete", "four"]);
    for name in ["renamed", "next", "four"] {
        let dir = mount(name);
        assert_eq!(
            (status(&dir), git(&dir, &["diff", "--cached"])),
            (before.clone(), staged.clone())
        );
    }
    let clean = mount("clean");
    assert_eq!(status(&clean), untracked);
    assert_sound(&store);

    // They go with the last branch that has them.
    assert_eq!(shared(&main).len(), 2);
    store.ok(&["gc"]);
    assert_eq!(shared(&main), [""; 0]);
    assert_sound(&store);
}

#[test]
fn a_shared_git_directory_is_verified_and_made_anew() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    fs::write(main.join("untracked"), "u\n").unwrap();
    let before = status(&main);
    for name in ["one", "two"] {
        store.ok(&["branch", "create", name, "--from", "main"]);
    }
    let common = git(&main, &["rev-parse", "--path-format=absolute", "--git-common-dir"]);
    let dir = Path::new(&common).join("worktrees").join(&shared(&main)[0]);
    for name in ["index", "HEAD", "commondir"] {
        let whole = fs::read(dir.join(name)).unwrap();
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        // An index has other names, which are to stay whole.
        fs::remove_file(dir.join(name)).unwrap();
        fs::write(dir.join(name), damaged).unwrap();
        let found = store.run(&["fsck"]);
        assert_eq!(found.code, 5, "{name}: {}{}", found.stdout, found.stderr);
        assert_eq!(found.stdout.matches(&dir.join(name).display().to_string()).count(), 1);
        let repaired = store.run(&["fsck", "--repair"]);
        assert_eq!(repaired.code, 9, "{name}: {}{}", repaired.stdout, repaired.stderr);
        assert_sound(&store);
        if name != "index" {
            assert_eq!(fs::read(dir.join(name)).unwrap(), whole, "{name}");
        }
    }
    for name in ["one", "two"] {
        let dir = store.path(name);
        store.ok(&["mount", name, &dir.display().to_string()]);
        assert_eq!(status(&dir), before);
    }
    assert_sound(&store);
}
