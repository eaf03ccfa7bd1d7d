//! What the daemon has done of a call, step by step.

use serde::{Deserialize, Serialize};

/// The steps that were taken for a call whose parameters have `"steps": true`. It comes before the answer, more than once if
/// the call goes on afterwards.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Steps {
    /// The id of the call.
    pub call: crate::wire::Id,
    /// Those that were taken since the last such message, in their order.
    pub steps: Vec<StepDone>,
}

/// A step that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepDone {
    /// What was done: `fork: seal`.
    pub step: String,
    /// When it was done, in microseconds since the daemon began with the call.
    pub micros: u64,
}
