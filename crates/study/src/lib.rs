//! Makes many runs and presents them in tables and figures: comparisons, searches over settings, the paper's experiments.
//!
//! In: pipelines, the programs of the stages, stored ranks and logs. Out: runs that those programs make; Markdown, CSV, SVG, PNG. Must not
//! know: models, how a stage does its work.

pub mod command;
mod comparison_text;
mod experiment;
mod merge;
mod paper;
mod runner;
mod search;

pub use experiment::{Experiment, StudyOptions, run_experiment};
pub use merge::merge;
pub use runner::{Runner, StudyRun};
pub use search::{SearchGrid, search};
