//! The calls that only look: status and stats.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use agentfs_engine::outbox::OutboxCounters;
use agentfs_engine::store::{Branch, WorktreeRecord};

use crate::daemon::state::Daemon;
use crate::daemon::worktrees::Slot;
use crate::error::Result;
use crate::protocol::{
    BranchStatus, Changes, RepositoryStatus, Stats, Status, WorktreeStats, WorktreeStatus,
};

/// What the daemon holds.
///
/// # Errors
/// What reading the store meets.
pub fn status(daemon: &Daemon) -> Result<Status> {
    let branches = daemon.store.branches()?;
    let mounted: HashMap<_, _> = daemon.worktrees.list().into_iter().filter_map(git_dir).collect();
    let repositories = daemon.store.repositories()?.into_iter().map(|repository| {
        let own = branches.iter().filter(|branch| branch.repository == repository.name);
        let git_dir = |branch: &Branch| {
            let mounted = mounted.get(&(branch.repository.clone(), branch.name.clone()));
            mounted.map(PathBuf::as_path).or(branch.git_dir()).map(Path::to_owned)
        };
        RepositoryStatus {
            branches: own.map(|branch| branch_status(daemon, branch, git_dir(branch))).collect(),
            name: repository.name,
            origin: repository.origin,
            git_dir: repository.git_dir.as_path().into(),
            attached: repository.attached,
        }
    });
    let worktrees = daemon.worktrees.list().into_iter().filter_map(|(_, slot)| match slot {
        Slot::Busy(..) => None,
        Slot::Up(up) => {
            let gone = (!up.mounted.is_alive()).then(|| "it was unmounted by others".to_owned());
            let mut status = worktree_status(daemon, &up.record, gone, &branches);
            status.changes = up.worktree.state().map(|state| Changes {
                inodes: state.inodes,
                outbox_bytes: state.outbox_bytes,
                waiting: state.dirty,
                failure: state.failure,
            });
            let redirected = up.redirects.states().into_iter();
            status.redirects = redirected.map(|(_, status)| status).collect();
            status.redirect_notes = up.redirects.asked_in_vain();
            Some(status)
        }
        Slot::Down(record, why) => Some(worktree_status(daemon, &record, Some(why), &branches)),
    });
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime: daemon.started.elapsed().as_secs(),
        store: daemon.root().into(),
        levers: daemon.levers.positions().map(|(name, on)| (name.to_owned(), on)).collect(),
        worktrees: worktrees.collect(),
        repositories: repositories.collect(),
    })
}

/// The git directory of a worktree, by its repository and its branch.
fn git_dir((_, slot): (PathBuf, Slot)) -> Option<((String, String), PathBuf)> {
    let WorktreeRecord { repository, branch, git_dir, .. } = match slot {
        Slot::Up(up) => up.record.clone(),
        Slot::Down(record, _) => record,
        Slot::Busy(..) => return None,
    };
    Some(((repository, branch), git_dir))
}

/// The commit that a branch is at: that of its `HEAD` if it has a git directory, since commits are made there. What
/// cannot be read is for `fsck` to tell.
pub fn commit_of(daemon: &Daemon, branch: &Branch, git_dir: Option<&Path>) -> Option<String> {
    let git = || {
        let repository = daemon.repositories.get(&daemon.store, &branch.repository).ok()?;
        repository.git().ok()
    };
    let head = match (git_dir, &branch.git) {
        (Some(git_dir), _) => git().and_then(|git| git.head_in(git_dir).ok()),
        // It will be on its branch when it gets one.
        (None, Some(_)) => git().and_then(|git| git.tip(&branch.name).ok()),
        (None, None) => None,
    };
    head.unwrap_or(branch.commit).map(|commit| commit.to_string())
}

fn branch_status(daemon: &Daemon, branch: &Branch, git_dir: Option<PathBuf>) -> BranchStatus {
    let (ingest, failure) = daemon.ingest.of(&branch.repository, &branch.name);
    BranchStatus {
        name: branch.name.clone(),
        commit: commit_of(daemon, branch, git_dir.as_deref()),
        detached: branch.detached,
        changed: branch.git.is_some(),
        ingested: branch.ingested,
        ingest,
        failure,
    }
}

fn worktree_status(
    daemon: &Daemon,
    record: &WorktreeRecord,
    failure: Option<String>,
    branches: &[Branch],
) -> WorktreeStatus {
    let same =
        |branch: &&Branch| branch.repository == record.repository && branch.name == record.branch;
    let branch = branches.iter().find(same);
    WorktreeStatus {
        dir: record.dir.as_path().into(),
        repository: record.repository.clone(),
        branch: record.branch.clone(),
        commit: branch.and_then(|branch| commit_of(daemon, branch, Some(&record.git_dir))),
        mounted: failure.is_none(),
        failure,
        read_only: record.read_only,
        allow_other: record.allow_other,
        git_dir: record.git_dir.as_path().into(),
        ingested: branch.is_some_and(|branch| branch.ingested),
        changes: None,
        redirects: Vec::new(),
        redirect_notes: Vec::new(),
    }
}

/// What was counted.
///
/// # Errors
/// What reading the store meets.
pub fn stats(daemon: &Daemon) -> Result<Stats> {
    let worktrees = daemon.worktrees.list().into_iter().filter_map(|(dir, slot)| match slot {
        Slot::Up(up) => Some(WorktreeStats {
            dir: dir.as_path().into(),
            counters: named(up.mounted.counters()),
            outbox: up.worktree.state().map(|state| outbox(&state.outbox)).unwrap_or_default(),
            latencies: up
                .mounted
                .latencies()
                .into_iter()
                .map(|(name, durations)| (name.to_owned(), durations))
                .collect(),
        }),
        _ => None,
    });
    let held = daemon.store.statistics()?;
    let done = daemon.store.counters();
    Ok(Stats {
        store: named([
            ("chunks", held.chunks),
            ("trees", held.trees),
            ("manifests", held.manifests),
            ("git_blobs", held.blobs),
            ("stored_bytes", held.stored_bytes),
            ("raw_bytes", held.raw_bytes),
            ("segment_bytes", held.segment_bytes),
            ("database_bytes", held.database_bytes),
        ]),
        counters: named([
            ("chunks_read", done.chunks_read),
            ("chunks_bad", done.chunks_bad),
            ("chunks_healed", done.chunks_healed),
            ("trees_healed", done.trees_healed),
            ("cache_hits", done.cache_hits),
            ("bytes_read", done.bytes_read),
            ("bytes_written", done.bytes_written),
            ("commits", done.commits),
            ("syncs", done.syncs),
            ("git_files_synced", daemon.ingest.synced()),
        ]),
        process: process(daemon),
        calls: daemon.laps.snapshot(),
        worktrees: worktrees.collect(),
    })
}

/// What an outbox has done, and how many segments it has now.
fn outbox(done: &OutboxCounters) -> BTreeMap<String, u64> {
    named([
        ("records", done.records),
        ("bytes", done.bytes),
        ("syncs_asked", done.syncs_asked),
        ("file_syncs", done.file_syncs),
        ("dir_syncs", done.dir_syncs),
        ("segments", done.segments),
    ])
}

fn named<'a>(pairs: impl IntoIterator<Item = (&'a str, u64)>) -> BTreeMap<String, u64> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Memory and threads, as the kernel tells them.
fn process(daemon: &Daemon) -> BTreeMap<String, u64> {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut counters = named([("uptime_seconds", daemon.started.elapsed().as_secs())]);
    for (key, name, unit) in [
        ("VmRSS:", "memory_bytes", 1024),
        ("VmHWM:", "memory_peak_bytes", 1024),
        ("Threads:", "threads", 1),
    ] {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let value = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        value.map(|value| counters.insert(name.into(), value * unit));
    }
    counters
}
