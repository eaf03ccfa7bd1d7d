//! A worktree on a storage that can lose power, with every state that its model has gone through.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::op::{Op, Outcome};
use super::view::assert_orphan;
use super::{Model, Step, View};
use crate::error::Result;
use crate::testing::FaultyStorage;
use crate::worktree::fixture::{dir, open};
use crate::worktree::{Drained, Worktree};

/// What was done to a worktree, and what it was after each operation.
pub(in crate::worktree) struct History {
    pub(super) storage: FaultyStorage,
    /// `None` only while it is opened again.
    worktree: Option<Arc<Worktree>>,
    /// The states, oldest first; never empty.
    states: Vec<Model>,
    /// The last state that is known to survive a power failure.
    synced: usize,
}

impl History {
    /// A fresh worktree on `storage`.
    pub(in crate::worktree) fn begin(storage: FaultyStorage) -> Result<Self> {
        let worktree = open(Arc::new(storage.clone()), &dir())?;
        let states = vec![Model::of_base(&worktree)];
        Ok(Self { storage, worktree: Some(worktree), states, synced: 0 })
    }

    pub(in crate::worktree) fn worktree(&self) -> &Arc<Worktree> {
        self.worktree.as_ref().expect("it was opened again")
    }

    /// The state as it should be now.
    pub(in crate::worktree) fn now(&self) -> &Model {
        self.states.last().expect("there is a first state")
    }

    /// Does `op`; `None` if it is refused, as it should be.
    ///
    /// # Errors
    /// Those of the device.
    pub(in crate::worktree) fn perform(&mut self, op: &Op) -> Result<Option<Outcome>> {
        let mut state = self.now().clone();
        let outcome = state.perform(self.worktree(), op)?;
        self.states.push(state);
        Ok(outcome)
    }

    /// Does `step`.
    ///
    /// # Errors
    /// Those of the device.
    ///
    /// # Panics
    /// If something is not as the model says.
    pub(in crate::worktree) fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Op(kind, dice) => {
                let op = self.now().choose(*kind, dice.clone());
                self.perform(&op)?;
            }
            Step::Sync => self.sync()?,
            Step::Drain => drop(self.drain()?),
            Step::DrainDuring(ops) => {
                let ops = ops.clone();
                self.drain_during(move |history| {
                    ops.into_iter().try_for_each(|(kind, dice)| {
                        let op = history.now().choose(kind, dice);
                        history.perform(&op).map(drop)
                    })
                })?;
            }
            Step::Restart => self.restart()?,
            Step::Crash(seed) => match self.after_crash(*seed) {
                Ok(crashed) => *self = crashed,
                Err(why) => panic!("after a crash with seed {seed}: {why}"),
            },
        }
        Ok(())
    }

    pub(in crate::worktree) fn sync(&mut self) -> Result<()> {
        self.worktree().sync()?;
        self.synced = self.states.len() - 1;
        Ok(())
    }

    pub(in crate::worktree) fn drain(&mut self) -> Result<Drained> {
        let drained = self.worktree().drain()?;
        self.synced = self.states.len() - 1;
        Ok(drained)
    }

    /// Drains, and does `meanwhile` when the drain first reads fresh bytes: after it was begun and
    /// before it has copied everything. If it reads none, afterwards. Only what was done before is
    /// known to be durable then.
    pub(in crate::worktree) fn drain_during(
        &mut self,
        meanwhile: impl FnOnce(&mut Self) -> Result<()> + Send + 'static,
    ) -> Result<Drained> {
        let begun_at = self.states.len() - 1;
        let inside = Self {
            storage: self.storage.clone(),
            worktree: self.worktree.clone(),
            states: mem::take(&mut self.states),
            synced: self.synced,
        };
        let shared = Arc::new(Mutex::new((inside, Some(meanwhile), Ok(()))));
        let hook = Arc::clone(&shared);
        self.storage.at_next_read(".obx", move || {
            let (inside, meanwhile, result) = &mut *lock(&hook);
            if let Some(meanwhile) = meanwhile.take() {
                *result = meanwhile(inside);
            }
        });
        let drained = self.worktree().drain();
        self.storage.forget_hooks();
        let (inside, meanwhile, result) = &mut *lock(&shared);
        self.states = mem::take(&mut inside.states);
        self.synced = inside.synced;
        drop(inside.worktree.take());
        if drained.is_ok() {
            self.synced = self.synced.max(begun_at);
        }
        let result = match meanwhile.take() {
            Some(meanwhile) => meanwhile(self),
            None => mem::replace(result, Ok(())),
        };
        result.and(drained)
    }

    /// Closes the worktree, whatever the model thinks of it, and opens it again.
    pub(in crate::worktree) fn reopen(&mut self) -> Result<()> {
        drop(self.worktree.take());
        self.worktree = Some(open(Arc::new(self.storage.clone()), &dir())?);
        Ok(())
    }

    /// Ends and begins anew, as after a kill: everything acknowledged is there.
    pub(in crate::worktree) fn restart(&mut self) -> Result<()> {
        self.reopen()?;
        let mut state = self.now().clone();
        state.restart();
        self.states.push(state);
        Ok(())
    }

    /// Compares all that can be seen with what should be.
    ///
    /// # Panics
    /// If they differ.
    pub(in crate::worktree) fn compare(&self) {
        assert_eq!(self.differs(), Ok(()));
        if let Ok(live) = self.worktree().live() {
            live.changes.read().assert_orphans();
        }
        for ino in self.now().orphans() {
            assert_orphan(self.worktree(), self.now(), ino);
        }
    }

    pub(super) fn differs(&self) -> Result<(), String> {
        let seen = View::of(self.worktree()).map_err(|error| format!("unreadable: {error}"))?;
        let expected = View::expected(self.now());
        match seen == expected {
            true => Ok(()),
            false => Err(format!("seen and expected: {}", seen.difference(&expected))),
        }
    }

    /// What a machine finds when it starts again after its power failed now: the worktree is as it
    /// was at some moment that is not before the last sync. Why not, otherwise.
    pub(in crate::worktree) fn after_crash(&self, seed: u64) -> Result<Self, String> {
        self.survives(self.storage.after_crash(seed))
    }

    /// [`Self::after_crash`] when `storage` is what was left.
    pub(in crate::worktree) fn survives(&self, storage: FaultyStorage) -> Result<Self, String> {
        let opened = open(Arc::new(storage.clone()), &dir());
        let worktree = opened.map_err(|error| format!("it does not open: {error}"))?;
        let seen = View::of(&worktree).map_err(|error| format!("it cannot be read: {error}"))?;
        let survived = &self.states[self.synced..];
        // Where two moments look the same, the earlier one demands less of what comes.
        let Some(state) = survived.iter().find(|state| View::expected(state) == seen) else {
            let earlier = self.states[..self.synced].iter();
            let earlier = earlier.rev().position(|state| View::expected(state) == seen);
            return Err(match earlier {
                Some(back) => format!("it is {} steps before the last sync", back + 1),
                None => {
                    let difference = seen.difference(&View::expected(self.now()));
                    format!("it is as it never was; from the last state it differs in {difference}")
                }
            });
        };
        let mut state = state.clone();
        state.restart();
        Ok(Self { storage, worktree: Some(worktree), states: vec![state], synced: 0 })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
