//! `agentfs status`

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::commands::{call, ps, short};
use crate::destination;
use crate::error::{Failure, Kind, Result};
use crate::output::Output;
use crate::protocol::{BranchStatus, Status, WorktreeStatus, method};

/// Arguments of `agentfs status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A worktree, or a directory in one
    dir: Option<PathBuf>,
}

#[derive(Serialize)]
struct Shown<'a> {
    worktrees: Vec<&'a WorktreeStatus>,
}

/// Shows one worktree or all.
///
/// # Errors
/// [`Kind::NotFound`] for a directory that is in no worktree; as [`call`].
pub fn run(args: &Args, output: Output) -> Result<u8> {
    let status: Status = call(output, method::STATUS, &())?;
    let dir = match &args.dir {
        Some(dir) => Some(destination::absolute(dir)?),
        // A current directory that is gone is in no worktree.
        None => std::env::current_dir().ok(),
    };
    let within = |worktree: &&WorktreeStatus| {
        dir.as_deref().is_some_and(|dir| dir.starts_with(Path::new(&worktree.dir.0)))
    };
    let mut worktrees: Vec<_> = status.worktrees.iter().filter(within).collect();
    if worktrees.is_empty() {
        if let (Some(_), Some(dir)) = (&args.dir, &dir) {
            return Err(Failure::new(
                Kind::NotFound,
                format!("{} is in no worktree of this store", dir.display()),
            )
            .hint("`agentfs ps` lists the worktrees"));
        }
        worktrees = status.worktrees.iter().collect();
    }
    output.result(&Shown { worktrees: worktrees.clone() }, |out| {
        if worktrees.is_empty() {
            return writeln!(out, "Nothing is mounted. Begin with `agentfs clone <url|path>`.");
        }
        worktrees.iter().try_for_each(|worktree| show(out, worktree, &status))
    })?;
    Ok(0)
}

fn show(out: &mut dyn Write, worktree: &WorktreeStatus, status: &Status) -> io::Result<()> {
    let state = match &worktree.failure {
        Some(why) => format!("not mounted: {why}"),
        None if worktree.mounted && worktree.read_only => "mounted read-only".into(),
        None if worktree.mounted => "mounted".into(),
        None => "not mounted".into(),
    };
    writeln!(out, "{}: {state}", worktree.dir.0.display())?;
    writeln!(out, "  repository  {}", worktree.repository)?;
    let commit = worktree.commit.as_deref().map_or("no commit yet", short);
    writeln!(out, "  branch      {} ({commit})", worktree.branch)?;
    writeln!(out, "  git dir     {}", worktree.git_dir.0.display())?;
    if let Some(branch) = branch_of(worktree, status) {
        writeln!(out, "  content     {}", ps::content(branch))?;
    }
    if let Some(changes) = &worktree.changes {
        let place = if changes.waiting { "some in the outbox only" } else { "all in the store" };
        writeln!(out, "  changed     {} inodes, {place}", changes.inodes)?;
        if let Some(why) = &changes.failure {
            writeln!(out, "  no more changes are taken: {why}")?;
        }
    }
    for one in &worktree.redirects {
        let how = match (&one.appears, &one.why) {
            (Some(how), _) => how.clone(),
            (None, why) => format!("it {}", why.as_deref().unwrap_or("does not appear")),
        };
        writeln!(out, "  redirected  {} ({how})", one.path.0.display())?;
    }
    worktree.redirect_notes.iter().try_for_each(|note| writeln!(out, "  note: {note}"))?;
    if worktree.allow_other {
        writeln!(out, "  other users may enter")?;
    }
    Ok(())
}

fn branch_of<'a>(worktree: &WorktreeStatus, status: &'a Status) -> Option<&'a BranchStatus> {
    let repository = status.repositories.iter().find(|one| one.name == worktree.repository)?;
    repository.branches.iter().find(|branch| branch.name == worktree.branch)
}
