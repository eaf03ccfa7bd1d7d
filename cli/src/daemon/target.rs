//! What is to be mounted: from the words of the user, or from git's HEAD, to a branch of the store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use agentfs_engine::store::Branch;
use agentfs_engine::{GitOid, TreeId};
use agentfs_gitimport::convert::Plan;
use agentfs_gitimport::repository::{Commit, Head, Repository};
use agentfs_gitimport::walk::{self, ImportedTrees};

use crate::daemon::repositories::{OpenRepository, unique};
use crate::daemon::rpc::Call;
use crate::daemon::state::Daemon;
use crate::error::{Failure, Kind, Result};

/// Files of a worktree are at least this much older than the worktree, in seconds: git takes a file
/// that is as young as its index for one that may have changed.
const AGE_MIN: i64 = 2;
/// Digits of the commit in the name of a branch that is no git branch.
const NAME_DIGITS: usize = 12;

/// A line of git's history to check out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The git branch; none for a bare commit.
    pub branch: Option<String>,
    /// The commit; none for a git branch without one.
    pub commit: Option<Commit>,
    /// What the user should know.
    pub note: Option<String>,
}

impl Target {
    /// What HEAD of `git` names.
    ///
    /// # Errors
    /// As [`Repository::head`].
    pub fn of_head(git: &Repository) -> Result<Self> {
        let (branch, commit) = match git.head()? {
            Head::Branch { name, commit } => (Some(name), Some(commit)),
            Head::Unborn { name } => (Some(name), None),
            Head::Detached(commit) => (None, Some(commit)),
        };
        Ok(Self { branch, commit, note: None })
    }

    /// What `rev` names in `repository`: a branch, else any revision, else a branch of the remote.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it names nothing.
    pub fn of_revision(daemon: &Daemon, repository: &OpenRepository, rev: &str) -> Result<Self> {
        let git = &*repository.git_as_it_is()?;
        if rev.is_empty() || rev == "HEAD" {
            return Self::of_head(git);
        }
        // A branch that stands for a commit alone has a name that git does not know.
        let known = daemon.store.branch(&repository.record.name, rev)?;
        if let Some(Branch { commit: Some(commit), detached: true, .. }) = known {
            let commit = git.resolve(&commit.to_string())?;
            return Ok(Self { branch: None, commit: Some(commit), note: None });
        }
        let short = rev.strip_prefix("refs/heads/").unwrap_or(rev);
        if git.has_branch(short)? {
            let commit = git.resolve(&format!("refs/heads/{short}"))?;
            return Ok(Self { branch: Some(short.into()), commit: Some(commit), note: None });
        }
        match git.resolve(rev) {
            Ok(commit) => Ok(Self { branch: None, commit: Some(commit), note: None }),
            Err(error @ agentfs_gitimport::Error::NoSuchRevision { .. }) => {
                let remote = format!("refs/remotes/origin/{rev}");
                let commit = git.resolve(&remote).map_err(|_| error)?;
                let note =
                    format!("{rev} is a branch of the remote only: HEAD is detached at its commit");
                Ok(Self { branch: None, commit: Some(commit), note: Some(note) })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Splits `repository@revision`, or finds out what a word without `@` means: a branch, else a
/// repository, else a revision of the only repository.
///
/// # Errors
/// [`Kind::NotFound`] if it means nothing, [`Kind::Refused`] if it means several things.
pub fn parse(daemon: &Daemon, what: &str) -> Result<(String, String)> {
    if let Some((repository, revision)) = what.split_once('@') {
        return Ok((repository.into(), revision.into()));
    }
    // There are few repositories, and there may be thousands of branches.
    let repositories = daemon.store.repositories()?;
    let named = repositories.iter().map(|repository| daemon.store.branch(&repository.name, what));
    let named: Vec<_> = named.collect::<Result<_, _>>()?;
    let mut named = named.into_iter().flatten();
    if let Some(branch) = named.next() {
        if let Some(other) = named.next() {
            return Err(Failure::new(
                Kind::Refused,
                format!(
                    "{what:?} is a branch of {} and of {}",
                    branch.repository, other.repository
                ),
            )
            .hint(format!("say which: {}@{what}", branch.repository)));
        }
        return Ok((branch.repository.clone(), what.into()));
    }
    if daemon.store.repository(what)?.is_some() {
        return Ok((what.into(), String::new()));
    }
    match repositories.as_slice() {
        [] => Err(Failure::new(Kind::NotFound, "the store is empty")
            .hint("take a repository in with `agentfs clone <url|path>`")),
        [only] => Ok((only.name.clone(), what.into())),
        _ => Err(Failure::new(
            Kind::NotFound,
            format!("{what:?} is neither a branch nor a repository of this store"),
        )
        .hint("name it as repository@revision; `agentfs ps` lists the repositories")),
    }
}

/// The branch that `what` names, with its repository.
///
/// # Errors
/// [`Kind::NotFound`], with `hint`, if it is not on record; as [`parse`].
pub fn recorded(daemon: &Daemon, what: &str, hint: &str) -> Result<(Arc<OpenRepository>, Branch)> {
    let (name, revision) = parse(daemon, what)?;
    let repository = daemon.repositories.get(&daemon.store, &name)?;
    let branch = daemon.store.branch(&name, &revision)?.ok_or_else(|| {
        let message = match revision.as_str() {
            "" => format!("{name} is a repository; it takes one of its branches"),
            _ => format!("{revision:?} is no branch of {name} that agentfs has on record"),
        };
        Failure::new(Kind::NotFound, message).hint(hint)
    })?;
    Ok((repository, branch))
}

/// The branch that `rev` names in `repository`, if it has changes and is not mounted: it is mounted as
/// it was left, wherever git's branch of that name is now.
///
/// # Errors
/// What reading the store meets.
pub fn kept(daemon: &Daemon, repository: &str, rev: &str) -> Result<Option<Branch>> {
    let known = daemon.store.branch(repository, rev)?.filter(|branch| branch.git.is_some());
    Ok(known.filter(|_| daemon.worktrees.holder_of(repository, rev).is_none()))
}

/// The directory object of `target`, imported if the store does not have it, and what has been read
/// for that.
///
/// # Errors
/// What the import meets.
pub fn import(
    daemon: &Daemon,
    repository: &OpenRepository,
    target: &Target,
    call: &Call,
) -> Result<(TreeId, ImportedTrees)> {
    let git = repository.git()?;
    let plan = Plan::new(&git)?;
    let tree = target.commit.map_or_else(|| git.odb().empty_tree(), |commit| commit.tree);
    if let Some(root) = walk::imported(&daemon.store, &git, &tree, &plan)? {
        return Ok((root.id, ImportedTrees::default()));
    }
    // The git map gets the trees of a branch when all of it is in the store; until then another
    // worktree of the same commit need not walk them. Later they are under other conversions.
    let commit = target.commit.map(|commit| commit.id);
    let same = |branch: &&Branch| {
        branch.repository == repository.record.name
            && branch.commit == commit
            && branch.root_oid == Some(tree)
            && !branch.ingested
    };
    if let Some(known) = daemon.store.branches()?.iter().find(same) {
        return Ok((known.root, ImportedTrees::default()));
    }
    let (meter, cancel) = (call.meter.as_ref(), &call.cancel);
    let imported = walk::import_tree(&daemon.store, &git, &tree, &plan, meter, cancel)?;
    Ok((imported.root.id, imported.trees))
}

/// Lets go of the branch of a target that is to be mounted if it is checked out in another worktree,
/// ours or not, and returns where: whoever committed in one of the two would change the other. The
/// caller holds [`Daemon::lock_names`] until its own worktree has a place.
///
/// # Errors
/// If the repository cannot be read.
pub fn detach_if_held(
    daemon: &Daemon,
    repository: &OpenRepository,
    target: &mut Target,
) -> Result<Option<PathBuf>> {
    let (Some(name), Some(_)) = (&target.branch, &target.commit) else { return Ok(None) };
    let ours = daemon.worktrees.holder_of(&repository.record.name, name);
    let holder = ours.or(repository.git()?.checkout_of(name));
    if let Some(holder) = &holder {
        let shown = holder.display();
        target.note = Some(format!("{name} is checked out at {shown}: HEAD is detached here"));
        target.branch = None;
    }
    Ok(holder)
}

/// The branch of the store for `target`, whose directory object is `root`. The caller holds
/// [`Daemon::lock_names`] until the branch is on record or its worktree has a place.
///
/// # Errors
/// What reading the store meets.
pub fn branch(
    daemon: &Daemon,
    repository: &OpenRepository,
    target: &Target,
    root: TreeId,
) -> Result<Branch> {
    let repository = &repository.record.name;
    let commit = target.commit.map(|commit| commit.id);
    let detached = target.branch.is_none();
    let name = match (&target.branch, commit) {
        (Some(name), _) => name.clone(),
        (None, Some(commit)) => free_name(daemon, repository, &commit)?,
        (None, None) => {
            return Err(Failure::new(Kind::Failed, "HEAD names neither a branch nor a commit"));
        }
    };
    if let Some(known) = daemon.store.branch(repository, &name)?
        && (known.commit, known.root, known.detached) == (commit, root, detached)
    {
        return Ok(known);
    }
    Ok(Branch {
        repository: repository.clone(),
        number: daemon.store.new_branch_number(),
        name,
        root,
        root_oid: target.commit.map(|commit| commit.tree),
        commit,
        time: settled(target.commit.map(|commit| commit.time)),
        ingested: false,
        detached,
        git: None,
    })
}

/// A name for a branch that stands for `commit` alone and that no worktree has.
fn free_name(daemon: &Daemon, repository: &str, commit: &GitOid) -> Result<String> {
    let digits = commit.to_string();
    let name = format!("detached-{}", &digits[..NAME_DIGITS.min(digits.len())]);
    unique(&name, |name| {
        let other = daemon.store.branch(repository, name)?.is_some_and(|branch| {
            branch.commit != Some(*commit) || !branch.detached || branch.git.is_some()
        });
        Ok(other || daemon.worktrees.holder_of(repository, name).is_some())
    })
}

/// The time of the files of a worktree whose commit has time `commit`.
fn settled(commit: Option<i64>) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let latest = i64::try_from(now).unwrap_or(i64::MAX) - AGE_MIN;
    commit.map_or(latest, |time| time.min(latest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_never_as_young_as_their_index() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        assert_eq!(settled(Some(1_000)), 1_000);
        assert!(settled(Some(i64::MAX)) <= now - AGE_MIN + 1);
        assert!(settled(None) <= now - AGE_MIN + 1);
    }
}
