//! `agentfs gc`

use std::io::{self, Write};

use crate::commands::{call, day};
use crate::error::Result;
use crate::output::{Output, count};
use crate::progress::human_bytes;
use crate::protocol::{Collected, GcCall, SnapshotInfo, method};

/// Arguments of `agentfs gc`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tell what would be removed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Keep removed branches for so many days instead of 30
    #[arg(long, value_name = "DAYS")]
    pub keep_removed: Option<u32>,
}

/// Removes what neither a branch nor a snapshot needs.
///
/// # Errors
/// As [`call`].
pub fn run(args: &Args, output: Output) -> Result<u8> {
    let params = GcCall { dry_run: args.dry_run, keep_removed_days: args.keep_removed };
    let done: Collected = call(output, method::GC, &params)?;
    output.result(&done, |out| tell(out, &done))?;
    Ok(0)
}

/// Names the snapshots that would go. What they lead to is needed as long as they are there.
fn foresee(out: &mut dyn Write, done: &Collected) -> io::Result<()> {
    for one in &done.expired_snapshots {
        let SnapshotInfo { id, repository, branch, made, reason, .. } = one;
        let what = if reason == "removed" { "a removed branch" } else { "a snapshot" };
        writeln!(out, "  {id}  {repository}@{branch}, {what} of {}", day(*made))?;
    }
    let named = done.expired_snapshots.len() as u64;
    if done.expired > named {
        writeln!(out, "  and {} more", done.expired - named)?;
    }
    writeln!(out, "  what only they have is not in what follows: `agentfs du` shows it")
}

fn tell(out: &mut dyn Write, done: &Collected) -> io::Result<()> {
    let (removed, moved) =
        if done.dry_run { ("would be removed", "moved") } else { ("removed", "were moved") };
    if done.expired > 0 {
        writeln!(out, "{} {removed} whose time is over", count(done.expired, "snapshot"))?;
    }
    if done.dry_run && done.expired > 0 {
        foresee(out, done)?;
    }
    if done.layers > 0 {
        writeln!(out, "{} removed or joined with others", count(done.layers, "layer"))?;
    }
    let freed = &done.freed;
    for (amount, noun) in [
        (freed.chunks, "chunk"),
        (freed.trees, "tree"),
        (freed.manifests, "chunk list"),
        (freed.mapped, "git map row"),
    ] {
        if amount.count > 0 {
            let bytes = human_bytes(amount.bytes);
            writeln!(out, "{} {removed}: {bytes}", count(amount.count, noun))?;
        }
    }
    if done.redirected.count > 0 {
        let bytes = human_bytes(done.redirected.bytes);
        let what = count(done.redirected.count, "native directory");
        writeln!(out, "{} {removed}: {bytes}", what.replace("directorys", "directories"))?;
    }
    if done.files.count > 0 {
        let bytes = human_bytes(done.files.bytes);
        writeln!(out, "{} {removed}: {bytes}", count(done.files.count, "plain file"))?;
    }
    if done.segments.count > 0 {
        writeln!(
            out,
            "{} {removed}: {}, of which {} {moved}",
            count(done.segments.count, "segment file"),
            human_bytes(done.segments.bytes),
            human_bytes(done.moved.bytes),
        )?;
    }
    if done.damaged_segments > 0 {
        let files = count(done.damaged_segments, "segment file");
        writeln!(
            out,
            "{files} kept, since something in them is damaged: `agentfs fsck` says what"
        )?;
    }
    let kept = done.kept.total;
    writeln!(
        out,
        "{} {removed}; {} in {} {}",
        human_bytes(freed.total.bytes),
        human_bytes(kept.bytes),
        count(kept.count, "object"),
        if done.dry_run { "would stay" } else { "stay" },
    )
}
