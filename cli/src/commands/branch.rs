//! `agentfs branch`

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;

use crate::commands::{call, day, open, refuse_without_fuse, short};
use crate::destination;
use crate::error::{Failure, Kind, Result};
use crate::exec::namespace;
use crate::output::Output;
use crate::protocol::{
    BranchCreateCall, BranchDeleteCall, BranchDeleted, BranchRenameCall, BranchRenamed,
    BranchStatus, MountAt, Status, UndeleteCall, WirePath, WorktreeStatus, method,
};

/// Arguments of `agentfs branch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Begin a branch at a commit, a snapshot, or what another branch is now
    Create(CreateArgs),
    /// List the branches of the store
    List,
    /// Give a branch another name, also in git, mounted or not
    Rename(RenameArgs),
    /// Remove a branch that is not mounted, also from git; a snapshot keeps it
    Delete(DeleteArgs),
    /// Bring a removed branch back
    Undelete(UndeleteArgs),
    /// Show a mounted branch to a process that has a mount namespace of its own (root only)
    Bind(BindArgs),
}

/// Arguments of `agentfs branch create`.
#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// Its name, which is that of its git branch too
    name: String,
    /// A branch, with all that it is now; a snapshot; or a revision
    #[arg(long, value_name = "BRANCH|SNAPSHOT|REV")]
    from: String,
    /// Give redirected paths what they have in the origin, where files can share blocks
    #[arg(long)]
    seed_redirects: bool,
    #[command(flatten)]
    mount: MountArgs,
}

/// Where a branch is to be mounted.
#[derive(Debug, clap::Args)]
struct MountArgs {
    /// Mount it there
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// Let other users enter the worktree
    #[arg(long, requires = "mount")]
    allow_other: bool,
}

impl MountArgs {
    fn at(&self) -> Result<Option<MountAt>> {
        let Some(dir) = &self.mount else { return Ok(None) };
        refuse_without_fuse("make the branch without --mount")?;
        let dir = WirePath(destination::absolute(dir)?);
        Ok(Some(MountAt { dir, read_only: false, allow_other: self.allow_other }))
    }
}

/// Arguments of `agentfs branch rename`.
#[derive(Debug, clap::Args)]
struct RenameArgs {
    /// The branch, or repository@branch
    old: String,
    /// Its name from now on
    new: String,
}

/// Arguments of `agentfs branch delete`.
#[derive(Debug, clap::Args)]
struct DeleteArgs {
    /// The branch, or repository@branch
    branch: String,
}

/// Arguments of `agentfs branch undelete`.
#[derive(Debug, clap::Args)]
struct UndeleteArgs {
    /// The branch, or repository@branch
    branch: String,
    #[command(flatten)]
    mount: MountArgs,
}

/// Arguments of `agentfs branch bind`.
#[derive(Debug, clap::Args)]
struct BindArgs {
    /// The process; all others in its mount namespace see the branch as well
    #[arg(long)]
    pid: u32,
    /// The branch, or repository@branch
    branch: String,
    /// An existing directory of that namespace (default: where the branch is mounted)
    #[arg(long, value_name = "DIR")]
    at: Option<PathBuf>,
}

#[derive(Serialize)]
struct Bound {
    repository: String,
    branch: String,
    pid: u32,
    dir: WirePath,
}

/// Works with branches.
///
/// # Errors
/// What keeps it from being done.
pub fn run(args: &Args, output: Output) -> Result<u8> {
    match &args.action {
        Action::Create(args) => {
            let (name, from) = (args.name.clone(), args.from.clone());
            let mount = args.mount.at()?;
            let call = BranchCreateCall {
                name,
                from,
                mount,
                seed_redirects: args.seed_redirects,
                ..BranchCreateCall::default()
            };
            open(output, method::BRANCH_CREATE, &call).map(|()| 0)
        }
        Action::List => list(output),
        Action::Rename(args) => rename(args, output),
        Action::Delete(args) => delete(args, output),
        Action::Undelete(args) => {
            let call = UndeleteCall { branch: args.branch.clone(), mount: args.mount.at()? };
            open(output, method::BRANCH_UNDELETE, &call).map(|()| 0)
        }
        Action::Bind(args) => bind(args, output),
    }
}

#[derive(Serialize)]
struct Listed {
    branches: Vec<ListedBranch>,
}

#[derive(Serialize)]
struct ListedBranch {
    repository: String,
    #[serde(flatten)]
    status: BranchStatus,
    dir: Option<WirePath>,
}

fn list(output: Output) -> Result<u8> {
    let Status { repositories, worktrees, .. } = call(output, method::STATUS, &())?;
    let mut branches = Vec::new();
    for repository in repositories {
        for status in repository.branches {
            let holds = |one: &&WorktreeStatus| {
                one.repository == repository.name && one.branch == status.name
            };
            let dir = worktrees.iter().find(holds).map(|one| one.dir.clone());
            branches.push(ListedBranch { repository: repository.name.clone(), status, dir });
        }
    }
    let listed = Listed { branches };
    output.result(&listed, |out| {
        for ListedBranch { repository, status, dir } in &listed.branches {
            let commit = status.commit.as_deref().map_or("no commit", short);
            write!(out, "{repository}@{}  {commit}", status.name)?;
            match dir {
                Some(dir) => writeln!(out, "  {}", dir.0.display())?,
                None if status.changed => writeln!(out, "  not mounted, with changes")?,
                None => writeln!(out, "  not mounted")?,
            }
        }
        Ok(())
    })?;
    Ok(0)
}

fn rename(args: &RenameArgs, output: Output) -> Result<u8> {
    let params = BranchRenameCall { branch: args.old.clone(), name: args.new.clone() };
    let renamed: BranchRenamed = call(output, method::BRANCH_RENAME, &params)?;
    output.result(&renamed, |out| {
        let BranchRenamed { repository, from, branch } = &renamed;
        writeln!(out, "{repository}@{branch}: {from} until now")
    })?;
    Ok(0)
}

fn delete(args: &DeleteArgs, output: Output) -> Result<u8> {
    let params = BranchDeleteCall { branch: args.branch.clone() };
    let deleted: BranchDeleted = call(output, method::BRANCH_DELETE, &params)?;
    output.result(&deleted, |out| {
        let BranchDeleted { repository, branch, snapshot, kept_until } = &deleted;
        let until = day(*kept_until);
        writeln!(out, "{repository}@{branch}: removed")?;
        writeln!(
            out,
            "  kept as {snapshot} until {until}: `agentfs branch undelete {repository}@{branch}` brings it back"
        )
    })?;
    Ok(0)
}

fn bind(args: &BindArgs, output: Output) -> Result<u8> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(
            Kind::CannotMount,
            "only root may mount in the namespace of another process",
        )
        .hint("start the process in the branch instead, with `agentfs exec`"));
    }
    let status: Status = call(output, method::STATUS, &())?;
    let worktree = find(status.worktrees, &args.branch)?;
    let at = args.at.clone().unwrap_or_else(|| worktree.dir.0.clone());
    if !at.is_absolute() {
        return Err(Failure::new(
            Kind::Usage,
            format!("{} is not an absolute path, in the namespace of the process", at.display()),
        ));
    }
    namespace::bind(&worktree.dir.0, &at, args.pid)?;
    let WorktreeStatus { repository, branch, .. } = worktree;
    let bound = Bound { repository, branch, pid: args.pid, dir: WirePath(at) };
    output.result(&bound, |out| {
        let Bound { repository, branch, pid, dir } = &bound;
        writeln!(out, "{}: {repository}, {branch}, for process {pid}", dir.0.display())
    })?;
    Ok(0)
}

/// The worktree of a branch that is mounted.
fn find(worktrees: Vec<WorktreeStatus>, what: &str) -> Result<WorktreeStatus> {
    let named = |one: &WorktreeStatus| match what.split_once('@') {
        Some((repository, branch)) => one.repository == repository && one.branch == branch,
        None => one.branch == what,
    };
    let mut found: Vec<_> = worktrees.into_iter().filter(|one| one.mounted && named(one)).collect();
    match (found.pop(), found.is_empty()) {
        (Some(worktree), true) => Ok(worktree),
        (Some(worktree), false) => Err(Failure::new(
            Kind::Refused,
            format!("{what:?} is a branch of several repositories"),
        )
        .hint(format!("say which: {}@{what}", worktree.repository))),
        (None, _) => Err(Failure::new(Kind::NotFound, format!("{what:?} is no mounted branch"))
            .hint("mount it with `agentfs mount`; `agentfs ps` lists what is mounted")),
    }
}
