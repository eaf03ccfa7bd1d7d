//! Git repositories for agentfs: their objects on the way into the store, and the metadata that
//! git itself needs to work in a worktree.
//!
//! Invariants of this crate, which its users rely on:
//!
//! - It is the only one that knows gix and the layout of a git directory.
//! - Objects come from strangers. Sizes are compared with limits before memory is taken for them,
//!   every object is hashed before a byte of it is used, and no input causes a panic.
//! - Memory is bounded by [`limits`], whatever the repository holds. Nothing of a repository is
//!   mapped into memory: a file that another process truncates costs an error, not a signal.
//! - It reads no environment variable of its own accord and does no terminal input or output.

pub mod attach;
mod attributes;
mod branches;
pub mod convert;
pub mod error;
pub mod examine;
pub mod exclude;
pub mod exclusive;
pub mod fetch;
mod files;
#[cfg(test)]
mod forge;
pub mod gitdir;
#[cfg(test)]
mod gittest;
mod incoming;
pub mod index;
mod index_entries;
mod lane;
mod layout;
pub mod limits;
mod local;
mod locate;
pub mod mend;
pub mod monitor;
pub mod names;
mod object;
pub mod odb;
pub mod pipeline;
pub mod racy;
mod references;
mod reflog;
mod rename;
mod replace;
pub mod repository;
pub mod saved;
pub mod shared;
pub mod source;
pub mod state;
pub mod switch;
mod template;
pub mod tracked;
mod transport;
mod tree;
pub mod verify;
pub mod walk;

pub use error::{Error, Result};
