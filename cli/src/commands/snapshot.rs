//! `agentfs snapshot`

mod restore;
mod show;

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;

use crate::commands::{call, short};
use crate::error::Result;
use crate::output::{Output, count};
use crate::protocol::{
    SnapshotCall, SnapshotCreateCall, SnapshotInfo, SnapshotListCall, SnapshotRestored, Snapshots,
    UndoCall, method,
};

/// Arguments of `agentfs snapshot`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Keep a branch as it is now, with what git has staged and in progress
    Create(CreateArgs),
    /// List the snapshots of a branch, or all
    List(ListArgs),
    /// Say what a snapshot is, what it changes, and what is staged and in progress in it
    Show(show::ShowArgs),
    /// Compare a snapshot with its branch as that is now, or with another snapshot
    Diff(show::DiffArgs),
    /// Make a branch, or paths of it, what a snapshot is; what it was before is kept as a snapshot
    Restore(restore::Args),
    /// Remove a snapshot
    Delete(DeleteArgs),
}

/// Arguments of `agentfs snapshot create`.
#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// The branch, or repository@branch
    branch: String,
    /// What to say of it
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
}

/// Arguments of `agentfs snapshot list`.
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// The branch, or repository@branch
    branch: Option<String>,
}

/// Arguments of `agentfs snapshot delete`.
#[derive(Debug, clap::Args)]
struct DeleteArgs {
    /// The snapshot, by the first digits of its name
    snapshot: String,
}

/// Works with snapshots.
///
/// # Errors
/// What keeps it from being done.
pub fn run(args: &Args, output: Output) -> Result<u8> {
    match &args.action {
        Action::Create(args) => {
            let (branch, message) = (args.branch.clone(), args.message.clone());
            let params = SnapshotCreateCall { branch, message, before: false };
            let made: SnapshotInfo = call(output, method::SNAPSHOT_CREATE, &params)?;
            output.result(&made, |out| {
                writeln!(out, "{}: {}@{}", made.id, made.repository, made.branch)?;
                writeln!(
                    out,
                    "  `agentfs branch create NAME --from {}` begins a branch there",
                    made.id
                )
            })?;
        }
        Action::List(args) => {
            let params = SnapshotListCall { branch: args.branch.clone() };
            let found: Snapshots = call(output, method::SNAPSHOT_LIST, &params)?;
            output.result(&found, |out| {
                for one in &found.snapshots {
                    let SnapshotInfo { id, repository, branch, reason, message, .. } = one;
                    let commit = one.commit.as_deref().map_or("no commit", short);
                    let made = age(one.made);
                    writeln!(
                        out,
                        "{id}  {made}  {repository}@{branch}  {commit}  {reason}  {message}"
                    )?;
                }
                Ok(())
            })?;
        }
        Action::Show(args) => show::show(args, output)?,
        Action::Diff(args) => return show::compare(args, output),
        Action::Restore(args) => restore::run(args, output)?,
        Action::Delete(args) => {
            let params = SnapshotCall { snapshot: args.snapshot.clone() };
            let gone: SnapshotInfo = call(output, method::SNAPSHOT_DELETE, &params)?;
            output.result(&gone, |out| writeln!(out, "{}: removed", gone.id))?;
        }
    }
    Ok(0)
}

/// Arguments of `agentfs undo`.
#[derive(Debug, clap::Args)]
pub struct UndoArgs {
    /// The branch, or repository@branch
    branch: String,
}

/// Takes back what was changed since the last snapshot of a branch.
///
/// # Errors
/// What keeps it from being done.
pub fn undo(args: &UndoArgs, output: Output) -> Result<u8> {
    let params = UndoCall { branch: args.branch.clone() };
    restored(&call(output, method::UNDO, &params)?, output)?;
    Ok(0)
}

fn restored(done: &SnapshotRestored, output: Output) -> Result<()> {
    output.result(done, |out| {
        let SnapshotRestored { snapshot, repository, branch, before, .. } = done;
        writeln!(out, "{repository}@{branch}: as it was at {snapshot}")?;
        writeln!(out, "  {} changed", count(done.inodes, "inode"))?;
        for path in &done.redirected {
            writeln!(out, "  {} is redirected and as it was before", path.0.display())?;
        }
        done.notes.iter().try_for_each(|note| writeln!(out, "  note: {note}"))?;
        writeln!(out, "  `agentfs snapshot restore {before}` takes that back")
    })
}

/// How long ago a time is, in its largest unit.
fn age(seconds: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let past = now.saturating_sub(u64::try_from(seconds).unwrap_or(0));
    let units = [(86_400, "day"), (3600, "hour"), (60, "minute")];
    let (unit, name) = units.into_iter().find(|(unit, _)| past >= *unit).unwrap_or((1, "second"));
    format!("{} ago", count(past / unit, name))
}
