//! Who writes which outbox: at most one at a time, or each would take the other's records for damage.
//!
//! The store keeps other processes out, so it is enough to ask within this one. A mount that was taken
//! from sight lives as long as somebody is in it, and its branch with it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::id::BranchNumber;

/// The branches that are taken.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Leaf lock.
    taken: Mutex<HashSet<BranchNumber>>,
}

/// A branch that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: Arc<Claims>,
    branch: BranchNumber,
}

impl Claims {
    /// Takes `branch`; `None` if somebody has it.
    pub(super) fn take(claims: &Arc<Self>, branch: BranchNumber) -> Option<Claim> {
        let new = claims.lock().insert(branch);
        new.then(|| Claim { claims: Arc::clone(claims), branch })
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<BranchNumber>> {
        // A set is whole between two calls of its methods.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.lock().remove(&self.branch);
    }
}
