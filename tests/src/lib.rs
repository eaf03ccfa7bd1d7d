//! What the tests of agentfs from outside have in common.
//!
//! A test that drives the binary begins with a [`TestStore`]:
//!
//! ```no_run
//! use agentfs_tests::{TestStore, fixture, fuse_available};
//!
//! if !fuse_available() {
//!     return; // says that it was skipped, or fails if AGENTFS_REQUIRE_FUSE=1
//! }
//! let store = TestStore::new();
//! let dir = store.path("worktree");
//! store.ok(&["clone", &fixture::codex().display().to_string(), &dir.display().to_string()]);
//! store.fails(4, &["clone", "/etc", &store.path("other").display().to_string()]);
//! ```
//!
//! - The store, its worktrees and every other file of the test live in one temporary directory.
//!   When the test ends, also by a panic, the daemon is stopped, what is still mounted below that
//!   directory is unmounted, and the directory is removed.
//! - Every command has a time limit, and so has the whole test ([`TestStore::with_limit`]). A test
//!   that exceeds its limit has its daemon killed and its mounts detached, so that whatever it waits
//!   for fails; one that still does not end is aborted.
//! - [`TestStore::become_ordinary`] runs everything as a user who is not root.
//! - [`Connection`] speaks to the daemon without the commands.
//! - git runs without the user's configuration ([`git`]), and so does agentfs.
//! - [`Twins`] are a plain checkout and a worktree, for doing the same to both.
//! - [`ledger::Ledger`] keeps account of what a directory must show after a kill.
//! - [`fixture::codex`] is a real repository, [`fixture::Builder`] makes small ones.

pub mod binary;
pub mod campaign;
mod connection;
pub mod fixture;
pub mod fleet;
pub mod forge;
pub mod ledger;
pub mod mounts;
mod store;
pub mod tree;
mod twins;
pub mod user;

pub use binary::agentfs;
pub use connection::Connection;
pub use fixture::{git, git_command, git_fails};
pub use mounts::fuse_available;
pub use store::{Finished, TestStore};
pub use twins::Twins;
