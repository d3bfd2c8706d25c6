/// Why downloading stopped; every variant is one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing a file failed.
    #[error(transparent)]
    Artifact(#[from] mp4sr_artifact::Error),
    /// Raw files that can't be had.
    #[error("{0}")]
    Raw(String),
    /// Numbers that must agree don't.
    #[error("{0}")]
    Bug(#[source] mp4sr_pipeline::Bug),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
