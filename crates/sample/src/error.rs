use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Why the sample world could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be made.
    #[error("failed to write `{}`: {reason}; make room or choose another folder with --out", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system or an encoder said.
        reason: String,
    },
    /// The target holds something else.
    #[error(
        "`{}` exists and is not a sample world that this program wrote; remove it or choose another folder with --out",
        .0.display()
    )]
    NotOurs(PathBuf),
    /// Locks and removals.
    #[error(transparent)]
    Artifact(#[from] mp4sr_artifact::Error),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn write(path: &Path, reason: impl Display) -> Self {
        Self::Write { path: path.to_owned(), reason: reason.to_string() }
    }
}
