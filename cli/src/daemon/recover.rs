//! What a daemon does before it serves: it removes what a former one has left half-made, and mounts
//! again what was mounted.

use std::path::Path;
use std::time::{Duration, Instant};

use agentfs_engine::store::WorktreeRecord;
use agentfs_fuse::MountState;
use agentfs_gitimport::walk::ImportedTrees;
use tracing::{info, warn};

use crate::daemon::state::Daemon;
use crate::daemon::worktrees::Slot;
use crate::daemon::{note, opening};
use crate::error::{Failure, Kind, Result};
use crate::incoming;

/// How long the mount of a daemon that has just been killed may take to become dead.
const DYING_LIMIT: Duration = Duration::from_secs(2);

/// Brings the daemon to where its predecessor was. A worktree that cannot be mounted stays on record
/// with the reason, and keeps nothing else from being mounted.
///
/// # Errors
/// What reading the store meets.
pub fn recover(daemon: &Daemon) -> Result<()> {
    incoming::sweep(&daemon.layout);
    note::sweep(&daemon.layout, &daemon.store)?;
    for record in daemon.store.worktrees()? {
        if let Err(failure) = remount(daemon, &record) {
            warn!("{} is not mounted again: {failure}", record.dir.display());
            let down = Slot::Down(record.clone(), failure.message);
            daemon.worktrees.fill(&record.dir, down);
        }
    }
    Ok(())
}

/// Goes on with every ingest that is not complete.
///
/// # Errors
/// What reading the store meets.
pub fn resume(daemon: &Daemon) -> Result<()> {
    for branch in daemon.store.branches()?.iter().filter(|branch| !branch.ingested) {
        daemon.ingest.enqueue(branch, ImportedTrees::default());
    }
    Ok(())
}

fn remount(daemon: &Daemon, record: &WorktreeRecord) -> Result<()> {
    clear(&record.dir)?;
    let branch = daemon.store.branch(&record.repository, &record.branch)?.ok_or_else(|| {
        Failure::new(
            Kind::Damaged,
            format!("its branch {}@{} is not on record", record.repository, record.branch),
        )
    })?;
    let repository = daemon.repositories.get(&daemon.store, &record.repository)?;
    let now = opening::reopen(daemon, &repository, &branch, record.clone())?;
    if now != *record {
        let mut batch = daemon.store.batch()?;
        batch.put_worktree(&now);
        batch.commit()?;
    }
    Ok(())
}

/// Makes room at `dir`: unmounts what is left of a daemon that is gone, and refuses anything else.
fn clear(dir: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        match agentfs_fuse::mount_state(dir)? {
            MountState::NotMounted => return Ok(()),
            MountState::Dead => {
                agentfs_fuse::unmount_path(dir, true)?;
                info!("cleared the dead mount at {}", dir.display());
            }
            // We hold the lock of the store, so whoever served it is on its way out.
            MountState::OurFs { .. } if start.elapsed() < DYING_LIMIT => {
                std::thread::sleep(Duration::from_millis(10));
            }
            MountState::OurFs { name, .. } => {
                return Err(Failure::new(
                    Kind::InWorktree,
                    format!("{} is mounted by another process ({name})", dir.display()),
                ));
            }
            MountState::Other { fstype } => {
                return Err(Failure::new(
                    Kind::Refused,
                    format!("{} is a mount of type {fstype}", dir.display()),
                ));
            }
        }
    }
}
