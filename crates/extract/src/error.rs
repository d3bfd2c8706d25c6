//! The errors of extraction.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The reasons why features could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of an encoder cannot be used.
    #[error("`{}` cannot be used: {reason}; use a model with safetensors weights that docs/encoders.md names", path.display())]
    Model {
        /// The path of the file.
        path: PathBuf,
        /// What was expected, and what was found.
        reason: String,
    },
    /// An encoder cannot be read from a folder or fetched from the hub.
    #[error("the encoder `{name}` {reason}; {remedy}")]
    Hub {
        /// The name as configured.
        name: String,
        /// The problem, as a clause that follows the name.
        reason: String,
        /// The remedy.
        remedy: String,
    },
    /// A file of the pipeline could not be read or written.
    #[error(transparent)]
    Artifact(#[from] mp4sr_artifact::Error),
    /// A computation failed.
    #[error("failed to encode: {0}; this is a bug in mp4sr, please report it")]
    Compute(#[from] candle_core::Error),
    /// The device cannot be used.
    #[error("{0}")]
    Device(String),
    /// A text could not be split into tokens.
    #[error("failed to tokenise {text:?}: {reason}; remove it from the data, or use another model")]
    Tokens {
        /// The text.
        text: String,
        /// The tokenizer's error message.
        reason: String,
    },
    /// A value does not fit the storage type.
    #[error("features in `{}` cannot be stored as {storage}; set `extract.storage` to \"bf16\" or \"f32\"", path.display())]
    Storage {
        /// The features file.
        path: PathBuf,
        /// The configured type.
        storage: String,
    },
    /// A vector that was computed is no longer in the cache.
    #[error("vectors for `{}` disappeared from the cache while features were written; run the command again", path.display())]
    Missing {
        /// The features file.
        path: PathBuf,
    },
    /// Existing features would be replaced by empty ones.
    #[error(
        "`{}` has {rows} rows, but would have none now, because the files that the items name are missing or unreadable; restore them, run the command from the folder that their paths are relative to, or delete this file if it is meant to be empty", path.display()
    )]
    Emptied {
        /// The features file.
        path: PathBuf,
        /// The rows that it has.
        rows: usize,
    },
    /// A folder to merge from is not a cache.
    #[error("`{}` contains no vectors; name a folder of artifacts, or a copy of its `.cache/vectors`", path.display())]
    NoVectors {
        /// The path of the folder.
        path: PathBuf,
    },
    /// A folder with vectors does not say which encoder they belong to.
    #[error(
        "the vectors beside `{}` belong to an unknown encoder, because this file is missing or cannot be read; nothing was merged; copy the \
         folder again with all of its files, or remove it", path.display()
    )]
    NoAbout {
        /// The path of the file that describes the encoder.
        path: PathBuf,
    },
    /// The dictionary is empty.
    #[error("the dictionary of image words (`{0}`) is empty; write one word per line")]
    EmptyDictionary(String),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn model(path: &Path, reason: impl Display) -> Self {
        Self::Model { path: path.to_owned(), reason: reason.to_string() }
    }
}
