//! How long-running work tells what it does, and how it is told to stop.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// A stage of long-running work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Objects are brought into a repository of the store.
    Fetch,
    /// Git trees are turned into directory objects.
    Trees,
    /// Blobs are turned into chunks.
    Ingest,
    /// Stored data is verified.
    Check,
    /// What can still be reached is marked.
    Mark,
    /// What cannot is removed.
    Sweep,
    /// What is left of segment files is moved together.
    Compact,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fetch => "fetch",
            Self::Trees => "trees",
            Self::Ingest => "ingest",
            Self::Check => "check",
            Self::Mark => "mark",
            Self::Sweep => "sweep",
            Self::Compact => "compact",
        })
    }
}

/// Receives the progress of long-running work. It is called from many threads at once and must be
/// cheap: workers call it for every object.
pub trait Progress: Send + Sync {
    /// `phase` starts, with its totals where they are known.
    fn begin(&self, phase: Phase, objects: Option<u64>, bytes: Option<u64>);

    /// So much more of `phase` is done.
    fn advance(&self, phase: Phase, objects: u64, bytes: u64);

    /// `phase` is over, finished or not.
    fn end(&self, phase: Phase);
}

/// Progress that nobody wants to see.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: Phase, _: Option<u64>, _: Option<u64>) {}

    fn advance(&self, _: Phase, _: u64, _: u64) {}

    fn end(&self, _: Phase) {}
}

/// A request to stop, shared by whoever makes it and the work that looks at it. Clones are one
/// request.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the work to stop. There is no way back.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Lets work stop at a `?`.
    ///
    /// # Errors
    /// [`Error::Cancelled`] once [`Cancel::cancel`] was called.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelling_one_clone_cancels_all() {
        let cancel = Cancel::default();
        let clone = cancel.clone();
        assert!(clone.check().is_ok());
        cancel.cancel();
        assert!(clone.is_cancelled());
        assert!(matches!(clone.check(), Err(Error::Cancelled)));
    }
}
