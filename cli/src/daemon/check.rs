//! The call that verifies: the store, the git directories of its worktrees, that these are mounted, and what
//! snapshots have of git.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use agentfs_engine::check::{CheckReport, Finding, check as check_store};
use agentfs_engine::repair::plan;
use agentfs_engine::store::{Branch, Repository};
use agentfs_fuse::MountState;
use agentfs_gitimport::examine::Examined;
use agentfs_gitimport::mend::{Step, mend_saved};
use agentfs_gitimport::saved;
use agentfs_gitimport::verify::Verifier;

use crate::daemon::memory;
use crate::daemon::redirects;
use crate::daemon::rpc::Call;
use crate::daemon::snapshots;
use crate::daemon::state::Daemon;
use crate::daemon::worktrees::{Slot, Up};
use crate::error::Result;
use crate::protocol::Checked;

/// Longest finding of a check that is passed on, in bytes.
const FINDING_BYTES_MAX: usize = 4096;
/// Most repairs that are told: each is a short line, so that the answer keeps within a message.
const REPAIRS_MAX: usize = 512;

/// Verifies everything that is in the store, and what its worktrees need.
///
/// # Errors
/// What keeps the store from being read at all. Damage is no error.
pub fn check(daemon: &Daemon, call: &Call) -> Result<Checked> {
    let report = checked(daemon, call)?;
    let beside = beside(daemon)?;
    memory::give_back();
    Ok(answer(&report, beside))
}

/// What is wrong with what is beside the store, and what can be done about it.
///
/// # Errors
/// What asking for the mounts meets.
pub fn beside(daemon: &Daemon) -> Result<Beside> {
    let mut done = check_worktrees(daemon)?;
    check_snapshots(daemon, &mut done)?;
    done.redirects = redirects::check::check(daemon)?;
    Ok(done)
}

/// What is wrong with the store itself.
///
/// # Errors
/// As [`check`].
pub fn checked(daemon: &Daemon, call: &Call) -> Result<CheckReport> {
    // What the writer still holds is not in the store yet.
    daemon.store.writer().flush()?;
    let mounting = is_mounting(daemon);
    let mut report = check_store(&daemon.store, &Verifier, call.meter.as_ref(), &call.cancel)?;
    if mounting || is_mounting(daemon) {
        // The outbox of a branch that is being mounted is there before its branch is on record.
        report.findings.retain(|finding| !matches!(finding, Finding::OutboxOfNoBranch { .. }));
    }
    Ok(report)
}

fn is_mounting(daemon: &Daemon) -> bool {
    daemon.worktrees.list().iter().any(|(_, slot)| matches!(slot, Slot::Busy(..)))
}

/// What was verified beside the store.
#[derive(Default)]
pub struct Beside {
    /// Worktrees on record.
    worktrees: u64,
    /// Entries of their indexes.
    entries: u64,
    findings: Vec<String>,
    /// What can be done, in this order.
    pub steps: Vec<Step>,
    /// What is wrong with redirected paths.
    redirects: Vec<redirects::check::Finding>,
}

fn answer(report: &CheckReport, beside: Beside) -> Checked {
    let damaged = report.findings.len() + beside.findings.len() + beside.redirects.len();
    let findings = report.findings.iter().map(ToString::to_string).chain(beside.findings);
    let findings = findings.chain(beside.redirects.iter().map(ToString::to_string));
    let repairs = plan(&report.findings);
    let repairs = repairs.iter().map(ToString::to_string);
    let repairs = repairs.chain(beside.steps.iter().map(ToString::to_string));
    let redirects = beside.redirects.iter().filter_map(redirects::check::Finding::step);
    let repairs = repairs.chain(redirects).take(REPAIRS_MAX);
    let findings = findings.take(Checked::FINDINGS_MAX).map(|mut text| {
        while text.len() > FINDING_BYTES_MAX {
            text.pop();
        }
        text
    });
    Checked {
        chunks: report.chunks,
        trees: report.trees,
        contents: report.contents,
        mapped: report.mapped,
        bytes: report.bytes,
        branches: report.branches,
        inodes: report.inodes,
        names: report.names,
        records: report.records,
        worktrees: beside.worktrees,
        index_entries: beside.entries,
        damaged: damaged as u64,
        findings: findings.collect(),
        repairs: repairs.collect(),
    }
}

/// Verifies that what is on record is mounted where it says, and every git directory. Records that
/// cannot be read were reported with the tables.
fn check_worktrees(daemon: &Daemon) -> Result<Beside> {
    let mut done = Beside::default();
    let (Ok(branches), Ok(repositories)) = (daemon.store.branches(), daemon.store.repositories())
    else {
        return Ok(done);
    };
    let repository = |name: &str| repositories.iter().find(|one| one.name == name);
    for (dir, slot) in daemon.worktrees.list() {
        let known = (done.findings.len(), done.steps.len());
        let (record, up) = match slot {
            Slot::Busy(..) => continue,
            Slot::Up(up) => (up.record.clone(), Some(up)),
            Slot::Down(record, why) => {
                let hint = format!("`agentfs umount {}` forgets it", dir.display());
                done.findings.push(format!("{} is not mounted: {why}; {hint}", dir.display()));
                (record, None)
            }
        };
        if let Some(up) = &up
            && let Some(why) = not_mounted(up)?
        {
            done.findings.push(why);
        }
        let same = |one: &&Branch| one.repository == record.repository && one.name == record.branch;
        let (branch, repository) = (branches.iter().find(same), repository(&record.repository));
        if let (Some(branch), Some(repository)) = (branch, repository) {
            let worktree = up.as_ref().map(|up| (&*up.worktree, branch.time));
            let dir = Some(record.dir.as_path());
            let examined = examined(&record.git_dir, repository, branch, dir);
            done.examine(repository, Examined { worktree, ..examined });
        }
        if is_still(daemon, &record.dir, up.as_ref()) {
            done.worktrees += 1;
        } else {
            // What was seen of it was its end.
            done.findings.truncate(known.0);
            done.steps.truncate(known.1);
        }
    }
    // Several may share one.
    let mut seen = BTreeSet::new();
    for branch in &branches {
        let is_mounted = || daemon.worktrees.holder_of(&branch.repository, &branch.name).is_some();
        if let (Some(kept), Some(repository)) = (branch.git_state(), repository(&branch.repository))
            && !is_mounted()
            && seen.insert(kept)
        {
            let mut examined = examined(kept, repository, branch, None);
            if branch.git_dir().is_none() {
                // A shared one is where the branches were that have it.
                let git = daemon.repositories.get(&daemon.store, &branch.repository)?.git();
                examined.detached = git.ok().and_then(|git| git.tip(&branch.name).ok().flatten());
            }
            done.examine(repository, examined);
        }
    }
    Ok(done)
}

/// Verifies what snapshots have outside the store. Records that cannot be read were reported with the tables.
fn check_snapshots(daemon: &Daemon, done: &mut Beside) -> Result<()> {
    for snapshot in daemon.store.all_snapshots().unwrap_or_default() {
        let id = snapshots::id(snapshot.number);
        let reference = snapshots::reference(&snapshot);
        let repository = daemon.repositories.get(&daemon.store, &snapshot.repository);
        let git = repository.and_then(|repository| repository.git());
        let commit = git.as_ref().ok().and_then(|git| git.resolve(&reference).ok());
        let commit = commit.map(|commit| commit.id.to_string());
        let (mut wrong, mut steps) = (Vec::new(), Vec::new());
        if snapshot.commit.is_some() && git.is_ok() && commit.is_none() {
            wrong.push(format!("snapshot {id}: {reference}, which keeps its commit, is gone"));
        }
        if let (Some(state), Ok(git)) = (&snapshot.git_state, &git) {
            let dir = daemon.layout.snapshots().join(state);
            let found = saved::examine(&dir, git.git_dir(), git.hash());
            let (common, name, commit) = (git.git_dir(), &snapshot.name, commit.as_deref());
            steps = mend_saved(&dir, &found, common, name, &reference, commit);
            wrong.extend(found.iter().map(|finding| format!("snapshot {id}: {finding}")));
        }
        // It may have been removed meanwhile.
        if !wrong.is_empty() && snapshots::named(daemon, &id)?.is_some() {
            done.findings.append(&mut wrong);
            done.steps.append(&mut steps);
        }
    }
    Ok(())
}

fn examined<'a>(
    git_dir: &'a Path,
    repository: &'a Repository,
    branch: &'a Branch,
    dir: Option<&'a Path>,
) -> Examined<'a> {
    let (common_dir, hash) = (&*repository.git_dir, repository.hash);
    let detached = branch.commit.filter(|_| branch.detached);
    Examined { git_dir, common_dir, hash, branch: &branch.name, detached, dir, worktree: None }
}

impl Beside {
    fn examine(&mut self, repository: &Repository, examined: Examined<'_>) {
        // Where a repository that is used in place is gone, so is everything in it.
        if repository.attached && !repository.git_dir.is_dir() {
            let shown = repository.git_dir.display();
            self.findings.push(format!("the repository {shown} is gone"));
            return;
        }
        let report = examined.examine();
        self.entries += report.entries;
        self.findings.extend(report.findings.iter().map(ToString::to_string));
        self.steps.extend(examined.mend(&report.findings));
    }
}

/// Whether the worktree at `dir` is what it was, and stays that as far as anybody knows.
fn is_still(daemon: &Daemon, dir: &Path, was: Option<&Arc<Up>>) -> bool {
    // In this order: one that has ended since is gone.
    !daemon.execs.is_ending(dir)
        && match (was, daemon.worktrees.get(dir)) {
            (Some(was), Some(Slot::Up(up))) => Arc::ptr_eq(was, &up),
            (None, Some(Slot::Down(..))) => true,
            _ => false,
        }
}

/// Why a worktree that should be mounted is not.
fn not_mounted(up: &Up) -> Result<Option<String>> {
    let (dir, expected) = (&up.record.dir, &up.name);
    let shown = dir.display();
    let forget = format!("`agentfs umount {shown}` forgets it");
    Ok(match agentfs_fuse::mount_state(dir)? {
        // One that does not answer at once may be busy: it is there.
        MountState::OurFs { name, .. } if name == *expected => None,
        MountState::OurFs { name, .. } => {
            Some(format!("{shown} should be {expected} and is the mount {name}; {forget}"))
        }
        MountState::Other { fstype } => {
            Some(format!("{shown} should be {expected} and is a mount of type {fstype}; {forget}"))
        }
        MountState::NotMounted | MountState::Dead => {
            Some(format!("{shown} is not mounted: it was unmounted by others; {forget}"))
        }
    })
}
