//! What a user is told when something fails, and the exit code that goes with it.
//!
//! Libraries' errors become a [`Failure`] here and nowhere else. A failure crosses the control
//! socket unchanged, so it reads the same whether the command or the daemon met it.

use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A result of the command line.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// What kind of failure it is. The names are part of the interface: scripts compare them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Anything that has no kind of its own.
    Failed,
    /// The work was stopped on request.
    Cancelled,
    /// A mounted directory is in use.
    Busy,
    /// The command line is wrong.
    Usage,
    /// A repository, revision, branch or path does not exist.
    NotFound,
    /// Input that must not be taken: a hostile tree, a path that is no repository.
    Refused,
    /// A directory that must be empty is not.
    NotEmpty,
    /// A directory lies inside a worktree, or is one.
    InWorktree,
    /// Stored data or a pack is damaged.
    Damaged,
    /// The store was written by another version.
    StoreVersion,
    /// Another process uses the store.
    StoreInUse,
    /// The file system of the store is full.
    StoreFull,
    /// The store cannot be written.
    StoreReadOnly,
    /// The store takes no writes since one failed.
    StoreStopped,
    /// The daemon cannot be started or reached, or does not answer.
    Daemon,
    /// The control socket, or what listens on it, is another user's or is no daemon's.
    ForeignSocket,
    /// The daemon speaks another version of the protocol.
    DaemonVersion,
    /// Nothing can be mounted on this machine.
    CannotMount,
}

impl Kind {
    /// The exit code of the command.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::Cancelled | Self::Busy => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Refused | Self::NotEmpty | Self::InWorktree => 4,
            Self::Damaged => 5,
            Self::StoreVersion
            | Self::StoreInUse
            | Self::StoreFull
            | Self::StoreReadOnly
            | Self::StoreStopped => 6,
            Self::Daemon | Self::ForeignSocket | Self::DaemonVersion => 7,
            Self::CannotMount => 8,
        }
    }
}

/// A failure as the user meets it: what, why, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its kind.
    pub kind: Kind,
    /// What failed and why.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// The same failure with what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Where something is in use that has to be left, and cannot be taken from whoever is in it: what to do.
    pub fn leave_first(self) -> Self {
        match self.kind {
            Kind::Busy => self.hint("leave it, then run the command again"),
            _ => self,
        }
    }

    /// What the operating system refused to do with `path`, as the verb `action` says.
    pub fn io(action: &str, path: &Path, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::Failed,
        };
        Self::new(kind, format!("cannot {action} {}: {error}", path.display()))
    }

    /// The same about a file of the store, where a full disk or a missing permission is a problem
    /// of the store.
    pub fn store_io(action: &str, path: &Path, error: &io::Error) -> Self {
        let failure = Self::io(action, path, error);
        let kind = kind_of_io(error).unwrap_or(failure.kind);
        Self { kind, ..failure }.hint_by_kind()
    }

    /// Adds the hint that fits every failure of the kind, where there is one.
    fn hint_by_kind(self) -> Self {
        let hint = match self.kind {
            Kind::Damaged => "run `agentfs fsck` to see what is damaged",
            Kind::StoreFull => "free space on the file system of the store, then run it again",
            Kind::StoreReadOnly => {
                "make the store writable, or name another one in the environment variable \
                 AGENTFS_HOME"
            }
            Kind::StoreVersion => {
                "use the version of agentfs that wrote it, or name another store in the \
                 environment variable AGENTFS_HOME"
            }
            Kind::StoreInUse => {
                "stop the process that uses it, or name another store in the environment variable \
                 AGENTFS_HOME"
            }
            Kind::StoreStopped => {
                "remove the cause that it names, then restart the daemon: `agentfs daemon stop`; \
                 the next command starts it"
            }
            _ => return self,
        };
        self.hint(hint)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// The kind of an input/output error that says something of the store's file system, whichever
/// file met it.
fn kind_of_io(error: &io::Error) -> Option<Kind> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Kind::StoreFull),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            Some(Kind::StoreReadOnly)
        }
        _ => None,
    }
}

/// The first input/output error in the chain of causes of `error` that has a kind.
fn kind_in_chain(error: &(dyn std::error::Error + 'static)) -> Option<Kind> {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .find_map(kind_of_io)
}

impl From<agentfs_engine::Error> for Failure {
    fn from(error: agentfs_engine::Error) -> Self {
        Self::new(kind_of_engine(&error), error.to_string()).hint_by_kind()
    }
}

fn kind_of_engine(error: &agentfs_engine::Error) -> Kind {
    use agentfs_engine::Error;
    kind_in_chain(error).unwrap_or(match error {
        error if error.is_corruption() => Kind::Damaged,
        Error::MissingObject(_) | Error::Source { .. } | Error::Database { .. } => Kind::Damaged,
        Error::Refused(_) | Error::TooLarge { .. } | Error::Exists { .. } => Kind::Refused,
        Error::NoSuch { .. } => Kind::NotFound,
        Error::UnknownFormat { .. } => Kind::StoreVersion,
        Error::InUse { .. } => Kind::StoreInUse,
        Error::BranchInUse(_) => Kind::Busy,
        Error::Poisoned { .. } => Kind::StoreStopped,
        Error::Cancelled => Kind::Cancelled,
        _ => Kind::Failed,
    })
}

impl From<agentfs_gitimport::Error> for Failure {
    fn from(error: agentfs_gitimport::Error) -> Self {
        use agentfs_gitimport::Error;
        let failure = Self::new(kind_of_git(&error), error.to_string());
        let hint = match &error {
            Error::Engine(_) => return failure.hint_by_kind(),
            error if error.is_corruption() => {
                "run `git fsck` in the repository to see what is damaged, and fetch it again from \
                 where it is whole"
            }
            Error::NotARepository { .. } => {
                "name a git repository: a directory with a .git, a bare one, or a URL"
            }
            Error::NoSuchRevision { .. } | Error::NoSuchBranch { .. } => {
                "`git branch -a`, `git tag` and `git log` in the repository list what there is"
            }
            Error::Fetch { .. } | Error::GitFailed { .. } => {
                "see whether `git ls-remote` reaches it from here"
            }
            _ => return failure.hint_by_kind(),
        };
        failure.hint(hint)
    }
}

fn kind_of_git(error: &agentfs_gitimport::Error) -> Kind {
    use agentfs_gitimport::Error;
    match error {
        Error::Engine(error) => return kind_of_engine(error),
        Error::AtPath { source, .. } | Error::Blobs { first: source, .. } => {
            return kind_of_git(source);
        }
        _ => {}
    }
    kind_in_chain(error).unwrap_or(match error {
        error if error.is_corruption() => Kind::Damaged,
        error if error.is_refusal() => Kind::Refused,
        Error::NotARepository { .. } | Error::NotACommit { .. } | Error::Exists { .. } => {
            Kind::Refused
        }
        Error::NoSuchRevision { .. } | Error::NoSuchBranch { .. } => Kind::NotFound,
        _ => Kind::Failed,
    })
}

impl From<agentfs_fuse::Error> for Failure {
    fn from(error: agentfs_fuse::Error) -> Self {
        use agentfs_fuse::Error;
        let kind = match &error {
            Error::Device { .. }
            | Error::Mount { .. }
            | Error::NoHelper
            | Error::Helper { .. }
            | Error::Session { .. } => Kind::CannotMount,
            Error::NotMounted { .. } => Kind::NotFound,
            Error::NotOurs { .. } | Error::MountPoint { .. } | Error::Nested { .. } => {
                Kind::Refused
            }
            Error::Busy { .. } => Kind::Busy,
            _ => Kind::Failed,
        };
        let failure = Self::new(kind, error.to_string());
        match kind {
            Kind::CannotMount => failure.hint("`agentfs doctor` says what works on this machine"),
            Kind::Busy => failure.hint("leave it, or add --lazy"),
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentfs_engine::Error;
    use std::path::PathBuf;

    #[test]
    fn a_full_disk_is_a_store_problem_wherever_it_shows() {
        let full = || io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        let path = PathBuf::from("/s/store.redb");
        let direct = Failure::from(Error::io("append to", &path, full()));
        let inside = Failure::from(Error::Database { path, source: Box::new(full()) });
        for failure in [direct, inside] {
            assert_eq!(failure.kind, Kind::StoreFull);
            assert_eq!(failure.kind.exit_code(), 6);
            assert!(failure.hint.is_some_and(|hint| hint.contains("free space")));
        }
    }

    #[test]
    fn damage_is_told_apart_from_another_version() {
        let damaged = Failure::from(Error::corrupt("chunk 00", "its digest is wrong"));
        assert_eq!(damaged.kind.exit_code(), 5);
        let version = Error::UnknownFormat { path: "/s".into(), found: 9, known: 1 };
        assert_eq!(Failure::from(version).kind.exit_code(), 6);
    }

    #[test]
    fn a_failure_survives_the_wire() {
        let failure = Failure::new(Kind::NotEmpty, "x is not empty").hint("choose another");
        let text = serde_json::to_string(&failure).unwrap();
        assert!(text.contains("\"not_empty\""), "{text}");
        assert_eq!(serde_json::from_str::<Failure>(&text).unwrap(), failure);
        assert_eq!(failure.to_string(), "x is not empty\n  hint: choose another");
    }
}
