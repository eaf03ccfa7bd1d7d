//! Taking content into the store in the background, one branch after the other.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use agentfs_engine::progress::{Cancel, Phase};
use agentfs_engine::store::{Branch, Store};
use agentfs_gitimport::pipeline;
use agentfs_gitimport::walk::ImportedTrees;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::daemon::repositories::Repositories;
use crate::error::{Failure, Kind, Result};
use crate::progress::Meter;
use crate::protocol::PhaseProgress;

/// A branch by repository and name.
type Key = (String, String);

/// A branch whose content is being taken in, or waits for it.
pub struct Job {
    branch: Branch,
    /// What its import has read; nothing of one that a former daemon has imported.
    trees: ImportedTrees,
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
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Arc<Job>>,
    running: Option<Arc<Job>>,
    failed: HashMap<Key, String>,
    /// Whether the thread has been started; it is when there is work for the first time.
    started: bool,
    stopping: bool,
}

impl Ingest {
    /// An empty queue.
    pub fn new(store: Arc<Store>, repositories: Arc<Repositories>) -> Arc<Self> {
        let state = Mutex::default();
        Arc::new(Self { store, repositories, state, changed: Condvar::new() })
    }

    /// Puts `branch` in the queue, if it is not in it.
    pub fn enqueue(self: &Arc<Self>, branch: &Branch, trees: ImportedTrees) -> Arc<Job> {
        let mut state = self.lock();
        let same = |job: &&Arc<Job>| job.branch == *branch && !job.cancel.is_cancelled();
        if let Some(job) = state.running.iter().chain(&state.waiting).find(same) {
            return Arc::clone(job);
        }
        let job = Arc::new(Job {
            branch: branch.clone(),
            trees,
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
        let state = self.lock();
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
        loop {
            let job = {
                let mut state = self.lock();
                loop {
                    if state.stopping {
                        return;
                    }
                    if let Some(job) = state.waiting.pop_front() {
                        state.running = Some(Arc::clone(&job));
                        break job;
                    }
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            let result = self.take_in(&job);
            let mut state = self.lock();
            state.running = None;
            if let Err(failure) = &result
                && failure.kind != Kind::Cancelled
            {
                let (repository, name) = job.key();
                warn!("ingest of {repository}@{name} failed: {failure}");
                state.failed.insert((repository, name), failure.message.clone());
            }
            self.changed.notify_all();
            drop(state);
            job.end.send_replace(Some(result));
        }
    }

    fn take_in(&self, job: &Job) -> Result<()> {
        let Branch { repository, name, root, .. } = &job.branch;
        job.cancel.check()?;
        let open = self.repositories.get(&self.store, repository)?;
        let (git, meter) = (open.git()?, job.meter.as_ref());
        let report = pipeline::ingest(&self.store, &git, *root, &job.trees, meter, &job.cancel)?;
        info!("ingested {repository}@{name}: {report:?}");
        open.contents(job.branch.root_oid).trim();
        let mut batch = self.store.batch()?;
        // Removed or moved meanwhile: then it is not this tree that is complete.
        if self.store.branch(repository, name)?.as_ref() == Some(&job.branch) {
            batch.put_branch(&Branch { ingested: true, ..job.branch.clone() });
        }
        Ok(batch.commit()?)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
