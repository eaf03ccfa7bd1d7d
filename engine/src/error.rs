//! The error type of the engine.

use std::io;
use std::path::{Path, PathBuf};

use crate::id::{ChunkId, ContentId, GitOid, Ino, TreeId};

/// A result of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the engine. Every variant names the object that it speaks of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file of the store.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried, as a verb: "open", "append to", "sync".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The database refused an operation.
    #[error("the database {path} failed: {source}", path = .path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// redb's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Stored bytes are not what they must be.
    #[error("{what} is damaged: {why}")]
    Corrupt {
        /// The object, as a noun phrase with its id.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A chunk is named but not stored.
    #[error("chunk {0} is missing from the store")]
    MissingChunk(ChunkId),
    /// A content is named but has neither a chunk nor a manifest.
    #[error("content {0} is missing from the store")]
    MissingContent(ContentId),
    /// A tree is named but not stored.
    #[error("tree {0} is missing from the store")]
    MissingTree(TreeId),
    /// A git object is in neither the store nor the repository.
    #[error("git object {0} is missing from the store and from the repository")]
    MissingObject(GitOid),
    /// The source of git objects failed.
    #[error("cannot read git object {oid}: {source}")]
    Source {
        /// The object.
        oid: GitOid,
        /// The repository's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store was written by a version that this one does not know.
    #[error("the store at {path} has format {found}; this agentfs reads format {known}", path = .path.display())]
    UnknownFormat {
        /// The store.
        path: PathBuf,
        /// The format that it states.
        found: u32,
        /// The only one known here.
        known: u32,
    },
    /// Another process has the store open.
    #[error("the store at {path} is in use by another process", path = .path.display())]
    InUse {
        /// The store.
        path: PathBuf,
    },
    /// A value exceeds a bound of [`crate::limits`].
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large, with its size.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// A tree holds something that must not be in one.
    #[error("refused: {0}")]
    Refused(String),
    /// A named object of the store does not exist.
    #[error("there is no {kind} {name:?} in this store")]
    NoSuch {
        /// "repository", "branch", "worktree".
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A named object of the store exists already.
    #[error("there is already a {kind} {name:?} in this store")]
    Exists {
        /// "repository", "branch", "worktree".
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// No such inode in this worktree.
    #[error("inode {0} does not exist")]
    NoInode(Ino),
    /// The inode is not a directory.
    #[error("inode {0} is not a directory")]
    NotDirectory(Ino),
    /// The inode is a directory.
    #[error("inode {0} is a directory")]
    IsDirectory(Ino),
    /// The operation does not apply to this kind of inode.
    #[error("inode {0} does not support this operation")]
    WrongKind(Ino),
    /// The bytes that were to be stored could not be read from where they come from.
    #[error("cannot read the content to be stored: {0}")]
    Stream(#[source] io::Error),
    /// The work was told to stop.
    #[error("cancelled")]
    Cancelled,
    /// An earlier write to the store failed, so nothing more is written until it is opened again.
    #[error("the store at {path} takes no more writes, since an earlier one failed: {why}", path = .path.display())]
    Poisoned {
        /// The store.
        path: PathBuf,
        /// The first error.
        why: String,
    },
    /// The worktree is mounted read-only.
    #[error("the worktree is read-only")]
    ReadOnly,
}

impl Error {
    /// An [`Error::Io`] about `path`.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// An [`Error::Corrupt`].
    pub fn corrupt(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into(), why: why.into() }
    }

    /// Whether stored data is damaged or gone, as opposed to a refusal, a limit or a failing
    /// device. True for a chunk whose digest is wrong and for one that is named but not stored;
    /// false for a permission error, a full disk and a store of another version.
    pub fn is_corruption(&self) -> bool {
        matches!(
            self,
            Self::Corrupt { .. }
                | Self::MissingChunk(_)
                | Self::MissingContent(_)
                | Self::MissingTree(_)
        )
    }
}
