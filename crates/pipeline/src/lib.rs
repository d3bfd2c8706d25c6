//! Reads a pipeline file into a strict, typed configuration, and contains what the command lines of all stages share.
//!
//! In: `pipelines/*.toml`, `--set` overrides, command-line flags. Out: a resolved [`Config`], a [`Context`] with paths, progress bars and
//! messages, an exit code; the time and memory that a stage took; the order of the stages; tables and numbers as text. Must not know: what
//! any stage does.

mod assignments;
mod command;
pub mod config;
mod passwords;
mod progress;
mod shard;
mod stages;
mod strict;
pub mod text;
mod timing;

pub use assignments::{Assignments, NotClosed};
pub use command::{
    ARTIFACTS_VARIABLE, AlreadyReported, Bug, Context, DEFAULT_ARTIFACTS, StageArgs, TIED, artifacts_folder, print,
    report_error, run_main, run_stage, run_stage_in_parts,
};
pub use config::Config;
pub use passwords::hide_passwords;
pub use progress::{Bar, Progress};
pub use shard::Shard;
pub use stages::{STAGES, StageName, StageRow};
pub use strict::{ConfigError, nearest};
