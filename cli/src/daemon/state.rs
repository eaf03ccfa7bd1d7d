//! What the daemon holds.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use agentfs_engine::drainer::Drainer;
use agentfs_engine::store::Store;
use agentfs_fuse::Levers;
use tokio::sync::watch;

use crate::daemon::execs::Execs;
use crate::daemon::ingest::Ingest;
use crate::daemon::laps::Laps;
use crate::daemon::repositories::{self, Repositories};
use crate::daemon::worktrees::Worktrees;
use crate::error::Result;
use crate::layout::Layout;

/// The daemon of one store.
///
/// Locks: that of redirects, then [`Daemon::names`], then a batch of the store; those of the parts are leaves.
pub struct Daemon {
    /// Where its files are.
    pub layout: Layout,
    /// The store.
    pub store: Arc<Store>,
    /// Its repositories.
    pub repositories: Arc<Repositories>,
    /// Its worktrees.
    pub worktrees: Worktrees,
    /// The commands that run in branches.
    pub execs: Execs,
    /// What the kernel is told to remember of them.
    pub levers: Levers,
    /// What takes content into the store.
    pub ingest: Arc<Ingest>,
    /// What moves changes of worktrees into the store.
    pub drainer: Drainer,
    /// How long calls took.
    pub laps: Laps,
    /// When it started.
    pub started: Instant,
    /// Becomes true when it is to end.
    pub stop: watch::Sender<bool>,
    /// Held from the choice of a name for a repository or a branch until it is taken.
    names: Mutex<()>,
    /// Held while records of redirected paths change. Before [`Daemon::names`].
    redirects: Mutex<()>,
    /// Held while what was redirected is removed. Leaf lock.
    cleaning: Mutex<()>,
    /// Held while a branch is mounted for commands, so that two that begin at once share one mount.
    exec_mounts: Mutex<()>,
}

impl Daemon {
    /// The daemon of an open store.
    pub fn new(layout: Layout, store: Arc<Store>, levers: Levers) -> Arc<Self> {
        let repositories = Arc::new(Repositories::default());
        Arc::new(Self {
            worktrees: Worktrees::default(),
            execs: Execs::default(),
            levers,
            ingest: Ingest::new(Arc::clone(&store), Arc::clone(&repositories)),
            drainer: Drainer::default(),
            laps: Laps::default(),
            started: Instant::now(),
            stop: watch::Sender::new(false),
            names: Mutex::new(()),
            redirects: Mutex::new(()),
            cleaning: Mutex::new(()),
            exec_mounts: Mutex::new(()),
            layout,
            store,
            repositories,
        })
    }

    /// Keeps names from being taken by others.
    pub fn lock_names(&self) -> MutexGuard<'_, ()> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps others from changing what is redirected.
    pub fn lock_redirects(&self) -> MutexGuard<'_, ()> {
        self.redirects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps others from removing what was redirected.
    pub fn lock_cleaning(&self) -> MutexGuard<'_, ()> {
        self.cleaning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps other commands from having a branch mounted.
    pub fn lock_exec_mounts(&self) -> MutexGuard<'_, ()> {
        self.exec_mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name for a repository from `source` that neither a record nor a directory has. The caller
    /// holds [`Daemon::lock_names`] until one of them does.
    ///
    /// # Errors
    /// What reading the store meets.
    pub fn free_repository_name(&self, source: &str) -> Result<String> {
        let dir = self.layout.repositories();
        repositories::unique(&repositories::name_of(source), |name| {
            let taken = repositories::exists(&dir.join(name));
            Ok(taken || self.store.repository(name)?.is_some())
        })
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }
}
