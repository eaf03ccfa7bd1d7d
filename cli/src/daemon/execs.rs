//! The commands that run in branches: which, where each branch is mounted for them, and the end of
//! what was mounted for them alone.
//!
//! A branch that is mounted somewhere is used where it is. Any other is mounted at a directory of
//! the store, on record like every worktree, and unmounted when its last command has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use agentfs_engine::store::{SnapshotReason, WorktreeRecord};
use tracing::{info, warn};

use crate::daemon::calls;
use crate::daemon::repositories::OpenRepository;
use crate::daemon::rpc::{Answer, Call};
use crate::daemon::snapshots;
use crate::daemon::state::Daemon;
use crate::daemon::target::{self, Target};
use crate::daemon::worktrees::{Slot, Up};
use crate::error::{Failure, Kind, Result};
use crate::protocol::{ExecBegun, ExecCall, MountAt, MountCall, Opened, WirePath};

/// How long to wait between two looks at something that another call is about to finish.
const PAUSE: Duration = Duration::from_millis(2);
/// How long the end of a command may wait until the kernel has let go of its mount. It takes
/// milliseconds unless a process outside has entered the command's namespace.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);

/// The commands that run in branches.
#[derive(Default)]
pub struct Execs {
    /// Leaf lock.
    state: Mutex<State>,
    /// For names of directories; a daemon starts with none.
    made: AtomicU64,
}

#[derive(Default)]
struct State {
    last: u64,
    running: BTreeMap<u64, Running>,
    /// Worktrees that are being unmounted.
    closing: BTreeSet<PathBuf>,
}

struct Running {
    /// Where the branch is mounted.
    dir: PathBuf,
    pid: u32,
    /// Whether what it has done is kept when it has ended.
    keep: bool,
}

/// A worktree in which no command can be begun until this is dropped.
pub struct Unused<'a> {
    execs: &'a Execs,
    dir: PathBuf,
}

impl Drop for Unused<'_> {
    fn drop(&mut self) {
        self.execs.lock().closing.remove(&self.dir);
    }
}

impl Execs {
    /// Notes that process `pid` runs a command in the worktree at `dir`, and returns the number of
    /// that; `None` if the worktree is being unmounted.
    fn enter(&self, dir: &Path, pid: u32, keep: bool) -> Option<u64> {
        let mut state = self.lock();
        if state.closing.contains(dir) {
            return None;
        }
        state.last += 1;
        let number = state.last;
        state.running.insert(number, Running { dir: dir.to_owned(), pid, keep });
        Some(number)
    }

    /// Where command `number` runs, if what it has done is to be kept; `None` once it has ended.
    fn kept(&self, number: u64) -> Option<PathBuf> {
        let state = self.lock();
        state.running.get(&number).filter(|running| running.keep).map(|one| one.dir.clone())
    }

    /// Takes note of the end of a command. Returns its worktree if that has no other and, as
    /// `is_own` says, is there for commands alone: none can be begun in it then.
    fn leave(&self, number: u64, is_own: impl Fn(&Path) -> bool) -> Option<Unused<'_>> {
        let mut state = self.lock();
        let dir = state.running.remove(&number)?.dir;
        if !is_own(&dir) || state.running.values().any(|other| other.dir == dir) {
            return None;
        }
        state.closing.insert(dir.clone());
        Some(Unused { execs: self, dir })
    }

    /// Makes sure that no command runs in the worktree at `dir`, and that none is begun.
    ///
    /// # Errors
    /// [`Kind::Busy`], naming the processes.
    pub fn refuse_close(&self, dir: &Path) -> Result<Unused<'_>> {
        let mut state = self.lock();
        let users: Vec<_> = state.running.values().filter(|one| one.dir == dir).collect();
        if !users.is_empty() {
            return Err(Failure::new(
                Kind::Busy,
                format!("`agentfs exec` runs in {} (process {})", dir.display(), pids(&users)),
            )
            .hint("wait for its end, or end it; --lazy cannot take the worktree from it"));
        }
        if !state.closing.insert(dir.to_owned()) {
            return Err(Failure::new(Kind::Busy, format!("{} is being unmounted", dir.display()))
                .hint("run the command again in a moment"));
        }
        Ok(Unused { execs: self, dir: dir.to_owned() })
    }

    /// Whether the worktree at `dir` is being unmounted. One that has been is off the record when this says no.
    pub fn is_ending(&self, dir: &Path) -> bool {
        self.lock().closing.contains(dir)
    }

    /// Refuses that the daemon stops while commands run.
    ///
    /// # Errors
    /// [`Kind::Busy`], naming the processes.
    pub fn refuse_stop(&self) -> Result<()> {
        let state = self.lock();
        let users: Vec<_> = state.running.values().collect();
        if users.is_empty() {
            return Ok(());
        }
        Err(Failure::new(
            Kind::Busy,
            format!("`agentfs exec` runs commands in branches (process {})", pids(&users)),
        )
        .hint("wait for their end, or end them with `agentfs daemon stop --force`"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pids(users: &[&Running]) -> String {
    users.iter().map(|one| one.pid.to_string()).collect::<Vec<_>>().join(", ")
}

/// Makes a branch ready for a command, until the call's connection ends or [`end`] is called.
///
/// # Errors
/// [`Kind::NotFound`] if nothing says where the command is to see the branch, [`Kind::Refused`] for a
/// branch that git itself has checked out; whatever keeps it from being mounted.
pub fn begin(daemon: &Arc<Daemon>, params: &ExecCall, call: &Call) -> Result<Answer> {
    let (name, revision) = target::parse(daemon, &params.what)?;
    let repository = daemon.repositories.get(&daemon.store, &name)?;
    let branch = branch_of(&repository, &revision)?;
    let at = match &params.at {
        Some(at) => at.0.clone(),
        None => usual_directory(daemon, &repository)?,
    };
    if at.starts_with(daemon.root()) {
        return Err(Failure::new(Kind::Refused, format!("{} is inside the store", at.display()))
            .hint("choose a directory outside the store with --at"));
    }
    let (number, up, notes) = enter(daemon, &name, &branch, params, call)?;
    let WorktreeRecord { dir, git_dir, branch, .. } = &up.record;
    let recorded = daemon.store.branch(&name, branch)?;
    if params.keep {
        keep(daemon, &up, true).inspect_err(|_| leave(daemon, number))?;
    }
    let begun = ExecBegun {
        exec: number,
        repository: name,
        branch: branch.clone(),
        detached: recorded.is_some_and(|branch| branch.detached),
        source: dir.as_path().into(),
        at: WirePath(at),
        git_dir: git_dir.as_path().into(),
        common_dir: repository.record.git_dir.as_path().into(),
        redirects: up.redirects.linked().into_iter().map(WirePath).collect(),
        notes,
    };
    let release = || {
        let daemon = Arc::clone(daemon);
        Some(Box::new(move || end(&daemon, number)) as Box<dyn FnOnce() + Send>)
    };
    let value = serde_json::to_value(begun)
        .map_err(|error| Failure::new(Kind::Failed, error.to_string()))
        .inspect_err(|_| end(daemon, number))?;
    Ok(Answer { held: release(), undo: release(), ..value.into() })
}

/// Keeps what is mounted as it is now if it has changed since the last snapshot; where a command `begins`, also if the
/// newest snapshot is another moment.
fn keep(daemon: &Daemon, up: &Up, begins: bool) -> Result<()> {
    let WorktreeRecord { repository, branch, .. } = &up.record;
    let Some(branch) = daemon.store.branch(repository, branch)? else { return Ok(()) };
    let _names = daemon.lock_names();
    // The newest is what `undo` goes back to.
    let is_kept = || -> Result<bool> {
        let newest = daemon.store.snapshots(branch.number)?.pop();
        Ok(newest.is_some_and(|one| one.layer == up.worktree.stands_on()))
    };
    let is_writable = !up.worktree.is_read_only();
    if is_writable && (up.worktree.is_changed_since_seal() || begins && !is_kept()?) {
        let repository = daemon.repositories.get(&daemon.store, repository)?;
        snapshots::take(daemon, &repository, &branch, SnapshotReason::Exec, "")?;
    }
    Ok(())
}

/// The name of the branch that `revision` names.
fn branch_of(repository: &OpenRepository, revision: &str) -> Result<String> {
    if revision.is_empty() || revision == "HEAD" {
        let head = Target::of_head(&*repository.git()?)?;
        return Ok(head.branch.unwrap_or_default());
    }
    Ok(revision.strip_prefix("refs/heads/").unwrap_or(revision).to_owned())
}

/// Where commands see the branches of a repository: the directory of its worktree; of several, of
/// that with the branch that its HEAD names, else the first by name.
fn usual_directory(daemon: &Daemon, repository: &OpenRepository) -> Result<PathBuf> {
    let name = &repository.record.name;
    let own = daemon.layout.execs();
    let worktrees = daemon.store.worktrees()?.into_iter();
    let mut worktrees: Vec<_> = worktrees
        .filter(|worktree| worktree.repository == *name && !worktree.dir.starts_with(&own))
        .collect();
    worktrees.sort_by(|one, other| one.dir.cmp(&other.dir));
    let head = Target::of_head(&*repository.git()?)?.branch;
    let of_head = worktrees.iter().position(|worktree| Some(&worktree.branch) == head.as_ref());
    if worktrees.is_empty() {
        return Err(Failure::new(
            Kind::NotFound,
            format!("no worktree of {name} says at which directory its branches belong"),
        )
        .hint("name an existing directory with --at DIR"));
    }
    Ok(worktrees.swap_remove(of_head.unwrap_or(0)).dir)
}

/// Begins a command in the worktree of `branch`, which is mounted if it is not.
fn enter(
    daemon: &Arc<Daemon>,
    repository: &str,
    branch: &str,
    params: &ExecCall,
    call: &Call,
) -> Result<(u64, Arc<Up>, Vec<String>)> {
    let mut notes = Vec::new();
    let mut made = None;
    loop {
        call.cancel.check()?;
        let holder = made.clone().or_else(|| daemon.worktrees.holder_of(repository, branch));
        let slot = holder
            .and_then(|dir| daemon.worktrees.list().into_iter().find(|(other, _)| *other == dir));
        match slot {
            Some((dir, Slot::Up(up))) if up.mounted.is_alive() => {
                if let Some(number) = daemon.execs.enter(&dir, params.pid, params.keep) {
                    return Ok((number, up, notes));
                }
            }
            Some((dir, Slot::Up(_) | Slot::Down(..))) => {
                let dir = dir.display();
                return Err(Failure::new(
                    Kind::Failed,
                    format!("{branch} belongs at {dir}, where it is not mounted"),
                )
                .hint(format!("forget that with `agentfs umount {dir}`; `agentfs ps` says why")));
            }
            // Somebody is about to mount or to unmount it.
            Some((_, Slot::Busy(..))) => {}
            None => {
                let _turn = daemon.lock_exec_mounts();
                if daemon.worktrees.holder_of(repository, branch).is_none() {
                    let (dir, opened) = mount(daemon, repository, branch, params, call)?;
                    made = Some(dir);
                    notes = opened.notes;
                }
            }
        }
        thread::sleep(PAUSE);
    }
}

/// Mounts a branch for commands alone.
fn mount(
    daemon: &Arc<Daemon>,
    repository: &str,
    branch: &str,
    params: &ExecCall,
    call: &Call,
) -> Result<(PathBuf, Opened)> {
    let parent = daemon.layout.execs();
    fs::create_dir_all(&parent).map_err(|error| Failure::store_io("create", &parent, &error))?;
    let dir = parent.join(name_for(branch, daemon.execs.made.fetch_add(1, Ordering::Relaxed)));
    let at = MountAt { dir: dir.as_path().into(), read_only: false, allow_other: false };
    let what =
        format!("{repository}@{}", params.what.split_once('@').map_or(branch, |(_, rev)| rev));
    let answer = calls::mount_at(daemon, &MountCall { what, at, exclusive: false }, call, true)?;
    if let Some(after) = answer.after {
        after();
    }
    let opened: Opened = serde_json::from_value(answer.value)
        .map_err(|error| Failure::new(Kind::Failed, error.to_string()))?;
    Ok((dir, opened))
}

/// The name of a directory for `branch`: git files the worktree under it.
fn name_for(branch: &str, number: u64) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let name: String =
        branch.chars().map(|one| if plain(one) { one } else { '-' }).take(64).collect();
    format!("{number}-{name}")
}

/// Ends a command, and keeps what it has made of its branch; one that has ended already is as good. Returns when
/// its mount is gone if it was the last in a branch that was mounted for commands alone.
pub fn end(daemon: &Arc<Daemon>, number: u64) {
    let dir = daemon.execs.kept(number);
    let slots = daemon.worktrees.list().into_iter();
    let slot = slots.into_iter().find(|(other, _)| Some(other) == dir.as_ref());
    if let Some((dir, Slot::Up(up))) = slot
        && !*daemon.stop.borrow()
        && let Err(failure) = keep(daemon, &up, false)
    {
        warn!("no snapshot of what a command has done in {}: {failure}", dir.display());
    }
    leave(daemon, number);
}

fn leave(daemon: &Arc<Daemon>, number: u64) {
    let own = daemon.layout.execs();
    let Some(unused) = daemon.execs.leave(number, |dir| dir.starts_with(&own)) else {
        return;
    };
    let dir = unused.dir.clone();
    if release(daemon, &dir, RELEASE_LIMIT) {
        return;
    }
    // No command can be begun in it until the thread has done the same.
    std::mem::forget(unused);
    warn!("a process outside holds {}: its branch stays in use until that ends", dir.display());
    let daemon = Arc::clone(daemon);
    let wait = move || {
        while !*daemon.stop.borrow() && !release(&daemon, &dir, RELEASE_LIMIT) {}
        daemon.execs.lock().closing.remove(&dir);
    };
    if let Err(error) = thread::Builder::new().name("agentfs-release".into()).spawn(wait) {
        warn!("cannot wait for it: {error}");
    }
}

/// Takes a mount away and, when the kernel has let go of it, its worktree off the record. False if
/// that is not so within `limit`: until then a process may change files, so the branch stays taken.
fn release(daemon: &Daemon, dir: &Path, limit: Duration) -> bool {
    let slots = daemon.worktrees.list().into_iter();
    let Some((_, slot)) = slots.into_iter().find(|(other, _)| other == dir) else { return true };
    if let Slot::Up(up) = slot {
        if let Err(failure) = up.unmount(true) {
            warn!("{failure}");
        }
        let start = Instant::now();
        while !up.mounted.ended_within(PAUSE) {
            if start.elapsed() > limit || *daemon.stop.borrow() {
                return false;
            }
        }
    }
    forget(daemon, dir);
    true
}

/// Takes a worktree that was there for commands alone off the record. Its branch keeps its changes.
pub fn forget(daemon: &Daemon, dir: &Path) {
    match calls::close_unused(daemon, dir, true) {
        Ok(()) => {
            // Nobody else puts anything into a directory of the store.
            if let Err(error) = fs::remove_dir(dir) {
                warn!("cannot remove {}: {error}", dir.display());
            }
            info!("{} is not used any more", dir.display());
        }
        Err(failure) => warn!("cannot end {}: {failure}", dir.display()),
    }
}

/// Takes what a former daemon's commands have left off the record: they have ended with it.
pub fn forget_ended(daemon: &Daemon, record: WorktreeRecord) {
    let dir = record.dir.clone();
    daemon.worktrees.fill(&dir, Slot::Down(record, "its command has ended".into()));
    forget(daemon, &dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worktree_is_free_when_its_last_command_has_ended() {
        let execs = Execs::default();
        let dir = Path::new("/s/exec/0-b");
        let one = execs.enter(dir, 1, false).unwrap();
        let two = execs.enter(dir, 2, false).unwrap();
        let failure = execs.refuse_close(dir).err().unwrap();
        assert_eq!(failure.kind, Kind::Busy);
        assert!(failure.message.contains("process 1, 2"), "{failure}");
        assert_eq!(execs.refuse_stop().unwrap_err().kind, Kind::Busy);
        assert!(execs.leave(one, |_| true).is_none());
        assert!(execs.leave(one, |_| true).is_none());
        let unused = execs.leave(two, |_| true).unwrap();
        assert_eq!(execs.enter(dir, 3, false), None);
        drop(unused);
        execs.refuse_stop().unwrap();
        let three = execs.enter(dir, 3, false).unwrap();
        assert!(execs.leave(three, |_| false).is_none());
        let closing = execs.refuse_close(dir).unwrap();
        assert_eq!(execs.refuse_close(dir).err().unwrap().kind, Kind::Busy);
        assert_eq!(execs.enter(dir, 4, false), None);
        drop(closing);
        assert!(execs.enter(dir, 4, false).is_some());
    }

    #[test]
    fn a_directory_has_the_name_of_its_branch() {
        assert_eq!(name_for("agent/7", 3), "3-agent-7");
        assert_eq!(name_for("\u{e9}..", 0), "0--..");
    }
}
