//! Whether records, native directories and what appears in worktrees agree.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use super::branch::skipped_dir;
use super::record;
use super::upkeep::owners;
use super::{leftovers, records};
use crate::daemon::state::Daemon;
use crate::daemon::worktrees::Slot;
use crate::error::{Failure, Kind, Result};

/// Something that is wrong with redirected paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A directory of a branch that does not exist.
    OfNoBranch(PathBuf),
    /// Something that was left half-made.
    Unfinished(PathBuf),
    /// What a snapshot skips that does not exist.
    OfNoSnapshot(PathBuf),
    /// What a snapshot skips cannot be read, for this reason.
    SkippedDamaged(PathBuf, String),
    /// A record that cannot be read, for this reason.
    RecordDamaged {
        /// The directory of the redirect.
        dir: PathBuf,
        /// Why.
        why: String,
        /// Whether its native directory is empty.
        empty: bool,
    },
    /// A native directory that is gone.
    WithoutData(PathBuf),
    /// A redirect that does not appear in a mounted worktree, for this reason.
    DoesNotAppear(PathBuf, String),
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfNoBranch(path) => write!(out, "{}: no branch has it", path.display()),
            Self::Unfinished(path) => write!(out, "{}: it was left half-made", path.display()),
            Self::OfNoSnapshot(path) => write!(out, "{}: no snapshot has it", path.display()),
            Self::SkippedDamaged(path, why) => {
                write!(out, "{}: what the snapshot skips cannot be read: {why}", path.display())
            }
            Self::RecordDamaged { dir, why, empty } => {
                write!(out, "{}: the record of the redirect cannot be read: {why}", dir.display())?;
                match empty {
                    true => Ok(()),
                    false => write!(out, "; what was redirected is in {}/data", dir.display()),
                }
            }
            Self::WithoutData(path) => write!(out, "{}: the directory is gone", path.display()),
            Self::DoesNotAppear(path, why) => {
                write!(out, "{}: it is redirected, but {why}", path.display())
            }
        }
    }
}

impl Finding {
    /// What can be done about it.
    pub fn step(&self) -> Option<String> {
        match self {
            Self::OfNoBranch(path)
            | Self::Unfinished(path)
            | Self::OfNoSnapshot(path)
            | Self::SkippedDamaged(path, _)
            | Self::RecordDamaged { dir: path, empty: true, .. } => {
                Some(format!("remove {}", path.display()))
            }
            // What somebody has built is not removed.
            Self::RecordDamaged { .. } => None,
            Self::WithoutData(path) => Some(format!("make {} again, empty", path.display())),
            Self::DoesNotAppear(path, _) => Some(format!("redirect {} again", path.display())),
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// What the file system refuses, and why a redirect does not appear.
    fn repair(&self, daemon: &Daemon) -> Result<()> {
        match self {
            Self::OfNoBranch(path)
            | Self::Unfinished(path)
            | Self::RecordDamaged { dir: path, empty: true, .. } => {
                record::set_aside(path, Some(&daemon.layout.redirects()))
            }
            Self::OfNoSnapshot(path) | Self::SkippedDamaged(path, _) => {
                fs::remove_file(path).map_err(|error| Failure::store_io("remove", path, &error))
            }
            Self::RecordDamaged { .. } => Ok(()),
            Self::WithoutData(path) => {
                fs::create_dir(path).map_err(|error| Failure::store_io("create", path, &error))
            }
            Self::DoesNotAppear(path, _) => {
                for (dir, slot) in daemon.worktrees.list() {
                    let Slot::Up(up) = slot else { continue };
                    let failed = up.redirects.set_all().into_iter();
                    let mut same = failed.filter(|(other, _)| dir.join(other) == *path);
                    if let Some((_, why)) = same.next() {
                        return Err(Failure::new(Kind::Failed, format!("it {why}")));
                    }
                }
                Ok(())
            }
        }
    }
}

/// What is wrong.
///
/// # Errors
/// What reading the store and listing meet.
pub fn check(daemon: &Daemon) -> Result<Vec<Finding>> {
    let _turn = daemon.lock_redirects();
    let names = daemon.lock_names();
    let left = leftovers(daemon)?;
    let branches = daemon.store.branches()?;
    let kept = daemon.store.all_snapshots()?;
    drop(names);
    let mut findings: Vec<_> = left.of_no_branch.into_iter().map(Finding::OfNoBranch).collect();
    findings.extend(left.unfinished.into_iter().map(Finding::Unfinished));
    findings.extend(left.of_no_snapshot.into_iter().map(Finding::OfNoSnapshot));
    for snapshot in &kept {
        let file = skipped_dir(&daemon.layout).join(crate::daemon::snapshots::id(snapshot.number));
        if let Err(why) = record::read_skipped(&file) {
            findings.push(Finding::SkippedDamaged(file, why));
        }
    }
    for number in owners(&branches, &kept) {
        let records = records(&daemon.layout, number);
        let listed = records.list()?;
        for (redirect, why) in listed.damaged {
            let data = records.data(redirect);
            let dir = data.parent().unwrap_or(&data).to_owned();
            let empty = fs::read_dir(&data).map_or(true, |mut names| names.next().is_none());
            findings.push(Finding::RecordDamaged { dir, why, empty });
        }
        let gone = listed.without_data.into_iter();
        findings.extend(gone.map(|one| Finding::WithoutData(records.data(one))));
    }
    for (dir, slot) in daemon.worktrees.list() {
        let Slot::Up(up) = slot else { continue };
        // One that others have unmounted is a finding of its own.
        if !up.mounted.is_alive() {
            continue;
        }
        for (one, status) in up.redirects.states() {
            if let Some(why) = status.why {
                findings.push(Finding::DoesNotAppear(dir.join(one.path), why));
            }
        }
    }
    Ok(findings)
}

/// Does what can be done: each step, and why it could not be taken.
///
/// # Errors
/// As [`check`].
pub fn repair(daemon: &Daemon) -> Result<Vec<(String, Result<()>)>> {
    let mut taken = Vec::new();
    for finding in check(daemon)? {
        if let Some(step) = finding.step() {
            let _turn = daemon.lock_redirects();
            taken.push((step, finding.repair(daemon)));
        }
    }
    Ok(taken)
}
