//! Where things lie in the directory of a store, apart from the engine's own files.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use agentfs_engine::BranchNumber;

use crate::error::{Failure, Result};

/// Prefix of a directory in [`Layout::repositories`] in which a repository is being fetched.
pub const INCOMING: &str = ".incoming-";

/// The directory of a store.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`, an absolute path.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Creates the directories that are not there yet, closed to other users.
    ///
    /// # Errors
    /// Whatever the file system refuses.
    pub fn create(&self) -> Result<()> {
        for dir in [self.root.clone(), self.repositories()] {
            if dir.is_dir() {
                continue;
            }
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|error| Failure::store_io("create the directory", &dir, &error))?;
        }
        Ok(())
    }

    /// The store itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("daemon.sock")
    }

    /// The file whose lock the one daemon holds.
    pub fn lock(&self) -> PathBuf {
        self.root.join("daemon.lock")
    }

    /// What the daemon logs.
    pub fn log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// The bare repositories, one directory each.
    pub fn repositories(&self) -> PathBuf {
        self.root.join("repos")
    }

    /// The outboxes, one directory each.
    pub fn outboxes(&self) -> PathBuf {
        self.root.join("outbox")
    }

    /// The outbox of branch `number`.
    pub fn outbox(&self, number: BranchNumber) -> PathBuf {
        self.outboxes().join(number.to_string())
    }

    /// The mounts of branches in which commands run and that are mounted nowhere else.
    pub fn execs(&self) -> PathBuf {
        self.root.join("exec")
    }

    /// The native directories of redirected paths, by the number of the branch, and what snapshots skip.
    pub fn redirects(&self) -> PathBuf {
        self.root.join("redirects")
    }

    /// What snapshots have of git, one directory each.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// Where git believes a branch that was never mounted. Nothing is there.
    pub fn unmounted(&self, repository: &str, branch: &str) -> PathBuf {
        self.root.join("unmounted").join(repository).join(branch)
    }

    /// The same of the git directories that branches share which had no worktree. Nothing is there.
    pub fn shared(&self) -> PathBuf {
        self.root.join("shared")
    }

    /// Notes about mounts that are not recorded in the store, or not yet.
    pub fn pending(&self) -> PathBuf {
        self.root.join("pending")
    }
}

/// Removes a directory and all below it; one that is not there is as good.
///
/// # Errors
/// Whatever the file system refuses.
pub fn remove_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
