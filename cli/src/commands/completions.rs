//! `agentfs completions`

use clap_complete::Shell;

use crate::args;
use crate::error::Result;

/// Arguments of `agentfs completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the completion script of a shell.
///
/// # Errors
/// None: a reader that has gone away has what it wanted.
pub fn run(args: &Args) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::Args::description(), "agentfs", &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script).ok();
    Ok(0)
}
