//! The binary `scoreboard`: see the library for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    agentfs_benches::main()
}
