//! `agentfs worktree`: the words of git-worktree(1).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Subcommand;
use serde::Serialize;

use crate::commands::{call, day, open, refuse_without_fuse, short};
use crate::destination;
use crate::environment::GIT_LOCAL;
use crate::error::{Failure, Kind, Result};
use crate::output::Output;
use crate::protocol::{
    BranchCreateCall, MountAt, MountCall, RepositoryStatus, Status, WirePath, WorktreeRemoveCall,
    WorktreeRemoved, WorktreeStatus, method,
};

/// Arguments of `agentfs worktree`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Mount a branch, by default a new one of the directory's name, or a commit
    Add(AddArgs),
    /// List the mounted worktrees
    List(ListArgs),
    /// Unmount a worktree and drop what it differs by from its commit; a snapshot keeps it
    Remove(RemoveArgs),
}

/// Arguments of `agentfs worktree add`.
#[derive(Debug, clap::Args)]
struct AddArgs {
    /// Where
    dir: PathBuf,
    /// A branch, or a commit; with repository@, outside the repository (default: HEAD)
    start: Option<String>,
    /// Begin a branch of this name
    #[arg(short = 'b', value_name = "BRANCH")]
    branch: Option<String>,
    /// On no branch
    #[arg(short, long, conflicts_with = "branch")]
    detach: bool,
    /// Let other users enter the worktree
    #[arg(long)]
    allow_other: bool,
}

/// Arguments of `agentfs worktree list`.
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Lines for scripts, as git has them
    #[arg(long)]
    porcelain: bool,
}

/// Arguments of `agentfs worktree remove`.
#[derive(Debug, clap::Args)]
struct RemoveArgs {
    /// The worktree
    dir: PathBuf,
    /// Also if files are modified or untracked
    #[arg(short, long)]
    force: bool,
}

/// Works with worktrees.
///
/// # Errors
/// What keeps it from being done.
pub fn run(args: &Args, output: Output) -> Result<u8> {
    match &args.action {
        Action::Add(args) => add(args, output),
        Action::List(args) => list(args, output),
        Action::Remove(args) => remove(args, output),
    }
}

/// What git says in `dir`; `None` if it fails.
fn git<S: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = S>) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(dir).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}

/// The repository of the store, its git directory, and the revision in it that `start` means here.
fn resolve(start: Option<&str>, output: Output) -> Result<(String, PathBuf, String)> {
    let status: Status = call(output, method::STATUS, &())?;
    let here = Path::new(".");
    let given = start.unwrap_or("HEAD");
    if let Some((name, revision)) = given.split_once('@')
        && let Some(known) = status.repositories.iter().find(|one| one.name == name)
    {
        return Ok((name.into(), known.git_dir.0.clone(), revision.into()));
    }
    let common = git(here, ["rev-parse", "--path-format=absolute", "--git-common-dir"]);
    let common = common.and_then(|dir| PathBuf::from(dir).canonicalize().ok());
    let same =
        |one: &&RepositoryStatus| common.is_some() && one.git_dir.0.canonicalize().ok() == common;
    if let Some(known) = status.repositories.iter().find(same) {
        return Ok((known.name.clone(), known.git_dir.0.clone(), given.into()));
    }
    match status.repositories.as_slice() {
        [only] => Ok((only.name.clone(), only.git_dir.0.clone(), given.into())),
        _ => Err(Failure::new(Kind::NotFound, "this directory is in no repository of the store")
            .hint("name a start as repository@revision; `agentfs ps` lists the repositories")),
    }
}

fn add(args: &AddArgs, output: Output) -> Result<u8> {
    refuse_without_fuse("`git worktree add` makes a plain directory")?;
    let dir = destination::absolute(&args.dir)?;
    let (repository, git_dir, start) = resolve(args.start.as_deref(), output)?;
    // What HEAD and the like mean depends on the worktree in which the command is called.
    let commit = || {
        let spec = format!("{start}^{{commit}}");
        let parse = ["rev-parse", "--verify", "--quiet", spec.as_str()];
        let found = git(Path::new("."), parse).or_else(|| git(&git_dir, parse));
        found.ok_or_else(|| {
            Failure::new(Kind::NotFound, format!("{start:?} names no commit of {repository}"))
        })
    };
    let is_branch = |name: &str| {
        let full = format!("refs/heads/{name}");
        git(&git_dir, ["show-ref", "--verify", "--quiet", full.as_str()]).is_some()
    };
    let name = || dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (new, existing) = match (&args.branch, &args.start) {
        _ if args.detach => (None, None),
        (Some(new), _) => (Some(new.clone()), None),
        (None, Some(_)) if is_branch(&start) => (None, Some(start.clone())),
        (None, Some(_)) => (None, None),
        (None, None) if is_branch(&name()) => (None, Some(name())),
        (None, None) => (Some(name()), None),
    };
    let at =
        MountAt { dir: WirePath(dir.clone()), read_only: false, allow_other: args.allow_other };
    if let Some(name) = new {
        let from = format!("{repository}@{}", commit()?);
        let params = BranchCreateCall {
            name,
            from,
            committed: true,
            mount: Some(at),
            ..BranchCreateCall::default()
        };
        return open(output, method::BRANCH_CREATE, &params).map(|()| 0);
    }
    let revision = match existing {
        Some(name) => name,
        None => commit()?,
    };
    let what = format!("{repository}@{revision}");
    open(output, method::MOUNT, &MountCall { what, at, exclusive: true }).map(|()| 0)
}

#[derive(Serialize)]
struct Listed {
    worktrees: Vec<ListedWorktree>,
}

#[derive(Serialize)]
struct ListedWorktree {
    dir: WirePath,
    repository: String,
    /// The commit of its HEAD.
    head: Option<String>,
    /// The git branch that its HEAD is on.
    branch: Option<String>,
}

fn list(args: &ListArgs, output: Output) -> Result<u8> {
    let Status { worktrees, .. } = call(output, method::STATUS, &())?;
    let look = |one: WorktreeStatus| {
        let head = git(&one.git_dir.0, ["rev-parse", "--verify", "--quiet", "HEAD"]);
        let branch = git(&one.git_dir.0, ["symbolic-ref", "--quiet", "HEAD"]);
        ListedWorktree { dir: one.dir, repository: one.repository, head, branch }
    };
    let listed = Listed { worktrees: worktrees.into_iter().map(look).collect() };
    output.result(&listed, |out| {
        for ListedWorktree { dir, head, branch, .. } in &listed.worktrees {
            let dir = dir.0.display();
            if args.porcelain {
                writeln!(out, "worktree {dir}")?;
                head.iter().try_for_each(|head| writeln!(out, "HEAD {head}"))?;
                match branch {
                    Some(branch) => writeln!(out, "branch {branch}\n")?,
                    None => writeln!(out, "detached\n")?,
                }
            } else {
                let head = head.as_deref().map_or("no commit", short);
                let name = branch.as_deref().map(|name| name.trim_start_matches("refs/heads/"));
                match name {
                    Some(name) => writeln!(out, "{dir}  {head} [{name}]")?,
                    None => writeln!(out, "{dir}  {head} (detached HEAD)")?,
                }
            }
        }
        Ok(())
    })?;
    Ok(0)
}

/// Refuses a worktree with files that are modified or untracked, or of which git cannot say that. What is no worktree
/// of the store is for the daemon to refuse.
fn refuse_changed(dir: &Path, output: Output) -> Result<()> {
    let refuse = |why: String, hint: &str| {
        Err(Failure::new(Kind::Refused, format!("{} {why}", dir.display())).hint(hint))
    };
    let kept = "remove it with --force: a snapshot keeps what it differs by from its commit";
    let Status { worktrees, .. } = call(output, method::STATUS, &())?;
    match worktrees.iter().find(|one| one.dir.0 == dir) {
        None => return Ok(()),
        // What lies around it is no affair of it.
        Some(one) if !one.mounted => {
            return refuse("is not mounted: git cannot say what has changed in it".into(), kept);
        }
        Some(_) => {}
    }
    let mut status = Command::new("git");
    GIT_LOCAL.iter().for_each(|name| {
        status.env_remove(name);
    });
    let done = status.arg("-C").arg(dir).args(["status", "--porcelain"]).output();
    let done = done.map_err(|error| Failure::new(Kind::Failed, format!("git: {error}")))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        return refuse(format!("may have changes, of which git cannot say: {said}"), kept);
    }
    if !done.stdout.is_empty() {
        let hint = "commit them, or remove it with --force: a snapshot keeps them then";
        return refuse("contains modified or untracked files".into(), hint);
    }
    Ok(())
}

fn remove(args: &RemoveArgs, output: Output) -> Result<u8> {
    let dir = destination::absolute(&args.dir)?;
    if !args.force {
        refuse_changed(&dir, output)?;
    }
    let params = WorktreeRemoveCall { dir: WirePath(dir) };
    let removed: WorktreeRemoved = call(output, method::WORKTREE_REMOVE, &params)?;
    output.result(&removed, |out| {
        writeln!(out, "{}: removed", removed.dir.0.display())?;
        let (Some(snapshot), Some(until)) = (&removed.snapshot, removed.kept_until) else {
            return Ok(());
        };
        let until = day(until);
        writeln!(
            out,
            "  kept as {snapshot} until {until}: `agentfs branch create NAME --from {snapshot}` brings it back"
        )
    })?;
    Ok(0)
}
