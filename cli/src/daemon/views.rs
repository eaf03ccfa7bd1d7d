//! Read-only views: a branch as it is at a moment, or a snapshot, as a directory for as long as whoever asked
//! for it is connected.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use agentfs_engine::base::Base;
use agentfs_engine::worktree::Worktree;
use agentfs_fuse::{MountOptions, Mounted};
use tracing::warn;

use crate::daemon::branches::Seen;
use crate::daemon::note::{Making, Note};
use crate::daemon::opening;
use crate::daemon::redirects;
use crate::daemon::rpc::Answer;
use crate::daemon::state::Daemon;
use crate::error::{Failure, Kind, Result};
use crate::protocol::{ViewBegun, ViewCall, WirePath};

/// A view that is mounted. Dropping it takes it away.
struct View {
    mounted: Option<Mounted>,
    dir: PathBuf,
    /// For the case that the daemon is killed.
    _note: Note,
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(mounted) = self.mounted.take()
            && let Err(error) = mounted.unmount(true)
        {
            warn!("{error}");
        }
        if let Err(error) = fs::remove_dir(&self.dir) {
            warn!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// Begins a view, until the call's connection ends. What is nothing but a commit has none, and is told
/// as that.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such branch, snapshot or revision; whatever keeps it from being
/// mounted.
pub fn begin(daemon: &Daemon, params: &ViewCall) -> Result<Answer> {
    // Until the view is there.
    let _hold = daemon.store.hold();
    let names = daemon.lock_names();
    let seen = Seen::of(daemon, &params.what, false)?;
    drop(names);
    let repository = seen.repository();
    let mut begun = ViewBegun {
        repository: repository.record.name.clone(),
        common_dir: repository.record.git_dir.as_path().into(),
        dir: None,
        index: None,
        commit: None,
        redirected: Vec::new(),
    };
    let view = match &seen {
        Seen::Commit(_, target) => {
            begun.commit = target.commit.map(|commit| commit.id.to_string());
            None
        }
        Seen::Point(start) => {
            let head = start.head()?;
            begun.commit = head.detached.or(head.commit).map(|commit| commit.to_string());
            let contents = repository.contents(start.of.root_oid);
            let source = contents.source().cloned();
            let base = Base::open(Arc::clone(&daemon.store), source, start.of.root)?;
            let options = opening::options(&start.of, None);
            let worktree = Worktree::at(base, contents, options, &start.point);
            let view = mount(daemon, worktree, &begun.repository)?;
            begun.dir = Some(view.dir.as_path().into());
            let redirected = redirects::of(daemon, start.of.number, &start.state)?;
            begun.redirected = redirected.into_iter().map(|(path, _)| WirePath(path)).collect();
            begun.index = Some(start.state.join("index").as_path().into());
            Some(view)
        }
    };
    let view = Arc::new(Mutex::new(view));
    let end = || {
        let view = Arc::clone(&view);
        let end = move || {
            let ended = view.lock().unwrap_or_else(PoisonError::into_inner).take();
            // Unmounting waits for the kernel.
            drop(ended);
        };
        Some(Box::new(end) as Box<dyn FnOnce() + Send>)
    };
    let value = serde_json::to_value(begun)
        .map_err(|error| Failure::new(Kind::Failed, error.to_string()))?;
    Ok(Answer { held: end(), undo: end(), ..value.into() })
}

fn mount(daemon: &Daemon, worktree: Arc<Worktree>, repository: &str) -> Result<View> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let parent = daemon.layout.execs();
    fs::create_dir_all(&parent).map_err(|error| Failure::store_io("create", &parent, &error))?;
    let dir = parent.join(format!("view-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let making = Making::Mount { dir: dir.as_path().into(), created: true, git_dir: None };
    let note = Note::write(&daemon.layout, &making)?;
    fs::create_dir(&dir).map_err(|error| Failure::store_io("create", &dir, &error))?;
    let mut view = View { mounted: None, dir, _note: note };
    let options = MountOptions {
        read_only: true,
        levers: daemon.levers.clone(),
        name: format!("agentfs:{repository}"),
        ..MountOptions::default()
    };
    view.mounted = Some(agentfs_fuse::mount(worktree, &view.dir, &options)?);
    Ok(view)
}
