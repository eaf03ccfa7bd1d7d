//! How long calls took, and their steps.
//!
//! Whoever does something step by step says so ([`Steps::done`]), wherever that is. A call runs on one thread, so what was
//! done for it is what was said on that thread meanwhile ([`observed`]).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentfs_engine::latency::Latency;

use crate::protocol::StepDone;

/// Most steps that are told of a call.
const STEPS_MAX: usize = 256;

thread_local! {
    /// What was done on this thread for the call that runs on it.
    static DONE: RefCell<Option<Done>> = const { RefCell::new(None) };
}

struct Done {
    since: Instant,
    steps: Vec<StepDone>,
}

/// Does `work`, and says what steps were taken on this thread meanwhile.
pub fn observed<T>(work: impl FnOnce() -> T) -> (T, Vec<StepDone>) {
    DONE.set(Some(Done { since: Instant::now(), steps: Vec::new() }));
    let result = work();
    let done = DONE.take();
    (result, done.map(|done| done.steps).unwrap_or_default())
}

/// A step, taken so long after the work was begun.
pub fn step(step: &str, after: Duration) -> StepDone {
    StepDone { step: step.to_owned(), micros: u64::try_from(after.as_micros()).unwrap_or(u64::MAX) }
}

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
        let name = format!("{}: {step}", self.what);
        self.laps.record(&name, now - self.since);
        self.since = now;
        DONE.with_borrow_mut(|done| {
            if let Some(done) = done.as_mut().filter(|done| done.steps.len() < STEPS_MAX) {
                done.steps.push(self::step(&name, now - done.since));
            }
        });
    }

    /// What comes now is not a part of the next step.
    pub fn skip(&mut self) {
        self.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_for_a_call_is_what_is_done_on_its_thread_meanwhile() {
        let laps = Laps::default();
        laps.begin("outside").done("before");
        let pause = Duration::from_millis(2);
        let ((), steps) = observed(|| {
            let mut outer = laps.begin("outer");
            std::thread::sleep(pause);
            outer.done("first");
            let mut inner = laps.begin("inner");
            std::thread::sleep(pause);
            inner.done("second");
            std::thread::scope(|scope| {
                scope.spawn(|| laps.begin("other").done("thread"));
            });
            outer.done("third");
        });
        laps.begin("outside").done("after");
        let names: Vec<_> = steps.iter().map(|one| one.step.as_str()).collect();
        assert_eq!(names, ["outer: first", "inner: second", "outer: third"]);
        let at = |number: usize| Duration::from_micros(steps[number].micros);
        assert!(at(0) >= pause && at(1) >= at(0) + pause && at(2) >= at(1), "{steps:?}");
        assert_eq!(laps.snapshot().len(), 6);
        let ((), many) = observed(|| (0..1000).for_each(|_| laps.begin("many").done("steps")));
        assert_eq!(many.len(), STEPS_MAX);
    }
}
