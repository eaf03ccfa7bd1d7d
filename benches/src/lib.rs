//! The scoreboard: every phase of agentfs beside what a user would pick instead, in one run.
//!
//! Invariants of this crate:
//!
//! - It drives the release binary `agentfs` and its rivals (`git`, `cp`, overlayfs) from outside,
//!   by their command lines: nothing is measured that a user could not do.
//! - Every answer is compared with the native one: a wrong answer is not a fast one.
//! - Every repetition works in a fresh directory, and nothing is deleted before the last
//!   measurement: ext4 makes creation many times slower for minutes after a large deletion.
//! - What is asked of one side is asked of all: where one syncs, all do, and ours is counted.
//! - What it started it ends: daemons by their process id, mounts by their mount point.

mod agentfs;
mod args;
mod catalogue;
mod daemon;
mod generate;
mod lab;
mod loops;
mod machine;
mod mounts;
mod phases;
mod process;
mod projects;
mod random;
mod record;
mod report;
mod rivals;
mod source;
mod stats;
mod writing;

pub use args::main;
