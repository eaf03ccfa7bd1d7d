//! `agentfs fsck`

use std::io::{self, Write};

use crate::commands::call;
use crate::error::{Kind, Result};
use crate::output::{Output, count};
use crate::progress::human_bytes;
use crate::protocol::{Checked, Repaired, method};

/// The exit code when there was damage and all of it was repaired.
const REPAIRED: u8 = 9;

/// Arguments of `agentfs fsck`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Repair what can be repaired: print the plan, then execute it.
    #[arg(long)]
    pub repair: bool,
}

/// Verifies everything that is in the store, and repairs it if asked. The exit code tells damage apart
/// from failure.
///
/// # Errors
/// As [`call`]. Damage is no error.
pub fn run(args: &Args, output: Output) -> Result<u8> {
    let checked: Checked = call(output, method::CHECK, &())?;
    if !args.repair || checked.repairs.is_empty() {
        output.result(&checked, |out| report(out, &checked))?;
        return Ok(code(&checked, false));
    }
    if !output.json {
        output.result(&checked, |out| {
            findings(out, &checked)?;
            checked.repairs.iter().try_for_each(|step| writeln!(out, "planned: {step}"))
        })?;
    }
    let done: Repaired = call(output, method::REPAIR, &())?;
    output.result(&done, |out| {
        done.repaired.iter().try_for_each(|step| writeln!(out, "done: {step}"))?;
        for failed in &done.not_repaired {
            writeln!(out, "not done: {}: {}", failed.step, failed.why)?;
        }
        done.lost.iter().try_for_each(|lost| writeln!(out, "lost: {lost}"))?;
        let told = (done.repaired.len() + done.not_repaired.len()) as u64;
        let more = done.steps.saturating_sub(told);
        if more > 0 {
            writeln!(out, "{more} more steps were tried")?;
        }
        findings(out, &done.after)?;
        verdict(out, &done.after)
    })?;
    if !done.lost.is_empty() {
        return Ok(Kind::Damaged.exit_code());
    }
    Ok(code(&done.after, !done.repaired.is_empty()))
}

const fn code(checked: &Checked, repaired: bool) -> u8 {
    match (checked.damaged, repaired) {
        (0, false) => 0,
        (0, true) => REPAIRED,
        _ => Kind::Damaged.exit_code(),
    }
}

/// Prints what was found, and what was looked at.
///
/// # Errors
/// What `out` refuses.
pub fn report(out: &mut dyn Write, checked: &Checked) -> io::Result<()> {
    findings(out, checked)?;
    verdict(out, checked)
}

fn findings(out: &mut dyn Write, checked: &Checked) -> io::Result<()> {
    checked.findings.iter().try_for_each(|finding| writeln!(out, "damaged: {finding}"))?;
    match checked.damaged.saturating_sub(checked.findings.len() as u64) {
        0 => Ok(()),
        more => writeln!(out, "damaged: {more} more"),
    }
}

fn verdict(out: &mut dyn Write, checked: &Checked) -> io::Result<()> {
    let verdict = match checked.damaged {
        0 => "no damage".to_owned(),
        damaged => count(damaged, "finding"),
    };
    writeln!(
        out,
        "{}, {}, {}, {} of content verified",
        count(checked.chunks, "chunk"),
        count(checked.trees, "tree"),
        count(checked.mapped, "git object"),
        human_bytes(checked.bytes),
    )?;
    writeln!(
        out,
        "{}, {}, {}, {}, {}, {} verified: {verdict}",
        count(checked.worktrees, "worktree"),
        count(checked.branches, "overlay"),
        count(checked.inodes, "changed inode"),
        count(checked.names, "changed name"),
        count(checked.records, "outbox record"),
        count(checked.index_entries, "indexed file"),
    )
}
