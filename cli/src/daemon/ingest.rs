//! Taking content into the store in the background, one branch after the other, and making durable
//! what git keeps of it. What finds the disk full goes on when there is room.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use agentfs_engine::progress::{Cancel, Phase};
use agentfs_engine::store::{Branch, Store, WorktreeRecord};
use agentfs_gitimport::walk::ImportedTrees;
use agentfs_gitimport::{fetch, gitdir, pipeline};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::daemon::memory;
use crate::daemon::repositories::Repositories;
use crate::error::{Failure, Kind, Result};
use crate::progress::Meter;
use crate::protocol::PhaseProgress;

/// How often room is looked for while a branch waits for it.
const LOOK: Duration = Duration::from_secs(1);
/// A branch that found no room is tried again when there are so many bytes more.
const ROOM_STEP: u64 = 4 << 20;
/// It is tried again after this time in any case: a quota does not show in the room there is.
const RETRY: Duration = Duration::from_secs(60);

/// A branch by repository and name.
type Key = (String, String);

/// A branch whose content is being taken in, or waits for it.
pub struct Job {
    branch: Branch,
    /// What its import has read; nothing of one that a former daemon has imported.
    trees: Arc<ImportedTrees>,
    /// How far it is.
    pub meter: Arc<Meter>,
    cancel: Cancel,
    end: watch::Sender<Option<Result<()>>>,
}

impl Job {
    /// Waits until it is over.
    ///
    /// # Errors
    /// What it has met.
    pub async fn ended(self: Arc<Self>) -> Result<()> {
        let mut end = self.end.subscribe();
        let end = end.wait_for(Option::is_some).await.map(|end| end.clone());
        end.ok().flatten().unwrap_or_else(|| Err(Failure::new(Kind::Cancelled, "cancelled")))
    }

    /// The same job, not ended.
    fn again(&self) -> Self {
        Self {
            branch: self.branch.clone(),
            trees: Arc::clone(&self.trees),
            meter: Arc::default(),
            cancel: self.cancel.clone(),
            end: watch::Sender::new(None),
        }
    }

    fn key(&self) -> Key {
        (self.branch.repository.clone(), self.branch.name.clone())
    }
}

/// The queue of branches and the thread that works on it.
pub struct Ingest {
    store: Arc<Store>,
    repositories: Arc<Repositories>,
    /// Leaf lock.
    state: Mutex<State>,
    changed: Condvar,
    synced: AtomicU64,
}

/// A branch for which the store had no room.
struct Stalled {
    job: Arc<Job>,
    /// Room when that was found, in bytes.
    room: u64,
    since: Instant,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Arc<Job>>,
    running: Option<Arc<Job>>,
    stalled: Vec<Stalled>,
    failed: HashMap<Key, String>,
    /// Whether the thread has been started; it is when there is work for the first time.
    started: bool,
    stopping: bool,
}

impl State {
    /// Puts those in the queue again for which there may be room now.
    fn revive(&mut self, room: u64) {
        let may_fit = |stalled: &mut Stalled| {
            room >= stalled.room.saturating_add(ROOM_STEP) || stalled.since.elapsed() >= RETRY
        };
        let revived = self.stalled.extract_if(.., may_fit).map(|stalled| stalled.job);
        self.waiting.extend(revived.filter(|job| !job.cancel.is_cancelled()));
    }

    /// Forgets that there was no room for a branch that is removed, or asked for anew.
    fn give_up_stalled(&mut self, repository: &str, name: &str) {
        self.stalled.retain(|Stalled { job, .. }| {
            job.branch.repository != repository || job.branch.name != name
        });
    }
}

impl Ingest {
    /// An empty queue.
    pub fn new(store: Arc<Store>, repositories: Arc<Repositories>) -> Arc<Self> {
        let (state, synced) = (Mutex::default(), AtomicU64::new(0));
        Arc::new(Self { store, repositories, state, changed: Condvar::new(), synced })
    }

    /// Puts `branch` in the queue, if it is not in it. One whose content is in the store has its git
    /// directories made durable.
    pub fn enqueue(self: &Arc<Self>, branch: &Branch, trees: ImportedTrees) -> Arc<Job> {
        let mut state = self.lock();
        state.give_up_stalled(&branch.repository, &branch.name);
        let same = |job: &&Arc<Job>| job.branch == *branch && !job.cancel.is_cancelled();
        if let Some(job) = state.running.iter().chain(&state.waiting).find(same) {
            return Arc::clone(job);
        }
        let job = Arc::new(Job {
            branch: branch.clone(),
            trees: Arc::new(trees),
            meter: Arc::default(),
            cancel: Cancel::default(),
            end: watch::Sender::new(None),
        });
        state.failed.remove(&job.key());
        state.waiting.push_back(Arc::clone(&job));
        if !state.started {
            let ingest = Arc::clone(self);
            let thread = thread::Builder::new().name("agentfs-ingest".into());
            match thread.spawn(move || ingest.work()) {
                Ok(_) => state.started = true,
                Err(error) => warn!("cannot start the ingest: {error}"),
            }
        }
        self.changed.notify_all();
        job
    }

    /// How far branch `name` of `repository` is, if it is being taken in, and why the last attempt
    /// failed.
    pub fn of(&self, repository: &str, name: &str) -> (Option<PhaseProgress>, Option<String>) {
        let state = self.lock();
        let key = (repository.to_owned(), name.to_owned());
        let ingest = Phase::Ingest.to_string();
        let running = state.running.as_ref().filter(|job| job.key() == key);
        let progress = running
            .and_then(|job| job.meter.read().into_iter().find(|progress| progress.phase == ingest));
        (progress, state.failed.get(&key).cloned())
    }

    /// Takes branch `name` of `repository` out of the queue.
    pub fn cancel(&self, repository: &str, name: &str) {
        let mut state = self.lock();
        state.give_up_stalled(repository, name);
        let jobs = state.running.iter().chain(&state.waiting);
        let same = |job: &&Arc<Job>| job.branch.repository == repository && job.branch.name == name;
        jobs.filter(same).for_each(|job| job.cancel.cancel());
    }

    /// Cancels everything and waits until nothing runs any more.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        state.running.iter().chain(&state.waiting).for_each(|job| job.cancel.cancel());
        self.changed.notify_all();
        while state.running.is_some() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            // What the import of its trees and the making of an index have freed.
            memory::give_back();
            let result = self.take_in(&job);
            memory::give_back();
            let room = self.room();
            let mut state = self.lock();
            state.running = None;
            if let Err(failure) = &result
                && failure.kind != Kind::Cancelled
            {
                let (repository, name) = job.key();
                warn!("ingest of {repository}@{name} failed: {failure}");
                if failure.kind == Kind::StoreFull {
                    let (job, since) = (Arc::new(job.again()), Instant::now());
                    state.stalled.push(Stalled { job, room, since });
                }
                state.failed.insert((repository, name), failure.message.clone());
            }
            self.changed.notify_all();
            drop(state);
            job.end.send_replace(Some(result));
        }
    }

    /// Waits for the next job; `None` at the end.
    fn next(&self) -> Option<Arc<Job>> {
        loop {
            let room = self.room();
            let mut state = self.lock();
            if state.stopping {
                return None;
            }
            state.revive(room);
            if let Some(job) = state.waiting.pop_front() {
                state.running = Some(Arc::clone(&job));
                state.failed.remove(&job.key());
                return Some(job);
            }
            // Nobody tells of room: it has to be looked for.
            let limit = if state.stalled.is_empty() { Duration::MAX } else { LOOK };
            drop(self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Bytes that can be written to the file system of the store.
    fn room(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.store.dir());
        stat.map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Files and directories of git directories that were made durable.
    pub fn synced(&self) -> u64 {
        self.synced.load(Ordering::Relaxed)
    }

    fn take_in(&self, job: &Job) -> Result<()> {
        let Branch { repository, name, root, .. } = &job.branch;
        job.cancel.check()?;
        let open = self.repositories.get(&self.store, repository)?;
        if job.branch.ingested {
            return self.sync_git_directories(&job.branch);
        }
        let (git, meter) = (open.git()?, job.meter.as_ref());
        let report = pipeline::ingest(&self.store, &git, *root, &job.trees, meter, &job.cancel)?;
        info!("ingested {repository}@{name}: {report:?}");
        open.contents(job.branch.root_oid).trim();
        let is_durable = |other: &Branch| other.repository == *repository && other.ingested;
        if open.record.attached || self.store.branches()?.iter().any(is_durable) {
            self.sync_git_directories(&job.branch)?;
        } else {
            self.count(fetch::sync(&open.record.git_dir)?);
        }
        let mut batch = self.store.batch()?;
        // Removed or moved meanwhile: then it is not this tree that is complete.
        if self.store.branch(repository, name)?.as_ref() == Some(&job.branch) {
            batch.put_branch(&Branch { ingested: true, ..job.branch.clone() });
        }
        Ok(batch.commit()?)
    }

    /// Makes the git directories of the worktrees of `branch` durable.
    fn sync_git_directories(&self, branch: &Branch) -> Result<()> {
        let of_branch = |worktree: &WorktreeRecord| {
            worktree.repository == branch.repository && worktree.branch == branch.name
        };
        for worktree in self.store.worktrees()?.into_iter().filter(of_branch) {
            self.count(gitdir::sync(&worktree.git_dir)?);
        }
        Ok(())
    }

    fn count(&self, synced: u64) {
        self.synced.fetch_add(synced, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
