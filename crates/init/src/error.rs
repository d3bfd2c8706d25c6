use std::path::PathBuf;

/// Why no pipeline can be written; every variant says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be looked at, or the pipeline would not read it.
    #[error(transparent)]
    Preprocess(#[from] mp4sr_preprocess::Error),
    /// Reading or writing failed.
    #[error(transparent)]
    Artifact(#[from] mp4sr_artifact::Error),
    /// The pipeline that was made is not one.
    #[error("the pipeline cannot be read back: {0}")]
    Config(#[from] mp4sr_pipeline::ConfigError),
    /// A column that was named does not exist.
    #[error("`{flag} {name}`: `{}` has no column `{name}`{near}; it has {known}", path.display())]
    NoColumn {
        /// The flag.
        flag: &'static str,
        /// The name.
        name: String,
        /// The file.
        path: PathBuf,
        /// The nearest name, as a question.
        near: String,
        /// All names.
        known: String,
    },
    /// Something that cannot be guessed.
    #[error("{0}")]
    Unknown(String),
    /// The file exists.
    #[error("`{}` exists; give another name with `--out`, or `--force` to replace it", .0.display())]
    Exists(PathBuf),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
