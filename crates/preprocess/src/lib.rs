//! Converts raw interactions and items to a dataset.
//!
//! The crate reads files as they are published: Amazon 2014, 2018 and 2023, `GoodReads`, `RecBole` atomic files, or any table with a column
//! map. It writes `sequences.safetensors`, `items.parquet`, `users.parquet` and `report.json`, which accounts for every line that was read
//! and every event that was dropped. It must not know tensors of features or models.
//!
//! How an event is processed: `read` returns the rows of a file, one at a time; `source` knows the meaning of the fields of each format and
//! builds a polars frame from them; `filters` has an expression for each filter, from which `stage` builds queries; `dataset` numbers and
//! writes what is left. An item's texts and images are processed by `text` and `images`.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests write damaged files"))]

mod as_in_sql;
pub mod command;
mod condition;
mod core;
mod dataset;
mod decimal;
mod error;
mod filters;
mod html;
mod images;
mod input;
mod join;
mod junk;
mod new_items;
#[cfg(test)]
mod oracle;
mod partitions;
mod read;
mod rejects;
mod report;
mod row_count;
mod source;
mod spill;
mod split;
mod stage;
pub mod survey;
mod table1;
mod text;
mod types;
mod window;

pub use error::{Error, Result};
pub use images::is_image_name;
pub use join::described as described_shares;
pub use junk::is_missing as marks_missing_value;
pub use new_items::read_items;
pub use rejects::BLANK_LINE;
pub use report::about_missing_modalities;
pub use row_count::{RowCount, count_rows};
pub use stage::{RowLimits, account, check_settings, count_events, count_items, inputs, run, stage, trial};
