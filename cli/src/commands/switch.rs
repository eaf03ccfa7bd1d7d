//! `agentfs switch`

use std::path::PathBuf;

use crate::commands::{call, short};
use crate::destination;
use crate::error::Result;
use crate::output::{Output, count};
use crate::protocol::{SwitchCall, SwitchMeans, Switched, WirePath, method};

/// Arguments of `agentfs switch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The worktree
    dir: PathBuf,
    /// A branch, a tag or any revision; - is the branch before
    what: String,
    /// It is a revision of git, also where agentfs has a branch of that name
    #[arg(long, conflicts_with = "branch")]
    rev: bool,
    /// It is a branch of agentfs
    #[arg(long)]
    branch: bool,
    /// Throw local changes away; a snapshot keeps them
    #[arg(long)]
    discard: bool,
}

/// Moves a worktree to another commit, or has it show another branch of agentfs.
///
/// # Errors
/// As [`call`].
pub fn run(args: &Args, output: Output) -> Result<u8> {
    let means = match (args.rev, args.branch) {
        (true, _) => SwitchMeans::Revision,
        (_, true) => SwitchMeans::Branch,
        _ => SwitchMeans::Any,
    };
    let params = SwitchCall {
        dir: WirePath(destination::absolute(&args.dir)?),
        what: args.what.clone(),
        means,
        discard: args.discard,
    };
    let done: Switched = call(output, method::SWITCH, &params)?;
    output.result(&done, |out| {
        let at = match &done.head {
            Some(name) => format!("on {name} at {}", short(&done.commit)),
            None => format!("detached at {}", short(&done.commit)),
        };
        writeln!(out, "{}: {at}", done.dir.0.display())?;
        match &done.left {
            Some(left) => {
                writeln!(out, "  it shows branch {} as that was left", done.branch)?;
                writeln!(out, "  branch {left} is not mounted any more, with all that it has")?;
            }
            None => {
                writeln!(out, "  {} changed", count(done.paths, "file"))?;
                writeln!(out, "  `agentfs undo {}` takes that back", done.branch)?;
            }
        }
        done.notes.iter().try_for_each(|note| writeln!(out, "  note: {note}"))
    })?;
    Ok(0)
}
