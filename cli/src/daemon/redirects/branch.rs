//! What becomes of redirected paths with their branch: a fork gets native directories of its own, a snapshot the
//! names of what it skips, and what a removed branch had stays as long as it can be brought back.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use agentfs_engine::BranchNumber;
use agentfs_engine::store::{SnapshotReason, SnapshotRecord};
use tracing::warn;

use super::record::{self, Origin, Records};
use super::records;
use crate::daemon::snapshots;
use crate::daemon::state::Daemon;
use crate::error::{Failure, Kind, Result};
use crate::layout::Layout;
use crate::transfer::Transfer;

/// Where the names of what a snapshot skips are.
fn skipped_file(layout: &Layout, id: &str) -> PathBuf {
    skipped_dir(layout).join(id)
}

/// Where those of all snapshots are.
pub(super) fn skipped_dir(layout: &Layout) -> PathBuf {
    layout.redirects().join("snapshots")
}

/// Notes which paths the snapshot called `id` skips, before it is on record.
///
/// # Errors
/// What the file system refuses.
pub fn record_skipped(layout: &Layout, number: BranchNumber, id: &str) -> Result<()> {
    let paths: Vec<_> =
        records(layout, number).list()?.redirects.into_iter().map(|one| one.path).collect();
    match paths.is_empty() {
        true => Ok(()),
        false => record::write_skipped(&skipped_file(layout, id), &paths),
    }
}

/// The paths that a snapshot skips.
///
/// # Errors
/// [`Kind::Damaged`] if that cannot be read.
pub fn read_skipped(layout: &Layout, id: &str) -> Result<Vec<PathBuf>> {
    let file = skipped_file(layout, id);
    record::read_skipped(&file).map_err(|why| {
        Failure::new(Kind::Damaged, format!("cannot read {}: {why}", file.display()))
            .hint("`agentfs fsck --repair` removes it: what the snapshot skips is then unknown")
    })
}

/// Redirects of a branch that is not on record yet. Dropping it removes them.
pub struct Inherited {
    records: Option<Records>,
}

impl Inherited {
    /// The branch is on record.
    pub fn keep(mut self) {
        self.records = None;
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        if let Some(records) = self.records.take()
            && let Err(failure) = records.remove_all()
        {
            warn!("{failure}");
        }
    }
}

/// What is redirected in branch `number`, or in the snapshot with the git state `state`, and by whom.
///
/// # Errors
/// If it cannot be read.
pub fn of(daemon: &Daemon, number: BranchNumber, state: &Path) -> Result<Vec<(PathBuf, Origin)>> {
    let layout = &daemon.layout;
    if state.parent() == Some(&layout.snapshots()) {
        let id = state.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let paths = read_skipped(layout, &id)?.into_iter();
        return Ok(paths.map(|path| (path, Origin::Command)).collect());
    }
    let listed = records(layout, number).list()?.redirects.into_iter();
    Ok(listed.map(|one| (one.path, one.origin)).collect())
}

/// Redirects in branch `to`, which is being made, what is redirected where it begins: in branch `from`, or in the
/// snapshot with the git state `state`. The caller holds [`Daemon::lock_names`] until it is on record.
///
/// # Errors
/// What the file system refuses; nothing is left then.
pub fn inherit(
    daemon: &Daemon,
    from: BranchNumber,
    state: &Path,
    to: BranchNumber,
) -> Result<Inherited> {
    let known = of(daemon, from, state)?;
    let made = records(&daemon.layout, to);
    let inherited = Inherited { records: Some(made.clone()) };
    for (path, origin) in known {
        made.add(&path, origin, false, |_| Ok(()))?;
    }
    Ok(inherited)
}

/// Gives the native directories of branch `to`, which is not mounted, what those of `from` have, where files can
/// share blocks. What the user should know of it.
pub fn seed(daemon: &Daemon, from: BranchNumber, to: BranchNumber) -> Vec<String> {
    let (origin, target) = (records(&daemon.layout, from), records(&daemon.layout, to));
    let (Ok(theirs), Ok(ours)) = (origin.list(), target.list()) else {
        return vec!["what is redirected begins empty: it cannot be listed".into()];
    };
    let mut notes = Vec::new();
    for one in &ours.redirects {
        let Some(other) = theirs.redirects.iter().find(|other| other.path == one.path) else {
            notes.push(format!("{:?} begins empty: a snapshot does not have it", one.path));
            continue;
        };
        let seeded = target.seed(one.number, |data| share(&origin.data(other.number), data));
        if let Err(failure) = seeded {
            notes.push(format!("{:?} begins empty: {}", one.path, failure.message));
        }
    }
    notes
}

fn share(from: &Path, to: &Path) -> Result<()> {
    let open =
        |path: &Path| File::open(path).map_err(|error| Failure::store_io("open", path, &error));
    let (source, target) = (open(from)?, open(to)?);
    Transfer::sharing(target.as_fd()).copy_all(source.as_fd(), &[]).map_err(|(at, error)| {
        let shown = from.join(&at);
        match rustix::io::Errno::from_io_error(&error) {
            Some(
                rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL | rustix::io::Errno::XDEV,
            ) => Failure::new(
                Kind::Failed,
                "the file system of the store has no files that share blocks",
            ),
            _ => Failure::store_io("copy", &shown, &error),
        }
    })
}

/// Gives the native directories of branch `to`, which is not mounted, those that the removed branch `from` had.
pub fn take_over(daemon: &Daemon, from: BranchNumber, to: BranchNumber) {
    let (origin, target) = (records(&daemon.layout, from), records(&daemon.layout, to));
    let (Ok(theirs), Ok(ours)) = (origin.list(), target.list()) else { return };
    for one in &ours.redirects {
        let Some(other) = theirs.redirects.iter().find(|other| other.path == one.path) else {
            continue;
        };
        // In the place of an empty directory.
        match fs::rename(origin.data(other.number), target.data(one.number)) {
            Ok(()) => origin.discard(other.number),
            Err(error) => warn!("{:?} begins empty: {error}", one.path),
        }
    }
}

/// Takes off the record what a branch had that is removed, unless it can be brought back. It waits to be removed
/// by [`super::clean`].
///
/// # Errors
/// What reading the store meets, and what the file system refuses.
pub fn forget(daemon: &Daemon, number: BranchNumber) -> Result<()> {
    let kept = daemon.store.snapshots(number)?;
    if kept.iter().any(|one| one.reason == SnapshotReason::Removed) {
        return Ok(());
    }
    records(&daemon.layout, number).remove_all()
}

/// Forgets what a snapshot skips that is off the record, and what its branch had if it was kept for that alone.
///
/// # Errors
/// As [`forget`].
pub fn forget_snapshot(daemon: &Daemon, snapshot: &SnapshotRecord) -> Result<()> {
    let file = skipped_file(&daemon.layout, &snapshots::id(snapshot.number));
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Failure::store_io("remove", &file, &error));
        }
        _ => {}
    }
    let branches = daemon.store.branches()?;
    match branches.iter().any(|branch| branch.number == snapshot.branch) {
        true => Ok(()),
        false => forget(daemon, snapshot.branch),
    }
}
