//! Reads and writes the files that stages exchange, without knowing what they mean.
//!
//! The crate takes tensors, tables and settings. It writes safetensors and Parquet with a header that names the writer and its inputs,
//! manifests of stages, and locks, and reads them back. Every write is atomic (temporary file, fsync, rename), and every file is verified
//! when it is read. The crate must not know candle or models.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests write damaged files"))]

mod data_files;
mod dataset;
mod downloads;
mod epochs;
mod error;
mod event_time;
mod features;
pub mod files;
mod fingerprint;
mod guard;
mod layout;
mod lock;
mod log;
mod map;
mod reports;
pub mod role;
mod rows;
mod stage;
mod table;
mod tensors;
mod timing;
mod vectors;

pub use dataset::{Items, SequenceParts, Sequences, TimeKind, Users};
pub use downloads::Downloads;
pub use epochs::EpochLine;
pub use error::{Error, Result, json_problem};
pub use event_time::EventTime;
pub use features::{FeatureType, Features, MappedFeatures, MappedValues, RowsHeader};
pub use fingerprint::{Fingerprint, hash_ids};
pub use guard::{guarded, is_guarded};
pub use layout::{FINETUNE, Layout, PRETRAIN};
pub use lock::Lock;
pub use log::{log_line, read_log};
pub use reports::{
    CountSpread, DatasetStatistics, EncoderAbout, EncoderWork, EventAccounts, EventsRead, ExtractReport, FileCount,
    FilterStep, ItemsRead, JoinShares, PreprocessReport, RejectExample, Rejected, Rejects, Table1Row, UnusableImage,
    UnusableSound,
};
pub use rows::{open_parquet, parquet_step};
pub use stage::{FileRecord, Manifest, Stage, StageSettings, Status, expect_recorded};
pub use table::{Column, Table};
pub use tensors::{
    Header, Tensor, TensorFile, TensorSource, ValueBlocks, recorded_settings, write_sources, write_tensors,
};
pub use timing::Timing;
pub use vectors::{MergedVectors, VectorCache, VectorKey, merge_vectors, vector_key};
