//! The calls about paths that are redirected to native directories.

use serde::{Deserialize, Serialize};

use super::WirePath;

/// Redirects paths of a branch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RedirectAddCall {
    /// The branch, or repository@branch.
    pub branch: String,
    /// Paths below the root of the worktree.
    pub paths: Vec<WirePath>,
    /// Whether what the branch has there is moved; else the paths must be empty directories or not exist.
    #[serde(default, rename = "move")]
    pub moves: bool,
}

/// Ends that paths of a branch are redirected. What is in their native directories is removed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RedirectRemoveCall {
    /// The branch, or repository@branch.
    pub branch: String,
    /// The paths.
    pub paths: Vec<WirePath>,
}

/// Lists redirected paths.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RedirectListCall {
    /// The branch, or repository@branch; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// Redirected paths.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Redirects {
    /// By branch and path.
    pub redirects: Vec<RedirectInfo>,
    /// What the user should know: what a tree asks for in vain, what of it cannot be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A redirected path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RedirectInfo {
    /// The repository's name in the store.
    pub repository: String,
    /// The branch.
    pub branch: String,
    /// Where it is mounted.
    pub dir: Option<WirePath>,
    /// The native directory.
    pub data: WirePath,
    /// Who has asked for it: `command`, or `tree` for `.agentfs.toml`.
    pub origin: String,
    /// The path, and how it appears.
    #[serde(flatten)]
    pub status: RedirectStatus,
}

/// How a redirected path appears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedirectStatus {
    /// The path below the root of the worktree.
    pub path: WirePath,
    /// `mount` or `link`; none if it does not appear.
    pub appears: Option<String>,
    /// Why it does not, where the branch is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}
