//! `agentfs mount`

use std::path::PathBuf;

use crate::commands::{describe, open, refuse_without_fuse};
use crate::daemon;
use crate::destination;
use crate::environment::Environment;
use crate::error::Result;
use crate::layout::Layout;
use crate::output::Output;
use crate::protocol::{MountAt, MountCall, Opened, WirePath, method};

/// Arguments of `agentfs mount`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A branch, a repository, or repository@revision
    what: String,
    /// Where
    dir: PathBuf,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
    /// Let other users enter the worktree
    #[arg(long)]
    allow_other: bool,
    /// Serve it in this process, until it is unmounted or the process is told to end
    #[arg(long)]
    foreground: bool,
}

/// Mounts a branch or a revision at a directory.
///
/// # Errors
/// Whatever keeps it from being mounted; nothing is left then.
pub fn run(args: &Args, output: Output) -> Result<u8> {
    let dir = destination::absolute(&args.dir)?;
    refuse_without_fuse("there is no other way to see the files as a directory")?;
    let at =
        MountAt { dir: WirePath(dir), read_only: args.read_only, allow_other: args.allow_other };
    let params = MountCall { what: args.what.clone(), at, exclusive: false };
    if args.foreground {
        let environment = Environment::read()?;
        let layout = Layout::new(environment.store.clone());
        let print = |opened: Opened| output.result(&opened, |out| describe(out, &opened));
        return daemon::run_in_foreground(&layout, &environment, &params, print);
    }
    open(output, method::MOUNT, &params).map(|()| 0)
}
