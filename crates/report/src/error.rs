//! The errors of the report.

use std::path::PathBuf;

/// The errors of writing a report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] mp4sr_artifact::Error),
    /// An earlier stage has not run.
    #[error("run `{run}` has no {what} (`{}` does not exist); create them with {remedy}", path.display())]
    Missing {
        /// The name of the run.
        run: String,
        /// What is missing.
        what: &'static str,
        /// The path at which it is expected.
        path: PathBuf,
        /// The command that creates it.
        remedy: String,
    },
    /// The runs were evaluated on different users, so they cannot be compared.
    #[error(
        "runs `{a}` and `{b}` cannot be compared: {a_users} and {b_users} users in the `{split}` set; evaluate both again"
    )]
    OtherUsers {
        /// The name of one run.
        a: String,
        /// The number of its users.
        a_users: usize,
        /// The name of the other run.
        b: String,
        /// The number of its users.
        b_users: usize,
        /// The name of the evaluated set.
        split: &'static str,
    },
    /// The drawing library failed.
    #[error("a chart cannot be drawn: {0}; this is a bug in mp4sr, please report it")]
    Chart(String),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
