//! The outcome for a URL, and that of one attempt to download it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The outcome for a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// The image was saved: it is complete and decodes.
    Done,
    /// The server says that it does not exist (404, 410).
    Gone,
    /// The content is not an image that can be read.
    NotAnImage,
    /// It has more bytes or pixels than allowed.
    TooLarge,
    /// The URL must not be requested: its host is private, its scheme is neither http nor https, or it is invalid.
    Refused,
    /// No attempt got a conclusive answer.
    Failed,
}

impl Fate {
    /// All outcomes, in the order of the report.
    pub const ALL: [Self; 6] = [Self::Done, Self::Gone, Self::NotAnImage, Self::TooLarge, Self::Refused, Self::Failed];

    /// The name in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Gone => "gone",
            Self::NotAnImage => "not_an_image",
            Self::TooLarge => "too_large",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// The reason why nothing was kept for a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub fate: Fate,
    /// A clause that follows the URL in a message, such as "the server answered 404".
    pub reason: String,
    /// The last HTTP status, if the server answered.
    pub status: Option<u16>,
}

impl Verdict {
    pub fn new(fate: Fate, reason: impl Into<String>) -> Self {
        Self { fate, reason: reason.into(), status: None }
    }

    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Self { status: Some(status), ..self }
    }
}

/// The reason why an attempt did not produce a complete file.
#[derive(Debug)]
pub enum Trouble {
    /// Another attempt may succeed, after this wait if the server named one.
    Passing(Verdict, Option<Duration>),
    /// No further attempt is made in this run.
    Final(Verdict),
    /// A local file could not be read or written; this says nothing about the URL.
    Disk(mp4sr_artifact::Error),
}

impl Trouble {
    /// A temporary failure.
    pub fn passing(reason: impl Into<String>) -> Self {
        Self::Passing(Verdict::new(Fate::Failed, reason), None)
    }

    /// A permanent failure.
    pub fn lasting(fate: Fate, reason: impl Into<String>) -> Self {
        Self::Final(Verdict::new(fate, reason))
    }

    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        match self {
            Self::Passing(verdict, wait) => Self::Passing(verdict.with_status(status), wait),
            Self::Final(verdict) => Self::Final(verdict.with_status(status)),
            disk @ Self::Disk(_) => disk,
        }
    }
}

impl From<mp4sr_artifact::Error> for Trouble {
    fn from(error: mp4sr_artifact::Error) -> Self {
        Self::Disk(error)
    }
}
