//! One pipeline file to one strict, typed configuration; and what every stage's command line shares.
//!
//! In: `pipelines/*.toml`, `--set` overrides, command-line flags. Out: a resolved [`Config`], a [`Context`] with paths,
//! progress bars and messages, an exit code; what a stage took. Must not know: what any stage does.

mod command;
pub mod config;
mod progress;
mod strict;
mod timing;

pub use command::{Bug, Context, StageArgs, print, run_main, run_stage};
pub use config::Config;
pub use progress::{Bar, Progress};
pub use strict::ConfigError;
pub use timing::Timing;
