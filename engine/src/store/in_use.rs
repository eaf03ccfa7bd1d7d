//! What is in use: chunks that something in memory names, and the store while it is looked after.

use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use super::Store;
use crate::id::ChunkId;

/// Something in memory that names chunks, also such that no row of the store names any more.
pub(crate) trait InUse: std::fmt::Debug + Send + Sync {
    /// Calls `visit` for each of them.
    fn chunks(&self, visit: &mut dyn FnMut(ChunkId));
}

/// That a check or a garbage collection is under way.
#[derive(Debug)]
pub struct Upkeep<'s>(#[expect(dead_code, reason = "held for its drop")] MutexGuard<'s, ()>);

impl Store {
    /// Notes that the chunks of `used` are in use as long as it lives.
    pub(crate) fn note_use(&self, used: &Arc<impl InUse + 'static>) {
        let used = Arc::downgrade(used) as Weak<dyn InUse>;
        let mut all = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.strong_count() > 0);
        all.push(used);
    }

    /// What is in use.
    pub(crate) fn in_use(&self) -> Vec<Arc<dyn InUse>> {
        let all = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).collect()
    }

    /// Keeps other work from the store that needs it to stay as it is, or changes where things lie:
    /// a check and a garbage collection are not at the same time.
    pub fn upkeep(&self) -> Upkeep<'_> {
        Upkeep(self.core.upkeep.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
