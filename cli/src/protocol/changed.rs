//! What may have changed in a worktree, for git.

use serde::{Deserialize, Serialize};

use super::WirePath;

/// Asks what may have changed in a worktree since it was asked before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChangedPathsCall {
    /// The device of its directory: which worktree is at a path depends on who looks.
    pub dev: u64,
    /// The inode of its directory: git may be in a worktree of its own that somebody has put into that of the store.
    pub ino: u64,
    /// The token of the answer before; any other text is as good as none.
    pub since: String,
}

/// What may have changed in a worktree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedPaths {
    /// What to ask with the next time.
    pub token: String,
    /// The paths that may have changed, with all below them; none if that may be all.
    pub paths: Option<Vec<WirePath>>,
    /// The paths that are redirected, of which nothing is known.
    pub redirected: Vec<WirePath>,
}
