//! Snapshots that nobody has to ask for, so that any branch can go back: of each one that is written, every few
//! minutes; thinned by age. Beside that, what a crash has left of the database without protection gets it again.

use std::collections::HashSet;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentfs_engine::BranchNumber;
use agentfs_engine::progress::Cancel;
use agentfs_engine::store::{SnapshotReason, SnapshotRecord};
use tracing::{debug, warn};

use crate::daemon::git_states;
use crate::daemon::redirects;
use crate::daemon::snapshots;
use crate::daemon::state::Daemon;
use crate::daemon::worktrees::{Slot, Up};
use crate::error::Result;

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(30);
/// A branch that is written all the time gets a snapshot so often, in seconds.
const EVERY: i64 = 300;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Up to this age, in seconds, all are kept; then one of each hour, then one of each day, then none.
const ALL: i64 = HOUR;
const HOURLY: i64 = DAY;
const DAILY: i64 = 30 * DAY;

/// So many layers on which nobody stands may lie on each other: to join each with the next at once would
/// write the same rows again and again.
const SPARE_LAYERS: usize = 8;

/// So many references of a repository may be files of their own, which take a block of the disk each.
const LOOSE_MAX: usize = 100;

/// The thread that makes and removes them.
pub struct Keeper {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Starts it; `None` if there is no room for a thread, and then no snapshot is made unasked.
    pub fn start(daemon: &Arc<Daemon>) -> Option<Self> {
        let (stop, stopped) = channel();
        let daemon: Weak<Daemon> = Arc::downgrade(daemon);
        let look = move || {
            let mut protected = false;
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let Some(daemon) = daemon.upgrade() else { return };
                redirects::clean_in_background(&daemon);
                if !protected {
                    protected = true;
                    if let Err(error) = daemon.store.protect_database(&Cancel::default()) {
                        warn!("the database is not protected from damage: {error}");
                    }
                }
                if let Err(failure) = keep(&daemon, now()) {
                    warn!("cannot keep snapshots: {failure}");
                }
            }
        };
        let thread = thread::Builder::new().name("agentfs-keeper".into()).spawn(look);
        match thread {
            Ok(thread) => Some(Self { stop, thread }),
            Err(error) => {
                warn!("no snapshots are made unasked: {error}");
                None
            }
        }
    }

    /// Stops it, when it has done what it is at.
    pub fn stop(self) {
        drop(self.stop);
        // It has said why, if it panicked.
        drop(self.thread.join());
    }
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// Makes the snapshots that are due, and removes those that are too many.
fn keep(daemon: &Daemon, now: i64) -> Result<()> {
    let snapshots = daemon.store.all_snapshots()?;
    for (_, slot) in daemon.worktrees.list() {
        let Slot::Up(up) = slot else { continue };
        let last = |number: BranchNumber| {
            let own = snapshots.iter().filter(|one| one.branch == number);
            own.map(|one| one.made.seconds).max()
        };
        if let Err(failure) = keep_one(daemon, &up, now, last) {
            warn!("no snapshot of {}: {failure}", up.record.branch);
        }
    }
    forget(daemon, &too_many(&snapshots, now, DAILY))?;
    git_states::pack_references(daemon, LOOSE_MAX)?;
    let folded = fold(daemon, &Cancel::default())?;
    if folded > 0 {
        debug!("{folded} layers became a part of others");
    }
    Ok(())
}

fn forget(daemon: &Daemon, snapshots: &[&SnapshotRecord]) -> Result<()> {
    for snapshot in snapshots {
        let _names = daemon.lock_names();
        snapshots::forget(daemon, snapshot)?;
        debug!("snapshot {} is too old", snapshots::id(snapshot.number));
    }
    Ok(())
}

/// Until when what is kept of a removed branch or worktree stays that was removed at `made`, both in seconds since
/// 1970. `gc --keep-removed` can end it before.
pub fn kept_until(made: i64) -> i64 {
    made.saturating_add(DAILY)
}

/// Removes the snapshots whose time is over; `removed` says for how many days what is kept of removed
/// branches stays. Returns which those are. With `dry_run` they stay.
///
/// # Errors
/// What the store, git and the file system meet.
pub fn expire(daemon: &Daemon, removed: Option<u32>, dry_run: bool) -> Result<Vec<SnapshotRecord>> {
    // None stays for no day, not even one that was made at this second.
    let removed = removed.map_or(DAILY, |days| i64::from(days) * DAY - 1);
    let all = daemon.store.all_snapshots()?;
    let over = too_many(&all, now(), removed);
    if !dry_run {
        forget(daemon, &over)?;
    }
    Ok(over.into_iter().cloned().collect())
}

/// Makes lines of layers shorter where nobody stands between two; how many layers that has saved.
///
/// # Errors
/// What the store meets; cancellation.
pub fn fold(daemon: &Daemon, cancel: &Cancel) -> Result<u64> {
    let mut folded = 0;
    loop {
        cancel.check()?;
        // A layer that was just sealed is about to be stood on.
        let _names = daemon.lock_names();
        match daemon.store.fold(SPARE_LAYERS)? {
            0 => return Ok(folded),
            more => folded += more,
        }
    }
}

fn keep_one(
    daemon: &Daemon,
    up: &Up,
    now: i64,
    last: impl Fn(BranchNumber) -> Option<i64>,
) -> Result<()> {
    if !up.worktree.is_changed_since_seal() {
        return Ok(());
    }
    let _names = daemon.lock_names();
    let Some(branch) = daemon.store.branch(&up.record.repository, &up.record.branch)? else {
        return Ok(());
    };
    if last(branch.number).is_some_and(|last| (last..last + EVERY).contains(&now)) {
        return Ok(());
    }
    let repository = daemon.repositories.get(&daemon.store, &branch.repository)?;
    snapshots::take(daemon, &repository, &branch, SnapshotReason::Time, "")?;
    Ok(())
}

/// Those that were made unasked and are too many for their age, and removed branches that were kept for
/// more than `removed` seconds.
fn too_many(snapshots: &[SnapshotRecord], now: i64, removed: i64) -> Vec<&SnapshotRecord> {
    let mut newest_first: Vec<_> = snapshots.iter().collect();
    newest_first.sort_unstable_by_key(|one| std::cmp::Reverse(one.number));
    let mut taken = HashSet::new();
    let mut is_kept = |one: &SnapshotRecord| {
        let made = one.made.seconds;
        let age = now.saturating_sub(made);
        match one.reason {
            SnapshotReason::Asked => true,
            SnapshotReason::Removed => age <= removed,
            _ if age <= ALL => true,
            _ if age <= HOURLY => taken.insert((one.branch, HOUR, made.div_euclid(HOUR))),
            _ if age <= DAILY => taken.insert((one.branch, DAY, made.div_euclid(DAY))),
            _ => false,
        }
    };
    newest_first.retain(|one| !is_kept(one));
    newest_first
}

#[cfg(test)]
mod tests {
    use agentfs_engine::TreeId;
    use agentfs_engine::worktree::Timestamp;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn made(branch: u64, age: i64, reason: SnapshotReason) -> SnapshotRecord {
        SnapshotRecord {
            branch: BranchNumber(branch),
            repository: "r".into(),
            name: "b".into(),
            number: u64::try_from(NOW - age).unwrap(),
            layer: None,
            last_new: 0,
            root: TreeId::of(b""),
            root_oid: None,
            commit: None,
            time: 0,
            made: Timestamp { seconds: NOW - age, nanoseconds: 0 },
            reason,
            message: String::new(),
            git_state: None,
        }
    }

    #[test]
    fn the_older_they_are_the_fewer_are_kept() {
        let all: Vec<_> =
            (0..40 * DAY / 600).map(|n| made(1, n * 600, SnapshotReason::Time)).collect();
        let gone = too_many(&all, NOW, DAILY).len();
        let kept = all.len() - gone;
        // Seven of the last hour, one of each hour of a day, one of each day of a month.
        assert!((55..=64).contains(&kept), "{kept}");
        let left: Vec<_> = {
            let gone: HashSet<_> =
                too_many(&all, NOW, DAILY).iter().map(|one| one.number).collect();
            all.iter().filter(|one| !gone.contains(&one.number)).cloned().collect()
        };
        assert_eq!(too_many(&left, NOW, DAILY).len(), 0, "what is left stays");
        assert!(left.iter().any(|one| one.made.seconds == NOW));
        assert!(left.iter().any(|one| NOW - one.made.seconds > 28 * DAY));
    }

    #[test]
    fn what_was_asked_for_stays_and_branches_do_not_share_their_hours() {
        let old = [
            made(1, 90 * DAY, SnapshotReason::Asked),
            made(2, 29 * DAY, SnapshotReason::Removed),
            made(3, 5 * HOUR, SnapshotReason::Time),
            made(4, 5 * HOUR, SnapshotReason::Before),
        ];
        assert_eq!(too_many(&old, NOW, DAILY).len(), 0);
        let gone =
            [made(1, 31 * DAY, SnapshotReason::Removed), made(2, 31 * DAY, SnapshotReason::Exec)];
        assert_eq!(too_many(&gone, NOW, DAILY).len(), 2);
        assert_eq!(too_many(&old, NOW, 0).len(), 1, "removed branches can be let go of at once");
    }
}
