//! Another name for a branch.
//!
//! The record of the store decides: it is changed first, in one transaction, and git's branch and what names
//! it follow. A daemon that is killed between the two has left a note, and the next one completes it
//! before anything is mounted.

use std::fs;
use std::thread;
use std::time::Duration;

use agentfs_engine::store::{Branch, WorktreeRecord};
use agentfs_gitimport::gitdir;
use agentfs_gitimport::state;
use agentfs_gitimport::walk::ImportedTrees;
use tracing::{info, warn};

use crate::daemon::names::{beside, refuse_taken};
use crate::daemon::note::{self, Making, Note};
use crate::daemon::state::Daemon;
use crate::daemon::target;
use crate::error::{Failure, Kind, Result};
use crate::protocol::{BranchRenameCall, BranchRenamed};

/// How often, and with what pause, the next daemon tries what a git process may still be at that its
/// predecessor began.
const ATTEMPTS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

/// Gives a branch another name, mounted or not. Its snapshots are those of the new name; what is mounted
/// stays as it is.
///
/// # Errors
/// [`Kind::Refused`] if the name is taken or cannot be one, for a commit without a branch, and while a
/// rebase or bisection of the branch is in progress; [`Kind::Busy`] while commands run in it. What
/// the store and git meet: it then has its old name.
pub fn rename(daemon: &Daemon, params: &BranchRenameCall) -> Result<BranchRenamed> {
    let _names = daemon.lock_names();
    let hint =
        "`agentfs branch list` lists them; a branch of git alone is renamed with `git branch -m`";
    let (repository, branch) = target::recorded(daemon, &params.branch, hint)?;
    let (from, to) = (branch.name.as_str(), params.name.as_str());
    let git = repository.git_as_it_is()?;
    let refuse = |message: String, hint: &str| {
        Err(Failure::new(Kind::Refused, message).hint(hint.to_owned()))
    };
    if branch.detached {
        let message = format!("{from} is a commit and no branch");
        return refuse(message, "`git switch -c NAME` in its worktree begins a branch there");
    }
    refuse_taken(daemon, &git, &branch.repository, to)?;
    if let Some(other) = git.in_the_way_of(to, from)? {
        return Err(beside(to, &other));
    }
    if let Some(at) = git.operation_on(from)? {
        let message = format!("a rebase or bisection of {from} is in progress ({})", at.display());
        return refuse(message, "end it first");
    }
    let holder = daemon.worktrees.holder_of(&branch.repository, from);
    let _unused = holder.as_ref().map(|dir| daemon.execs.refuse_close(dir)).transpose()?;
    let held = holder.as_ref().map(|dir| daemon.worktrees.hold(dir)).transpose()?;
    let (number, repository) = (branch.number.0, branch.repository.clone());
    let making = Making::Rename { branch: number, from: from.into(), to: to.into() };
    let note = Note::write(&daemon.layout, &making)?;
    let renamed = record(daemon, &branch, to)?;
    if let Err(error) = git.rename_branch(from, to) {
        record(daemon, &renamed, from)?;
        return Err(error.into());
    }
    if let Some(held) = held {
        held.rename(to);
    }
    if let Err(failure) = follow(daemon, &renamed, from) {
        // The next daemon completes it.
        std::mem::forget(note);
        return Err(failure);
    }
    daemon.ingest.cancel(&repository, from);
    if !renamed.ingested {
        daemon.ingest.enqueue(&renamed, ImportedTrees::default());
    }
    Ok(BranchRenamed { repository, from: from.into(), branch: to.into() })
}

/// Puts a branch, its worktrees and its snapshots on record under another name.
fn record(daemon: &Daemon, branch: &Branch, to: &str) -> Result<Branch> {
    let mut batch = daemon.store.batch()?;
    // It may have been taken in meanwhile.
    let known = daemon.store.branch(&branch.repository, &branch.name)?;
    let renamed = Branch { name: to.into(), ..known.unwrap_or_else(|| branch.clone()) };
    batch.remove_branch(&branch.repository, &branch.name);
    batch.put_branch(&renamed);
    for worktree in daemon.store.worktrees()? {
        if (&worktree.repository, &worktree.branch) == (&branch.repository, &branch.name) {
            batch.put_worktree(&WorktreeRecord { branch: to.into(), ..worktree });
        }
    }
    for mut snapshot in daemon.store.snapshots(branch.number)? {
        snapshot.name = to.into();
        batch.put_snapshot(&snapshot);
    }
    batch.commit()?;
    Ok(renamed)
}

/// Has what else says the old name say the new one: the git states of snapshots, and where git believes a
/// branch that was never mounted.
fn follow(daemon: &Daemon, renamed: &Branch, from: &str) -> Result<()> {
    for snapshot in daemon.store.all_snapshots()? {
        if snapshot.repository == renamed.repository
            && let Some(dir) = &snapshot.git_state
        {
            state::rename(&daemon.layout.snapshots().join(dir), from, &renamed.name)?;
        }
    }
    let place = |name| daemon.layout.unmounted(&renamed.repository, name);
    if let Some(git_dir) = renamed.git_dir()
        && fs::read(git_dir.join("gitdir")).is_ok_and(|text| {
            text.trim_ascii_end() == place(from).join(".git").as_os_str().as_encoded_bytes()
        })
    {
        gitdir::relocate(git_dir, &place(&renamed.name))?;
    }
    Ok(())
}

/// Completes what a killed daemon was renaming. Called before anything is mounted.
pub fn complete(daemon: &Daemon) {
    for (note, branch, from, to) in note::renames(&daemon.layout) {
        match complete_one(daemon, branch, &from, &to) {
            Ok(()) => drop(note),
            Err(failure) => {
                warn!("cannot complete the renaming of {from} to {to}: {failure}");
                std::mem::forget(note);
            }
        }
    }
}

fn complete_one(daemon: &Daemon, number: u64, from: &str, to: &str) -> Result<()> {
    let branches = daemon.store.branches()?;
    let named = |one: &Branch| one.number.0 == number && one.name == to;
    let Some(branch) = branches.into_iter().find(named) else { return Ok(()) };
    let repository = daemon.repositories.get(&daemon.store, &branch.repository)?;
    let git = repository.git_as_it_is()?;
    let mut attempt = 1;
    while let Err(error) = git.rename_branch(from, to) {
        if attempt == ATTEMPTS {
            warn!("{to} is called {from} again: {error}");
            record(daemon, &branch, from)?;
            return Ok(());
        }
        attempt += 1;
        // The git of a killed daemon and ours at once: that which comes second puts the old one back.
        let tip = |name: &str| git.resolve(&format!("refs/heads/{name}")).ok();
        if let (Some(old), Some(new)) = (tip(from), tip(to))
            && old.id == new.id
        {
            git.remove_reference(&format!("refs/heads/{from}"), &old.id)?;
            continue;
        }
        thread::sleep(PAUSE);
    }
    follow(daemon, &branch, from)?;
    info!("completed the renaming of {from} to {to}");
    Ok(())
}
