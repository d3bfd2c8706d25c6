//! The errors of `mp4sr init`.

use std::path::PathBuf;

/// The reasons why a pipeline cannot be written. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be inspected, or the pipeline would not read it.
    #[error(transparent)]
    Preprocess(#[from] mp4sr_preprocess::Error),
    /// Reading or writing failed.
    #[error(transparent)]
    Artifact(#[from] mp4sr_artifact::Error),
    /// The generated pipeline is not valid.
    #[error("the pipeline cannot be read back: {0}")]
    Config(#[from] mp4sr_pipeline::ConfigError),
    /// A column that was named does not exist.
    #[error("`{flag} {name}`: `{}` has no column `{name}`{near}; it has {known}", path.display())]
    NoColumn {
        /// The flag that names the column.
        flag: &'static str,
        /// The name that does not exist.
        name: String,
        /// The path of the file.
        path: PathBuf,
        /// A question that suggests the nearest name; empty if no name is near.
        near: String,
        /// All names of columns, separated by commas.
        known: String,
    },
    /// Something that cannot be guessed.
    #[error("{0}")]
    Unknown(String),
    /// The pipeline file exists already.
    #[error("`{}` exists; give another name with `--out`, or `--force` to replace it", .0.display())]
    Exists(PathBuf),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
