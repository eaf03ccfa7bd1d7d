//! How long calls took, and the steps of those that make branches or move worktrees.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentfs_engine::latency::Latency;

/// How long everything took since the daemon started, by name.
#[derive(Default)]
pub struct Laps {
    /// Leaf lock.
    known: Mutex<BTreeMap<String, Arc<Latency>>>,
}

impl Laps {
    /// Counts one `what`, of which there must be few kinds.
    pub fn record(&self, what: &str, took: Duration) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(what) {
            Some(latency) => latency.record(took),
            None => known.entry(what.to_owned()).or_default().record(took),
        }
    }

    /// Begins to measure the steps of `what`.
    pub fn begin(&self, what: &'static str) -> Steps<'_> {
        Steps { laps: self, what, since: Instant::now() }
    }

    /// All, as [`Latency::snapshot`] has it.
    pub fn snapshot(&self) -> BTreeMap<String, Vec<(u64, u64)>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(what, latency)| (what.clone(), latency.snapshot())).collect()
    }
}

/// Something that is done step by step.
pub struct Steps<'a> {
    laps: &'a Laps,
    what: &'static str,
    since: Instant,
}

impl Steps<'_> {
    /// `step` has been done since the last one.
    pub fn done(&mut self, step: &str) {
        let now = Instant::now();
        self.laps.record(&format!("{}: {step}", self.what), now - self.since);
        self.since = now;
    }
}
