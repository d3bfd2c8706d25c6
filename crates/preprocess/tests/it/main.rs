//! The stage as a program: from raw files to a dataset, and what it says when something is wrong.

mod end_to_end;
mod failures;
mod harness;
mod pipelines;
mod real_data;
