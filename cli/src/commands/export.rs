//! `agentfs export`

use serde::Serialize;

use crate::commands::short;
use crate::commands::trees::{Objects, Trees};
use crate::error::{Failure, Kind, Result};
use crate::output::Output;

/// Arguments of `agentfs export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A branch, as it is now; or a snapshot
    what: String,
    /// The reference that is to lead to the commit
    #[arg(long = "ref", value_name = "REF")]
    reference: String,
    /// What the commit is to say
    #[arg(short, long)]
    message: Option<String>,
    /// Move the reference if there is one
    #[arg(short, long)]
    force: bool,
}

#[derive(Serialize)]
struct Exported {
    repository: String,
    #[serde(rename = "ref")]
    reference: String,
    commit: String,
    tree: String,
}

/// Makes a git commit of what a branch or a snapshot is, ignored files left out.
///
/// # Errors
/// [`Kind::Refused`] if there is such a reference, or a worktree is on it; what git meets.
pub fn run(args: &Args, output: Output) -> Result<u8> {
    if !args.reference.starts_with("refs/") {
        return Err(Failure::new(Kind::Usage, format!("{} is no full reference", args.reference))
            .hint(format!("write refs/heads/{}", args.reference)));
    }
    let trees = Trees::new(Objects::Kept)?;
    let seen = trees.see(&args.what, output)?;
    let git = |args: &[&str]| trees.text(&seen.common_dir, args);
    let old = git(&["rev-parse", "--verify", "--quiet", &args.reference]).ok();
    let used = format!("branch {}", args.reference);
    if git(&["worktree", "list", "--porcelain"])?.lines().any(|line| line == used) {
        return Err(Failure::new(Kind::Refused, format!("a worktree is on {}", args.reference))
            .hint("choose another reference"));
    }
    if old.is_some() && !args.force {
        return Err(Failure::new(Kind::Refused, format!("there is {} already", args.reference))
            .hint("choose another reference, or move it with --force"));
    }
    let message = args.message.clone().unwrap_or_else(|| format!("Export of {}", args.what));
    let of_head = match &seen.commit {
        Some(commit) => Some((commit, git(&["rev-parse", &format!("{commit}^{{tree}}")])?)),
        None => None,
    };
    let commit = match of_head {
        // There is nothing to commit.
        Some((commit, tree)) if tree == seen.tree => commit.clone(),
        Some((commit, _)) => git(&["commit-tree", &seen.tree, "-p", commit, "-m", &message])?,
        None => git(&["commit-tree", &seen.tree, "-m", &message])?,
    };
    // It must be what it was when that was looked at; an empty one means that there is none.
    let old = old.unwrap_or_default();
    git(&["update-ref", "-m", "agentfs export", &args.reference, &commit, &old])?;
    let exported = Exported {
        repository: seen.repository.clone(),
        reference: args.reference.clone(),
        commit,
        tree: seen.tree.clone(),
    };
    output.result(&exported, |out| {
        writeln!(out, "{}: {}", exported.reference, short(&exported.commit))
    })?;
    Ok(0)
}
