//! The error type of the engine.

use std::io;
use std::path::{Path, PathBuf};

use crate::id::{BranchNumber, ChunkId, ContentId, GitOid, Ino, Sequence, TreeId};

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
    /// An outbox is not what it must be: a record that was durable is damaged or missing, or what no
    /// crash leaves behind is there.
    #[error("{}", outbox_damage(segment, *offset, *record, why))]
    Outbox {
        /// The segment file.
        segment: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// The record that should be there, where one is concerned.
        record: Option<Sequence>,
        /// What is wrong.
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
    /// The store, or a part of it, was written by a version that this one does not know.
    #[error("{path} has format {found}; this agentfs reads format {known}", path = .path.display())]
    UnknownFormat {
        /// The store, or the file that states the format.
        path: PathBuf,
        /// The format that it states.
        found: u32,
        /// The only one known here.
        known: u32,
    },
    /// A worktree of the branch is open already.
    #[error("branch number {0} is still in use by a worktree that was opened before")]
    BranchInUse(BranchNumber),
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
    /// An earlier write failed, so nothing more is written until the store or outbox is opened again.
    #[error("{path} takes no more writes, since an earlier one failed: {why}", path = .path.display())]
    Poisoned {
        /// The store, or the directory of the outbox.
        path: PathBuf,
        /// The first error.
        why: String,
    },
    /// POSIX refuses the operation.
    #[error("inode {0}: {1}")]
    Denied(Ino, Denial),
    /// The worktree is mounted read-only.
    #[error("the worktree is read-only")]
    ReadOnly,
}

/// Why POSIX refuses an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// There is no such entry (`ENOENT`).
    #[error("there is no such entry")]
    NoEntry,
    /// There is such an entry already (`EEXIST`).
    #[error("there is such an entry already")]
    Exists,
    /// The directory has entries (`ENOTEMPTY`).
    #[error("the directory is not empty")]
    NotEmpty,
    /// The name is too long (`ENAMETOOLONG`).
    #[error("the name is too long")]
    NameTooLong,
    /// It is not permitted to anybody (`EPERM`).
    #[error("the operation is not permitted")]
    NotPermitted,
    /// The request makes no sense (`EINVAL`).
    #[error("the request is invalid")]
    Invalid,
    /// It has as many names as an inode can have (`EMLINK`).
    #[error("it has too many links")]
    TooManyLinks,
    /// A file cannot be so large (`EFBIG`).
    #[error("a file cannot be so large")]
    TooLarge,
    /// There is no such extended attribute (`ENODATA`).
    #[error("there is no such extended attribute")]
    NoAttribute,
    /// The extended attribute is too large (`E2BIG`).
    #[error("the extended attribute is too large")]
    AttributeTooLarge,
    /// The inode has no room for more extended attributes (`ENOSPC`).
    #[error("there is no room for the extended attribute")]
    NoSpaceForAttribute,
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
                | Self::Outbox { .. }
                | Self::MissingChunk(_)
                | Self::MissingContent(_)
                | Self::MissingTree(_)
        )
    }

    /// Whether the device or the quota has no room, so that the same operation can succeed once
    /// there is some.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }
}

fn outbox_damage(segment: &Path, offset: u64, record: Option<Sequence>, why: &str) -> String {
    let path = segment.display();
    match record {
        Some(record) => {
            format!("record {record} of the outbox, in {path} at byte {offset}, is damaged: {why}")
        }
        None => format!("the outbox segment {path} at byte {offset} is damaged: {why}"),
    }
}

/// Whether the operating system reports that there is no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
