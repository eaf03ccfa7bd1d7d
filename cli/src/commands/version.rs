//! `agentfs version`

use serde::Serialize;

use crate::error::Result;
use crate::output::Output;
use crate::protocol::PROTOCOL;

/// Arguments of `agentfs version`.
#[derive(Debug, clap::Args)]
pub struct Args {}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    protocol: u32,
}

/// Prints the version.
///
/// # Errors
/// If it cannot be written.
pub fn run(_: &Args, output: Output) -> Result<u8> {
    let version = Version { version: env!("CARGO_PKG_VERSION"), protocol: PROTOCOL };
    output.result(&version, |out| {
        writeln!(out, "agentfs {} (protocol {})", version.version, version.protocol)
    })?;
    Ok(0)
}
