//! The errors of downloading.

/// The errors that stop downloading. Every message is one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing a file failed.
    #[error(transparent)]
    Artifact(#[from] mp4sr_artifact::Error),
    /// Raw files that could not be fetched.
    #[error("{0}")]
    Raw(String),
    /// Counts that must agree differ.
    #[error("{0}")]
    Bug(#[source] mp4sr_pipeline::Bug),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
