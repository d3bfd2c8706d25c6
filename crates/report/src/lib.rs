//! Metrics, curves and recommendations to one self-contained page and tables.
//!
//! In: stored ranks, sequences, logs of training, lists, items, words of images, counts of preprocessing, times of stages;
//! all of them files. Out: `index.html`, `metrics.md`, `metrics.csv`, `breakdowns.csv`, `curves.svg`. Must not know: models,
//! candle, how anything it shows was computed.

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
