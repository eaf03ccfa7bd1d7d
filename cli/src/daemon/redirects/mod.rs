//! Paths of branches whose content lies in native directories of the store: what is built there costs neither
//! messages nor the outbox, and no snapshot has it.
//!
//! [`record`] is what is on record, [`place`] how it appears in a worktree, [`config`] what a tree asks for,
//! [`branch`] what becomes of it with its branch. Recorded first, a redirect appears at the next mount at the
//! latest.

mod branch;
mod calls;
pub mod check;
mod config;
mod place;
mod record;
mod upkeep;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agentfs_engine::BranchNumber;
use agentfs_engine::store::{Branch, WorktreeRecord};
use agentfs_engine::worktree::Worktree;
use agentfs_fuse::Mounted;
use agentfs_gitimport::{exclude, tracked};
use tracing::warn;

pub use branch::{
    forget, forget_snapshot, inherit, of, read_skipped, record_skipped, seed, take_over,
};
pub use calls::{add, list, remove};
pub use upkeep::{clean, clean_in_background, leftovers, sweep, usage};

use crate::daemon::repositories::OpenRepository;
use crate::daemon::state::Daemon;
use crate::daemon::worktrees::Up;
use crate::error::{Failure, Kind, Result};
use crate::layout::Layout;
use crate::protocol::{RedirectStatus, WirePath};
use place::{Found, How, Root, Why};
use record::{Origin, Records, Redirect};

/// The records of a branch.
fn records(layout: &Layout, number: BranchNumber) -> Records {
    Records::new(layout.redirects().join(number.to_string()))
}

/// The redirected paths of a branch, relative to its root.
///
/// # Errors
/// If they cannot be listed.
pub fn paths(layout: &Layout, number: BranchNumber) -> Result<Vec<PathBuf>> {
    let listed = records(layout, number).list()?;
    Ok(listed.redirects.into_iter().map(|one| one.path).collect())
}

/// Whether a branch has redirected paths.
pub fn any(layout: &Layout, number: BranchNumber) -> bool {
    records(layout, number).any()
}

/// The redirected paths of a mounted worktree.
pub struct Held {
    records: Records,
    dir: PathBuf,
    dev: u64,
    read_only: bool,
    /// Whether native directories are mounted; else links lead to them.
    mounts: bool,
    /// The git directory of the repository, if it is the store's: there git is told to ignore links.
    exclude_in: Option<PathBuf>,
    /// Held by whoever is in the worktree, and while it is unmounted. Leaf lock.
    inside: Mutex<()>,
    /// What the tree asks for in vain. Leaf lock.
    notes: Mutex<Vec<String>>,
}

/// Puts the redirected paths of a branch that has just been mounted in their places, and those on record for
/// which its tree asks. What fails is told, and keeps nothing from being mounted.
pub fn apply(
    daemon: &Daemon,
    repository: &OpenRepository,
    branch: &Branch,
    record: &WorktreeRecord,
    worktree: &Worktree,
    mounted: &Mounted,
) -> Held {
    let held = Held {
        records: records(&daemon.layout, branch.number),
        dir: record.dir.clone(),
        dev: mounted.dev(),
        read_only: record.read_only,
        mounts: place::can_mount(daemon.root()),
        exclude_in: (!repository.record.attached).then(|| repository.record.git_dir.clone()),
        inside: Mutex::default(),
        notes: Mutex::default(),
    };
    let mut notes = Vec::new();
    match config::of(worktree) {
        Ok(paths) if !record.read_only => {
            let asked = held.record_asked(daemon, repository, &record.git_dir, &paths);
            notes.extend(asked.unwrap_or_else(|failure| vec![failure.to_string()]));
        }
        Ok(_) => {}
        Err(why) => notes.push(format!("{why}; nothing of it is redirected")),
    }
    for (path, why) in held.set_all() {
        warn!("{}: {path:?} is not redirected: it {why}", record.dir.display());
    }
    for note in &notes {
        warn!("{}: {note}", record.dir.display());
    }
    *held.notes.lock().unwrap_or_else(PoisonError::into_inner) = notes;
    held
}

impl Held {
    /// Does something in the worktree, which this process serves.
    fn within<T: Send>(&self, work: impl FnOnce(&Root) -> T + Send) -> Result<T, Why> {
        // Whoever is in it keeps it from being unmounted.
        let _turn = self.lock();
        self.enter(work)
    }

    /// The same for those who hold the lock.
    fn enter<T: Send>(&self, work: impl FnOnce(&Root) -> T + Send) -> Result<T, Why> {
        let open = || Root::open(&self.dir, self.dev, self.read_only).map(|root| work(&root));
        agentfs_fuse::apart(open).map_err(|error| format!("cannot be reached: {error}"))?
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts those of `paths` on record that are not; why others cannot be.
    fn record_asked(
        &self,
        daemon: &Daemon,
        repository: &OpenRepository,
        git_dir: &Path,
        paths: &[PathBuf],
    ) -> Result<Vec<String>> {
        let mut known: Vec<_> = self.list().into_iter().map(|one| one.path).collect();
        let new: Vec<_> = paths.iter().filter(|path| !known.contains(path)).cloned().collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let _turn = daemon.lock_redirects();
        let tracked = tracked::among(git_dir, repository.record.hash, &new)?;
        let ways =
            self.within(|root| new.iter().map(|path| in_the_way(root, path)).collect::<Vec<_>>());
        let ways = ways.map_err(|why| Failure::new(Kind::Failed, format!("the worktree {why}")))?;
        let mut notes = Vec::new();
        for (path, way) in new.into_iter().zip(ways) {
            let refused = match tracked.contains(&path) {
                true => Some(format!("{path:?} is not redirected: git has files in it")),
                false => config::conflict(&path, &known).or(way),
            };
            match refused {
                Some(why) => notes.push(format!("{}: {why}", config::FILE)),
                None => {
                    self.records.add(&path, Origin::Tree, false, |_| Ok(()))?;
                    known.push(path);
                }
            }
        }
        Ok(notes)
    }

    /// What is on record and can be read.
    fn list(&self) -> Vec<Redirect> {
        match self.records.list() {
            Ok(listed) => listed.redirects,
            Err(failure) => {
                warn!("{failure}");
                Vec::new()
            }
        }
    }

    /// Has everything that is on record appear; why something does not, said of its path.
    pub fn set_all(&self) -> Vec<(PathBuf, Why)> {
        let _turn = self.lock();
        self.set_again()
    }

    fn set_again(&self) -> Vec<(PathBuf, Why)> {
        let redirects = self.list();
        if redirects.is_empty() {
            return Vec::new();
        }
        let set = |root: &Root| {
            let failed =
                |one: &Redirect| self.set(root, one).err().map(|why| (one.path.clone(), why));
            redirects.iter().filter_map(failed).collect()
        };
        self.enter(set).unwrap_or_else(|why| {
            redirects.iter().map(|one| (one.path.clone(), why.clone())).collect()
        })
    }

    fn set(&self, root: &Root, redirect: &Redirect) -> Result<How, Why> {
        let data = self.records.data(redirect.number);
        let how = root.set(&redirect.path, &data, self.mounts, redirect.moving)?;
        if redirect.moving {
            self.records.settle(redirect).map_err(|failure| failure.to_string())?;
        }
        // A pattern for directories alone does not stand for a link.
        if let (How::Link, Some(common_dir)) = (how, &self.exclude_in)
            && let Err(error) = exclude::add(common_dir, &redirect.path)
        {
            warn!("{error}");
        }
        Ok(how)
    }

    /// Takes native directories from sight that are mounted in the worktree, and has `unmount` unmount it.
    ///
    /// # Errors
    /// [`Kind::Busy`] if one is in use, unless `lazy`; what `unmount` meets. All of it then stays.
    pub fn unmount(&self, lazy: bool, unmount: impl FnOnce() -> Result<()>) -> Result<()> {
        let _turn = self.lock();
        // Lazily, what is mounted in it goes with it.
        if lazy || !self.mounts || !self.records.any() {
            return unmount();
        }
        // A worktree that is not there any more has no mounts in it.
        let detached = self.enter(|root| root.detach_all(&self.dir)).unwrap_or(Ok(()));
        let busy = |(path, why): (PathBuf, Why)| {
            Failure::new(Kind::Busy, format!("{} {why}", path.display()))
                .hint("end the processes that work in it, or unmount the worktree with --lazy")
        };
        detached.map_err(busy).and_then(|()| unmount()).inspect_err(|_| {
            self.set_again();
        })
    }

    /// How what is on record appears now.
    pub fn states(&self) -> Vec<(Redirect, RedirectStatus)> {
        let redirects = self.list();
        if redirects.is_empty() {
            return Vec::new();
        }
        let look = |root: &Root, one: &Redirect| match root
            .appears(&one.path, &self.records.data(one.number))?
        {
            Some(how) => Ok(how),
            None => Err(root.find(&one.path)?.in_the_way().to_owned()),
        };
        let all =
            self.within(|root| redirects.iter().map(|one| look(root, one)).collect::<Vec<_>>());
        let all = all.unwrap_or_else(|why| redirects.iter().map(|_| Err(why.clone())).collect());
        let state = |(one, appears): (Redirect, Result<How, Why>)| {
            let (appears, why) = match appears {
                Ok(how) => (Some(how.name().to_owned()), None),
                Err(why) => (None, Some(why)),
            };
            let path = one.path.as_path().into();
            (one, RedirectStatus { path, appears, why })
        };
        redirects.into_iter().zip(all).map(state).collect()
    }

    /// The native directories to which links in the worktree lead.
    pub fn linked(&self) -> Vec<PathBuf> {
        let states = self.states().into_iter();
        let linked =
            states.filter(|(_, status)| status.appears.as_deref() == Some(How::Link.name()));
        linked.map(|(one, _)| self.records.data(one.number)).collect()
    }

    /// What the tree asked for in vain when it was mounted.
    pub fn asked_in_vain(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the user should know of it: what the tree asks for in vain, and what does not appear.
    pub fn notes(&self) -> Vec<String> {
        let asked = self.asked_in_vain();
        let missing = self.states().into_iter().filter_map(|(one, status)| {
            status.why.map(|why| format!("{:?} is redirected, but {why}", one.path))
        });
        asked.into_iter().chain(missing).collect()
    }
}

/// Has everything appear again after what it was on has been changed: what is redirected in the branch, and why
/// some of it does not appear.
pub fn after_change(
    daemon: &Daemon,
    number: BranchNumber,
    up: Option<&Up>,
) -> (Vec<WirePath>, Vec<String>) {
    let notes = up.map_or_else(Vec::new, |up| {
        let failed = up.redirects.set_all().into_iter();
        failed.map(|(path, why)| format!("{path:?} is redirected, but {why}")).collect()
    });
    let known = records(&daemon.layout, number).list().unwrap_or_default().redirects;
    (known.into_iter().map(|one| WirePath(one.path)).collect(), notes)
}

/// Why nothing can be redirected at `path`, if so.
fn in_the_way(root: &Root, path: &Path) -> Option<String> {
    let why = match root.find(path) {
        Ok(Found::Nothing | Found::Empty | Found::OurLink) => return None,
        Ok(found) => found.in_the_way().to_owned(),
        Err(why) => why,
    };
    Some(format!("{path:?} is not redirected: it {why}"))
}
