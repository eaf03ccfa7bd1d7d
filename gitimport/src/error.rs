//! The error type of this crate.

use std::io;
use std::path::{Path, PathBuf};

use agentfs_engine::GitOid;

use crate::odb::Kind;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a git repository and the store. Every variant names the object that it
/// speaks of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The path is no git repository.
    #[error("{path} is not a git repository: {why}", path = .path.display())]
    NotARepository {
        /// The path as it was given.
        path: PathBuf,
        /// What is missing or wrong.
        why: String,
    },
    /// gix could not read the configuration, a reference or a revision.
    #[error("cannot {action} of {git_dir}: {source}", git_dir = .git_dir.display())]
    Git {
        /// What was tried, as a verb with its object: "read the configuration".
        action: String,
        /// The repository.
        git_dir: PathBuf,
        /// gix's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No commit goes by this name.
    #[error("there is no revision {rev:?} in {git_dir}: {why}", git_dir = .git_dir.display())]
    NoSuchRevision {
        /// The revision as it was given.
        rev: String,
        /// The repository.
        git_dir: PathBuf,
        /// What was looked for.
        why: String,
    },
    /// The revision exists but leads to something else than a commit.
    #[error("revision {rev:?} is {kind} {oid}, not a commit")]
    NotACommit {
        /// The revision as it was given.
        rev: String,
        /// What it leads to.
        oid: GitOid,
        /// The kind of that object.
        kind: Kind,
    },
    /// An object that another one names is not in the repository.
    #[error("git object {0} is missing from the repository; `git fsck` shows what refers to it")]
    MissingObject(GitOid),
    /// An object cannot be read back as what its id promises.
    #[error("git object {oid} is damaged: {why}")]
    CorruptObject {
        /// The object.
        oid: GitOid,
        /// Where it was read and what is wrong with it.
        why: String,
    },
    /// A file of the object database is damaged.
    #[error("{path} is damaged: {why}", path = .path.display())]
    CorruptFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// An object is of another kind than the one who names it says.
    #[error("git object {oid} is a {found} where a {expected} must be")]
    WrongKind {
        /// The object.
        oid: GitOid,
        /// What it must be.
        expected: Kind,
        /// What it is.
        found: Kind,
    },
    /// Something exceeds a bound of [`crate::limits`].
    #[error("{what} has {size} bytes; the limit is {limit}")]
    TooLarge {
        /// What is too large, with its id.
        what: String,
        /// Its size in bytes.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// A tree holds an entry that must not be in one, as `git fsck` would say.
    #[error("refused: {path:?} in git tree {tree}: {why}")]
    Refused {
        /// Path of the entry, or of the directory if the whole of it is refused.
        path: String,
        /// The tree object that holds it.
        tree: GitOid,
        /// Why it must not be there.
        why: String,
    },
    /// What happened to one path of a tree.
    #[error("{path:?}: {source}")]
    AtPath {
        /// The path.
        path: String,
        /// What happened.
        source: Box<Error>,
    },
    /// Several blobs could not be had.
    #[error("{failed} blobs of the repository cannot be read; the first: {first}")]
    Blobs {
        /// How many of those that were tried.
        failed: u64,
        /// What is wrong with the first.
        first: Box<Error>,
    },
    /// A tree entry did not come from git, so that no index can list it.
    #[error("{path:?} has no git object id, so a git index cannot list it")]
    NoObjectId {
        /// Path of the entry.
        path: String,
    },
    /// What is to be made is there already.
    #[error("{path} exists already; choose another place or remove it", path = .path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// The repository to be cloned is one that git itself would not clone in this way.
    #[error("refused to clone {path}: {why}", path = .path.display())]
    UnsafeSource {
        /// The repository, or the part of it that is refused.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The branch or tag to start with is not in the repository to be cloned.
    #[error("there is no branch or tag {branch:?} in {url}")]
    NoSuchBranch {
        /// The name as it was given.
        branch: String,
        /// The repository as it was given.
        url: String,
    },
    /// Objects could not be fetched.
    #[error("cannot fetch {url}: {source}")]
    Fetch {
        /// The repository as it was given.
        url: String,
        /// gix's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The user's git could not do what was left to it. It has told why on its standard error.
    #[error("`git {command}` failed with {status}; its own message tells why")]
    GitFailed {
        /// What it was to do.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// A file cannot be converted as its attributes demand.
    #[error("{path:?} cannot be checked out: {why}")]
    Conversion {
        /// Path of the file.
        path: String,
        /// What the conversion met.
        why: String,
    },
    /// The engine failed, or the work was cancelled.
    #[error(transparent)]
    Engine(#[from] agentfs_engine::Error),
}

impl Error {
    /// An [`Error::Io`] about `path`.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// An [`Error::CorruptObject`].
    pub fn corrupt(oid: &GitOid, why: impl Into<String>) -> Self {
        Self::CorruptObject { oid: *oid, why: why.into() }
    }

    /// An [`Error::Refused`] about `path` in `tree`.
    pub fn refused(path: &[u8], tree: &GitOid, why: impl Into<String>) -> Self {
        let path = String::from_utf8_lossy(path).into_owned();
        Self::Refused { path, tree: *tree, why: why.into() }
    }

    /// What a stream of object `oid` failed with.
    pub(crate) fn read(oid: &GitOid, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(error) => error,
            Err(error) => Self::corrupt(oid, error.to_string()),
        }
    }

    /// What storing the stream of object `oid` failed with.
    pub(crate) fn streamed(oid: &GitOid, error: agentfs_engine::Error) -> Self {
        match error {
            agentfs_engine::Error::Stream(error) => Self::read(oid, error),
            error => Self::Engine(error),
        }
    }

    /// This error, said of `path`.
    #[must_use]
    pub fn at(self, path: &[u8]) -> Self {
        match self {
            // The root has no name.
            _ if path.is_empty() => self,
            // They name a path already, or none can help.
            Self::Refused { .. }
            | Self::AtPath { .. }
            | Self::Conversion { .. }
            | Self::Engine(_) => self,
            other => Self::AtPath {
                path: String::from_utf8_lossy(path).into_owned(),
                source: Box::new(other),
            },
        }
    }

    /// Whether the repository's data is damaged or gone, as opposed to a refusal, a limit or a
    /// failing device. True for a pack with a flipped byte and for a missing blob; false for a
    /// permission error, a hostile tree and an unknown revision.
    pub fn is_corruption(&self) -> bool {
        match self {
            Self::MissingObject(_) | Self::CorruptObject { .. } | Self::CorruptFile { .. } => true,
            Self::AtPath { source, .. } | Self::Blobs { first: source, .. } => {
                source.is_corruption()
            }
            Self::Engine(error) => error.is_corruption(),
            _ => false,
        }
    }

    /// Whether the input is whole but must not be let in: a hostile tree, or one past a limit.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::WrongKind { .. }
            | Self::UnsafeSource { .. } => true,
            Self::AtPath { source, .. } => source.is_refusal(),
            Self::Engine(error) => matches!(
                error,
                agentfs_engine::Error::Refused(_) | agentfs_engine::Error::TooLarge { .. }
            ),
            _ => false,
        }
    }
}
