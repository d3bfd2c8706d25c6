//! Tests the stage as a program: from raw files to a dataset, and the errors when something is wrong.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failed test says so by itself"
)]

mod columns;
mod end_to_end;
mod failures;
mod foreign;
mod harness;
mod memory;
mod pipelines;
mod published;
mod real_data;
mod splits;
