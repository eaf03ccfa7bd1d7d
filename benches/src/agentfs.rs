//! Our side: the release binary `agentfs`, driven by its command line.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::daemon::{Daemon, Memory};
use crate::lab::say;
use crate::mounts;
use crate::process::{Answer, Run};

/// How long a clone, a check or a start may take: a million files on a slow disk.
const LIMIT: Duration = Duration::from_secs(3600);
/// How long a daemon may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Counters of a worktree that count no request: what the kernel sends on its own, and sums.
const NO_REQUESTS: [&str; 10] = [
    "init",
    "forget",
    "bytes_read",
    "bytes_written",
    "entries_listed",
    "files_pushed",
    "bytes_pushed",
    "errors",
    "panics",
    "files_passed",
];

/// One store with its daemon. Dropping it stops the daemon, by force if it must be.
pub struct Store {
    binary: PathBuf,
    home: PathBuf,
    /// The lever that is switched off in this store's mounts.
    off: Option<String>,
    /// The lever that is off by default and on in this store's mounts.
    on: Option<String>,
    daemon: Cell<Option<Daemon>>,
}

/// The part of `agentfs ps --json` that is used here.
#[derive(Deserialize)]
struct Status {
    pid: u32,
    levers: BTreeMap<String, bool>,
    repositories: Vec<Repository>,
}

#[derive(Deserialize)]
struct Repository {
    name: String,
}

/// The part of `agentfs stats --json` that is used here.
#[derive(Deserialize)]
struct Stats {
    counters: BTreeMap<String, u64>,
    worktrees: Vec<WorktreeStats>,
}

#[derive(Deserialize)]
struct WorktreeStats {
    counters: BTreeMap<String, u64>,
    outbox: BTreeMap<String, u64>,
}

/// The part of `agentfs status --json` that is used here.
#[derive(Deserialize)]
struct Worktrees {
    worktrees: Vec<Fares>,
}

#[derive(Deserialize)]
struct Fares {
    /// Whether all content is stored.
    ingested: bool,
    /// Missing for a worktree that is read-only.
    changes: Option<Changes>,
}

#[derive(Deserialize)]
struct Changes {
    /// Whether something waits to be drained.
    waiting: bool,
}

/// What a daemon has counted so far, over all its mounts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counts {
    /// Requests of the kernel.
    pub requests: u64,
    /// Syncs that outboxes were asked for.
    pub asked: u64,
    /// Files and directories that were synced, those of the store too.
    pub synced: u64,
}

impl Counts {
    /// What has been counted since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            asked: self.asked.saturating_sub(before.asked),
            synced: self.synced.saturating_sub(before.synced),
        }
    }
}

impl WorktreeStats {
    /// A counter that is new here counts as requests, so that nothing is hidden.
    fn requests(&self) -> u64 {
        let counters = self.counters.iter();
        let requests = counters.filter(|(name, _)| !NO_REQUESTS.contains(&name.as_str()));
        requests.map(|(_, count)| count).sum()
    }

    fn outbox(&self, names: &[&str]) -> u64 {
        names.iter().filter_map(|name| self.outbox.get(*name)).sum()
    }
}

impl Stats {
    fn counts(&self) -> Counts {
        let sum = |of: &dyn Fn(&WorktreeStats) -> u64| self.worktrees.iter().map(of).sum::<u64>();
        let store = self.counters.get("syncs").copied().unwrap_or(0);
        Counts {
            requests: sum(&WorktreeStats::requests),
            asked: sum(&|worktree| worktree.outbox(&["syncs_asked"])),
            synced: store + sum(&|worktree| worktree.outbox(&["file_syncs", "dir_syncs"])),
        }
    }
}

impl Store {
    /// A store that does not exist yet, at `home`.
    pub fn new(binary: &Path, home: PathBuf, off: Option<String>) -> Self {
        Self { binary: binary.to_owned(), home, off, on: None, daemon: Cell::new(None) }
    }

    /// The same with a lever on that is off by default.
    pub fn with_lever(mut self, name: &str) -> Self {
        self.on = Some(name.to_owned());
        self
    }

    /// Whether the kernel has read files past the daemon.
    pub fn passes_files(&self) -> Result<bool> {
        let passed = |one: &WorktreeStats| one.counters.get("files_passed").copied();
        Ok(self.stats()?.worktrees.iter().filter_map(passed).sum::<u64>() > 0)
    }

    /// `agentfs` working on this store.
    pub fn run(&self) -> Run {
        // The daemon reads its levers when it starts, and any command may start it.
        let off = self.off.as_deref().unwrap_or_default();
        let run = Run::new(&self.binary).env("AGENTFS_HOME", &self.home);
        let on = self.on.as_deref().unwrap_or_default();
        run.env("AGENTFS_LEVERS_OFF", off).env("AGENTFS_LEVERS_ON", on).limit(LIMIT)
    }

    /// `agentfs clone SOURCE DIR`, timed.
    pub fn clone(&self, source: &Path, dir: &Path, wait: bool) -> Result<Answer> {
        let run = self.run().arg("clone");
        let run = if wait { run.arg("--wait") } else { run };
        run.arg(source).arg(dir).ok()
    }

    /// `agentfs mount REPO@REV DIR`, timed, of the only repository in the store.
    pub fn mount(&self, revision: &str, dir: &Path) -> Result<Answer> {
        let repository = self.repository()?;
        let run = self.run().args(["mount", "--read-only"]);
        run.arg(format!("{repository}@{revision}")).arg(dir).ok()
    }

    /// The name of the only repository in the store.
    pub fn repository(&self) -> Result<String> {
        let status = self.status()?;
        let first = status.repositories.into_iter().next();
        first.map(|repository| repository.name).context("the store is empty")
    }

    /// What `agentfs ps` tells: the daemon, its levers, the repositories. It starts the daemon.
    fn status(&self) -> Result<Status> {
        let answer = self.run().args(["ps", "--json"]).ok()?;
        let status = Status::deserialize(result(&answer)?);
        let status = status.context("`agentfs ps --json` tells less than it should")?;
        self.daemon.set(Some(Daemon::find(status.pid)?));
        Ok(status)
    }

    /// The daemon's process. It is asked for late: nothing may come between a clone and what is
    /// timed after it, while content is still being ingested.
    fn daemon(&self) -> Result<Daemon> {
        if self.daemon.get().is_none() {
            self.status()?;
        }
        self.daemon.get().context("there is no daemon")
    }

    /// Stops the daemon and starts it again; it mounts what was mounted.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.run().args(["daemon", "start"]).ok().map(drop)
    }

    /// Stops the daemon; its mounts go with it.
    pub fn stop(&self) -> Result<()> {
        let stop = || self.run().args(["daemon", "stop"]).limit(STOP_LIMIT).ok();
        if self.daemon.get().is_none() && !self.home.join("daemon.sock").exists() {
            return Ok(());
        }
        let Ok(daemon) = self.daemon() else { return stop().map(drop) };
        let stopped = stop();
        let start = Instant::now();
        while daemon.lives() && start.elapsed() < STOP_LIMIT && stopped.is_ok() {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.daemon.set(None);
        if daemon.lives() {
            daemon.kill();
            stopped?;
            bail!("the daemon {} said that it stops, but went on for {STOP_LIMIT:?}", daemon.pid);
        }
        stopped.map(drop)
    }

    /// What the daemon's memory holds now and held at most.
    pub fn memory(&self) -> Result<Memory> {
        self.daemon()?.memory()
    }

    /// Waits until the daemon has nothing left to do: all content is stored, and it takes less than 2 % of a core
    /// over half a second. The latter alone would also be true of an ingest that waits for the disk.
    pub fn wait_idle(&self) -> Result<()> {
        let start = Instant::now();
        while self.worktrees()?.iter().any(|one| !one.ingested) {
            if start.elapsed() > LIMIT {
                bail!("the daemon still has content to store after {} s", LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let daemon = self.daemon()?;
        let mut before = daemon.ticks()?;
        while start.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(500));
            let now = daemon.ticks()?;
            if now - before <= 1 {
                return Ok(());
            }
            before = now;
        }
        bail!("the daemon is still busy after {} s", LIMIT.as_secs())
    }

    /// Waits until nothing that was written waits to be drained.
    pub fn wait_drained(&self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            let waits = |fares: &Fares| fares.changes.as_ref().is_some_and(|c| c.waiting);
            if !self.worktrees()?.iter().any(waits) {
                return self.wait_idle();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("the daemon has not drained what was written within {} s", LIMIT.as_secs())
    }

    fn worktrees(&self) -> Result<Vec<Fares>> {
        let answer = self.run().args(["status", "--json"]).ok()?;
        let status = Worktrees::deserialize(result(&answer)?);
        Ok(status.context("`agentfs status --json` tells less than it should")?.worktrees)
    }

    /// Bytes that the store takes on disk.
    pub fn occupied(&self) -> Result<u64> {
        fn below(dir: &Path) -> std::io::Result<u64> {
            let mut blocks = 0;
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                blocks += metadata.blocks();
                if metadata.is_dir() {
                    blocks += below(&entry.path())?;
                }
            }
            Ok(blocks)
        }
        let blocks = below(&self.home).with_context(|| format!("{}", self.home.display()))?;
        Ok(blocks * 512)
    }

    /// What the daemon has counted so far, over all mounts.
    pub fn counts(&self) -> Result<Counts> {
        Ok(self.stats()?.counts())
    }

    fn stats(&self) -> Result<Stats> {
        let answer = self.run().args(["stats", "--json"]).ok()?;
        let stats = Stats::deserialize(result(&answer)?);
        stats.context("`agentfs stats --json` tells less than it should")
    }

    /// Does something and counts the requests it cost.
    pub fn counting_requests<T>(&self, what: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
        let before = self.counts()?;
        let done = what()?;
        Ok((done, self.counts()?.since(before).requests))
    }

    /// The levers by name.
    pub fn levers(&self) -> Result<BTreeMap<String, bool>> {
        Ok(self.status()?.levers)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            say(&format!("the daemon of {} does not stop: {error:#}", self.home.display()));
        }
    }
}

/// The result object of a `--json` command: its last line.
fn result(answer: &Answer) -> Result<Value> {
    let text = answer.text();
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("this is no JSON: {last}"))
}

/// The binary to drive: the one named, or the one beside this program.
pub fn binary(named: Option<PathBuf>) -> Result<PathBuf> {
    let beside = || -> Result<PathBuf> { Ok(std::env::current_exe()?.with_file_name("agentfs")) };
    let path = named.map_or_else(beside, Ok)?;
    fs::canonicalize(&path).with_context(|| {
        format!(
            "there is no agentfs binary at {}: build it with `cargo build --release`, \
             or name it with --agentfs",
            path.display()
        )
    })
}

/// A finished `clone` or `mount` must have left a mount: a plain directory would be measured as if
/// it were one, and git would find whatever repository lies above it.
pub fn assert_mounted(dir: &Path) -> Result<()> {
    if !mounts::below(dir)?.iter().any(|mount| mount.dir == dir) {
        bail!("nothing is mounted at {}: the worktree was not usable", dir.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_forgets_are_no_requests_and_every_sync_counts() {
        let line = r#"{"counters":{"syncs":5,"commits":9},"worktrees":[
            {"counters":{"read":2,"new":3,"forget":50,"bytes_read":9000},"outbox":{},"dir":"/r"},
            {"counters":{"write":4,"bytes_written":8192},
             "outbox":{"syncs_asked":7,"file_syncs":3,"dir_syncs":1,"bytes":900},"dir":"/w"}]}"#;
        let counts = serde_json::from_str::<Stats>(line).unwrap().counts();
        assert_eq!(counts, Counts { requests: 9, asked: 7, synced: 9 });
        let before = Counts { requests: 2, asked: 1, synced: 8 };
        assert_eq!(counts.since(before), Counts { requests: 7, asked: 6, synced: 1 });
    }
}
