//! The worktrees of this daemon, by directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentfs_engine::store::{Branch, WorktreeRecord};
use agentfs_engine::worktree::Worktree;
use agentfs_fuse::Mounted;
use agentfs_gitimport::gitdir;
use tracing::warn;

use crate::daemon::changed;
use crate::daemon::note::Note;
use crate::daemon::redirects;
use crate::error::{Failure, Kind, Result};

/// How long the session of a mount without users may take to end.
const ENDING: Duration = Duration::from_millis(500);

/// A worktree that was mounted.
pub struct Up {
    /// What the store says of it, or would.
    pub record: WorktreeRecord,
    /// What is mounted.
    pub worktree: Arc<Worktree>,
    /// What the kernel calls the mount: the branch had this name then.
    pub name: String,
    /// The mount.
    pub mounted: Arc<Mounted>,
    /// The note about a worktree that the store does not have on record.
    pub note: Option<Arc<Note>>,
    /// What of it lies in native directories.
    pub redirects: Arc<redirects::Held>,
}

impl Up {
    /// Unmounts it, with the native directories that are mounted in it.
    ///
    /// # Errors
    /// [`Kind::Busy`] if it is in use and not `lazy`; all of it then stays.
    pub fn unmount(&self, lazy: bool) -> Result<()> {
        self.redirects.unmount(lazy, || Ok(self.mounted.unmount(lazy)?))
    }
}

/// What is at a directory.
#[derive(Clone)]
pub enum Slot {
    /// A worktree of this branch of this repository is being mounted or unmounted.
    Busy(String, String),
    /// A worktree that was mounted. It may have been unmounted by others since.
    Up(Arc<Up>),
    /// It is on record but could not be mounted, for this reason.
    Down(WorktreeRecord, String),
}

impl Slot {
    fn branch(&self) -> (&str, &str) {
        match self {
            Self::Busy(repository, branch) => (repository, branch),
            Self::Up(up) => (&up.record.repository, &up.record.branch),
            Self::Down(record, _) => (&record.repository, &record.branch),
        }
    }
}

/// The worktrees. Nothing that can block is done under the lock, which is a leaf.
#[derive(Default)]
pub struct Worktrees {
    slots: Mutex<BTreeMap<PathBuf, Slot>>,
}

/// A directory that is [`Slot::Busy`] until this is dropped. Then it is free, unless it was filled.
pub struct Reservation<'a> {
    worktrees: &'a Worktrees,
    dir: PathBuf,
}

impl Reservation<'_> {
    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ends the reservation with what is there from now on.
    pub fn fill(&self, slot: Slot) {
        self.worktrees.lock().insert(self.dir.clone(), slot);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut slots = self.worktrees.lock();
        if matches!(slots.get(&self.dir), Some(Slot::Busy(..))) {
            slots.remove(&self.dir);
        }
    }
}

/// A worktree that nobody else gets hold of until this is dropped. It is mounted, or on record, all the while.
pub struct Held<'a> {
    worktrees: &'a Worktrees,
    dir: PathBuf,
    slot: Slot,
}

impl Held<'_> {
    /// Whether it is this mount.
    pub fn is(&self, up: &Arc<Up>) -> bool {
        matches!(&self.slot, Slot::Up(held) if Arc::ptr_eq(held, up))
    }

    /// It is one of branch `name` from now on.
    pub fn rename(mut self, name: &str) {
        let renamed =
            |record: &WorktreeRecord| WorktreeRecord { branch: name.into(), ..record.clone() };
        self.slot = match &self.slot {
            Slot::Up(up) => Slot::Up(Arc::new(Up {
                record: renamed(&up.record),
                worktree: Arc::clone(&up.worktree),
                name: up.name.clone(),
                mounted: Arc::clone(&up.mounted),
                note: up.note.clone(),
                redirects: Arc::clone(&up.redirects),
            })),
            Slot::Down(record, why) => Slot::Down(renamed(record), why.clone()),
            Slot::Busy(repository, _) => Slot::Busy(repository.clone(), name.into()),
        };
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.worktrees.lock().insert(self.dir.clone(), self.slot.clone());
    }
}

/// A worktree that was unmounted and is still on record. Its directory stays taken.
pub struct Closing<'a> {
    /// The record.
    pub record: WorktreeRecord,
    /// Whether the store has it.
    pub recorded: bool,
    /// What was mounted, if it was.
    pub worktree: Option<Arc<Worktree>>,
    /// Whether somebody is still in it, and may change it.
    pub lives: bool,
    _reservation: Reservation<'a>,
}

impl Worktrees {
    /// What is at every directory.
    pub fn list(&self) -> Vec<(PathBuf, Slot)> {
        self.lock().iter().map(|(dir, slot)| (dir.clone(), slot.clone())).collect()
    }

    /// What is at `dir`.
    pub fn get(&self, dir: &Path) -> Option<Slot> {
        self.lock().get(dir).cloned()
    }

    /// The directory of the worktree of branch `name` of `repository`.
    pub fn holder_of(&self, repository: &str, name: &str) -> Option<PathBuf> {
        let slots = self.lock();
        let mut holders = slots.iter().filter(|(_, slot)| slot.branch() == (repository, name));
        holders.next().map(|(dir, _)| dir.clone())
    }

    /// Takes `dir` for a worktree of `branch`.
    ///
    /// # Errors
    /// [`Kind::InWorktree`] or [`Kind::Busy`] if it is taken.
    pub fn reserve(&self, dir: &Path, branch: &Branch) -> Result<Reservation<'_>> {
        let shown = dir.display();
        let mut slots = self.lock();
        let (message, verb) = match slots.get(dir) {
            None => {
                let busy = Slot::Busy(branch.repository.clone(), branch.name.clone());
                slots.insert(dir.to_owned(), busy);
                return Ok(Reservation { worktrees: self, dir: dir.to_owned() });
            }
            Some(Slot::Busy(..)) => return Err(busy(dir)),
            Some(Slot::Up(up)) if up.mounted.is_alive() => {
                (format!("{shown} is an agentfs worktree already"), "unmount")
            }
            Some(Slot::Up(_) | Slot::Down(..)) => {
                (format!("{shown} is on record as a worktree that is not mounted"), "forget")
            }
        };
        Err(Failure::new(Kind::InWorktree, message)
            .hint(format!("{verb} it with `agentfs umount {shown}`, or choose another directory")))
    }

    /// Puts a worktree that is on record into its place.
    pub fn fill(&self, dir: &Path, slot: Slot) {
        self.lock().insert(dir.to_owned(), slot);
    }

    /// Unmounts the worktree at `dir`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none, [`Kind::Busy`] if it is in use and not `lazy`. It then
    /// stays mounted.
    pub fn close(&self, dir: &Path, lazy: bool) -> Result<Closing<'_>> {
        let slot = self.take(dir)?;
        let reservation = Reservation { worktrees: self, dir: dir.to_owned() };
        let mut lives = false;
        let (record, recorded, worktree) = match slot {
            Slot::Up(up) => {
                if let Err(failure) = up.unmount(lazy) {
                    reservation.fill(Slot::Up(up));
                    return Err(failure);
                }
                lives = lazy && !up.mounted.ended_within(ENDING);
                (up.record.clone(), up.note.is_none(), Some(Arc::clone(&up.worktree)))
            }
            Slot::Down(record, _) => (record, true, None),
            Slot::Busy(..) => return Err(busy(dir)),
        };
        Ok(Closing { record, recorded, worktree, lives, _reservation: reservation })
    }

    /// Keeps everybody else from the worktree at `dir`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none, [`Kind::Busy`] if somebody has it.
    pub fn hold(&self, dir: &Path) -> Result<Held<'_>> {
        let slot = self.take(dir)?;
        Ok(Held { worktrees: self, dir: dir.to_owned(), slot })
    }

    /// What is at `dir`, which is busy from now on.
    fn take(&self, dir: &Path) -> Result<Slot> {
        let mut slots = self.lock();
        let slot = slots.get(dir).cloned().ok_or_else(|| unknown(dir))?;
        if matches!(slot, Slot::Busy(..)) {
            return Err(busy(dir));
        }
        let (repository, branch) = slot.branch();
        slots.insert(dir.to_owned(), Slot::Busy(repository.into(), branch.into()));
        Ok(slot)
    }

    /// Unmounts everything, whoever is in it. What is on record stays on record.
    pub fn close_all(&self) {
        for (dir, slot) in self.list() {
            let Slot::Up(up) = slot else { continue };
            let mut is_left = true;
            let done = match up.unmount(false) {
                Err(Failure { kind: Kind::Busy, .. }) => {
                    warn!("{} is in use and vanishes for those who are in it", dir.display());
                    is_left = false;
                    up.unmount(true)
                }
                done => done,
            };
            is_left &= done.is_ok();
            if let Err(failure) = done {
                warn!("{failure}");
            }
            if !up.worktree.is_read_only()
                && let Err(error) = up.worktree.drain()
            {
                // Nothing is lost: the outbox has it.
                warn!("{} is not drained: {error}", dir.display());
            }
            if up.note.is_some() {
                if let Err(error) = gitdir::remove(&up.record.git_dir) {
                    warn!("{error}");
                }
            } else if is_left {
                changed::keep(&up.record.git_dir, &up.worktree);
            }
        }
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That nothing is at `dir`.
pub fn unknown(dir: &Path) -> Failure {
    Failure::new(Kind::NotFound, format!("{} is not a worktree of this store", dir.display()))
        .hint("`agentfs ps` lists the worktrees")
}

/// That somebody has what is at `dir`.
pub fn busy(dir: &Path) -> Failure {
    Failure::new(Kind::Busy, format!("{} is being mounted or unmounted", dir.display()))
        .hint("run the command again in a moment")
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentfs_engine::{BranchNumber, TreeId};

    fn branch(name: &str) -> Branch {
        Branch {
            repository: "r".into(),
            name: name.into(),
            root: TreeId::of(b""),
            root_oid: None,
            commit: None,
            time: 0,
            ingested: false,
            detached: false,
            git: None,
            number: BranchNumber(1),
        }
    }

    #[test]
    fn a_directory_is_taken_by_one_and_free_after_it() {
        let worktrees = Worktrees::default();
        let dir = Path::new("/w");
        let first = worktrees.reserve(dir, &branch("b")).unwrap();
        assert_eq!(worktrees.reserve(dir, &branch("c")).err().unwrap().kind, Kind::Busy);
        assert_eq!(worktrees.holder_of("r", "b").as_deref(), Some(dir));
        assert_eq!(worktrees.close(dir, false).err().unwrap().kind, Kind::Busy);
        drop(first);
        assert_eq!(worktrees.holder_of("r", "b"), None);
        assert_eq!(worktrees.close(dir, false).err().unwrap().kind, Kind::NotFound);
        worktrees.reserve(dir, &branch("c")).unwrap();
    }

    #[test]
    fn what_is_not_mounted_can_be_forgotten() {
        let worktrees = Worktrees::default();
        let dir = Path::new("/w");
        let record = WorktreeRecord {
            dir: dir.into(),
            repository: "r".into(),
            branch: "b".into(),
            read_only: true,
            allow_other: false,
            git_dir: "/r/worktrees/w".into(),
        };
        worktrees.fill(dir, Slot::Down(record.clone(), "gone".into()));
        let failure = worktrees.reserve(dir, &branch("b")).err().unwrap();
        assert_eq!(failure.kind, Kind::InWorktree);
        let closing = worktrees.close(dir, false).unwrap();
        assert_eq!((&closing.record, closing.recorded), (&record, true));
        assert_eq!(worktrees.reserve(dir, &branch("b")).err().unwrap().kind, Kind::Busy);
        drop(closing);
        worktrees.reserve(dir, &branch("b")).unwrap();
    }
}
