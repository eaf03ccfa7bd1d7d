//! The calls about what the store takes.

use serde::{Deserialize, Serialize};

use super::SnapshotInfo;

/// Collects garbage.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GcCall {
    /// Whether to tell only what would be removed.
    #[serde(default)]
    pub dry_run: bool,
    /// For how many days what is kept of removed branches stays, counted from their removal; 30
    /// without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_removed_days: Option<u32>,
}

/// A number of things and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// How many.
    pub count: u64,
    /// Bytes that they take as they are stored.
    pub bytes: u64,
}

/// Things of each kind.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Amounts {
    /// Chunks of files.
    pub chunks: Amount,
    /// Directory objects.
    pub trees: Amount,
    /// Lists of the chunks of files.
    pub manifests: Amount,
    /// Entries of the git map.
    pub mapped: Amount,
    /// All of them together.
    pub total: Amount,
}

/// What a garbage collection has done, or would do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Collected {
    /// Whether nothing was removed.
    pub dry_run: bool,
    /// What is needed and stays.
    pub kept: Amounts,
    /// What nothing needs.
    pub freed: Amounts,
    /// Segment files that are removed, with their bytes.
    pub segments: Amount,
    /// What is moved out of them into others.
    pub moved: Amount,
    /// Segment files that stay although little of them is used, since something in them is damaged.
    pub damaged_segments: u64,
    /// How many snapshots have had their time. What only they have is not in the amounts of a dry run.
    pub expired: u64,
    /// The first 512 of them.
    #[serde(default)]
    pub expired_snapshots: Vec<SnapshotInfo>,
    /// Native directories of redirected paths that no branch has any more.
    #[serde(default)]
    pub redirected: Amount,
    /// Plain files of the cache whose contents nothing needs.
    #[serde(default)]
    pub files: Amount,
    /// Layers of changes that nothing needs, or that became a part of others.
    pub layers: u64,
}

/// What branches and snapshots take.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskUsage {
    /// Branches first, each kind by repository and name.
    pub entries: Vec<UsageEntry>,
    /// The plain files of large contents, which are made and removed as they are needed.
    #[serde(default)]
    pub files: Amount,
}

/// What a branch or a snapshot takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UsageEntry {
    /// Its repository.
    pub repository: String,
    /// The branch, or the name that the branch of the snapshot had.
    pub branch: String,
    /// The name of the snapshot; none for a branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// What only it has: a garbage collection frees so much when it is gone for good.
    pub own: Amount,
    /// What it has in common with others.
    pub shared: Amount,
    /// Bytes of its outbox.
    pub outbox: u64,
    /// Bytes in native directories of redirected paths, which are beside the store.
    #[serde(default)]
    pub redirected: u64,
}
