//! Where a run works: its directory, its sizes, its subjects, and the cleaning up at its end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::agentfs::Store;
use crate::generate::Recipe;
use crate::mounts;
use crate::process::Run;
use crate::record::Subject;
use crate::source::{self, Source};

/// How much is done: small runs in the tests, full makes the figures.
#[derive(Clone, Debug)]
pub struct Sizes {
    pub warmups: usize,
    pub pairs: usize,
    /// Rounds over the command table, whose lines take milliseconds.
    pub command_pairs: usize,
    /// Operations of one compiled loop.
    pub operations: u64,
    /// The source when none is given.
    pub tree: Recipe,
    /// Sizes of the generated trees, and the counted pairs at each.
    pub growth: Vec<(u64, usize)>,
    pub large_bytes: u64,
    /// Small files of a tree that many agents read, large ones, and the bytes of one of these.
    pub mixed: (u64, u64, u64),
    /// How many agents read it.
    pub agents: Vec<usize>,
    /// Operations of a loop that writes, and of one that syncs each.
    pub written: u64,
    pub synced: u64,
    /// New files of a worktree of which another one begins.
    pub dirty: u64,
    /// Counted pairs of phases that take seconds or write gigabytes.
    pub long_pairs: usize,
    /// Whether everything is written back before each clone and each step that writes, so that none
    /// pays for the last one.
    pub sync: bool,
}

impl Sizes {
    pub fn small() -> Self {
        Self {
            warmups: 1,
            pairs: 2,
            command_pairs: 1,
            operations: 2_000,
            tree: Recipe::Tree { files: 300, commits: 12 },
            growth: vec![(300, 1), (1_200, 1)],
            large_bytes: 16 << 20,
            mixed: (300, 2, 2 << 20),
            agents: vec![1, 3],
            written: 400,
            synced: 100,
            dirty: 200,
            long_pairs: 1,
            sync: false,
        }
    }

    pub fn full(pairs: usize) -> Self {
        Self {
            warmups: 2,
            pairs,
            command_pairs: pairs.max(21),
            operations: 20_000,
            tree: Recipe::Tree { files: 5_000, commits: 500 },
            // A native clone of a million files takes minutes and gigabytes: fewer pairs there.
            growth: vec![(10_000, pairs), (100_000, 7.min(pairs)), (1_000_000, 3.min(pairs))],
            large_bytes: 1 << 30,
            mixed: (5_000, 25, 8 << 20),
            agents: vec![1, 10, 50],
            written: 4_000,
            synced: 2_000,
            dirty: 10_000,
            long_pairs: 7.min(pairs),
            sync: true,
        }
    }
}

/// One run.
pub struct Lab {
    pub dir: PathBuf,
    pub sources: PathBuf,
    pub sizes: Sizes,
    pub binary: PathBuf,
    /// The lever that the subject [`Subject::Without`] has off.
    pub ab: Option<String>,
    pub overlay: bool,
    next: Cell<u32>,
    prepared: RefCell<BTreeMap<(&'static str, String), PathBuf>>,
    keep: bool,
    _lock: OwnedFd,
}

impl Lab {
    /// A fresh run below `work`. What runs that were killed left running is ended now, but deleted
    /// only at the end.
    pub fn new(work: &Path, binary: PathBuf, sizes: Sizes, ab: Option<String>) -> Result<Self> {
        let (runs, sources) = (work.join("runs"), work.join("sources"));
        fs::create_dir_all(&runs).with_context(|| format!("cannot create {}", runs.display()))?;
        fs::create_dir_all(&sources)?;
        let dir = fs::canonicalize(&runs)?.join(std::process::id().to_string());
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let lock = lock(&dir)?.context("a fresh run is already locked")?;
        for killed in unlocked(&runs)? {
            retire(&killed, &binary)?;
        }
        let sources = fs::canonicalize(sources)?;
        let overlay = rustix::process::geteuid().is_root();
        Ok(Self {
            dir,
            sources,
            sizes,
            binary,
            ab,
            overlay,
            next: Cell::new(0),
            prepared: RefCell::default(),
            keep: false,
            _lock: lock,
        })
    }

    /// Leaves everything in place at the end, to be looked at.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// A path in this run that nothing has used yet.
    pub fn fresh(&self, word: &str) -> PathBuf {
        let number = self.next.get();
        self.next.set(number + 1);
        self.dir.join(format!("{number:04}-{word}"))
    }

    /// A store that does not exist yet. The name is short: it holds a socket.
    pub fn store(&self, subject: Subject) -> Store {
        let off = match subject {
            Subject::Without => self.ab.clone(),
            _ => None,
        };
        Store::new(&self.binary, self.fresh("s"), off)
    }

    /// Who takes part beside each other: the native side is always the first of a round.
    pub fn subjects(&self) -> Vec<Subject> {
        let mut subjects = vec![Subject::Native, Subject::Ours];
        if self.ab.is_some() {
            subjects.push(Subject::Without);
        } else if self.overlay {
            subjects.push(Subject::Overlay);
        }
        subjects
    }

    /// Only the native side and ours.
    pub fn contestants(&self) -> Vec<Subject> {
        let mut subjects = self.subjects();
        subjects.retain(|subject| *subject != Subject::Overlay);
        subjects
    }

    /// Writes back what earlier repetitions left in memory, where the run is long enough for that.
    pub fn sync(&self) {
        if self.sizes.sync {
            rustix::fs::sync();
        }
    }

    /// A finished native checkout of `source` that nothing changes, made once.
    pub fn template(&self, source: &Source) -> Result<PathBuf> {
        self.prepared("template", source)
    }

    /// A native clone of `source` to which `git worktree add` adds, made once.
    pub fn trunk(&self, source: &Source) -> Result<PathBuf> {
        self.prepared("trunk", source)
    }

    fn prepared(&self, role: &'static str, source: &Source) -> Result<PathBuf> {
        let key = (role, source.about.name.clone());
        if let Some(dir) = self.prepared.borrow().get(&key) {
            return Ok(dir.clone());
        }
        let dir = self.fresh(role);
        Run::new("git").args(["clone", "--quiet"]).arg(&source.git_dir).arg(&dir).ok()?;
        settle_index(&dir)?;
        self.prepared.borrow_mut().insert(key, dir.clone());
        Ok(dir)
    }

    /// The repository that `recipe` makes.
    pub fn generated(&self, recipe: &Recipe) -> Result<Source> {
        source::generated(&self.sources, recipe)
    }

    /// Ends what is left of this run and deletes it, and of runs that were killed.
    pub fn clean_up(self) -> Result<()> {
        if self.keep {
            say(&format!("kept: {}", self.dir.display()));
            return mounts::detach_below(&self.dir);
        }
        let runs = self.dir.parent().context("a run has no parent")?.to_owned();
        remove(&self.dir)?;
        unlocked(&runs)?.iter().try_for_each(|killed| remove(killed))
    }
}

/// Makes a fresh native checkout as fast as it gets. Git reads a file again in every status as long
/// as the file is not older than the index; a rewritten index ends that, as the first commit would.
pub fn settle_index(checkout: &Path) -> Result<()> {
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let rewrite = ["update-index", "-q", "--refresh", "--force-write-index"];
    Run::git(checkout).args(rewrite).ok().map(drop)
}

/// Deletes a run. Nothing may be mounted in it: a deletion must never reach into a mount.
fn remove(dir: &Path) -> Result<()> {
    mounts::detach_below(dir)?;
    if !mounts::below(dir)?.is_empty() {
        bail!("something is still mounted below {}: it is left as it is", dir.display());
    }
    fs::remove_dir_all(dir).with_context(|| format!("cannot delete {}", dir.display()))
}

/// The runs that no living process holds.
fn unlocked(runs: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(runs)? {
        let dir = entry?.path();
        if lock(&dir)?.is_some() {
            found.push(dir);
        }
    }
    Ok(found)
}

/// Ends the daemons and the mounts of a run that was killed.
fn retire(run: &Path, binary: &Path) -> Result<()> {
    for entry in fs::read_dir(run)? {
        let store = entry?.path();
        if store.join("daemon.sock").exists() {
            // A daemon that is gone already is as good.
            let _ = Store::new(binary, store, None).run().args(["daemon", "stop"]).answer();
        }
    }
    mounts::detach_below(run)
}

/// Takes the lock of a run; nothing when a living process holds it.
fn lock(dir: &Path) -> Result<Option<OwnedFd>> {
    let path = dir.join("lock");
    let options = fs::OpenOptions::new().create(true).append(true).open(&path);
    let file = OwnedFd::from(options.with_context(|| format!("cannot open {}", path.display()))?);
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Tells the person in front how far the run is.
pub fn say(line: &str) {
    // Nobody reads: the run goes on.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_run_is_cleaned_up_by_the_next_and_a_living_one_is_not() {
        let work = tempfile::tempdir().unwrap();
        let killed = work.path().join("runs/killed");
        let living = work.path().join("runs/living");
        fs::create_dir_all(&killed).unwrap();
        fs::create_dir_all(&living).unwrap();
        fs::write(killed.join("file"), b"x").unwrap();
        let held = lock(&living).unwrap().unwrap();
        let lab = Lab::new(work.path(), PathBuf::new(), Sizes::small(), None).unwrap();
        let (own, first, second) = (lab.dir.clone(), lab.fresh("a"), lab.fresh("a"));
        assert_ne!(first, second);
        lab.clean_up().unwrap();
        assert!(!killed.exists() && !own.exists());
        assert!(living.exists());
        drop(held);
    }

    #[test]
    fn a_full_run_obeys_the_rules() {
        let full = Sizes::full(7);
        assert!(full.warmups >= 2 && full.pairs >= 7 && full.operations >= 2_000);
        assert!(full.long_pairs >= 7 && full.written >= 2_000 && full.synced >= 2_000);
        assert!(full.growth.iter().any(|(files, _)| *files == 1_000_000));
        assert!(Sizes::small().operations >= 2_000);
    }
}
