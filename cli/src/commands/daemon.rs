//! `agentfs daemon`

use clap::Subcommand;
use serde::Serialize;

use crate::client::Client;
use crate::daemon;
use crate::environment::Environment;
use crate::error::{Kind, Result};
use crate::layout::Layout;
use crate::output::Output;
use crate::protocol::WirePath;

/// Arguments of `agentfs daemon`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start it, and mount again what was mounted; fine if it runs already
    Start,
    /// Unmount everything and end it; the next command starts it and mounts everything again
    Stop {
        /// End commands that `agentfs exec` runs, instead of refusing to stop
        #[arg(long)]
        force: bool,
    },
    /// Say whether it runs; exit code 3 if it does not
    Status,
    /// Be it (what `start` starts)
    #[command(hide = true)]
    Run,
}

#[derive(Serialize)]
struct State {
    running: bool,
    store: WirePath,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

/// Starts, stops or looks at the store's daemon.
///
/// # Errors
/// As [`Client::connect_or_start`].
pub fn run(args: &Args, output: Output) -> Result<u8> {
    let environment = Environment::read()?;
    let layout = Layout::new(environment.store.clone());
    let client = match args.action {
        Action::Run => return Ok(daemon::run(&layout, &environment)),
        Action::Start => Some(Client::connect_or_start(&layout, &environment)?),
        Action::Status => Client::connect(&layout)?,
        Action::Stop { force } => {
            let client = Client::connect(&layout)?;
            let state = state(&layout, None);
            let was = client.as_ref().map(|client| client.welcome().pid);
            client.map(|client| client.stop(force)).transpose()?;
            output.result(&state, |out| match was {
                Some(pid) => writeln!(out, "The daemon (process {pid}) has stopped."),
                None => writeln!(out, "No daemon is running."),
            })?;
            return Ok(0);
        }
    };
    let state = state(&layout, client.as_ref());
    output.result(&state, |out| match state.pid {
        Some(pid) => writeln!(out, "The daemon of {} runs: process {pid}.", store(&state)),
        None => writeln!(out, "No daemon of {} is running.", store(&state)),
    })?;
    Ok(if state.running { 0 } else { Kind::NotFound.exit_code() })
}

fn state(layout: &Layout, client: Option<&Client>) -> State {
    let welcome = client.map(Client::welcome);
    State {
        running: welcome.is_some(),
        store: layout.root().into(),
        pid: welcome.map(|welcome| welcome.pid),
        version: welcome.map(|welcome| welcome.version.clone()),
    }
}

fn store(state: &State) -> std::path::Display<'_> {
    state.store.0.display()
}
