//! What an isolated command may change.

use std::path::PathBuf;

use agentfs_gitimport::exclusive;

use crate::error::Result;
use crate::exec::Isolation;
use crate::layout::Layout;
use crate::protocol::{ExecBegun, WirePath};

/// Finds out what `--isolated` means for a branch: of the repository, what git writes for that
/// branch, and whatever the user has `named`.
///
/// # Errors
/// What reading the repository meets.
pub fn prepare(layout: &Layout, begun: &ExecBegun, named: &[PathBuf]) -> Result<Isolation> {
    let branch = (!begun.detached).then_some(begun.branch.as_str());
    let parts = exclusive::parts(&begun.common_dir.0, &begun.git_dir.0, branch)?;
    let wire = |paths: Vec<PathBuf>| -> Vec<WirePath> { paths.into_iter().map(WirePath).collect() };
    let mut writable = wire(parts.writable.into_iter().chain(named.iter().cloned()).collect());
    writable.extend(begun.redirects.iter().cloned());
    Ok(Isolation {
        writable,
        shown: vec![begun.common_dir.clone()],
        kept: wire(parts.kept),
        // Whoever can talk to the daemon has it do what he may not.
        hidden: vec![WirePath(layout.socket())],
    })
}
