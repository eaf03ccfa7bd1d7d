//! The names of branches: which are taken, which none can have, and for which git has no room.

use agentfs_engine::GitOid;
use agentfs_gitimport::repository::Repository;

use crate::daemon::state::Daemon;
use crate::error::{Failure, Kind, Result};

/// Refuses a name that a branch has, in the store or in git, or that none can have.
///
/// # Errors
/// [`Kind::Refused`]; what reading the two meets.
pub fn refuse_taken(daemon: &Daemon, git: &Repository, repository: &str, name: &str) -> Result<()> {
    if !Repository::is_branch_name(name) {
        return Err(Failure::new(Kind::Refused, format!("{name:?} cannot name a branch"))
            .hint("`git help check-ref-format` says what a name may hold"));
    }
    if daemon.store.branch(repository, name)?.is_some() || git.has_branch(name)? {
        return Err(Failure::new(
            Kind::Refused,
            format!("there is a branch {name} in {repository} already"),
        )
        .hint("choose another name, or mount that branch with `agentfs mount`"));
    }
    Ok(())
}

/// Makes a branch in git, whose log begins with that if it is `logged`.
///
/// # Errors
/// [`Kind::Refused`] if another branch leaves no room for it; what git meets.
pub fn begin(git: &Repository, name: &str, commit: &GitOid, logged: bool) -> Result<()> {
    // git would leave a directory in the place of that branch.
    for (at, _) in name.match_indices('/') {
        if git.has_branch(&name[..at])? {
            return Err(beside(name, &name[..at]));
        }
    }
    git.create_branch(name, commit, logged).map_err(|error| match git.in_the_way_of(name, "") {
        Ok(Some(other)) => beside(name, &other),
        _ => error.into(),
    })
}

/// That git has no room for a branch beside another.
pub fn beside(name: &str, other: &str) -> Failure {
    let message = format!("git has no room for a branch {name} beside {other}");
    Failure::new(Kind::Refused, message).hint("choose another name")
}
