//! Asking git what it ignores.

use std::path::Path;
use std::process::{Command, Stdio};

/// Whether git ignores a path of the worktree at `dir`, whatever is tracked there; `None` if it cannot tell.
pub fn is_ignored(dir: &Path, path: &Path) -> Option<bool> {
    let mut command = Command::new("git");
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR"] {
        command.env_remove(variable);
    }
    command.arg("-C").arg(dir).args(["check-ignore", "--no-index", "-q", "--"]).arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status().ok()?.code()? {
        0 => Some(true),
        1 => Some(false),
        _ => None,
    }
}
