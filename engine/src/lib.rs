//! The storage engine of agentfs: content-addressed chunks, immutable trees, and the meaning of
//! every worktree operation.
//!
//! Invariants of this crate, which its users rely on:
//!
//! - It knows no git: objects of a repository reach it through [`source::ObjectSource`].
//! - It knows no kernel: a worktree is a value with methods, testable without a mount.
//! - It does no terminal input or output and reads no environment variable.
//! - Only [`store`] knows redb.
//! - Bytes that come from disk or from a source are input, never trusted: they are checked before
//!   they are computed with, and a failed check is an [`Error`], never a panic.

pub mod base;
pub mod check;
mod chunker;
pub mod content;
pub mod drainer;
mod encoding;
pub mod error;
mod fields;
pub mod gc;
pub mod id;
pub mod latency;
pub mod limits;
pub mod outbox;
mod overlay;
pub mod progress;
pub mod repair;
pub mod source;
pub mod storage;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tree;
pub mod worktree;

pub use error::{Denial, Error, Result};
pub use id::{
    BranchNumber, ChunkId, ContentId, GitOid, HashKind, Ino, LayerNumber, Sequence, TreeId,
};
