//! What the crate promises, tested with and without a kernel.

mod attributes;
mod costs;
mod fixture;
mod forgetting;
mod levers;
mod lifetime;
mod listing;
mod locking;
mod mapping;
mod namespace;
mod notifying;
mod operations;
mod passthrough;
mod process;
mod random;
mod reading;
mod twin;
mod unnamed;
mod uring;
mod warming;
mod writeback;
mod writing;
