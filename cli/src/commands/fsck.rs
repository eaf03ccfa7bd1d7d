//! `agentfs fsck`

use crate::commands::call;
use crate::error::{Kind, Result};
use crate::output::{Output, count};
use crate::progress::human_bytes;
use crate::protocol::{Checked, method};

/// Arguments of `agentfs fsck`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Verifies everything that is in the store. The exit code tells damage apart from failure.
///
/// # Errors
/// As [`call`]. Damage is no error.
pub fn run(_: &Args, output: Output) -> Result<u8> {
    let checked: Checked = call(output, method::CHECK, &())?;
    output.result(&checked, |out| {
        for finding in &checked.findings {
            writeln!(out, "damaged: {finding}")?;
        }
        let more = checked.damaged.saturating_sub(checked.findings.len() as u64);
        if more > 0 {
            writeln!(out, "damaged: {more} more")?;
        }
        let verdict = match checked.damaged {
            0 => "no damage".to_owned(),
            damaged => count(damaged, "finding"),
        };
        writeln!(
            out,
            "{}, {}, {}, {} of content verified: {verdict}",
            count(checked.chunks, "chunk"),
            count(checked.trees, "tree"),
            count(checked.mapped, "git object"),
            human_bytes(checked.bytes),
        )
    })?;
    Ok(if checked.damaged == 0 { 0 } else { Kind::Damaged.exit_code() })
}
