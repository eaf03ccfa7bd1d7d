//! `agentfs umount`

use std::path::PathBuf;

use crate::commands::call;
use crate::destination;
use crate::error::Result;
use crate::output::Output;
use crate::protocol::{UmountCall, Unmounted, WirePath, method};

/// Arguments of `agentfs umount`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The worktree
    #[arg(required_unless_present = "all")]
    dir: Option<PathBuf>,
    /// All worktrees of the store
    #[arg(long, conflicts_with = "dir")]
    all: bool,
    /// Take it from sight at once, even if a process is in it
    #[arg(long)]
    lazy: bool,
}

/// Unmounts a worktree or all, for good: they do not come back when the daemon starts.
///
/// # Errors
/// As [`call`].
pub fn run(args: &Args, output: Output) -> Result<u8> {
    let dir = args.dir.as_deref().map(destination::absolute).transpose()?.map(WirePath);
    let params = UmountCall { dir, lazy: args.lazy };
    let unmounted: Unmounted = call(output, method::UMOUNT, &params)?;
    output.result(&unmounted, |out| {
        if unmounted.dirs.is_empty() {
            writeln!(out, "Nothing was mounted.")?;
        }
        unmounted.dirs.iter().try_for_each(|dir| writeln!(out, "{}: unmounted", dir.0.display()))
    })?;
    Ok(0)
}
