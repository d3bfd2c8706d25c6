//! Reads a pipeline file into a strict, typed configuration, and contains what the command lines of all stages share.
//!
//! The crate reads `pipelines/*.toml`, overrides of `--set` and other command-line flags. It returns a resolved [`Config`] and a
//! [`Context`] with paths, progress bars and messages. It also has the exit codes of programs, the measurement of a stage's time and
//! memory, the order of the stages, and the formatting of tables and numbers. It must not know what any stage does.

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

pub use assignments::{Assignments, NotClosed, split_outside};
pub use command::{
    ARTIFACTS_VARIABLE, AlreadyReported, Bug, Context, DEFAULT_ARTIFACTS, StageArgs, TIED, artifacts_folder,
    error_chain, print, report_error, run_main, run_stage, run_stage_in_shards, switch,
};
pub use config::Config;
pub use passwords::hide_passwords;
pub use progress::{Bar, Progress, is_warning_line, warning_line};
pub use shard::Shard;
pub use stages::{STAGES, StageName, StageRow};
pub use strict::{ConfigError, nearest};
