//! The outcomes of an address, and of one attempt to fetch it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The outcome for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Its image was kept: it is complete and decodes.
    Done,
    /// The server says that it does not exist (404, 410).
    Gone,
    /// The content is not an image that can be read.
    NotAnImage,
    /// It has more bytes or pixels than allowed.
    TooLarge,
    /// The address must not be asked: it is private, has another scheme, or is not valid.
    Refused,
    /// No attempt got a conclusive answer.
    Failed,
}

impl Fate {
    /// All of them, in the order of the report.
    pub const ALL: [Self; 6] = [Self::Done, Self::Gone, Self::NotAnImage, Self::TooLarge, Self::Refused, Self::Failed];

    /// As the ledger spells it.
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

/// Why nothing was kept of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub fate: Fate,
    /// A clause to put behind the address: "answered 404".
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

/// Why an attempt did not end with a whole file.
#[derive(Debug)]
pub enum Trouble {
    /// Another attempt may do better, after this long if the server named a time.
    Passing(Verdict, Option<Duration>),
    /// No further attempt in this run.
    Final(Verdict),
    /// A file of ours could not be written; the address is not to blame.
    Disk(mp4sr_artifact::Error),
}

impl Trouble {
    /// A failure that may pass.
    pub fn passing(reason: impl Into<String>) -> Self {
        Self::Passing(Verdict::new(Fate::Failed, reason), None)
    }

    /// A failure that is final.
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
