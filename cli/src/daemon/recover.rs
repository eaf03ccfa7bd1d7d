//! What a daemon does before it serves: it removes what a former one has left half-made, and mounts
//! again what was mounted.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use agentfs_engine::store::WorktreeRecord;
use agentfs_fuse::MountState;
use agentfs_gitimport::walk::ImportedTrees;
use tracing::{info, warn};

use crate::daemon::state::Daemon;
use crate::daemon::worktrees::Slot;
use crate::daemon::{execs, git_states, note, opening, redirects, rename, snapshots, switch};
use crate::error::{Failure, Kind, Result};
use crate::incoming;
use crate::layout::remove_all;

/// How long the mount of a daemon that has just been killed may take to become dead.
const DYING_LIMIT: Duration = Duration::from_secs(2);

/// How often is looked whether a directory is free from which a mount is being taken.
const LOOK: Duration = Duration::from_millis(2);

/// Brings the daemon to where its predecessor was. A worktree that cannot be mounted stays on record
/// with the reason, and keeps nothing else from being mounted.
///
/// # Errors
/// What reading the store meets.
pub fn recover(daemon: &Daemon) -> Result<()> {
    incoming::sweep(&daemon.layout);
    note::sweep(&daemon.layout, &daemon.store)?;
    rename::complete(daemon);
    settle(daemon)?;
    sweep_outboxes(daemon)?;
    redirects::sweep(daemon)?;
    snapshots::complete_restores(daemon);
    switch::complete(daemon);
    sweep_layers(daemon)?;
    snapshots::sweep(daemon)?;
    git_states::sweep(daemon)?;
    // What commands had mounted is dead, and so are they.
    let (ended, records): (Vec<_>, Vec<_>) = {
        let own = daemon.layout.execs();
        daemon.store.worktrees()?.into_iter().partition(|record| record.dir.starts_with(&own))
    };
    for record in ended {
        match clear(&record.dir) {
            Ok(()) => execs::forget_ended(daemon, record),
            Err(failure) => warn!("{} is not cleared: {failure}", record.dir.display()),
        }
    }
    for record in records {
        if let Err(failure) = remount(daemon, &record) {
            warn!("{} is not mounted again: {failure}", record.dir.display());
            let down = Slot::Down(record.clone(), failure.message);
            daemon.worktrees.fill(&record.dir, down);
        }
    }
    Ok(())
}

/// Drains what branches and snapshots stand on that are not mounted yet, and removes those that stand on
/// what a crash of the machine has taken.
fn settle(daemon: &Daemon) -> Result<()> {
    let mut done = BTreeSet::new();
    while let Some(number) = daemon.store.next_to_drain(&done)? {
        done.insert(number);
        let branches = daemon.store.branches()?;
        let Some(branch) = branches.iter().find(|branch| branch.number == number) else { continue };
        let repository = daemon.repositories.get(&daemon.store, &branch.repository)?;
        let worktree = opening::worktree(daemon, &repository, branch, None, false, None)?;
        worktree.drain()?;
    }
    let mut batch = daemon.store.batch()?;
    let lost = batch.remove_lost()?;
    batch.sweep_layers()?;
    for branch in daemon.store.branches()?.iter().filter(|branch| lost.contains(&branch.number)) {
        warn!(
            "branch {}@{} is gone: what it began with was lost with the machine",
            branch.repository, branch.name
        );
        batch.remove_branch(&branch.repository, &branch.name);
    }
    batch.commit()?;
    Ok(())
}

/// Removes layers that were needed until what a killed daemon had begun was completed.
fn sweep_layers(daemon: &Daemon) -> Result<()> {
    let mut batch = daemon.store.batch()?;
    if batch.sweep_layers()? > 0 {
        batch.commit()?;
    }
    Ok(())
}

/// Removes outboxes of branches that are not on record: of a mount that was not completed, or of a
/// branch that was removed.
fn sweep_outboxes(daemon: &Daemon) -> Result<()> {
    let Ok(entries) = fs::read_dir(daemon.layout.outboxes()) else {
        return Ok(());
    };
    let branches = daemon.store.branches()?;
    let known: HashSet<_> = branches.iter().map(|branch| branch.number.to_string()).collect();
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
            continue;
        }
        match remove_all(&entry.path()) {
            Ok(()) => info!("removed {}, which no branch has", entry.path().display()),
            Err(error) => warn!("cannot remove {}: {error}", entry.path().display()),
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

/// Mounts a worktree that is on record.
///
/// # Errors
/// Whatever keeps it from being mounted.
pub fn remount(daemon: &Daemon, record: &WorktreeRecord) -> Result<()> {
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
                clear_dead(dir)?;
                info!("cleared the dead mount at {}", dir.display());
            }
            // We hold the lock of the store, so whoever served it is on its way out.
            MountState::OurFs { .. } if start.elapsed() < DYING_LIMIT => {
                thread::sleep(Duration::from_millis(10));
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

/// Unmounts what a daemon that is gone has left at `dir`, and returns when the directory is free. What the kernel had
/// cached of the mount it frees after that, before it lets go of whoever unmounts: for a million files that is seconds.
fn clear_dead(dir: &Path) -> Result<()> {
    let (ended, end) = mpsc::channel();
    let gone = dir.to_owned();
    let unmount = move || {
        // If others were faster, another mount may be there by now.
        let is_dead = matches!(agentfs_fuse::mount_state(&gone), Ok(MountState::Dead));
        let done = if is_dead { agentfs_fuse::unmount_path(&gone, true) } else { Ok(()) };
        // Nobody listens any more once the directory is free.
        drop(ended.send(done));
    };
    let named = thread::Builder::new().name("agentfs-unmount".into());
    named.spawn(unmount).map_err(|error| {
        Failure::new(Kind::Failed, format!("cannot begin to unmount {}: {error}", dir.display()))
    })?;
    loop {
        match end.recv_timeout(LOOK) {
            Ok(done) => return Ok(done?),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                if !matches!(agentfs_fuse::mount_state(dir)?, MountState::Dead) {
                    return Ok(());
                }
            }
        }
    }
}
