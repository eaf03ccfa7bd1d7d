//! Goal: a worktree takes as many files as a large `node_modules` has: all are there after a stop and
//! after a kill, the outbox stays within its limit, and the store has no damage.
//!
//! `AGENTFS_TEST_FILES` (2,000) says how many files are made. With `--nocapture` the test says what they
//! cost: the memory of the daemon after each step, and how long it took.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use agentfs_engine::limits::{OUTBOX_BYTES_MAX, OUTBOX_SEGMENT_BYTES_MAX};
use agentfs_tests::{TestStore, campaign, fixture::Builder, fuse_available};

/// More than an outbox has in which nothing is, in bytes.
const SMALL_BYTES: u64 = 64 << 10;
/// Files of a directory.
const FILES_IN_DIRECTORY: u64 = 1_000;

/// Says what each step costs.
struct Costs {
    files: u64,
    before: u64,
    last: Instant,
}

impl Costs {
    #[expect(clippy::print_stderr, reason = "figures for whoever asks for them")]
    fn say(&mut self, store: &TestStore, step: &str) {
        let seconds = self.last.elapsed().as_secs_f64();
        let now = memory(store);
        let grown = now as i64 - self.before as i64;
        let each = grown / self.files as i64;
        let mib = now >> 20;
        eprintln!(
            "{step}: {seconds:.1} s, the daemon has {mib} MiB, {each} bytes more for each file"
        );
        self.last = Instant::now();
    }
}

fn memory(store: &TestStore) -> u64 {
    let stats = store.json(&["stats"]);
    stats["process"]["memory_bytes"].as_u64().expect("the kernel tells it")
}

/// Runs a command that may take longer than those of other tests.
fn long(store: &TestStore, args: &[&str]) {
    let output = store.command(args).output().expect("agentfs runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "agentfs {args:?}: {said}\n{}", store.log());
}

fn content(number: u64) -> String {
    format!("module.exports = {number}\n")
}

fn make(store: &TestStore, dir: &Path, files: u64) {
    for number in 0..files {
        let package = dir.join(format!("package{}", number / FILES_IN_DIRECTORY));
        if number % FILES_IN_DIRECTORY == 0 {
            fs::create_dir(&package).expect("a directory");
            let changes = &store.json(&["status"])["worktrees"][0]["changes"];
            let waiting = changes["outbox_bytes"].as_u64().expect("a number");
            let limit = OUTBOX_BYTES_MAX + OUTBOX_SEGMENT_BYTES_MAX;
            assert!(waiting <= limit, "{waiting} bytes wait for a drain");
        }
        fs::write(package.join(format!("m{number}.js")), content(number)).expect("a file");
    }
}

/// Waits until nothing waits for a drain.
fn settle(store: &TestStore) {
    loop {
        let changes = store.json(&["status"])["worktrees"][0]["changes"].clone();
        assert!(changes["failure"].is_null(), "{changes}");
        // Nothing waits while a drain runs, but then the outbox still has it.
        if changes["waiting"] == false && changes["outbox_bytes"].as_u64() < Some(SMALL_BYTES) {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Every file is there with its bytes, and nothing else.
fn verify(dir: &Path, files: u64) {
    let mut found = 0;
    for package in fs::read_dir(dir).expect("a listing") {
        for file in fs::read_dir(package.expect("an entry").path()).expect("a listing") {
            let path = file.expect("an entry").path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a plain name");
            let number: u64 = stem[1..].parse().expect("a number");
            assert!(number < files, "{} was never made", path.display());
            let is = fs::read_to_string(&path).expect("it can be read");
            assert_eq!(is, content(number), "{}", path.display());
            found += 1;
        }
    }
    assert_eq!(found, files);
}

#[test]
fn many_files_stay_through_a_stop_and_a_kill() {
    if !fuse_available() {
        return;
    }
    let files = campaign::number_of("AGENTFS_TEST_FILES", 2_000);
    let store = TestStore::with_limit(Duration::from_secs(180 + files / 200));
    let builder = Builder::new(&store.path("source"));
    builder.file("file", "x").commit("one");
    let mounted = store.clone(builder.dir(), "mounted");
    let dir = mounted.join("node_modules");
    fs::create_dir(&dir).expect("a directory");
    settle(&store);
    let mut costs = Costs { files, before: memory(&store), last: Instant::now() };
    make(&store, &dir, files);
    costs.say(&store, "made");
    settle(&store);
    costs.say(&store, "drained");
    long(&store, &["daemon", "stop"]);
    long(&store, &["status"]);
    costs.say(&store, "stopped and started");
    verify(&dir, files);
    costs.say(&store, "read");
    store.kill_daemon();
    long(&store, &["status"]);
    costs.say(&store, "killed and started");
    verify(&dir, files);
    costs.say(&store, "read");
    long(&store, &["fsck"]);
    costs.say(&store, "checked");
    // What is removed is gone, in memory too, once the kernel has forgotten it.
    fs::remove_dir_all(&dir).expect("it can be removed");
    store.wait_until("only the root has changed", || {
        store.json(&["status"])["worktrees"][0]["changes"]["inodes"] == 1
    });
    settle(&store);
    costs.say(&store, "removed");
}
