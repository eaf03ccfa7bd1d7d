//! What redirected paths take, and the removal of what nobody has any more.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use agentfs_engine::BranchNumber;
use agentfs_engine::progress::Cancel;
use agentfs_engine::store::{Branch, SnapshotReason, SnapshotRecord};
use tracing::{info, warn};

use super::branch::skipped_dir;
use super::record::{GONE, set_aside};
use super::records;
use crate::daemon::snapshots;
use crate::daemon::state::Daemon;
use crate::daemon::worktrees::Slot;
use crate::error::{Failure, Result};
use crate::layout::remove_all;
use crate::protocol::Amount;

/// What is in the directory of all redirects and belongs to nobody.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Directories of branches that do not exist.
    pub of_no_branch: Vec<PathBuf>,
    /// What was left half-made in those of others.
    pub unfinished: Vec<PathBuf>,
    /// What waits to be removed.
    pub gone: Vec<PathBuf>,
    /// Names that snapshots skip which do not exist.
    pub of_no_snapshot: Vec<PathBuf>,
}

/// The branches whose native directories stay: those on record, and removed ones that can be brought back.
pub(super) fn owners(
    branches: &[Branch],
    kept: &[SnapshotRecord],
) -> impl Iterator<Item = BranchNumber> {
    let removed = kept.iter().filter(|one| one.reason == SnapshotReason::Removed);
    branches.iter().map(|branch| branch.number).chain(removed.map(|one| one.branch))
}

fn entries(dir: &Path) -> Result<Vec<(OsString, PathBuf)>> {
    let failed = |error: io::Error| Failure::store_io("list", dir, &error);
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries
            .map_err(failed)?
            .map(|entry| entry.map(|entry| (entry.file_name(), entry.path())).map_err(failed))
            .collect(),
    }
}

/// What belongs to nobody. The caller holds [`Daemon::lock_names`], and the lock of redirects, or is alone.
///
/// # Errors
/// What reading the store and listing meet.
pub fn leftovers(daemon: &Daemon) -> Result<Leftovers> {
    let directories = entries(&daemon.layout.redirects())?;
    // What a tree asks for is recorded before its branch is, which is while that is being mounted.
    let mounting = daemon.worktrees.list().iter().any(|(_, slot)| matches!(slot, Slot::Busy(..)));
    let kept = daemon.store.all_snapshots()?;
    let branches = daemon.store.branches()?;
    let known: HashSet<OsString> =
        owners(&branches, &kept).map(|number| number.to_string().into()).collect();
    let mut found = Leftovers::default();
    for (name, path) in directories {
        if name.as_encoded_bytes().starts_with(GONE.as_bytes()) {
            found.gone.push(path);
        } else if known.contains(&name) {
            found.unfinished.extend(super::Records::new(path).list()?.unfinished);
        } else if path != skipped_dir(&daemon.layout) && !mounting {
            found.of_no_branch.push(path);
        }
    }
    let snapshots: HashSet<OsString> =
        kept.iter().map(|one| snapshots::id(one.number).into()).collect();
    for (name, path) in entries(&skipped_dir(&daemon.layout))? {
        if !snapshots.contains(&name) {
            found.of_no_snapshot.push(path);
        }
    }
    Ok(found)
}

/// Takes from sight what belongs to nobody. The caller is as for [`leftovers`].
///
/// # Errors
/// As [`leftovers`]; what the file system refuses.
pub fn sweep(daemon: &Daemon) -> Result<()> {
    let Leftovers { of_no_branch, unfinished, of_no_snapshot, .. } = leftovers(daemon)?;
    let all = daemon.layout.redirects();
    for path in of_no_branch.iter().chain(&unfinished) {
        info!("{} belongs to nobody", path.display());
        set_aside(path, Some(&all))?;
    }
    for path in &of_no_snapshot {
        fs::remove_file(path).map_err(|error| Failure::store_io("remove", path, &error))?;
    }
    Ok(())
}

/// Removes what waits for that; how many directories that was, and their bytes.
///
/// # Errors
/// What the file system refuses; cancellation.
pub fn clean(daemon: &Daemon, dry_run: bool, cancel: &Cancel) -> Result<Amount> {
    // One at a time, so that everything is counted once.
    let _turn = daemon.lock_cleaning();
    let mut done = Amount::default();
    for path in leftovers(daemon)?.gone {
        cancel.check()?;
        done.count += 1;
        done.bytes += bytes_of(&path);
        if !dry_run {
            remove_all(&path).map_err(|error| Failure::store_io("remove", &path, &error))?;
        }
    }
    Ok(done)
}

/// The same on a thread of its own.
pub fn clean_in_background(daemon: &Arc<Daemon>) {
    let waiting = entries(&daemon.layout.redirects()).unwrap_or_default();
    if !waiting.iter().any(|(name, _)| name.as_encoded_bytes().starts_with(GONE.as_bytes())) {
        return;
    }
    let daemon = Arc::clone(daemon);
    let remove = move || {
        if let Err(failure) = clean(&daemon, false, &Cancel::default()) {
            warn!("{failure}");
        }
    };
    if let Err(error) = thread::Builder::new().name("agentfs-clean".into()).spawn(remove) {
        warn!("what was redirected is removed later: {error}");
    }
}

/// Bytes that the native directories of branches take, by the number of the branch.
///
/// # Errors
/// If they cannot be listed; cancellation.
pub fn usage(daemon: &Daemon, cancel: &Cancel) -> Result<BTreeMap<BranchNumber, u64>> {
    let mut used = BTreeMap::new();
    for (name, _) in entries(&daemon.layout.redirects())? {
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let number = BranchNumber(number);
        let records = records(&daemon.layout, number);
        for one in records.list()?.redirects {
            cancel.check()?;
            *used.entry(number).or_default() += bytes_of(&records.data(one.number));
        }
    }
    Ok(used)
}

/// What is allocated at and below `path`, each file once. What goes meanwhile is not counted.
fn bytes_of(path: &Path) -> u64 {
    let mut seen = HashSet::new();
    let mut bytes = 0;
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            let below = fs::read_dir(&path).into_iter().flatten().flatten();
            waiting.extend(below.map(|entry| entry.path()));
        } else if metadata.nlink() > 1 && !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        bytes += metadata.blocks() * 512;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        fs::write(dir.path().join("below/file"), vec![1; 100_000]).unwrap();
        let alone = bytes_of(dir.path());
        assert!(alone >= 100_000, "{alone}");
        fs::hard_link(dir.path().join("below/file"), dir.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("root")).unwrap();
        assert!(bytes_of(dir.path()) < alone + 100_000);
        assert_eq!(bytes_of(&dir.path().join("nothing")), 0);
    }
}
