//! The calls about branches and snapshots.

use serde::{Deserialize, Serialize};

use super::{MountAt, WirePath};

/// Begins a branch.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BranchCreateCall {
    /// Its name, which is that of its git branch too.
    pub name: String,
    /// A branch, as it is now; a snapshot; or a revision.
    pub from: String,
    /// Whether it begins with what is committed, whatever a branch has besides.
    #[serde(default)]
    pub committed: bool,
    /// Whether the native directories of redirected paths begin with what those of the origin have, where files
    /// can share blocks; else they begin empty.
    #[serde(default)]
    pub seed_redirects: bool,
    /// Whether it is the branch that was removed: it then has the native directories of that.
    #[serde(skip)]
    pub takes_over: bool,
    /// Where to mount it; nowhere without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<MountAt>,
}

/// Removes a worktree with what it differs by from its commit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorktreeRemoveCall {
    /// Its directory.
    pub dir: WirePath,
}

/// A worktree that was removed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorktreeRemoved {
    /// Its directory.
    pub dir: WirePath,
    /// The repository's name in the store.
    pub repository: String,
    /// Its branch.
    pub branch: String,
    /// The snapshot that keeps what it was, if it differed from its commit.
    pub snapshot: Option<String>,
    /// Until when it does, in seconds since 1970.
    #[serde(default)]
    pub kept_until: Option<i64>,
}

/// Gives a branch another name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BranchRenameCall {
    /// The branch, or repository@branch.
    pub branch: String,
    /// Its name from now on.
    pub name: String,
}

/// A branch that has another name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BranchRenamed {
    /// The repository's name in the store.
    pub repository: String,
    /// The name that it had.
    pub from: String,
    /// Its name.
    pub branch: String,
}

/// Removes a branch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BranchDeleteCall {
    /// The branch, or repository@branch.
    pub branch: String,
}

/// A branch that was removed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BranchDeleted {
    /// The repository's name in the store.
    pub repository: String,
    /// The branch.
    pub branch: String,
    /// The snapshot that keeps it.
    pub snapshot: String,
    /// Until when it does, in seconds since 1970.
    #[serde(default)]
    pub kept_until: i64,
}

/// Brings a branch back that was removed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UndeleteCall {
    /// The branch, or repository@branch.
    pub branch: String,
    /// Where to mount it; nowhere without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<MountAt>,
}

/// Makes a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotCreateCall {
    /// The branch, or repository@branch.
    pub branch: String,
    /// What to say of it.
    #[serde(default)]
    pub message: String,
    /// Whether it is made before something that changes much, and need not be kept for ever.
    #[serde(default)]
    pub before: bool,
}

/// Makes a branch what a snapshot is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotRestoreCall {
    /// Its name, or the first digits of it.
    pub snapshot: String,
    /// The branch, or repository@branch; that of which it was taken without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// Takes back what was changed since the last snapshot of a branch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UndoCall {
    /// The branch, or repository@branch.
    pub branch: String,
}

/// A branch that is what a snapshot is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotRestored {
    /// The snapshot.
    pub snapshot: String,
    /// The repository's name in the store.
    pub repository: String,
    /// The branch.
    pub branch: String,
    /// The snapshot that keeps what the branch was before.
    pub before: String,
    /// Files, directories and links that differ from before.
    pub inodes: u64,
    /// Names that stand for something else than before.
    pub names: u64,
    /// Redirected paths, which are as they were before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirected: Vec<WirePath>,
    /// Why some of these do not appear any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Moves a worktree to another commit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SwitchCall {
    /// Where it is mounted.
    pub dir: WirePath,
    /// A revision, `-` for the branch before, or a branch.
    pub what: String,
    /// What that is.
    #[serde(default)]
    pub means: SwitchMeans,
    /// Whether what differs from the commit is thrown away; untracked files stay unless they are in the way.
    #[serde(default)]
    pub discard: bool,
}

/// What a word names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchMeans {
    /// A branch of agentfs with files of its own, if there is one, else a revision.
    #[default]
    Any,
    /// A revision.
    Revision,
    /// A branch of agentfs.
    Branch,
}

/// A worktree that is elsewhere now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Switched {
    /// Where it is mounted.
    pub dir: WirePath,
    /// The repository's name in the store.
    pub repository: String,
    /// Its branch.
    pub branch: String,
    /// The commit of its HEAD before; none where there was none yet.
    pub from: Option<String>,
    /// The commit of its HEAD.
    pub commit: String,
    /// The branch of git that HEAD is on; none for one that is detached.
    pub head: Option<String>,
    /// How many files were changed.
    pub paths: u64,
    /// The snapshot that keeps what was there before; none if its branch does.
    pub before: Option<String>,
    /// The branch that it has shown before, with all that was there, if it shows another one now.
    pub left: Option<String>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Shows a branch as it is now, or a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ViewCall {
    /// A branch, a snapshot, or a revision.
    pub what: String,
}

/// What something is at a moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ViewBegun {
    /// The repository's name in the store.
    pub repository: String,
    /// The git directory of the repository.
    pub common_dir: WirePath,
    /// Where it is mounted, to be read; nowhere if it is nothing but its commit.
    pub dir: Option<WirePath>,
    /// The index that belongs to it.
    pub index: Option<WirePath>,
    /// The commit of its HEAD; none where there is none yet.
    pub commit: Option<String>,
    /// Paths that are redirected, whose content is not shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirected: Vec<WirePath>,
}

/// Lists snapshots.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SnapshotListCall {
    /// The branch, or repository@branch; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// Names a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotCall {
    /// Its name, or the first digits of it.
    pub snapshot: String,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its name.
    pub id: String,
    /// The repository's name in the store.
    pub repository: String,
    /// The name that its branch had.
    pub branch: String,
    /// The commit on which its branch was based; none in an empty repository.
    pub commit: Option<String>,
    /// The tree on which its branch was based. What has the same one has the same numbers for its inodes.
    pub base: String,
    /// When it was made, in seconds since 1970.
    pub made: i64,
    /// Why: `asked`, `before` something that changes much, before an `exec`, some `time` after the one
    /// before, or because its branch was `removed`.
    pub reason: String,
    /// What was said of it.
    pub message: String,
}

/// A snapshot and what it stands beside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotShown {
    /// The snapshot.
    #[serde(flatten)]
    pub info: SnapshotInfo,
    /// The snapshot of the same branch that was made before it.
    pub parent: Option<String>,
    /// The name of its branch now; none if that is removed.
    pub branch_now: Option<String>,
    /// Paths that were redirected, whose content it does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirected: Vec<WirePath>,
}

/// Snapshots, the oldest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshots {
    /// The snapshots.
    pub snapshots: Vec<SnapshotInfo>,
}
