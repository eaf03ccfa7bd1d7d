//! The call that repairs: it checks, does what can be done about the findings, and checks again.

use std::sync::Arc;

use agentfs_engine::repair::{Step, Surroundings, Taken, execute, plan};
use agentfs_engine::store::Branch;
use agentfs_engine::worktree::Contents;
use agentfs_gitimport::walk::ImportedTrees;
use tracing::warn;

use crate::daemon::check::{self, checked};
use crate::daemon::recover::remount;
use crate::daemon::redirects;
use crate::daemon::rpc::Call;
use crate::daemon::state::Daemon;
use crate::daemon::worktrees::Slot;
use crate::error::Result;
use crate::protocol::{NotRepaired, Repaired};

/// What the daemon knows of its branches.
struct Around<'a>(&'a Daemon);

impl Surroundings for Around<'_> {
    fn contents(&self, branch: &Branch) -> Option<Arc<Contents>> {
        let repository = self.0.repositories.get(&self.0.store, &branch.repository);
        match repository {
            Ok(repository) => Some(repository.contents(branch.root_oid)),
            Err(failure) => {
                warn!("nothing is rebuilt from repository {}: {failure}", branch.repository);
                None
            }
        }
    }

    fn is_open(&self, branch: &Branch) -> bool {
        self.0.worktrees.list().iter().any(|(_, slot)| match slot {
            Slot::Up(up) => {
                up.record.repository == branch.repository && up.record.branch == branch.name
            }
            Slot::Busy(repository, name) => {
                *repository == branch.repository && *name == branch.name
            }
            Slot::Down(..) => false,
        })
    }
}

/// Repairs what can be.
///
/// # Errors
/// What keeps the store from being read at all. What cannot be repaired is no error.
pub fn repair(daemon: &Daemon, call: &Call) -> Result<Repaired> {
    let taken = take_steps(daemon, call)?;
    let mut lost: Vec<_> = taken.iter().filter_map(|one| one.lost.clone()).collect();
    let taken = taken.into_iter();
    let mut done: Vec<_> = taken.map(|one| (one.step.to_string(), one.outcome)).collect();
    // What is there after that decides what its git directories need.
    for step in check::beside(daemon)?.steps {
        done.push((step.to_string(), step.take().map_err(|why| why.to_string())));
    }
    for (step, outcome) in redirects::check::repair(daemon)? {
        done.push((step, outcome.map_err(|why| why.to_string())));
    }
    let (mut repaired, mut not_repaired) = (Vec::new(), Vec::new());
    for (step, outcome) in done {
        match outcome {
            Ok(()) => repaired.push(step),
            Err(why) => not_repaired.push(NotRepaired { step, why }),
        }
    }
    if !repaired.is_empty() {
        repaired.extend(mount_again(daemon));
    }
    // As many as the answer has room for.
    let more = repaired.len() + not_repaired.len();
    repaired.truncate(Repaired::STEPS_MAX);
    not_repaired.truncate(Repaired::STEPS_MAX);
    lost.truncate(Repaired::STEPS_MAX);
    let steps = more as u64;
    Ok(Repaired { steps, repaired, not_repaired, lost, after: check::check(daemon, call)? })
}

/// Takes the steps that the findings of a check ask for.
fn take_steps(daemon: &Daemon, call: &Call) -> Result<Vec<Taken>> {
    let take = |steps: &[Step]| execute(&daemon.store, steps, &Around(daemon), &call.cancel);
    let is_first = |step: &Step| matches!(step, Step::Database { .. } | Step::Outbox { .. });
    let steps = plan(&checked(daemon, call)?.findings);
    let (first, rest): (Vec<_>, Vec<_>) = steps.into_iter().partition(is_first);
    let mut taken = take(&first)?;
    if taken.iter().all(|taken| taken.outcome.is_err()) {
        taken.extend(take(&rest)?);
        return Ok(taken);
    }
    // What the damaged entries and records said is missing now, and found by that.
    let mut rest = plan(&checked(daemon, call)?.findings);
    rest.retain(|step| !is_first(step));
    let is_new = |one: &Taken| matches!(one.step, Step::Database { .. }) && one.outcome.is_ok();
    let is_new = taken.iter().any(is_new);
    taken.extend(take(&rest)?);
    if is_new {
        take_in_again(daemon)?;
    }
    Ok(taken)
}

/// Has the content of every branch taken in again: what is mapped to nothing any more is read from git
/// then.
fn take_in_again(daemon: &Daemon) -> Result<()> {
    let mut branches = daemon.store.branches()?;
    branches.retain(|branch| branch.ingested);
    let mut batch = daemon.store.batch()?;
    for branch in &mut branches {
        branch.ingested = false;
        batch.put_branch(branch);
    }
    batch.commit()?;
    for branch in &branches {
        daemon.ingest.enqueue(branch, ImportedTrees::default());
    }
    Ok(())
}

/// Mounts what is on record and could not be mounted; what was.
fn mount_again(daemon: &Daemon) -> Vec<String> {
    let mut mounted = Vec::new();
    for (dir, slot) in daemon.worktrees.list() {
        let Slot::Down(record, _) = slot else { continue };
        match remount(daemon, &record) {
            Ok(()) => mounted.push(format!("mount {} again", dir.display())),
            Err(failure) => {
                warn!("{} is still not mounted: {failure}", dir.display());
                daemon.worktrees.fill(&dir, Slot::Down(record, failure.message));
            }
        }
    }
    mounted
}
