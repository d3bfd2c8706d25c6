//! Trains many runs and presents them in tables and figures: comparisons, searches over settings, the paper's experiments.
//!
//! The crate takes pipelines and starts the stages that the runs need. It reads the ranks and logs of the runs, and writes tables and
//! figures as Markdown, CSV, SVG and PNG. It must not know models or how a stage does its work.

pub mod command;
mod comparison_text;
mod experiment;
mod merge;
mod paper;
mod plan;
mod runner;
mod search;

pub use experiment::{Experiment, StudyOptions, run_experiment};
pub use merge::merge;
pub use plan::RunPlan;
pub use runner::{Runner, StudyRun};
pub use search::{SearchGrid, search};
