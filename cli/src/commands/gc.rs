//! `agentfs gc`

use std::io::{self, Write};

use crate::commands::call;
use crate::error::Result;
use crate::output::{Output, count};
use crate::progress::human_bytes;
use crate::protocol::{Collected, GcCall, method};

/// Arguments of `agentfs gc`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tell what would be removed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Keep removed branches for so many days instead of 30
    #[arg(long, value_name = "DAYS", conflicts_with = "dry_run")]
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

fn tell(out: &mut dyn Write, done: &Collected) -> io::Result<()> {
    let (removed, moved) =
        if done.dry_run { ("would be removed", "moved") } else { ("removed", "were moved") };
    if done.expired > 0 {
        writeln!(out, "{} removed whose time was over", count(done.expired, "snapshot"))?;
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
