//! Having the directory of a worktree show another branch of agentfs, one with files of its own.
//!
//! The two are different worktrees, with other inodes, so nobody can stay in it: the one is unmounted and the other
//! mounted in its place. One commit of the store says which of them is there, so that a daemon that is killed
//! meanwhile mounts the one or the other when it starts again.

use std::sync::Arc;

use agentfs_engine::store::{Branch, WorktreeRecord};
use agentfs_gitimport::gitdir;
use agentfs_gitimport::switch::At;
use agentfs_gitimport::walk::ImportedTrees;

use crate::daemon::state::Daemon;
use crate::daemon::worktrees::{Slot, Up};
use crate::daemon::{calls, git_states, opening};
use crate::error::{Failure, Kind, Result};
use crate::protocol::Switched;

/// Has the directory of `up` show branch `other`. What it has shown is kept as that branch, which is not mounted then.
///
/// # Errors
/// [`Kind::Busy`] if somebody is in it, or if `other` has been mounted or removed meanwhile: all is as before then. What
/// mounting it meets; the worktree is on record then and not mounted.
pub fn show(daemon: &Daemon, up: &Arc<Up>, other: &Branch) -> Result<Switched> {
    let WorktreeRecord { dir, repository, allow_other, .. } = &up.record;
    let _names = daemon.lock_names();
    let known = daemon.store.branch(repository, &other.name)?;
    let same = known.filter(|known| known.number == other.number && known.git.is_some());
    let free = same.filter(|_| daemon.worktrees.holder_of(repository, &other.name).is_none());
    let Some(other) = free else {
        let message = format!("{} was mounted, renamed or removed meanwhile", other.name);
        return Err(Failure::new(Kind::Busy, message).hint("see `agentfs ps`, then switch again"));
    };
    let opened = daemon.repositories.get(&daemon.store, repository)?;
    let git = opened.git_as_it_is()?;
    let from = At::of(&git, &up.record.git_dir)?;
    let other = git_states::unshare(daemon, &opened, other)?;
    let Some(git_dir) = other.git_dir().filter(|git_dir| git_dir.is_dir()) else {
        let message = format!("the git directory of {} is not there", other.name);
        return Err(Failure::new(Kind::Damaged, message).hint("`agentfs fsck` says what is wrong"));
    };
    let record = WorktreeRecord {
        dir: dir.clone(),
        repository: repository.clone(),
        branch: other.name.clone(),
        read_only: false,
        allow_other: *allow_other,
        git_dir: git_dir.to_owned(),
    };
    let at = At::of(&git, git_dir)?;
    let _unused = daemon.execs.refuse_close(dir)?;
    calls::replace(daemon, dir, &record).map_err(Failure::leave_first)?;
    let reservation = daemon.worktrees.reserve(dir, &other)?;
    let mounted = gitdir::relocate(git_dir, dir)
        .map_err(Failure::from)
        .and_then(|()| opening::reopen(daemon, &opened, &other, record.clone()));
    if let Err(failure) = mounted {
        reservation.fill(Slot::Down(record, failure.message.clone()));
        return Err(failure.hint(format!(
            "`agentfs umount {}` forgets it, and `agentfs mount` brings either branch back",
            dir.display()
        )));
    }
    drop(reservation);
    if !other.ingested {
        daemon.ingest.enqueue(&other, ImportedTrees::default());
    }
    Ok(Switched {
        dir: dir.as_path().into(),
        repository: repository.clone(),
        branch: other.name.clone(),
        from: from.commit.map(|commit| commit.id.to_string()),
        commit: at.commit.map(|commit| commit.id.to_string()).unwrap_or_default(),
        head: at.text.strip_prefix("ref: refs/heads/").map(Into::into),
        paths: 0,
        before: None,
        left: Some(up.record.branch.clone()),
        notes: Vec::new(),
    })
}
