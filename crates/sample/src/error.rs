//! The errors of generating the sample world.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The reasons why the sample world could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be written.
    #[error("failed to write `{}`: {reason}; free disk space or choose another folder with `--out`", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The reason that the system or an encoder gave.
        reason: String,
    },
    /// The target exists and is something else.
    #[error(
        "`{}` exists and is not a sample world that this program wrote; remove it or choose another folder with `--out`",
        .0.display()
    )]
    NotOurs(PathBuf),
    /// Locking, listing, renaming or removing failed.
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
