//! The `agentfs` command: everything a user types, and the daemon that serves a store.
//!
//! Only this crate prints, reads the environment and knows exit codes. A command that needs the
//! store talks to the store's one daemon over its control socket (docs/PROTOCOL.md), and starts the
//! daemon if none is running.

mod archive;
mod args;
mod client;
mod commands;
mod daemon;
mod destination;
mod environment;
mod error;
mod exec;
mod ignored;
mod incoming;
mod layout;
mod lock;
mod monitor;
mod output;
mod profile;
mod progress;
mod protocol;
mod socket;
mod transfer;
mod wire;

use std::process::ExitCode;
use std::time::Instant;

use crate::args::Args;
use crate::error::{Failure, Kind};
use crate::output::Output;

fn main() -> ExitCode {
    let start = Instant::now();
    let args = match Args::read() {
        Ok(args) => args,
        Err(error) => return explain_usage(&error),
    };
    if args.profile {
        profile::begin(start);
    }
    let output = Output { json: args.json };
    let code = commands::run(args.command, output).unwrap_or_else(|failure| {
        output.failure(&failure);
        failure.kind.exit_code()
    });
    profile::print(output.json);
    ExitCode::from(code)
}

/// What clap has to say: help and version on standard output, a wrong command line on standard
/// error, as JSON if that was asked for.
fn explain_usage(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|arg| arg == "--json");
    if error.use_stderr() && json {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default();
        let message = message.strip_prefix("error: ").unwrap_or(message);
        let failure = Failure::new(Kind::Usage, message).hint("see `agentfs --help`");
        Output { json }.failure(&failure);
    } else if error.print().is_err() {
        // Whoever asked for help has gone away.
        return ExitCode::SUCCESS;
    }
    if error.use_stderr() { ExitCode::from(Kind::Usage.exit_code()) } else { ExitCode::SUCCESS }
}
