//! What gix counts while it fetches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gix::odb::pack::bundle::write::ProgressId as BundleProgress;
use gix::odb::pack::index::write::ProgressId as IndexProgress;
use gix::progress::{Id, MessageLevel, Step, StepShared, Unit};

/// What gix has counted so far.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Bytes of packs received.
    pub(super) bytes: StepShared,
    /// Objects found in them.
    pub(super) objects: StepShared,
    /// Whether gix is to stop.
    pub(super) stop: AtomicBool,
}

/// The part of gix's tree of progresses that counts.
pub(super) struct Reporter {
    bytes: StepShared,
    objects: StepShared,
    step: StepShared,
    id: Id,
}

impl Reporter {
    pub(super) fn new(counters: &Counters) -> Self {
        Self {
            bytes: Arc::clone(&counters.bytes),
            objects: Arc::clone(&counters.objects),
            step: StepShared::default(),
            id: gix::progress::UNKNOWN,
        }
    }
}

impl gix::Count for Reporter {
    fn set(&self, step: Step) {
        self.step.store(step, Ordering::Relaxed);
    }

    fn step(&self) -> Step {
        self.step.load(Ordering::Relaxed)
    }

    fn inc_by(&self, step: Step) {
        self.step.fetch_add(step, Ordering::Relaxed);
    }

    fn counter(&self) -> StepShared {
        Arc::clone(&self.step)
    }
}

impl gix::Progress for Reporter {
    fn init(&mut self, _: Option<Step>, _: Option<Unit>) {}

    fn set_name(&mut self, _: String) {}

    fn name(&self) -> Option<String> {
        None
    }

    fn id(&self) -> Id {
        self.id
    }

    fn message(&self, level: MessageLevel, message: String) {
        tracing::debug!(?level, "{message}");
    }
}

impl gix::NestedProgress for Reporter {
    type SubProgress = Self;

    fn add_child(&mut self, name: impl Into<String>) -> Self {
        self.add_child_with_id(name, gix::progress::UNKNOWN)
    }

    fn add_child_with_id(&mut self, _: impl Into<String>, id: Id) -> Self {
        let step = if id == Id::from(BundleProgress::ReadPackBytes) {
            Arc::clone(&self.bytes)
        } else if id == Id::from(IndexProgress::IndexObjects) {
            Arc::clone(&self.objects)
        } else {
            StepShared::default()
        };
        Self { bytes: Arc::clone(&self.bytes), objects: Arc::clone(&self.objects), step, id }
    }
}
