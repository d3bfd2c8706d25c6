use std::path::PathBuf;

/// What can keep a report from being written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error(transparent)]
    File(#[from] mp4sr_artifact::Error),
    /// A stage before this one has not run.
    #[error("run `{run}` has no {what} (`{}` does not exist); make them with {remedy}", path.display())]
    Missing {
        /// The run.
        run: String,
        /// What it lacks.
        what: &'static str,
        /// Where it would lie.
        path: PathBuf,
        /// The command.
        remedy: String,
    },
    /// Runs that cannot stand in one table.
    #[error(
        "runs `{a}` and `{b}` cannot be compared: {a_users} and {b_users} users in the split `{split}`; evaluate both again"
    )]
    OtherUsers {
        /// One run.
        a: String,
        /// Its users.
        a_users: usize,
        /// The other.
        b: String,
        /// Its users.
        b_users: usize,
        /// The split.
        split: &'static str,
    },
    /// The drawing library failed.
    #[error("a chart cannot be drawn: {0}; this is a defect of mp4sr, please report it")]
    Chart(String),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
