//! Goal: a daemon that is killed loses nothing that it has acknowledged.
//!
//! Threads change files, directories, links and attributes of a worktree while its daemon is killed at random
//! moments: while they write, while it drains, while it starts again. Each keeps its own account, outside
//! of the worktree, of what was acknowledged. After each restart everything on the accounts is there: names
//! that must be there and names that must not, every byte, mode, link and attribute. The one operation of
//! each thread that was under way may have happened or not; a write may have happened as far as a prefix.
//! Every commit that git has acknowledged is reachable and holds what was committed, and the store has no damage.
//!
//! `AGENTFS_TEST_ROUNDS` (8) and `AGENTFS_TEST_SEED` (1) make it another or a longer one: 500 rounds take about an
//! hour.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use agentfs_tests::ledger::{Dice, Ledger};
use agentfs_tests::{
    TestStore, campaign, fixture::Builder, fuse_available, git, git_command, mounts,
};

/// Threads that change a directory each.
const WORKERS: u64 = 3;
/// Files that the commits change.
const COMMITTED_FILES: u64 = 20;
/// A file that has a drain begin at once when it is written, and its length in bytes.
const LARGE: &str = "large";
const DRAIN_BYTES: usize = 40 << 20;

/// How the daemon ends in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// While changes are made.
    Writing,
    /// While so much was written that a drain has begun.
    Draining,
    /// While changes are made, and again while it starts.
    Starting,
    /// It is told to stop while changes are made.
    Stopped,
}

impl End {
    fn choose(dice: &mut Dice) -> Self {
        match dice.roll(8) {
            0..4 => Self::Writing,
            4 | 5 => Self::Draining,
            6 => Self::Starting,
            _ => Self::Stopped,
        }
    }
}

/// What git has acknowledged, and what was written for it.
#[derive(Default)]
struct Commits {
    /// Commit, file and content, the oldest first.
    made: Vec<(String, String, String)>,
    /// The files of the worktree.
    written: BTreeMap<String, String>,
    /// The file that was being written, and its new content.
    pending: Option<(String, String)>,
}

impl Commits {
    /// Commits in the directory `commits` of the worktree until something fails.
    fn make(&mut self, mounted: &Path, dice: &mut Dice) {
        loop {
            let name = format!("commits/c{}", dice.roll(COMMITTED_FILES));
            let text = format!("{}\n", dice.number());
            self.pending = Some((name.clone(), text.clone()));
            if fs::write(mounted.join(&name), &text).is_err() {
                return;
            }
            self.pending = None;
            self.written.insert(name.clone(), text.clone());
            for args in [&["add", "-A", "commits"][..], &["commit", "--quiet", "-m", "more"]] {
                match git_command(mounted, args).output() {
                    Ok(output) if output.status.success() => {}
                    _ => return,
                }
            }
            match git_command(mounted, &["rev-parse", "HEAD"]).output() {
                Ok(output) if output.status.success() => {
                    let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                    self.made.push((id, name, text));
                }
                _ => return,
            }
        }
    }

    /// Checks the files, and the commits from number `from` on.
    fn verify(&mut self, mounted: &Path, from: usize) {
        let files =
            fs::read_dir(mounted.join("commits")).expect("the directory is there").map(|file| {
                let name = file.expect("an entry").file_name().into_string().expect("a plain name");
                let name = format!("commits/{name}");
                let text = fs::read_to_string(mounted.join(&name)).expect("its text");
                (name, text)
            });
        let mut files: BTreeMap<String, String> = files.collect();
        if let Some((name, new)) = self.pending.take() {
            // It is emptied, then written.
            let (old, is) = (self.written.remove(&name), files.remove(&name));
            let begun = is.as_ref().is_some_and(|is| new.starts_with(is));
            assert!(
                is == old || begun,
                "{name}: {is:?}, neither {old:?} nor the beginning of {new:?}"
            );
        }
        assert_eq!(files, self.written, "what was written and not committed");
        // git may have been stopped while it held its lock, as in any worktree.
        let git_dir = git(mounted, &["rev-parse", "--absolute-git-dir"]);
        fs::remove_file(Path::new(&git_dir).join("index.lock")).ok();
        if let Some((last, ..)) = self.made.last() {
            git(mounted, &["merge-base", "--is-ancestor", last, "HEAD"]);
        }
        for (id, name, text) in &self.made[from..] {
            assert_eq!(git(mounted, &["show", &format!("{id}:{name}")]), text.trim_end());
        }
        git(mounted, &["fsck", "--connectivity-only"]);
        // The next round begins with what is committed.
        git(mounted, &["reset", "--quiet", "--hard", "HEAD"]);
        git(mounted, &["clean", "-qfdx", "commits"]);
        fs::create_dir_all(mounted.join("commits")).expect("a directory");
        assert_eq!(git(mounted, &["status", "--porcelain", "commits"]), "");
        self.written.clear();
        let tracked = git(mounted, &["ls-files", "commits"]);
        for name in tracked.lines() {
            let is = fs::read_to_string(mounted.join(name)).expect("its text");
            let committed = git(mounted, &["show", &format!("HEAD:{name}")]);
            assert_eq!(is.trim_end(), committed, "{name} is not what was committed");
            self.written.insert(name.into(), is);
        }
    }
}

/// Changes a directory until something fails, which must be because the daemon was ended.
fn work(ledger: &mut Ledger, dice: &mut Dice, ended: &AtomicBool) {
    loop {
        if let Err(error) = ledger.step(dice) {
            assert!(ended.load(Ordering::SeqCst), "before the daemon was ended: {error}");
            assert!(is_of_ended(&error), "a daemon that is gone does not say this: {error}");
            return;
        }
    }
}

/// Whether an error is one of a file system that is not served any more, or not mounted.
fn is_of_ended(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let expected = [Errno::NOTCONN, Errno::CONNABORTED, Errno::NODEV, Errno::IO, Errno::NOENT];
    error
        .raw_os_error()
        .is_some_and(|code| expected.iter().any(|known| known.raw_os_error() == code))
}

/// Writes so much that a drain begins, lets a part of it pass, and returns what was written.
fn provoke_a_drain(mounted: &Path, dice: &mut Dice) -> Vec<u8> {
    let bytes = dice.bytes(DRAIN_BYTES);
    fs::write(mounted.join(LARGE), &bytes).expect("it can be written");
    thread::sleep(Duration::from_millis(dice.roll(700)));
    bytes
}

/// Ends the daemon as `end` says.
fn end_daemon(store: &TestStore, end: End, dice: &mut Dice) {
    match end {
        End::Stopped => drop(store.ok(&["daemon", "stop"])),
        End::Writing | End::Draining => store.kill_daemon(),
        End::Starting => {
            store.kill_daemon();
            let mut starting = store.command(&["status"]);
            starting.stdout(Stdio::null()).stderr(Stdio::null());
            let mut starting = starting.spawn().expect("agentfs runs");
            thread::sleep(Duration::from_millis(dice.roll(150)));
            if store.daemon().is_some() {
                store.kill_daemon();
            }
            starting.wait().expect("it ends");
            // The command may have started another one.
            if store.daemon().is_some() {
                store.kill_daemon();
            }
        }
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a long run says how far it is")]
fn what_a_killed_daemon_has_acknowledged_is_there() {
    if !fuse_available() {
        return;
    }
    let rounds = campaign::rounds(8);
    let seed = campaign::number_of("AGENTFS_TEST_SEED", 1);
    let store = TestStore::with_limit(Duration::from_secs(180 + 60 * rounds));
    let builder = Builder::new(&store.path("source"));
    builder.file("file", "x").file("sub/other", "y").commit("one");
    let mounted = store.clone(builder.dir(), "mounted");
    let dirs: Vec<PathBuf> =
        (0..WORKERS).map(|worker| mounted.join(format!("w{worker}"))).collect();
    for dir in dirs.iter().chain([&mounted.join("commits")]) {
        fs::create_dir(dir).expect("a directory");
    }
    let mut ledgers: Vec<Ledger> = dirs.into_iter().map(Ledger::new).collect();
    let mut commits = Commits::default();
    let mut large = Vec::new();
    fs::write(mounted.join(LARGE), &large).expect("a file");
    for round in 0..rounds {
        let mut dice = Dice::new(seed << 32 | round << 8);
        let end = End::choose(&mut dice);
        let known = commits.made.len();
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            for (worker, ledger) in ledgers.iter_mut().enumerate() {
                let ended = &ended;
                let mut dice = Dice::new(seed << 32 | round << 8 | (worker as u64 + 1));
                scope.spawn(move || work(ledger, &mut dice, ended));
            }
            let (mounted, commits) = (&mounted, &mut commits);
            let mut own = Dice::new(seed << 32 | round << 8 | 0xff);
            scope.spawn(move || commits.make(mounted, &mut own));
            thread::sleep(Duration::from_millis(20 + dice.roll(1500)));
            if end == End::Draining {
                large = provoke_a_drain(mounted, &mut dice);
            }
            ended.store(true, Ordering::SeqCst);
            end_daemon(&store, end, &mut dice);
        });
        store.ok(&["status"]);
        for ledger in &mut ledgers {
            ledger.settle().unwrap_or_else(|difference| {
                let dir = ledger.dir().display();
                panic!("seed {seed}, round {round}, {end:?}, {dir}: {difference}\n{}", store.log())
            });
        }
        let is = fs::read(mounted.join(LARGE)).unwrap_or_else(|error| {
            let there = mounts::is_mounted(&mounted);
            let log = store.log();
            panic!("seed {seed}, round {round}, {end:?}: {LARGE}: {error}, mounted: {there}\n{log}")
        });
        assert!(
            is == large,
            "seed {seed}, round {round}, {end:?}: {LARGE} is not what was written"
        );
        commits.verify(&mounted, known);
        store.ok(&["fsck"]);
        if (round + 1) % 10 == 0 || round + 1 == rounds {
            let operations: u64 = ledgers.iter().map(Ledger::operations).sum();
            let commits = commits.made.len();
            eprintln!(
                "seed {seed}: {} rounds, {operations} operations, {commits} commits",
                round + 1
            );
            // What was written over lies in the store until then, and every check reads it.
            store.ok(&["gc"]);
        }
    }
    git(&mounted, &["fsck", "--full"]);
}

/// git compares times by the second. It looks at files of the second in which it wrote its index before it writes
/// another; when the worktree is gone by then, it cannot.
#[test]
fn git_sees_what_changed_within_a_second_when_the_daemon_was_killed_then() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let builder = Builder::new(&store.path("source"));
    builder.file("file", "x").commit("one");
    let mounted = store.clone(builder.dir(), "mounted");
    let file = mounted.join("file");
    let second = || file.metadata().expect("it is there").mtime();
    let mut turn = 0;
    loop {
        fs::write(&file, format!("a{turn:09}")).expect("it can be written");
        let first = second();
        git(&mounted, &["commit", "--quiet", "--all", "-m", "more"]);
        fs::write(&file, format!("b{turn:09}")).expect("it can be written");
        if second() == first {
            break;
        }
        turn += 1;
        assert!(turn < 100, "it is never fast enough");
    }
    let git_dir = git(&mounted, &["rev-parse", "--absolute-git-dir"]);
    let blob = git(&mounted, &["rev-parse", "HEAD:file"]);
    store.kill_daemon();
    thread::sleep(Duration::from_millis(1100));
    // It writes the index anew.
    let (git_dir, tree) =
        (format!("--git-dir={git_dir}"), format!("--work-tree={}", mounted.display()));
    let info = format!("100644,{blob},other");
    git(&store.path(""), &[&git_dir, &tree, "update-index", "--add", "--cacheinfo", &info]);
    store.ok(&["status"]);
    let said = git(&mounted, &["status", "--porcelain", "file"]);
    assert_eq!(said.trim(), "M file");
    store.ok(&["fsck"]);
}

#[test]
fn a_branch_has_its_changes_wherever_it_is_mounted_again() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let builder = Builder::new(&store.path("source"));
    builder.file("file", "x").file(".gitignore", "*.o\n").file("gone", "z").commit("one");
    let mounted = store.clone(builder.dir(), "mounted");
    fs::write(mounted.join("file"), "changed").expect("it can be written");
    fs::write(mounted.join("a.o"), "ignored").expect("it can be written");
    fs::write(mounted.join("staged"), "staged").expect("it can be written");
    git(&mounted, &["add", "staged"]);
    fs::remove_file(mounted.join("gone")).expect("it can be removed");
    let changes = &store.json(&["status"])["worktrees"][0]["changes"];
    assert!(changes["inodes"].as_u64() > Some(3) && changes["failure"].is_null(), "{changes}");
    let status = git(&mounted, &["status", "--porcelain", "--ignored"]);
    assert_eq!(status, " M file\n D gone\nA  staged\n!! a.o");
    store.ok(&["umount", &mounted.display().to_string()]);
    let again = store.path("again");
    store.ok(&["mount", "main", &again.display().to_string()]);
    assert_eq!(git(&again, &["status", "--porcelain", "--ignored"]), status);
    assert_eq!(fs::read_to_string(again.join("a.o")).expect("it is there"), "ignored");
    git(&again, &["reset", "--quiet", "--hard"]);
    git(&again, &["clean", "-fdxq"]);
    assert_eq!(git(&again, &["status", "--porcelain", "--ignored"]), "");
    let mut file = File::create(again.join("file")).expect("it can be written");
    file.write_all(b"x").and_then(|()| file.sync_all()).expect("it is written");
    assert_eq!(git(&again, &["status", "--porcelain"]), "");
}
