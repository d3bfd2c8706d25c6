use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a file between stages; every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("failed to {action} `{}`: {source}; {}", path.display(), remedy(source))]
    Io {
        /// What was tried, as a verb: "read", "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file was read but is not what its reader needs.
    #[error("`{}` can't be used: {reason}; {remedy}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Actual against expected.
        reason: String,
        /// What the user can do.
        remedy: String,
    },
    /// Another process works on the same artifacts.
    #[error("`{}` is in use by {holder}; wait for it to end, or use another run name", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Process, host and start as the holder wrote them.
        holder: String,
    },
}

/// What the user can do about an answer of the operating system.
fn remedy(answer: &io::Error) -> &'static str {
    match answer.kind() {
        io::ErrorKind::NotFound => "check the name, or make it first: the stages before this one do",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room and run it again",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "allow it, or use another place",
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => "remove what is in the way, or use another name",
        _ => "run it again when the system allows it",
    }
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the operating system, with its path.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// A file that can't be used, and what to do about it.
    pub fn unusable(path: &Path, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Unusable { path: path.to_owned(), reason: reason.into(), remedy: remedy.into() }
    }
}
