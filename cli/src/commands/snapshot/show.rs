//! `agentfs snapshot show` and `agentfs snapshot diff`

use std::io::{self, Write};

use serde::Serialize;

use crate::commands::diff::{self, Change, Form};
use crate::commands::snapshot::age;
use crate::commands::trees::{GitState, Objects, Trees};
use crate::commands::{call, short};
use crate::error::{Failure, Kind, Result};
use crate::output::{Output, count};
use crate::protocol::{SnapshotCall, SnapshotInfo, SnapshotShown, method};

/// Arguments of `agentfs snapshot show`.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// The snapshot, by the first digits of its name
    snapshot: String,
}

/// Arguments of `agentfs snapshot diff`.
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// The snapshot, by the first digits of its name
    a: String,
    /// What to compare it with: a snapshot, a branch or a revision (default: its branch, as that is now)
    b: Option<String>,
    #[command(flatten)]
    form: Form,
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    shown: SnapshotShown,
    changes: Counts,
    git: Git,
}

/// How many files differ from the commit on which the branch was based.
#[derive(Serialize)]
struct Counts {
    added: usize,
    modified: usize,
    deleted: usize,
}

/// What git has to say of it.
#[derive(Serialize)]
struct Git {
    /// The branch that its HEAD is on; none where it is on a commit.
    branch: Option<String>,
    /// The commit of its HEAD.
    commit: Option<String>,
    /// What is in progress: `merge`, `rebase`, `cherry-pick`, `revert` or `bisection`.
    operation: Option<&'static str>,
    staged: Vec<Change>,
    unstaged: Vec<Change>,
    untracked: usize,
    ignored: usize,
}

/// Says what a snapshot is: when, of which branch, why, what it changes and what git has of it.
///
/// # Errors
/// [`Kind::NotFound`] if there is none; what reading it meets.
pub fn show(args: &ShowArgs, output: Output) -> Result<()> {
    let params = SnapshotCall { snapshot: args.snapshot.clone() };
    let shown: SnapshotShown = call(output, method::SNAPSHOT_SHOW, &params)?;
    let trees = Trees::new(Objects::Passing)?;
    let (seen, state) = trees.inspect(&shown.info.id, output)?;
    let base = match &shown.info.commit {
        Some(commit) => format!("{commit}^{{tree}}"),
        None => trees.empty_tree(&seen.common_dir)?,
    };
    let arguments = ["diff", "--no-renames", "--name-status", "-z", &base, &seen.tree];
    let changes = diff::changes(&trees.text(&seen.common_dir, arguments)?);
    let of = |status: char| changes.iter().filter(|one| one.status.starts_with(status)).count();
    let (added, deleted) = (of('A'), of('D'));
    let GitState { branch, operation, staged, unstaged, untracked, ignored } = state;
    let shown = Shown {
        shown,
        changes: Counts { added, modified: changes.len() - added - deleted, deleted },
        git: Git {
            branch,
            commit: seen.commit,
            operation,
            staged: diff::changes(&staged),
            unstaged: diff::changes(&unstaged),
            untracked,
            ignored,
        },
    };
    output.result(&shown, |out| describe(out, &shown))
}

fn describe(out: &mut dyn Write, shown: &Shown) -> io::Result<()> {
    let Shown { shown: SnapshotShown { info, parent, branch_now, redirected }, changes, git } =
        shown;
    writeln!(out, "{}: {}@{}, {}", info.id, info.repository, info.branch, age(info.made))?;
    if !info.message.is_empty() {
        writeln!(out, "  {}", info.message)?;
    }
    let commit = info.commit.as_deref().map_or("no commit", short);
    writeln!(out, "  made: {}, on {commit}", reason(&info.reason))?;
    if let Some(parent) = parent {
        writeln!(out, "  after: {parent}")?;
    }
    if branch_now.is_none() {
        writeln!(out, "  its branch is removed")?;
    }
    for path in redirected {
        writeln!(out, "  without {}, which was redirected", path.0.display())?;
    }
    let Counts { added, modified, deleted } = changes;
    writeln!(out, "  differs by {added} added, {modified} modified, {deleted} deleted")?;
    let head = git.commit.as_deref().map_or("no commit", short);
    match &git.branch {
        Some(branch) => writeln!(out, "  HEAD: {branch} at {head}")?,
        None => writeln!(out, "  HEAD: detached at {head}")?,
    }
    if let Some(operation) = git.operation {
        writeln!(out, "  a {operation} is in progress")?;
    }
    for (what, changes) in [("staged", &git.staged), ("not staged", &git.unstaged)] {
        for change in changes {
            writeln!(out, "  {what}: {} {}", change.status, change.path)?;
        }
    }
    let untracked = count(git.untracked as u64, "untracked file");
    writeln!(out, "  {untracked}, {}", count(git.ignored as u64, "ignored file"))
}

fn reason(reason: &str) -> &str {
    match reason {
        "asked" => "asked for",
        "before" => "before something that changes much",
        "removed" => "when the branch was removed",
        "exec" => "before a command",
        "time" => "some time after the one before",
        other => other,
    }
}

/// Compares a snapshot with another one, with what its branch is now, or with a revision.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such snapshot, or no such branch any more; as [`diff::compare`].
pub fn compare(args: &DiffArgs, output: Output) -> Result<u8> {
    let params = SnapshotCall { snapshot: args.a.clone() };
    let SnapshotShown { info, branch_now, .. } = call(output, method::SNAPSHOT_SHOW, &params)?;
    let SnapshotInfo { id, repository, branch, .. } = &info;
    let b = match (&args.b, branch_now) {
        (Some(b), _) => b.clone(),
        (None, Some(now)) => format!("{repository}@{now}"),
        (None, None) => {
            let message = format!("there is no branch {branch} any more");
            return Err(Failure::new(Kind::NotFound, message)
                .hint("name what to compare the snapshot with, or `agentfs diff` it alone"));
        }
    };
    diff::compare(id, Some(&b), &args.form, output)
}
