//! `agentfs branch`

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;

use crate::commands::call;
use crate::error::{Failure, Kind, Result};
use crate::exec::namespace;
use crate::output::Output;
use crate::protocol::{Status, WirePath, WorktreeStatus, method};

/// Arguments of `agentfs branch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show a mounted branch to a process that has a mount namespace of its own (root only)
    Bind(BindArgs),
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
    let Action::Bind(args) = &args.action;
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
