//! The errors of reading and writing artifacts.

use std::io;
use std::path::{Path, PathBuf};

/// Errors of the files that stages exchange. Every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system returned an error.
    #[error("failed to {action} `{}`: {source}; {}", path.display(), remedy(source))]
    Io {
        /// The action that failed, as a verb: "read", "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The file was read but is not what its reader needs.
    #[error("`{}` cannot be used: {reason}; {remedy}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the actual and the expected content.
        reason: String,
        /// What the user can do.
        remedy: String,
    },
    /// Another process is working on the same artifacts.
    #[error("`{}` is in use by {holder}; wait for it to end", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The process, host and start time that the holder wrote.
        holder: String,
    },
}

/// What the user can do about an error of the operating system.
fn remedy(answer: &io::Error) -> &'static str {
    match answer.kind() {
        io::ErrorKind::NotFound => "check the path; if an earlier stage creates this file, run that stage first",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free disk space and run the command again",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "grant the permission, or use another folder"
        }
        io::ErrorKind::IsADirectory => "name a file, or rename the folder",
        io::ErrorKind::NotADirectory => "remove or rename the existing file or folder, or use another name",
        _ => "fix the cause and run the command again",
    }
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Creates an error of the operating system about `path`.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// Whether a file or folder does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether a file or folder may only be read.
    pub fn is_read_only(&self) -> bool {
        let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
        matches!(self, Self::Io { source, .. } if kinds.contains(&source.kind()))
    }

    /// Creates an error about a file whose part `what` is not the expected JSON.
    pub fn unreadable(path: &Path, what: &str, error: &serde_json::Error, remedy: impl Into<String>) -> Self {
        Self::unusable(path, format!("{what} cannot be read ({})", json_problem(error)), remedy)
    }

    /// Creates an error about a file whose content was damaged. If its length and time are as before, its stage counts as up to date, so
    /// the file has to be deleted before the `remedy` has an effect.
    pub fn damaged(path: &Path, reason: impl Into<String>, remedy: &str) -> Self {
        let removes = remedy.starts_with("delete") || remedy.starts_with("remove");
        Self::unusable(path, reason, if removes { remedy.to_owned() } else { format!("delete it, and {remedy}") })
    }

    /// Creates an error about a file that cannot be used, with what to do about it.
    pub fn unusable(path: &Path, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Unusable { path: path.to_owned(), reason: reason.into(), remedy: remedy.into() }
    }
}

/// Describes what is wrong with a JSON text, without the names of Rust types.
pub fn json_problem(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let Some((before, expected)) = message.split_once(", expected ") else { return message };
    let (first, rest) = expected.split_once(' ').unwrap_or((expected, ""));
    let (kind, rest) = match first {
        "i8" | "i16" | "i32" | "i64" | "isize" => ("a whole number", rest),
        "u8" => ("a whole number from 0 to 255", rest),
        "u16" => ("a whole number from 0 to 65535", rest),
        "u32" => ("a whole number from 0 to 4294967295", rest),
        "u64" | "usize" => ("a whole number from 0", rest),
        "f32" | "f64" => ("a number", rest),
        "struct" => ("an object", rest.split_once(' ').map_or("", |(_, rest)| rest)),
        _ => return message,
    };
    format!("{before}, expected {kind} {rest}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code, reason = "its form is what counts")]
    struct Example {
        count: usize,
        share: f64,
        name: String,
    }

    #[test]
    fn json_problems_do_not_name_rust_types() {
        let problem = |text: &str| json_problem(&serde_json::from_str::<Example>(text).unwrap_err());
        assert_eq!(problem("3"), "invalid type: integer `3`, expected an object at line 1 column 1");
        assert_eq!(
            problem(r#"{"count": "x"}"#),
            "invalid type: string \"x\", expected a whole number from 0 at line 1 column 13"
        );
        assert_eq!(
            problem(r#"{"count": 1, "share": []}"#),
            "invalid type: sequence, expected a number at line 1 column 22"
        );
        assert_eq!(problem(r#"{"count": 1, "share": 1.0}"#), "missing field `name` at line 1 column 26");
        let value = serde_json::from_value::<Example>(serde_json::json!(1)).unwrap_err();
        assert_eq!(json_problem(&value), "invalid type: integer `1`, expected an object");
    }
}
