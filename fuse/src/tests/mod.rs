//! What the crate promises, tested with and without a kernel.

mod fixture;
mod levers;
mod lifetime;
mod listing;
mod operations;
mod reading;
mod warming;
