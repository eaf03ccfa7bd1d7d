//! Having git ask `agentfs fsmonitor` what has changed.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use agentfs_gitimport::monitor;

use crate::environment::STORE;
use crate::error::Result;
use crate::layout::Layout;

/// A repository has git ask if the tree that is cloned has as many entries. With fewer git has looked at all of them before a
/// process is started that it could ask: warm `git status` took 11.7 ms with asking and 7.5 without for 300 files, 14.2 and 11.7
/// for 1,200, 27.0 and 30.2 for 4,659, 34.0 and 48.9 for 10,000, 224 and 384 for 100,000 (medians of turns, two cores).
pub const ENTRIES_MIN: u32 = 4_000;

/// How the command begins that git runs.
const BEGINS: &str = "ask() { test -x ";

/// Has git ask nobody any more in a copy of a repository, unless somebody else has told it to; whether it did.
///
/// # Errors
/// What writing its configuration meets.
pub fn forget(git_dir: &Path) -> Result<bool> {
    Ok(monitor::forget(git_dir, BEGINS)?)
}

/// Has git ask in all worktrees of a repository that was just made, if the paths of this program and of the
/// store are text. git asks nobody otherwise, and finds the same. So it does, without a word about it, once the program is
/// somewhere else.
///
/// # Errors
/// What writing its configuration meets.
pub fn configure(git_dir: &Path, layout: &Layout) -> Result<()> {
    let program = std::env::current_exe().ok().filter(|path| path.is_file());
    let Some(program) = program.as_deref().and_then(quoted) else { return Ok(()) };
    let Some(store) = quoted(layout.root()) else { return Ok(()) };
    let ask = format!("{STORE}={store} exec {program} fsmonitor \"$@\"");
    Ok(monitor::configure(git_dir, &format!("{BEGINS}{program} && {ask}; }}; ask"))?)
}

/// A path as a word of the shell; none if it is no text.
fn quoted(path: &Path) -> Option<String> {
    let text = std::str::from_utf8(path.as_os_str().as_bytes()).ok()?;
    Some(format!("'{}'", text.replace('\'', "'\\''")))
}
