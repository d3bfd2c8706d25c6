//! Writes metrics, curves and recommendations to a self-contained page and to tables.
//!
//! The crate reads stored ranks, sequences, training logs, lists, items, words of images, counts of preprocessing and times of stages, all
//! from files. It writes `index.html`, `metrics.md`, `metrics.csv`, `lists.csv`, `breakdowns.csv` and `curves.svg`. It must not know
//! models, candle, or how the values that it shows were computed.

mod breakdown;
pub mod command;
mod comparison;
mod curves;
mod error;
mod lists;
mod page;
mod stage;
mod table;
mod thumbnail;
mod users;
mod words;

pub use curves::{Panel, TrainingLog, panels, sheet};
pub use error::{Error, Result};
pub use stage::{run, stage};
pub use table::{MetricsTable, RunMetrics};
pub use thumbnail::{Thumbnail, thumbnail};
