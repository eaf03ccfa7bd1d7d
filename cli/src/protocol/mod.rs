//! The methods of the control socket, with their parameters and results. docs/PROTOCOL.md describes
//! them for other languages.

mod branches;
mod changed;
mod redirects;
mod steps;
mod upkeep;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use branches::{
    BranchCreateCall, BranchDeleteCall, BranchDeleted, BranchRenameCall, BranchRenamed,
    SnapshotCall, SnapshotCreateCall, SnapshotInfo, SnapshotListCall, SnapshotRestoreCall,
    SnapshotRestored, SnapshotShown, Snapshots, SwitchCall, SwitchMeans, Switched, UndeleteCall,
    UndoCall, ViewBegun, ViewCall, WorktreeRemoveCall, WorktreeRemoved,
};
pub use changed::{ChangedPaths, ChangedPathsCall};
pub use redirects::{
    RedirectAddCall, RedirectInfo, RedirectListCall, RedirectRemoveCall, RedirectStatus, Redirects,
};
pub use steps::{StepDone, Steps};
pub use upkeep::{Amount, Amounts, Collected, DiskUsage, GcCall, UsageEntry};

/// The version of the protocol. A client and a daemon that differ in it do not talk.
pub const PROTOCOL: u32 = 1;

/// Names of the methods.
pub mod method {
    /// [`super::Hello`] -> [`super::Welcome`]: the first call of a connection.
    pub const HELLO: &str = "hello";
    /// [`super::CloneCall`] -> [`super::Opened`].
    pub const CLONE: &str = "clone";
    /// [`super::AttachCall`] -> [`super::Opened`].
    pub const ATTACH: &str = "attach";
    /// [`super::MountCall`] -> [`super::Opened`].
    pub const MOUNT: &str = "mount";
    /// [`super::UmountCall`] -> [`super::Unmounted`].
    pub const UMOUNT: &str = "umount";
    /// [`super::BranchCreateCall`] -> [`super::Opened`].
    pub const BRANCH_CREATE: &str = "branch.create";
    /// [`super::BranchRenameCall`] -> [`super::BranchRenamed`].
    pub const BRANCH_RENAME: &str = "branch.rename";
    /// [`super::BranchDeleteCall`] -> [`super::BranchDeleted`].
    pub const BRANCH_DELETE: &str = "branch.delete";
    /// [`super::UndeleteCall`] -> [`super::Opened`].
    pub const BRANCH_UNDELETE: &str = "branch.undelete";
    /// [`super::WorktreeRemoveCall`] -> [`super::WorktreeRemoved`].
    pub const WORKTREE_REMOVE: &str = "worktree.remove";
    /// [`super::SnapshotCreateCall`] -> [`super::SnapshotInfo`].
    pub const SNAPSHOT_CREATE: &str = "snapshot.create";
    /// [`super::SnapshotRestoreCall`] -> [`super::SnapshotRestored`].
    pub const SNAPSHOT_RESTORE: &str = "snapshot.restore";
    /// [`super::UndoCall`] -> [`super::SnapshotRestored`].
    pub const UNDO: &str = "undo";
    /// [`super::SwitchCall`] -> [`super::Switched`].
    pub const SWITCH: &str = "switch";
    /// [`super::SnapshotListCall`] -> [`super::Snapshots`].
    pub const SNAPSHOT_LIST: &str = "snapshot.list";
    /// [`super::SnapshotCall`] -> [`super::SnapshotShown`].
    pub const SNAPSHOT_SHOW: &str = "snapshot.show";
    /// [`super::SnapshotCall`] -> [`super::SnapshotInfo`].
    pub const SNAPSHOT_DELETE: &str = "snapshot.delete";
    /// [`super::ViewCall`] -> [`super::ViewBegun`]. It lasts until the connection ends.
    pub const VIEW_BEGIN: &str = "view.begin";
    /// [`super::RedirectAddCall`] -> [`super::Redirects`]: those that were added.
    pub const REDIRECT_ADD: &str = "redirect.add";
    /// [`super::RedirectListCall`] -> [`super::Redirects`].
    pub const REDIRECT_LIST: &str = "redirect.list";
    /// [`super::RedirectRemoveCall`] -> [`super::Redirects`]: those that were removed.
    pub const REDIRECT_REMOVE: &str = "redirect.remove";
    /// Nothing -> [`super::Status`].
    pub const STATUS: &str = "status";
    /// [`super::ChangedPathsCall`] -> [`super::ChangedPaths`].
    pub const CHANGED_PATHS: &str = "changed_paths";
    /// Nothing -> [`super::Stats`].
    pub const STATS: &str = "stats";
    /// [`super::BackupCall`] -> [`super::BackedUp`].
    pub const BACKUP: &str = "backup";
    /// Nothing -> [`super::Checked`].
    pub const CHECK: &str = "check";
    /// Nothing -> [`super::Repaired`].
    pub const REPAIR: &str = "repair";
    /// [`super::GcCall`] -> [`super::Collected`].
    pub const GC: &str = "gc";
    /// Nothing -> [`super::DiskUsage`].
    pub const USAGE: &str = "usage";
    /// [`super::ExecCall`] -> [`super::ExecBegun`]. It lasts until `exec.end` or until the
    /// connection ends.
    pub const EXEC_BEGIN: &str = "exec.begin";
    /// [`super::ExecEnd`] -> nothing.
    pub const EXEC_END: &str = "exec.end";
    /// [`super::StopCall`] -> nothing: unmount everything and exit.
    pub const STOP: &str = "stop";
    /// [`super::About`], a notification to the daemon: the call is not wanted any more.
    pub const CANCEL: &str = "cancel";
    /// [`super::About`], a notification to the daemon: the answer of a call whose parameters have
    /// `"confirm": true` has been taken.
    pub const CONFIRM: &str = "confirm";
    /// [`super::Progress`], a notification to the client.
    pub const PROGRESS: &str = "progress";
    /// [`super::Steps`], a notification to the client.
    pub const STEPS: &str = "steps";
}

/// A path on the wire: a string where it is UTF-8, else `{"hex": "..."}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WirePath(pub PathBuf);

#[derive(Serialize, Deserialize)]
struct HexPath {
    hex: String,
}

impl Serialize for WirePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => {
                let bytes = self.0.as_os_str().as_bytes();
                let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                HexPath { hex }.serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for WirePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Hex(HexPath),
        }
        let path = match Form::deserialize(deserializer)? {
            Form::Text(text) => PathBuf::from(text),
            Form::Hex(HexPath { hex }) => {
                let bytes = decode_hex(&hex).ok_or_else(|| D::Error::custom("no hexadecimal"))?;
                PathBuf::from(std::ffi::OsString::from_vec(bytes))
            }
        };
        if path.as_os_str().is_empty() || path.as_os_str().as_bytes().contains(&0) {
            return Err(D::Error::custom("no path"));
        }
        Ok(Self(path))
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks_exact(2).map(pair).collect()
}

impl WirePath {
    /// The path of these bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(OsString::from_vec(bytes).into())
    }

    /// Its bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.into_os_string().into_vec()
    }
}

impl From<&Path> for WirePath {
    fn from(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl AsRef<OsStr> for WirePath {
    fn as_ref(&self) -> &OsStr {
        self.0.as_os_str()
    }
}

/// How a client introduces itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the client.
    pub protocol: u32,
    /// Its name and version, for the log.
    pub client: String,
}

/// How the daemon introduces itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// [`PROTOCOL`] of the daemon.
    pub protocol: u32,
    /// The version of its program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Its store.
    pub store: WirePath,
}

/// Where and how to mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountAt {
    /// The directory, absolute. It is created if it is missing.
    pub dir: WirePath,
    /// Whether writing is refused.
    #[serde(default)]
    pub read_only: bool,
    /// Whether other users may enter.
    #[serde(default)]
    pub allow_other: bool,
}

/// Takes a repository into the store and opens a worktree of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CloneCall {
    /// The URL or path.
    pub source: String,
    /// The directory below `repos` in which the client has fetched it, as `repository.git`. Without
    /// it the daemon fetches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incoming: Option<String>,
    /// The branch to check out instead of the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// The revision to check out, on no branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rev: Option<String>,
    /// Where to mount; nowhere without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<MountAt>,
    /// Whether to answer only when all content is in the store.
    #[serde(default)]
    pub wait: bool,
}

/// Takes an existing repository into the store where it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachCall {
    /// The repository, or anything inside it.
    pub path: WirePath,
    /// Whether to answer only when all content is in the store.
    #[serde(default)]
    pub wait: bool,
}

/// Mounts a branch or a revision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountCall {
    /// A branch, a repository, or `repository@revision`.
    pub what: String,
    /// Where.
    pub at: MountAt,
    /// Whether a branch that is checked out elsewhere is refused; else its commit is mounted.
    #[serde(default)]
    pub exclusive: bool,
}

/// What clone, attach and mount have brought about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The repository's name in the store.
    pub repository: String,
    /// The branch.
    pub branch: String,
    /// The commit; none in an empty repository.
    pub commit: Option<String>,
    /// Whether git's HEAD names the commit instead of a branch.
    pub detached: bool,
    /// Files, directories and links below the root.
    pub entries: u64,
    /// Where it is mounted.
    pub dir: Option<WirePath>,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Whether all content is in the store.
    pub ingested: bool,
    /// What the user should know besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Unmounts a directory, or all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UmountCall {
    /// The directory; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<WirePath>,
    /// Whether to take it from sight at once even if it is in use.
    #[serde(default)]
    pub lazy: bool,
}

/// What was unmounted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unmounted {
    /// The directories.
    pub dirs: Vec<WirePath>,
}

/// Makes a branch ready for a command that is to run in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecCall {
    /// A branch, a repository, or `repository@revision`.
    pub what: String,
    /// The directory at which the command is to see it; that of the repository's worktree without
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<WirePath>,
    /// The process that runs the command, for those who ask who uses a branch.
    pub pid: u32,
    /// Whether the branch is kept as it is when the command begins, and as it is when that has ended.
    #[serde(default)]
    pub keep: bool,
}

/// A branch that is ready for a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecBegun {
    /// What `exec.end` is to name.
    pub exec: u64,
    /// The repository's name in the store.
    pub repository: String,
    /// The branch.
    pub branch: String,
    /// Whether git's HEAD names a commit instead of the branch.
    pub detached: bool,
    /// Where it is mounted.
    pub source: WirePath,
    /// The directory at which the command is to see it.
    pub at: WirePath,
    /// The git directory of the worktree.
    pub git_dir: WirePath,
    /// The git directory of the repository.
    pub common_dir: WirePath,
    /// Native directories to which links in the worktree lead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirects: Vec<WirePath>,
    /// What the user should know besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Ends what `exec.begin` has begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecEnd {
    /// Its number.
    pub exec: u64,
}

/// Writes all of the store to a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupCall {
    /// The file, absolute, which does not exist.
    pub file: WirePath,
}

/// A backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackedUp {
    /// The file.
    pub file: WirePath,
    /// Directories, files and links in it.
    pub entries: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The hash of all but its last 32 bytes, which it is.
    pub blake3: String,
    /// Redirected paths, of which it has no content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirected: Vec<RedirectInfo>,
}

/// Stops the daemon.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StopCall {
    /// Whether commands that run in branches are ended; else the call is refused if there are any.
    #[serde(default)]
    pub force: bool,
}

/// What the daemon holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The version of its program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime: u64,
    /// Its store.
    pub store: WirePath,
    /// What the kernel is told to remember, by name, and whether it is.
    pub levers: BTreeMap<String, bool>,
    /// The repositories.
    pub repositories: Vec<RepositoryStatus>,
    /// The worktrees, mounted or not.
    pub worktrees: Vec<WorktreeStatus>,
}

/// A repository.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RepositoryStatus {
    /// Its name.
    pub name: String,
    /// Where it came from.
    pub origin: Option<String>,
    /// Its git directory.
    pub git_dir: WirePath,
    /// Whether it belongs to the user and not to the store.
    pub attached: bool,
    /// Its branches.
    pub branches: Vec<BranchStatus>,
}

/// A branch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BranchStatus {
    /// Its name.
    pub name: String,
    /// Its commit; none in an empty repository.
    pub commit: Option<String>,
    /// Whether git's HEAD names the commit instead of a branch.
    pub detached: bool,
    /// Whether it is not mounted and differs from its commit, or may.
    #[serde(default)]
    pub changed: bool,
    /// Whether all content is in the store.
    pub ingested: bool,
    /// How far the ingest is that runs now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingest: Option<PhaseProgress>,
    /// Why the last ingest failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// A worktree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorktreeStatus {
    /// Where.
    pub dir: WirePath,
    /// Of which repository.
    pub repository: String,
    /// Of which branch.
    pub branch: String,
    /// Its commit; none in an empty repository.
    pub commit: Option<String>,
    /// Whether it is mounted now.
    pub mounted: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Whether other users may enter.
    pub allow_other: bool,
    /// Its git directory.
    pub git_dir: WirePath,
    /// Whether all its content is in the store.
    pub ingested: bool,
    /// What differs from its commit; none where nothing can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Changes>,
    /// What of it lies in native directories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirects: Vec<RedirectStatus>,
    /// What the user should know of that: what the tree asks for in vain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirect_notes: Vec<String>,
}

/// How the changes of a worktree fare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Files, directories and links that were changed or made.
    pub inodes: u64,
    /// Bytes of the outbox.
    pub outbox_bytes: u64,
    /// Whether something is in the outbox only.
    pub waiting: bool,
    /// Why no more changes are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// What was counted since the daemon started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// What the store holds.
    pub store: BTreeMap<String, u64>,
    /// What the store did.
    pub counters: BTreeMap<String, u64>,
    /// The daemon's own use of the machine.
    pub process: BTreeMap<String, u64>,
    /// How long calls took, and steps of them, since it started.
    #[serde(default)]
    pub calls: BTreeMap<String, Durations>,
    /// The messages of the kernel by worktree.
    pub worktrees: Vec<WorktreeStats>,
}

/// What was counted for one worktree since it was mounted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorktreeStats {
    /// Where.
    pub dir: WirePath,
    /// Messages of the kernel by name.
    pub counters: BTreeMap<String, u64>,
    /// What its outbox has done since it was opened; empty for a worktree that is read-only.
    #[serde(default)]
    pub outbox: BTreeMap<String, u64>,
    /// How long messages took by name, inside the daemon.
    #[serde(default)]
    pub latencies: BTreeMap<String, Durations>,
}

/// How long something took each time: pairs of an upper end in nanoseconds and a count, in rising order. What one
/// pair counts is not in the next.
pub type Durations = Vec<(u64, u64)>;

/// What a check has found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checked {
    /// Chunks verified.
    pub chunks: u64,
    /// Trees verified.
    pub trees: u64,
    /// Contents verified.
    pub contents: u64,
    /// Entries of the git map verified.
    pub mapped: u64,
    /// Bytes verified, uncompressed.
    pub bytes: u64,
    /// Branches with changes verified.
    #[serde(default)]
    pub branches: u64,
    /// Changed inodes of branches verified.
    #[serde(default)]
    pub inodes: u64,
    /// Changed names of branches verified.
    #[serde(default)]
    pub names: u64,
    /// Records of outboxes verified.
    #[serde(default)]
    pub records: u64,
    /// Worktrees verified.
    #[serde(default)]
    pub worktrees: u64,
    /// Entries of the indexes of worktrees verified.
    #[serde(default)]
    pub index_entries: u64,
    /// How many findings there are.
    pub damaged: u64,
    /// The findings, the first [`Checked::FINDINGS_MAX`] of them.
    pub findings: Vec<String>,
    /// What a repair would do about them, the first 512.
    #[serde(default)]
    pub repairs: Vec<String>,
}

/// What a repair has done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Repaired {
    /// How many steps were tried.
    pub steps: u64,
    /// Those that were taken, the first [`Repaired::STEPS_MAX`] of them.
    pub repaired: Vec<String>,
    /// Those that could not be taken, the first [`Repaired::STEPS_MAX`] of them.
    pub not_repaired: Vec<NotRepaired>,
    /// What could not be kept by those that were taken.
    pub lost: Vec<String>,
    /// What a check has found afterwards.
    #[serde(flatten)]
    pub after: Checked,
}

impl Repaired {
    /// Most steps of a kind in one answer.
    pub const STEPS_MAX: usize = 512;
}

/// A step of a repair that could not be taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NotRepaired {
    /// The step.
    pub step: String,
    /// Why not.
    pub why: String,
}

impl Checked {
    /// Most findings in one answer; each fits in a line of 4 KiB, so that the answer keeps within
    /// the length of a message.
    pub const FINDINGS_MAX: usize = 512;
}

/// What a notification to the daemon is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    /// The id of the call.
    pub call: crate::wire::Id,
}

/// How far a call is. Sent several times a second while it runs, also when nothing has changed, so
/// that its silence means something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// The id of the call.
    pub call: crate::wire::Id,
    /// The phases that have begun.
    pub phases: Vec<PhaseProgress>,
}

/// How far a phase is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseProgress {
    /// The name of the phase.
    pub phase: String,
    /// Objects done.
    pub objects: u64,
    /// Bytes done.
    pub bytes: u64,
    /// Objects to do, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects_total: Option<u64>,
    /// Bytes to do, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Whether it is over.
    #[serde(default)]
    pub ended: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_survives_the_wire() {
        for bytes in [&b"/a b/\xc3\xa9"[..], b"/latin-\xe9", b"/new\nline"] {
            let path = WirePath(PathBuf::from(OsStr::from_bytes(bytes)));
            let text = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<WirePath>(&text).unwrap(), path, "{text}");
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in ["\"\"", "\"a\\u0000b\"", "{\"hex\":\"f\"}", "{\"hex\":\"zz\"}", "7"] {
            assert!(serde_json::from_str::<WirePath>(text).is_err(), "{text}");
        }
    }
}
