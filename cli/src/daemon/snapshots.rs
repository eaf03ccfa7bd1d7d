//! Snapshots: points of branches that are kept, with the git state that belongs to them.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use agentfs_engine::base::Base;
use agentfs_engine::store::{Branch, SnapshotReason, SnapshotRecord, WorktreeRecord};
use agentfs_engine::worktree::{Difference, Point, Timestamp};
use agentfs_engine::{GitOid, Ino};
use agentfs_fuse::Stale;
use agentfs_gitimport::repository::Repository;
use agentfs_gitimport::saved;
use agentfs_gitimport::state::{self, ForkHead};
use tracing::{info, warn};

use crate::daemon::branches::{Opened, open};
use crate::daemon::git_states;
use crate::daemon::note::{self, Making, Note};
use crate::daemon::opening;
use crate::daemon::redirects;
use crate::daemon::repositories::OpenRepository;
use crate::daemon::state::Daemon;
use crate::daemon::target::{self, Target};
use crate::daemon::worktrees::Up;
use crate::error::{Failure, Kind, Result};
use crate::layout::remove_all;
use crate::protocol::{
    SnapshotCall, SnapshotCreateCall, SnapshotInfo, SnapshotListCall, SnapshotRestoreCall,
    SnapshotRestored, SnapshotShown, Snapshots, UndoCall, WirePath,
};

/// Digits of a snapshot's name.
const ID_DIGITS: usize = 16;
/// What the steps of a snapshot are called.
const SNAPSHOT: &str = "snapshot";
/// Fewest digits with which it can be named.
const ID_DIGITS_MIN: usize = 4;
/// From how many on things are told to the kernel by two threads.
const MANY: usize = 16;

/// The name of a snapshot. The last bits of its number, which is a time, come first, so that few digits
/// tell it from others.
pub fn id(number: u64) -> String {
    format!("s{:0width$x}", number.reverse_bits(), width = ID_DIGITS)
}

/// The reference that keeps the commit of a snapshot in git.
pub fn reference(snapshot: &SnapshotRecord) -> String {
    format!("refs/agentfs/snapshots/{}", id(snapshot.number))
}

/// The snapshot that `name` names, by its first digits; `None` for what cannot be one, or is none.
///
/// # Errors
/// [`Kind::Refused`] if it names several.
pub fn named(daemon: &Daemon, name: &str) -> Result<Option<SnapshotRecord>> {
    let digits = name.strip_prefix('s').unwrap_or_default();
    let possible = (ID_DIGITS_MIN..=ID_DIGITS).contains(&digits.len())
        && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if !possible {
        return Ok(None);
    }
    let mut found = daemon.store.all_snapshots()?;
    found.retain(|snapshot| id(snapshot.number).starts_with(name));
    match found.len() {
        0 | 1 => Ok(found.pop()),
        several => {
            Err(Failure::new(Kind::Refused, format!("{several} snapshots begin with {name}"))
                .hint("name it with more digits"))
        }
    }
}

/// What git and the file system have of a snapshot. Dropping it removes that.
struct Kept<'a> {
    git: &'a Repository,
    reference: Option<(String, GitOid)>,
    state: Option<PathBuf>,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if let Some((name, commit)) = self.reference.take()
            && let Err(error) = self.git.remove_reference(&name, &commit)
        {
            warn!("{error}");
        }
        if let Some(dir) = self.state.take()
            && let Err(error) = remove_all(&dir)
        {
            warn!("cannot remove {}: {error}", dir.display());
        }
    }
}

/// Keeps a branch as it is now, on stable storage. What it has of git is saved before its files are
/// sealed: then no file is older than an index that says it is up to date. The caller holds
/// [`Daemon::lock_names`]: what is sealed stays until it is on record.
///
/// # Errors
/// What opening the branch, its outbox, git and the file system meet; nothing is left then.
pub fn take(
    daemon: &Daemon,
    repository: &OpenRepository,
    branch: &Branch,
    reason: SnapshotReason,
    message: &str,
) -> Result<SnapshotRecord> {
    let branch = &git_states::unshare(daemon, repository, branch.clone())?;
    let opened = open(daemon, repository, branch)?;
    take_of(daemon, repository, branch, opened.as_ref(), reason, message)
}

/// The same of a branch that is open, if it can be.
///
/// # Errors
/// As [`take`].
pub fn take_of(
    daemon: &Daemon,
    repository: &OpenRepository,
    branch: &Branch,
    opened: Option<&Opened>,
    reason: SnapshotReason,
    message: &str,
) -> Result<SnapshotRecord> {
    let mut steps = daemon.laps.begin(SNAPSHOT);
    let number = daemon.store.new_snapshot_number();
    let id = id(number);
    redirects::record_skipped(&daemon.layout, branch.number, &id)?;
    let git = &*repository.git_to_change()?;
    let mut kept = Kept { git, reference: None, state: None };
    let (point, head) = match opened {
        Some(opened) => {
            let dir = daemon.layout.snapshots().join(&id);
            let head = ForkHead::of(git, &opened.git_dir, None)?;
            kept.state = Some(dir.clone());
            state::save(&opened.git_dir, &dir)?;
            steps.done("git state");
            let point = opened.seal()?;
            steps.done("seal");
            (Some(point), head.detached.or(head.commit))
        }
        None => {
            let target = Target::of_revision(daemon, repository, &branch.name)?;
            (None, target.commit.map(|commit| commit.id))
        }
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let record = SnapshotRecord {
        branch: branch.number,
        repository: branch.repository.clone(),
        name: branch.name.clone(),
        number,
        layer: point.as_ref().and_then(|point| point.layer),
        last_new: point.as_ref().map_or(0, |point| point.last_new),
        root: branch.root,
        root_oid: branch.root_oid,
        commit: branch.commit,
        time: branch.time,
        made: Timestamp {
            seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: now.subsec_nanos(),
        },
        reason,
        message: message.into(),
        git_state: kept.state.as_ref().map(|_| id),
    };
    if let Some(head) = head {
        git.keep(&reference(&record), &head)?;
        kept.reference = Some((reference(&record), head));
    }
    steps.done("git reference");
    let mut batch = daemon.store.batch()?;
    if let Some(point) = &point {
        batch.name_point(point)?;
    }
    batch.put_snapshot(&record);
    batch.commit()?;
    steps.done("record");
    (kept.reference, kept.state) = (None, None);
    Ok(record)
}

/// Makes a snapshot of a branch.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such branch; as [`take`].
pub fn create(daemon: &Daemon, params: &SnapshotCreateCall) -> Result<SnapshotInfo> {
    let mut steps = daemon.laps.begin(SNAPSHOT);
    let _names = daemon.lock_names();
    steps.done("turn");
    let hint = "`agentfs branch list` lists them";
    let (repository, branch) = target::recorded(daemon, &params.branch, hint)?;
    let reason = if params.before { SnapshotReason::Before } else { SnapshotReason::Asked };
    let record = take(daemon, &repository, &branch, reason, &params.message)?;
    Ok(info(&record))
}

/// The point that a snapshot is, on `base`; what it stands on is drained first.
///
/// # Errors
/// What draining and reading the store meet.
pub fn point(daemon: &Daemon, base: &Base, snapshot: &SnapshotRecord) -> Result<Point> {
    while let Some(owner) = daemon.store.snapshot_waits_for(snapshot)? {
        opening::settle(daemon, owner)?;
    }
    Ok(Point::of(&daemon.store, base, snapshot)?)
}

/// Makes a branch what a snapshot is, files and git state; what it was before is kept as a snapshot.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such branch or snapshot, [`Kind::Refused`] for a snapshot of what has
/// another base; what the store, the outbox and git meet.
pub fn restore(daemon: &Daemon, params: &SnapshotRestoreCall) -> Result<SnapshotRestored> {
    let mut steps = daemon.laps.begin("restore");
    let _names = daemon.lock_names();
    steps.done("turn");
    // Under the lock, so that nobody forgets it meanwhile.
    let snapshot = known(daemon, &params.snapshot)?;
    let branches = daemon.store.branches()?;
    let branch = match &params.branch {
        Some(branch) => {
            let (repository, name) = target::parse(daemon, branch)?;
            daemon.store.branch(&repository, &name)?
        }
        None => branches.into_iter().find(|branch| branch.number == snapshot.branch),
    };
    let branch = branch.ok_or_else(|| {
        Failure::new(Kind::NotFound, format!("there is no branch {} any more", snapshot.name))
            .hint(format!("`agentfs branch create NAME --from {}` begins one", id(snapshot.number)))
    })?;
    let repository = daemon.repositories.get(&daemon.store, &branch.repository)?;
    let refuse = |why: &str| {
        Failure::new(
            Kind::Refused,
            format!("{} cannot become what the snapshot is: {why}", branch.name),
        )
        .hint(format!(
            "`agentfs branch create NAME --from {}` begins a branch there",
            id(snapshot.number)
        ))
    };
    if (&branch.repository, branch.root) != (&snapshot.repository, snapshot.root) {
        return Err(refuse("it was based on another commit"));
    }
    let Some(state) = &snapshot.git_state else {
        return Err(refuse("the snapshot is nothing but a commit"));
    };
    let branch = git_states::unshare(daemon, &repository, branch.clone())?;
    let Some(opened) = open(daemon, &repository, &branch)? else {
        return Err(refuse("it is not mounted and has no changes"));
    };
    saved::verify(&daemon.layout.snapshots().join(state))?;
    let message = format!("before the restoring of {}", id(snapshot.number));
    let before =
        take_of(daemon, &repository, &branch, Some(&opened), SnapshotReason::Before, &message)?;
    steps.skip();
    let point = point(daemon, opened.worktree.base(), &snapshot)?;
    steps.done("point");
    let making = Making::Restore { branch: branch.number.0, snapshot: snapshot.number };
    let note = Note::write(&daemon.layout, &making)?;
    // Who reads a file past us would not see that it is another.
    let bar = opened.up.as_ref().and_then(|up| up.mounted.bar_passthrough());
    let in_use = Cell::new(None);
    let agree = |inodes: &[Ino]| {
        in_use.set(bar.as_ref().and_then(|bar| bar.in_use(inodes)));
        in_use.get().map_or(Ok(()), |_| Err(agentfs_engine::Error::Cancelled))
    };
    let restored = opened.worktree.restore_if(&point, bar.as_ref().map(|_| &agree as _));
    if let Some(ino) = in_use.get() {
        forget(daemon, &before)?;
        return Err(read_past_us(&opened, ino));
    }
    let difference = restored?;
    drop(bar);
    steps.done("files");
    if let Some(up) = &opened.up {
        forget_in_kernel(up, &difference);
        steps.done("kernel");
    }
    restore_git(daemon, &repository, &branch, &snapshot, state, &opened.git_dir)?;
    steps.done("git state");
    // Until then only the outbox says on what it stands, which is kept no longer than its snapshot.
    if let Err(error) = opened.worktree.drain() {
        // The next daemon sees to it.
        std::mem::forget(note);
        return Err(error.into());
    }
    steps.done("drain");
    // What it is mounted on may have gone with what was restored.
    let (redirected, notes) = redirects::after_change(daemon, branch.number, opened.up.as_deref());
    Ok(SnapshotRestored {
        snapshot: id(snapshot.number),
        repository: branch.repository.clone(),
        branch: branch.name.clone(),
        before: id(before.number),
        inodes: difference.inodes.len() as u64,
        names: difference.names.len() as u64,
        redirected,
        notes,
    })
}

/// Refuses to change a file that somebody reads from the cache, of which he could not be told.
fn read_past_us(opened: &Opened, ino: Ino) -> Failure {
    let path = opened.worktree.base().path(ino).unwrap_or_default();
    let path = String::from_utf8_lossy(&path).into_owned();
    let message =
        format!("a process has {path} open or mapped, and would go on to read what it is now");
    Failure::new(Kind::Busy, message).hint(
        "end what reads it, as `fuser` or `lsof` names it, and restore again; without the lever `passthrough` that \
         is not necessary",
    )
}

/// Takes back what was changed since the last snapshot of a branch; if that is nothing, what made it differ
/// from the one before.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such snapshot; as [`restore`].
pub fn undo(daemon: &Daemon, params: &UndoCall) -> Result<SnapshotRestored> {
    let (repository, name) = target::parse(daemon, &params.branch)?;
    let none = || {
        Failure::new(Kind::NotFound, format!("nothing of {name} is kept to which it could go back"))
            .hint("`agentfs snapshot list` lists what is kept")
    };
    let branch = daemon.store.branch(&repository, &name)?.ok_or_else(none)?;
    let open_repository = daemon.repositories.get(&daemon.store, &repository)?;
    let (changed, here) = {
        let opened = open(daemon, &open_repository, &branch)?.ok_or_else(none)?;
        (opened.worktree.is_changed_since_seal(), opened.worktree.stands_on())
    };
    let mut kept = daemon.store.snapshots(branch.number)?;
    kept.retain(|one| one.git_state.is_some() && (changed || one.layer != here));
    let newest = kept.into_iter().max_by_key(|one| (changed && one.layer == here, one.number));
    let newest = newest.ok_or_else(none)?;
    restore(daemon, &SnapshotRestoreCall { snapshot: id(newest.number), branch: None })
}

/// Has the kernel forget what differs from what a mount has shown; what it keeps is logged. What git has seen of it
/// until then is not believed.
pub fn forget_in_kernel(up: &Up, difference: &Difference) {
    let entry =
        |(parent, name): &(_, Box<[u8]>)| forget_one(up, Stale::Entry { parent: *parent, name });
    let inode = |ino: &_| forget_one(up, Stale::Content(*ino));
    // What has no name any more is mostly gone with it.
    each_by_two(&difference.names, entry);
    each_by_two(&difference.inodes, inode);
    up.worktree.begin_generation();
}

fn forget_one(up: &Up, stale: Stale<'_>) {
    if let Err(error) = up.mounted.invalidate(stale) {
        warn!("{error}");
    }
}

/// Calls `call` with each, on two threads if they are many: the kernel has a thread of ours wait for another processor
/// with much of what it is told.
fn each_by_two<T: Sync>(all: &[T], call: impl Fn(&T) + Sync) {
    if all.len() < MANY {
        return all.iter().for_each(call);
    }
    let (one, other) = all.split_at(all.len() / 2);
    let half = || one.iter().for_each(&call);
    thread::scope(|scope| {
        if thread::Builder::new().spawn_scoped(scope, half).is_err() {
            half();
        }
        other.iter().for_each(&call);
    });
}

fn restore_git(
    daemon: &Daemon,
    repository: &OpenRepository,
    branch: &Branch,
    snapshot: &SnapshotRecord,
    state: &str,
    git_dir: &Path,
) -> Result<()> {
    let git = &*repository.git_as_it_is()?;
    let commit = git.resolve(&reference(snapshot)).ok().map(|commit| commit.id);
    let from = daemon.layout.snapshots().join(state);
    Ok(state::restore(git, &from, git_dir, &branch.name, commit.as_ref())?)
}

/// Completes what a killed daemon was restoring: where the files are those of the snapshot, so is the git
/// state. Called before anything is mounted.
pub fn complete_restores(daemon: &Daemon) {
    for (_note, branch, snapshot) in note::restores(&daemon.layout) {
        if let Err(failure) = complete_restore(daemon, branch, snapshot) {
            warn!("cannot complete the restoring of {}: {failure}", id(snapshot));
        }
    }
}

fn complete_restore(daemon: &Daemon, branch: u64, snapshot: u64) -> Result<()> {
    let branches = daemon.store.branches()?;
    let snapshots = daemon.store.all_snapshots()?;
    let branch = branches.into_iter().find(|one| one.number.0 == branch);
    let snapshot = snapshots.into_iter().find(|one| one.number == snapshot);
    let (Some(branch), Some(snapshot)) = (branch, snapshot) else { return Ok(()) };
    let Some(state) = &snapshot.git_state else { return Ok(()) };
    let repository = daemon.repositories.get(&daemon.store, &branch.repository)?;
    let worktree = opening::worktree(daemon, &repository, &branch, None, false, None)?;
    if worktree.is_changed_since_seal() || worktree.stands_on() != snapshot.layer {
        return Ok(());
    }
    let worktrees = daemon.store.worktrees()?;
    let same =
        |one: &&WorktreeRecord| one.repository == branch.repository && one.branch == branch.name;
    let mounted = worktrees.iter().find(same).map(|one| one.git_dir.as_path());
    if let Some(git_dir) = mounted.or(branch.git_dir()) {
        restore_git(daemon, &repository, &branch, &snapshot, state, git_dir)?;
        info!("completed the restoring of {}", id(snapshot.number));
    }
    worktree.drain()?;
    Ok(())
}

/// Splits `repository@branch`; a branch alone may be of any repository, and need not exist any more.
pub fn split(branch: &str) -> (Option<&str>, &str) {
    match branch.split_once('@') {
        Some((repository, name)) => (Some(repository), name),
        None => (None, branch),
    }
}

/// The snapshots of the branches that have, or had, this name.
///
/// # Errors
/// What reading the store meets.
pub fn of_branch(daemon: &Daemon, branch: &str) -> Result<Vec<SnapshotRecord>> {
    let (repository, name) = split(branch);
    let mut found = daemon.store.all_snapshots()?;
    found.retain(|one| {
        one.name == name && repository.is_none_or(|repository| one.repository == repository)
    });
    Ok(found)
}

/// The snapshots of a branch, or all, the oldest first.
///
/// # Errors
/// What reading the store meets.
pub fn list(daemon: &Daemon, params: &SnapshotListCall) -> Result<Snapshots> {
    let mut found = match &params.branch {
        Some(branch) => of_branch(daemon, branch)?,
        None => daemon.store.all_snapshots()?,
    };
    found.sort_unstable_by_key(|one| one.number);
    Ok(Snapshots { snapshots: found.iter().map(info).collect() })
}

/// What a snapshot is, the one before it, and its branch.
///
/// # Errors
/// [`Kind::NotFound`] if there is none.
pub fn show(daemon: &Daemon, params: &SnapshotCall) -> Result<SnapshotShown> {
    let snapshot = known(daemon, &params.snapshot)?;
    let mut before = daemon.store.snapshots(snapshot.branch)?;
    before.retain(|one| one.number < snapshot.number);
    let parent = before.iter().map(|one| one.number).max();
    let branches = daemon.store.branches()?;
    let branch = branches.into_iter().find(|branch| branch.number == snapshot.branch);
    Ok(SnapshotShown {
        info: info(&snapshot),
        parent: parent.map(id),
        branch_now: branch.map(|branch| branch.name),
        redirected: redirects::read_skipped(&daemon.layout, &id(snapshot.number))?
            .into_iter()
            .map(WirePath)
            .collect(),
    })
}

/// Removes a snapshot.
///
/// # Errors
/// [`Kind::NotFound`] if there is none.
pub fn delete(daemon: &Daemon, params: &SnapshotCall) -> Result<SnapshotInfo> {
    let _names = daemon.lock_names();
    let snapshot = known(daemon, &params.snapshot)?;
    forget(daemon, &snapshot)?;
    Ok(info(&snapshot))
}

fn known(daemon: &Daemon, name: &str) -> Result<SnapshotRecord> {
    named(daemon, name)?.ok_or_else(|| {
        Failure::new(Kind::NotFound, format!("{name:?} is no snapshot"))
            .hint("`agentfs snapshot list` lists them")
    })
}

/// Takes a snapshot off the record, with what only it has. The caller holds [`Daemon::lock_names`].
///
/// # Errors
/// What the store, git and the file system meet.
pub fn forget(daemon: &Daemon, snapshot: &SnapshotRecord) -> Result<()> {
    let mut batch = daemon.store.batch()?;
    batch.remove_snapshot(snapshot);
    batch.sweep_layers()?;
    batch.commit()?;
    redirects::forget_snapshot(daemon, snapshot)?;
    let dir = daemon.layout.snapshots().join(id(snapshot.number));
    remove_all(&dir).map_err(|error| Failure::store_io("remove", &dir, &error))?;
    let repository = daemon.repositories.get(&daemon.store, &snapshot.repository)?;
    let git = repository.git_as_it_is()?;
    let name = reference(snapshot);
    if let Ok(commit) = git.resolve(&name) {
        git.remove_reference(&name, &commit.id)?;
    }
    Ok(())
}

/// Removes what a former daemon has left of snapshots that did not get on record.
///
/// # Errors
/// What reading the store meets.
pub fn sweep(daemon: &Daemon) -> Result<()> {
    let Ok(entries) = fs::read_dir(daemon.layout.snapshots()) else { return Ok(()) };
    let known: Vec<_> = daemon.store.all_snapshots()?.iter().map(|one| id(one.number)).collect();
    for entry in entries.flatten() {
        let name = entry.file_name();
        if known.iter().any(|known| name == known.as_str()) {
            continue;
        }
        match remove_all(&entry.path()) {
            Ok(()) => info!("removed {}, which was not complete", entry.path().display()),
            Err(error) => warn!("cannot remove {}: {error}", entry.path().display()),
        }
    }
    Ok(())
}

pub fn info(record: &SnapshotRecord) -> SnapshotInfo {
    SnapshotInfo {
        id: id(record.number),
        repository: record.repository.clone(),
        branch: record.name.clone(),
        commit: record.commit.map(|commit| commit.to_string()),
        base: record.root.to_string(),
        made: record.made.seconds,
        reason: match record.reason {
            SnapshotReason::Asked => "asked",
            SnapshotReason::Before => "before",
            SnapshotReason::Removed => "removed",
            SnapshotReason::Exec => "exec",
            SnapshotReason::Time => "time",
        }
        .into(),
        message: record.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_number_with_its_last_bits_first() {
        assert_eq!(id(1), "s8000000000000000");
        assert_eq!(id(0x1_0000), "s0000800000000000");
    }
}
