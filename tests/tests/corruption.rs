//! Goal: whatever byte of the store's files is wrong, or whatever page of them is empty, somebody notices: `fsck` or
//! the read that meets it. Nobody hangs, nothing wrong is ever read, and what git or an outbox still holds is
//! as it was after `fsck --repair`.
//!
//! `AGENTFS_TEST_ROUNDS` (40) and `AGENTFS_TEST_SEED` (1) make it another or a longer campaign. With `--nocapture`
//! it says how many damages of each kind of file were found, healed and lost.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use agentfs_tests::fixture::Builder;
use agentfs_tests::tree::{self, Entry};
use agentfs_tests::{TestStore, campaign, fuse_available, git, mounts};

const PAGE_BYTES: usize = 4096;
/// Files that only an outbox holds, and how many of them were synced. Those that were not state that these
/// were, and take more than a page.
const LATE: usize = 24;
const LATE_SYNCED: usize = 4;

/// A kind of file: what it is called, and the ends of its paths.
type Kind = (&'static str, &'static [&'static str]);

const KINDS: [Kind; 6] = [
    ("database", &["store.redb"]),
    ("segment", &[".seg"]),
    ("outbox", &[".obx"]),
    ("git directory", &["worktree/HEAD", "worktree/index", "worktree/commondir", "fork/HEAD"]),
    ("snapshot", &["/HEAD", "/index"]),
    // Only where files can be read past the daemon.
    ("cache", &[""]),
];

/// Numbers that depend on the seed alone.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

/// What one round came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Nobody uses what is damaged: nothing is found, and all is right.
    Harmless,
    /// It was found, and is as it was before.
    Healed,
    /// The end of an outbox, which nothing states to be durable, is taken for torn and cut.
    Cut,
    /// It was found, and some of it is gone.
    Lost,
    /// It was found, and the store or the worktree cannot be used.
    Refused,
}

/// What may be missing of what only an outbox held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gap {
    Nothing,
    /// What was not synced, from some place on.
    End,
    /// Whatever a repair said that it has lost.
    Anywhere,
}

/// What was read.
struct Reading {
    /// Whether something could not be read.
    failed: bool,
    /// Whether something is missing that was not synced.
    cut: bool,
    /// A name that is gone, or is there and should not be. A row of the database that is filed under another
    /// key is found by `fsck` alone.
    misfiled: Option<PathBuf>,
}

/// A store in which everything is, the daemon dead.
struct Scene {
    store: TestStore,
    whole: PathBuf,
    worktree: PathBuf,
    fork: PathBuf,
    expected: BTreeMap<PathBuf, Entry>,
    in_fork: BTreeMap<PathBuf, Entry>,
    status: String,
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success());
}

fn late(number: usize) -> (String, Vec<u8>) {
    (format!("late-{number:02}"), format!("late {number}\n").repeat(100).into_bytes())
}

impl Scene {
    fn new(random: &mut Random) -> Self {
        let mut store = TestStore::with_limit(std::time::Duration::from_secs(6 * 3600));
        store.set_levers_on("passthrough");
        let builder = Builder::new(&store.path("source"));
        for number in 0..60 {
            let text = format!("line {number}\n").repeat(50 + 40 * number);
            builder.file(format!("d{}/e{}/f{number}", number % 7, number % 3), text);
        }
        builder.file("large", random.bytes(1_200_000)).link("link", "large").commit("one");
        let worktree = store.path("worktree");
        let text = |path: &Path| path.display().to_string();
        store.ok(&["clone", "--wait", &text(builder.dir()), &text(&worktree)]);
        fs::write(worktree.join("committed"), "by an agent\n").expect("a file");
        git(&worktree, &["add", "-A"]);
        let who = ["-c", "user.name=t", "-c", "user.email=t@localhost"];
        git(&worktree, &[&who[..], &["commit", "--quiet", "-m", "two"]].concat());
        fs::write(worktree.join("drained"), random.bytes(300_000)).expect("a file");
        fs::write(worktree.join("d1/e1/f1"), "changed and drained\n").expect("a file");
        fs::remove_file(worktree.join("d2/e2/f2")).expect("a file");
        store.ok(&["snapshot", "create", "main", "-m", "kept"]);
        let fork = store.path("fork");
        store.ok(&["branch", "create", "fork", "--from", "main", "--mount", &text(&fork)]);
        fs::write(fork.join("of the fork"), "only here\n").expect("a file");
        store.wait_until("all is drained", || {
            let status = store.json(&["status"]);
            let worktrees = status["worktrees"].as_array().expect("worktrees");
            worktrees
                .iter()
                .all(|worktree| worktree["changes"]["outbox_bytes"].as_u64() < Some(500))
        });
        for number in 0..LATE {
            let (name, content) = late(number);
            let mut file = fs::File::create(worktree.join(name)).expect("a file");
            file.write_all(&content).expect("it can be written");
            if number + 1 == LATE_SYNCED {
                file.sync_all().expect("it can be synced");
            }
        }
        let (expected, in_fork) = (tree::read(&worktree), tree::read(&fork));
        store.kill_daemon();
        for dir in [&fork, &worktree] {
            mounts::detach_all(dir);
        }
        let whole = store.path("whole");
        fs::remove_file(store.home().join("daemon.sock")).expect("nobody listens");
        copy(store.home(), &whole);
        let mut scene =
            Self { store, whole, worktree, fork, expected, in_fork, status: String::new() };
        scene.begin();
        assert_eq!(scene.store.run(&["fsck"]).code, 0, "{}", scene.store.log());
        assert!(!scene.read(Gap::Nothing).failed && scene.is_mounted());
        scene.status = git(&scene.worktree, &["status", "--porcelain"]);
        scene.end();
        scene
    }

    /// The store as it was.
    fn begin(&self) {
        fs::remove_dir_all(self.store.home()).expect("the store");
        copy(&self.whole, self.store.home());
    }

    /// Stops the daemon, whatever state it is in.
    fn end(&self) {
        self.store.run(&["daemon", "stop", "--force"]);
        if self.store.daemon().is_some() {
            self.store.kill_daemon();
        }
        for dir in [&self.fork, &self.worktree] {
            mounts::detach_all(dir);
        }
    }

    fn is_mounted(&self) -> bool {
        [&self.worktree, &self.fork].into_iter().all(|dir| mounts::is_mounted(dir))
    }

    /// Reads all that can be read; a panic if something is wrong.
    fn read(&self, gap: Gap) -> Reading {
        let (mut failed, mut cut, mut misfiled) = (false, false, None);
        for (dir, expected) in [(&self.worktree, &self.expected), (&self.fork, &self.in_fork)] {
            if !mounts::is_mounted(dir) {
                failed = true;
                continue;
            }
            let mut gone = false;
            for (path, entry) in expected {
                let found = read_entry(&dir.join(path), entry);
                let first = match gap {
                    Gap::Nothing => LATE,
                    Gap::End => LATE_SYNCED,
                    Gap::Anywhere => 0,
                };
                let unsynced = (first..LATE).any(|number| Path::new(&late(number).0) == path);
                let in_order = gap == Gap::End;
                match found {
                    Ok(found) if found == *entry && !(unsynced && gone && in_order) => {}
                    Ok(Entry::File(false, bytes)) if unsynced => {
                        let Entry::File(_, whole) = entry else { panic!("{path:?}") };
                        assert!(!(gone && in_order) && whole.starts_with(&bytes), "{path:?}");
                        gone |= bytes.len() < whole.len();
                    }
                    Ok(found) => panic!("{path:?} is {found:?} instead of {entry:?}"),
                    Err(error) if error.kind() == ErrorKind::NotFound && unsynced => gone = true,
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        misfiled = Some(path.clone());
                    }
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), Some(5), "{path:?}: {error}");
                        failed = true;
                    }
                }
            }
            failed |= has_unexpected(dir, expected, &mut misfiled);
            cut |= gone;
        }
        Reading { failed, cut, misfiled }
    }

    /// Whether git says of the worktree what it said before; `false` if it refuses.
    fn git_agrees(&self) -> bool {
        let mut command = Command::new("git");
        command.arg("-C").arg(&self.worktree).args(["status", "--porcelain"]);
        let said = command.output().expect("git runs");
        said.status.success() && String::from_utf8_lossy(&said.stdout).trim() == self.status.trim()
    }

    /// The files of a kind that have bytes.
    fn files(&self, kind: Kind) -> Vec<PathBuf> {
        let of = match kind.0 {
            "snapshot" => "snapshots/",
            "cache" => "files/",
            _ => "",
        };
        let mut found: Vec<_> = tree::read(self.store.home()).into_iter().collect();
        found.retain(|(path, entry)| {
            let text = path.display().to_string();
            let place = ["snapshots/", "files/"].into_iter().find(|place| text.starts_with(place));
            matches!(entry, Entry::File(_, bytes) if !bytes.is_empty())
                && place.unwrap_or_default() == of
                && !text.contains("/logs/")
                && kind.1.iter().any(|end| text.ends_with(end))
        });
        found.into_iter().map(|(path, _)| self.store.home().join(path)).collect()
    }

    /// Does damage; where, and to what.
    fn damage(&self, kind: Kind, random: &mut Random) -> String {
        let files = self.files(kind);
        let path = &files[random.below(files.len())];
        let mut bytes = fs::read(path).expect("the file");
        // Where nothing was ever written there is nothing to be damaged.
        let used: Vec<_> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
        let at = used[random.below(used.len())];
        let page = random.below(2) == 0;
        if page {
            let start = at / PAGE_BYTES * PAGE_BYTES;
            let end = bytes.len().min(start + PAGE_BYTES);
            bytes[start..end].fill(0);
        } else {
            bytes[at] ^= 1 << random.below(8);
        }
        fs::write(path, &bytes).expect("the file");
        let what = if page { "the page" } else { "a bit" };
        let shown = path.strip_prefix(self.store.home()).expect("below it").display();
        format!("{what} at byte {at} of {shown}")
    }

    fn outcome(&self, kind: Kind, shown: &str) -> Outcome {
        let gap = if kind.0 == "outbox" { Gap::End } else { Gap::Nothing };
        let checked = self.store.run(&["fsck", "--json"]);
        let said = || format!("{shown}: {}{}", checked.stdout, checked.stderr);
        assert!([0, 5].contains(&checked.code), "{}", said());
        let last = checked.events().pop().unwrap_or_default();
        if last["event"] == "error" {
            assert!(last["error"]["hint"].is_string(), "{}", said());
            return Outcome::Refused;
        }
        let Reading { failed, cut, misfiled } = self.read(gap);
        let failed =
            failed || misfiled.is_some() || (!cut && self.is_mounted() && !self.git_agrees());
        if checked.code == 0 {
            assert!(!failed, "{} was not found\n{}", said(), self.store.log());
            return if cut { Outcome::Cut } else { Outcome::Harmless };
        }
        let repaired = self.store.run(&["fsck", "--repair", "--json"]);
        let said = || format!("{shown}: {}{}", repaired.stdout, repaired.stderr);
        assert!([0, 5, 9].contains(&repaired.code), "{}", said());
        let done = repaired.events().pop().unwrap_or_default();
        let loses = done["lost"].as_array().is_some_and(|lost| !lost.is_empty());
        assert!(!loses || kind.0 == "outbox", "{}", said());
        let after = self.read(if loses { Gap::Anywhere } else { gap });
        if loses {
            // Nothing else is, and there is nothing more to be repaired.
            assert!(!after.failed && after.misfiled.is_none(), "{}", said());
            assert_eq!(self.store.run(&["fsck"]).code, 0, "{}", said());
        }
        if repaired.code == 5 {
            return if self.is_mounted() { Outcome::Lost } else { Outcome::Refused };
        }
        let Reading { failed, cut, misfiled } = after;
        let again = self.store.run(&["fsck", "--json"]);
        assert_eq!(again.code, 0, "{} is not repaired: {}", said(), again.stdout);
        assert!(!failed && misfiled.is_none(), "{} is not as it was: {misfiled:?}", said());
        match (self.is_mounted(), cut) {
            (true, false) => Outcome::Healed,
            (true, true) => Outcome::Cut,
            (false, _) => Outcome::Refused,
        }
    }
}

fn read_entry(path: &Path, expected: &Entry) -> std::io::Result<Entry> {
    match expected {
        Entry::Directory => fs::read_dir(path).map(|_| Entry::Directory),
        Entry::Link(_) => {
            let target = fs::read_link(path)?;
            Ok(Entry::Link(target.into_os_string().into_encoded_bytes()))
        }
        Entry::File(executable, _) => {
            let mut bytes = Vec::new();
            fs::File::open(path)?.read_to_end(&mut bytes)?;
            Ok(Entry::File(*executable, bytes))
        }
    }
}

/// Whether something cannot be listed. What should not be there is `misfiled`.
fn has_unexpected(
    dir: &Path,
    expected: &BTreeMap<PathBuf, Entry>,
    misfiled: &mut Option<PathBuf>,
) -> bool {
    let mut failed = false;
    let directories = expected.iter().filter(|(_, entry)| **entry == Entry::Directory);
    for relative in directories.map(|(path, _)| path.clone()).chain([PathBuf::new()]) {
        let Ok(listed) = fs::read_dir(dir.join(&relative)) else {
            failed = true;
            continue;
        };
        for entry in listed {
            let Ok(entry) = entry else {
                failed = true;
                break;
            };
            let path = relative.join(entry.file_name());
            if !expected.contains_key(&path) && path != Path::new(".git") {
                *misfiled = Some(path);
            }
        }
    }
    failed
}

#[test]
#[expect(clippy::print_stderr, reason = "figures for whoever asks for them")]
fn damage_anywhere_is_noticed_and_never_read() {
    if !fuse_available() {
        return;
    }
    let rounds = campaign::rounds(40);
    let seed = campaign::number_of("AGENTFS_TEST_SEED", 1);
    let mut random = Random(seed);
    let scene = Scene::new(&mut random);
    let mut counts: BTreeMap<(&str, Outcome), u64> = BTreeMap::new();
    let mut failures = Vec::new();
    for round in 0..rounds {
        let kind = KINDS[round as usize % KINDS.len()];
        scene.begin();
        if kind.0 == "cache" && scene.files(kind).is_empty() {
            eprintln!("round {round}: skipped: nothing is read past the daemon here");
            continue;
        }
        let shown = scene.damage(kind, &mut random);
        let outcome = catch_unwind(AssertUnwindSafe(|| scene.outcome(kind, &shown)));
        scene.end();
        eprintln!("seed {seed}, round {round}: {shown}: {outcome:?}");
        match outcome {
            Ok(outcome) => *counts.entry((kind.0, outcome)).or_default() += 1,
            Err(_) => failures.push(shown),
        }
    }
    for ((kind, outcome), count) in &counts {
        eprintln!("{kind}: {count} {outcome:?}");
    }
    assert!(failures.is_empty(), "seed {seed}: {failures:#?}");
    // A page of the first can be lost; what the others say is told by git, too, and by each other.
    for kind in ["database", "git directory", "snapshot"] {
        assert_eq!(counts.get(&(kind, Outcome::Lost)), None, "seed {seed}, {kind}");
    }
    let refused = counts.keys().find(|(_, outcome)| *outcome == Outcome::Refused);
    assert_eq!(refused, None, "seed {seed}");
    let found = counts.iter().filter(|((_, outcome), _)| *outcome != Outcome::Harmless);
    assert!(found.count() > 0, "nothing was ever found");
}
