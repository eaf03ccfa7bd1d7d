//! When worktrees are drained: in the background, when enough was written or some time has passed.
//!
//! One thread serves all worktrees of a store. It sleeps until one of them has something to drain,
//! and it ends with its [`Drainer`].

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::limits::OUTBOX_DRAIN_BYTES;
use crate::worktree::Worktree;

/// How long a change stays in the outbox before it is drained: long enough that what a build writes
/// and deletes at once costs nothing, short enough that an outbox stays small.
const AGE: Duration = Duration::from_secs(5);
/// How long to wait after a drain that failed.
const RETRY: Duration = Duration::from_secs(5);
/// How often the outboxes that grow are looked at.
const TICK: Duration = Duration::from_millis(250);

/// Drains worktrees in the background as long as it lives.
#[derive(Default)]
pub struct Drainer {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Leaf lock.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    watched: Vec<Watched>,
    started: bool,
    stopping: bool,
}

struct Watched {
    worktree: Weak<Worktree>,
    /// Since when it has something to drain.
    since: Option<Instant>,
}

impl Drainer {
    /// Drains `worktree` from now on, as long as anybody else has it.
    pub fn watch(&self, worktree: &Arc<Worktree>) {
        if worktree.is_read_only() {
            return;
        }
        let mut state = self.shared.lock();
        state.watched.push(Watched { worktree: Arc::downgrade(worktree), since: None });
        let shared = Arc::downgrade(&self.shared);
        worktree.on_dirty(move || {
            if let Some(shared) = shared.upgrade() {
                // Under the lock, or a thread that is about to wait would miss it.
                let _state = shared.lock();
                shared.changed.notify_all();
            }
        });
        if !state.started {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new().name("agentfs-drain".into());
            match thread.spawn(move || shared.work()) {
                Ok(_) => state.started = true,
                Err(error) => warn!("cannot start the drain: {error}"),
            }
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.lock();
        while !state.stopping {
            let now = Instant::now();
            state.watched.retain(|watched| watched.worktree.strong_count() > 0);
            let mut due = Vec::new();
            let mut waiting = false;
            for watched in &mut state.watched {
                let Some(worktree) = watched.worktree.upgrade() else { continue };
                if !worktree.is_dirty() {
                    watched.since = None;
                    continue;
                }
                let since = *watched.since.get_or_insert(now);
                if now.duration_since(since) >= AGE || worktree.outbox_bytes() >= OUTBOX_DRAIN_BYTES
                {
                    watched.since = None;
                    due.push(worktree);
                }
                waiting = true;
            }
            if due.is_empty() {
                state = if waiting {
                    let waited = self.changed.wait_timeout(state, TICK);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                } else {
                    self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
                };
                continue;
            }
            drop(state);
            let failed = due.iter().any(|worktree| match worktree.drain() {
                Ok(_) => false,
                Err(error) => {
                    warn!("a drain failed, nothing is lost: {error}");
                    true
                }
            });
            drop(due);
            state = self.lock();
            if failed && !state.stopping {
                let waited = self.changed.wait_timeout(state, RETRY);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
