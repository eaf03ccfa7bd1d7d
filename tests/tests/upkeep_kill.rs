//! Goal: a daemon that is killed while it collects garbage, repairs or exports leaves every branch as it was, and the
//! store sound or as damaged as it was.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use agentfs_tests::fixture::Builder;
use agentfs_tests::fleet::{assert_sound, change, fork, mounted, status};
use agentfs_tests::{TestStore, campaign, fuse_available, git, git_command, tree};

/// When a round ends what it has begun, at most so many microseconds later.
fn moment(round: u64, most: u64) -> Duration {
    Duration::from_micros(300 + round * 7919 % most)
}

#[test]
fn garbage_that_is_collected_by_a_killed_daemon_takes_nothing_with_it() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    let side = fork(&store, "side", "main");
    let kept = store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
    let at_kept = tree::read(&main);
    for round in 0..campaign::rounds(10) {
        fs::write(main.join("untracked"), format!("round {round}\n")).unwrap();
        // What nobody needs: a removed file, a removed branch and a removed snapshot, all in the store.
        let garbage: Vec<u8> =
            (0..400_000_u32).map(|at| (at.wrapping_mul(round as u32 | 1) >> 7) as u8).collect();
        fs::write(main.join("garbage"), garbage).unwrap();
        let snapshot =
            store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
        store.ok(&["branch", "create", "gone", "--from", "main"]);
        fs::remove_file(main.join("garbage")).unwrap();
        store.ok(&["branch", "delete", "gone"]);
        store.ok(&["snapshot", "delete", &snapshot]);
        let before = (status(&main), tree::read(&main), tree::read(&side));
        store.kill_daemon_during(&["gc"], moment(round, 40_000));
        store.ok(&["status"]);
        let now = (status(&main), tree::read(&main), tree::read(&side));
        assert_eq!(now, before, "round {round}");
        assert_sound(&store);
    }
    store.ok(&["gc"]);
    assert_sound(&store);
    store.ok(&["snapshot", "restore", &kept]);
    assert_eq!(tree::read(&main), at_kept);
}

/// Files whose content nobody has but git, so that all of it can be repaired.
fn from_git(store: &TestStore) -> PathBuf {
    let source = Builder::new(&store.path("source"));
    for number in 0..40_u32 {
        let text: String =
            (0..400).map(|line| format!("{number} {line} {}\n", line * number)).collect();
        source.file(format!("dir{}/file{number}", number % 5), text);
    }
    source.commit("first");
    store.clone(source.dir(), "main")
}

fn segment(home: &Path) -> PathBuf {
    let mut all: Vec<_> =
        fs::read_dir(home.join("segments")).unwrap().map(|one| one.unwrap().path()).collect();
    all.sort();
    all.remove(0)
}

#[test]
#[expect(clippy::print_stderr, reason = "a long run says what it met")]
fn a_killed_repair_can_be_repeated() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let main = from_git(&store);
    store.wait_until("all is stored", || store.ok(&["status"]).contains("content     stored"));
    let (expected, first) = (tree::read(&main), segment(store.home()));
    let (mut damaged, mut unfinished) = (0, 0);
    for round in 0..campaign::rounds(10) {
        store.ok(&["daemon", "stop"]);
        let file = OpenOptions::new().read(true).write(true).open(&first).unwrap();
        let len = file.metadata().unwrap().len();
        let mut byte = [0];
        // Past the header of the file; what is there may be needed by nobody any more.
        let at = 64 + round * 104_729 % (len - 64);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        store.ok(&["daemon", "start"]);
        store.kill_daemon_during(&["fsck", "--repair"], moment(round, 60_000));
        store.ok(&["status"]);
        let checked = store.run(&["fsck"]).code;
        unfinished += u64::from(checked != 0);
        let repaired = store.run(&["fsck", "--repair"]);
        assert!([0, 9].contains(&repaired.code), "round {round}: {}", repaired.stdout);
        damaged += u64::from(checked != 0 || repaired.code != 0);
        assert_sound(&store);
        assert_eq!(tree::read(&main), expected, "round {round}");
        assert_eq!(status(&main), "", "round {round}");
    }
    eprintln!("{damaged} damaged, {unfinished} of them not repaired before the kill");
    assert!(damaged > 0, "what was damaged was never needed");
}

/// Runs a command and kills it; whether it had succeeded.
fn kill_command(store: &TestStore, args: &[&str], after: Duration) -> bool {
    let mut command = store.command(args);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap().success()
}

#[test]
fn an_export_is_there_or_is_not() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    let head = git(&main, &["rev-parse", "HEAD"]);
    let exported = store.json(&["export", "main", "--ref", "refs/heads/whole"]);
    let expected_tree = exported["tree"].as_str().unwrap().to_owned();
    for round in 0..campaign::rounds(10) {
        let before = (status(&main), tree::read(&main));
        let reference = format!("refs/heads/out{round}");
        let args = ["export", "main", "--ref", &reference, "-m", "as it is"];
        let succeeded = match round % 2 {
            0 => store.kill_daemon_during(&args, moment(round, 40_000)),
            _ => kill_command(&store, &args, moment(round, 40_000)),
        };
        store.ok(&["status"]);
        assert_eq!((status(&main), tree::read(&main)), before, "round {round}");
        assert_eq!(git(&main, &["rev-parse", "HEAD"]), head, "round {round}");
        let found =
            git_command(&main, &["rev-parse", "-q", "--verify", &reference]).output().unwrap();
        assert!(found.status.success() || !succeeded, "round {round}");
        if found.status.success() {
            let tree = git(&main, &["rev-parse", &format!("{reference}^{{tree}}")]);
            assert_eq!(tree, expected_tree, "round {round}");
        }
        git(&main, &["fsck", "--no-dangling"]);
        assert_sound(&store);
    }
    // What was left half-way is in nobody's way.
    store.ok(&["export", "main", "--ref", "refs/heads/again"]);
}
