//! `agentfs attach`

use std::path::PathBuf;

use crate::commands::{call, describe};
use crate::error::{Failure, Kind, Result};
use crate::output::Output;
use crate::protocol::{AttachCall, Opened, WirePath, method};

/// Arguments of `agentfs attach`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The repository: its git directory, or a directory in its worktree
    path: PathBuf,
    /// Return only when all content is in the store
    #[arg(long)]
    wait: bool,
}

/// Makes the store use an existing repository where it is.
///
/// # Errors
/// [`Kind::NotFound`] for a path that does not exist; as [`call`].
pub fn run(args: &Args, output: Output) -> Result<u8> {
    let path = std::fs::canonicalize(&args.path).map_err(|error| {
        Failure::new(Kind::NotFound, format!("cannot find {}: {error}", args.path.display()))
            .hint("name an existing repository, or take one in with `agentfs clone <url|path>`")
    })?;
    let params = AttachCall { path: WirePath(path), wait: args.wait };
    let opened: Opened = call(output, method::ATTACH, &params)?;
    output.result(&opened, |out| {
        describe(out, &opened)?;
        writeln!(out, "\nMount it:  agentfs mount {}@{} DIR", opened.repository, opened.branch)
    })?;
    Ok(0)
}
