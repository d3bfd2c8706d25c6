//! What can become of an address, and of one attempt to fetch it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What became of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Its picture is there, complete and decodable.
    Done,
    /// The server says that there is none (404, 410).
    Gone,
    /// What came is no picture that can be read.
    NotAnImage,
    /// It has more bytes or pixels than allowed.
    TooLarge,
    /// It is not to be asked: a private address, another scheme, no address at all.
    Refused,
    /// No attempt got an answer that settles it.
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

/// Why an address gave nothing that can be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub fate: Fate,
    /// In words, to stand behind the address: "answered 404".
    pub reason: String,
    /// The last HTTP status, if any came.
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
    /// Nothing to do with the address: a file can't be written.
    Disk(mp4sr_artifact::Error),
}

impl Trouble {
    /// A failure that may pass.
    pub fn passing(reason: impl Into<String>) -> Self {
        Self::Passing(Verdict::new(Fate::Failed, reason), None)
    }

    /// One that won't.
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
