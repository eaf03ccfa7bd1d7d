//! What many branches take in git, and how little that can be.
//!
//! A fork that nobody looks into shares what it begins with
//! with every other that began alike, and takes no room of its own for it; it gets a git directory when somebody needs
//! one.

use std::collections::BTreeSet;
use std::path::PathBuf;

use agentfs_engine::store::{Branch, KeptGit};
use agentfs_gitimport::gitdir::{self, NewGitDir, WorktreeHead};
use agentfs_gitimport::shared;
use tracing::{debug, info, warn};

use crate::daemon::note::{Making, Note};
use crate::daemon::repositories::OpenRepository;
use crate::daemon::state::Daemon;
use crate::error::Result;

/// The branch with a git directory of its own, if it has shared what it began with. The caller holds
/// [`Daemon::lock_names`].
///
/// # Errors
/// What making the directory and recording it meet. Nothing is left then.
pub fn unshare(daemon: &Daemon, repository: &OpenRepository, branch: Branch) -> Result<Branch> {
    let Some(KeptGit::Shared(state)) = &branch.git else { return Ok(branch) };
    let making = |git_dir| Making::Branch {
        repository: branch.repository.clone(),
        name: branch.name.clone(),
        commit: None,
        git_dir,
    };
    let note = Note::write(&daemon.layout, &making(None))?;
    let commit = repository.git()?.tip(&branch.name)?;
    let new = NewGitDir {
        common_dir: &repository.record.git_dir,
        worktree: &daemon.layout.unmounted(&branch.repository, &branch.name),
        head: WorktreeHead::Branch { name: &branch.name, commit },
        state: Some((state, Some(&branch.name))),
    };
    let git_dir = new.create(|_| Ok(()))?;
    let recorded = note.amend(&making(Some(git_dir.as_path().into()))).and_then(|()| {
        // It may have been taken in meanwhile.
        let known = daemon.store.branch(&branch.repository, &branch.name)?;
        let git = Some(KeptGit::Dir(git_dir.clone()));
        let branch = Branch { git, ..known.unwrap_or_else(|| branch.clone()) };
        let mut batch = daemon.store.batch()?;
        batch.put_branch(&branch);
        batch.commit()?;
        Ok(branch)
    });
    recorded.inspect_err(|_| {
        if let Err(error) = gitdir::remove(&git_dir) {
            warn!("{error}");
        }
    })
}

/// Has git pack the references of the repositories that belong to the store, where at least `least` are files.
pub fn pack_references(daemon: &Daemon, least: usize) -> Result<()> {
    for record in daemon.store.repositories()?.iter().filter(|record| !record.attached) {
        let packed = daemon.repositories.get(&daemon.store, &record.name);
        match packed.and_then(|one| Ok(one.git()?.pack_references(least)?)) {
            Ok(true) => debug!("the references of {} are packed", record.name),
            Ok(false) => {}
            Err(failure) => warn!("cannot pack the references of {}: {failure}", record.name),
        }
    }
    Ok(())
}

/// Removes the shared git directories that no branch has. The caller holds [`Daemon::lock_names`], or is alone.
///
/// # Errors
/// What reading the store and the file system meet.
pub fn sweep(daemon: &Daemon) -> Result<()> {
    let branches = daemon.store.branches()?;
    let shared = |branch: &'_ Branch| match &branch.git {
        Some(KeptGit::Shared(dir)) => Some(dir.clone()),
        Some(KeptGit::Dir(_)) | None => None,
    };
    let known: Vec<_> = branches.iter().filter_map(shared).collect();
    let known: BTreeSet<_> = known.iter().map(PathBuf::as_path).collect();
    for record in daemon.store.repositories()? {
        match shared::sweep(&record.git_dir, &daemon.layout.shared(), &known) {
            Ok(0) => {}
            Ok(removed) => info!("removed {removed} git directories that no branch has"),
            Err(error) => warn!("{error}"),
        }
    }
    Ok(())
}
