//! `agentfs du`

use std::io::{self, Write};

use crate::commands::call;
use crate::error::Result;
use crate::output::{Output, count, table};
use crate::progress::human_bytes;
use crate::protocol::{DiskUsage, method};

/// Arguments of `agentfs du`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Shows what branches and snapshots take.
///
/// # Errors
/// As [`call`].
pub fn run(_: &Args, output: Output) -> Result<u8> {
    let usage: DiskUsage = call(output, method::USAGE, &())?;
    output.result(&usage, |out| list(out, &usage))?;
    Ok(0)
}

fn list(out: &mut dyn Write, usage: &DiskUsage) -> io::Result<()> {
    let rows = usage.entries.iter().map(|entry| {
        vec![
            entry.repository.clone(),
            entry.branch.clone(),
            entry.snapshot.clone().unwrap_or_else(|| "-".into()),
            human_bytes(entry.own.bytes),
            human_bytes(entry.shared.bytes),
            human_bytes(entry.outbox),
            human_bytes(entry.redirected),
        ]
    });
    let headings = ["REPOSITORY", "BRANCH", "SNAPSHOT", "ALONE", "SHARED", "OUTBOX", "REDIRECTED"];
    table(out, &headings, &rows.collect::<Vec<_>>())?;
    if usage.files.count > 0 {
        let (files, bytes) =
            (count(usage.files.count, "plain file"), human_bytes(usage.files.bytes));
        writeln!(out, "\n{files} of the cache: {bytes}")?;
    }
    Ok(())
}
