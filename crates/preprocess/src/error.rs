//! The errors of preprocessing.

use std::path::{Path, PathBuf};

/// The reasons why a dataset cannot be built. The message of every variant is one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing a file failed.
    #[error(transparent)]
    Artifact(#[from] mp4sr_artifact::Error),
    /// A raw file is not what its name or the pipeline says.
    #[error("`{}` {problem}", path.display())]
    Raw {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// More lines than allowed cannot be used.
    #[error(
        "too many lines cannot be used: `preprocess.max_bad_lines` allows {limit}, and line {line} of `{}` exceeds it ({reason}); correct \
         the file, or raise `preprocess.max_bad_lines`",
        path.display()
    )]
    TooManyBadLines {
        /// `preprocess.max_bad_lines`.
        limit: u64,
        /// The file with the first line beyond the limit.
        path: PathBuf,
        /// The number of the line.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Too large a share of the lines cannot be used.
    #[error(
        "{total} of {lines} lines of `{}`{} cannot be used, {count} of them for: {reason}; correct the file or `[source]`, or \
         raise `preprocess.max_bad_share` above {share}",
        path.display(),
        if *others > 0 { format!(" and {others} more") } else { String::new() }
    )]
    TooLargeShare {
        /// The first file.
        path: PathBuf,
        /// The number of further files.
        others: usize,
        /// The number of lines that cannot be used.
        total: u64,
        /// The number of lines.
        lines: u64,
        /// The number of lines that cannot be used for the most frequent reason.
        count: u64,
        /// The most frequent reason.
        reason: String,
        /// `preprocess.max_bad_share`.
        share: f64,
    },
    /// The pipeline asks for something that cannot be done.
    #[error("{0}")]
    Setting(String),
    /// polars refused a query that should always work.
    #[error("failed to filter the interactions: {0}; free memory or disk, or report this as a bug")]
    Query(#[from] polars::error::PolarsError),
    /// Two ids cannot be distinguished by their hash.
    #[error(
        "the id {} has the same 64-bit hash as another id; unset `preprocess.memory` to compare ids by their text",
        mp4sr_pipeline::text::quoted(id)
    )]
    Collision {
        /// The later one of the two.
        id: String,
    },
    /// A filter left no event.
    #[error("no events are left: {filter} dropped the last {events} events; {remedy}")]
    NothingLeft {
        /// The filter.
        filter: String,
        /// The number of events before the filter.
        events: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// Numbers that must agree do not.
    #[error("{0}")]
    Bug(#[source] mp4sr_pipeline::Bug),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn raw(path: &Path, problem: impl Into<String>) -> Self {
        Self::Raw { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn bug(what: impl std::fmt::Display) -> Self {
        Self::Bug(mp4sr_pipeline::Bug(what.to_string()))
    }
}
