//! FUSE: a worktree of the engine as a mounted directory.
//!
//! Invariants of this crate, which its users rely on:
//!
//! - It decodes, calls and replies. What an operation means is the worktree's to decide.
//! - [`Ops`] is the one set of operations. A transport carries messages, `protocol` reads and writes
//!   them, `serve.rs` makes one call of each, and none of them decides anything.
//! - Only this crate knows `/dev/fuse`, its protocol, io_uring and mount(2).
//! - Engine errors become errnos in `errno.rs` and nowhere else, and what an errno cannot say is
//!   logged there. A panic in an operation costs its caller an `EIO` and nobody else anything.
//! - What the kernel refers to is counted in `lookups.rs`, exactly: an inode without names lives
//!   until the last reference is given back.
//! - Nothing here waits for a mount that may be dead or hung, except on a thread or in a process
//!   that can be left behind.
//!
//! `unsafe` appears in `health.rs` and `warm.rs`, for system calls that have no safe form, in
//! `buffer.rs`, for memory that is mapped, in `backing.rs`, for what the kernel does for passthrough, and in `uring.rs`, for memory that the kernel writes to.

mod backing;
mod buffer;
mod cache;
mod counters;
mod devfuse;
mod errno;
mod error;
mod health;
mod helper;
mod lookups;
mod mount;
mod mountinfo;
mod notify;
mod ops;
mod passthrough;
mod placement;
mod probe;
mod protocol;
mod serve;
mod session;
mod start;
#[cfg(test)]
mod tests;
mod uring;
mod warm;

pub use cache::{LEVERS, Levers};
pub use counters::{Counters, Message};
pub use error::{Error, Result};
pub use mount::{FSTYPE, MountOptions, MountState, mount_state, our_mount_state, unmount_path};
pub use mountinfo::mounts_below;
pub use notify::Stale;
pub use ops::{Found, Ops, XattrReply};
pub use passthrough::Barred;
pub use probe::{Device, KernelFuse, Probe, probe};
pub use session::{Mounted, mount};
pub use warm::{Warmed, apart};
