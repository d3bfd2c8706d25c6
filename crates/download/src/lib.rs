//! Downloads raw files and items' images from their URLs into the data folder.
//!
//! The crate reads the section `[download]`, and the URLs in `items.parquet` if preprocessing has written it. It writes raw files under
//! their names, and in `downloads/` one image per URL, `ledger.jsonl`, which records the outcome for each URL, and `report.json`. It must
//! not know what raw files hold or what images are for.
//!
//! How a URL is processed: `images` and `raw` decide which URLs to download; `schedule` hands them to threads, a limited number per host;
//! `transfer` downloads one, in several attempts if necessary, with `client` (redirects), `resolver` (private networks) and `part` (what an
//! earlier attempt left); `check` decodes the result; `ledger` records the outcome.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests write damaged files"))]

mod as_stored;
mod check;
mod client;
pub mod command;
mod error;
mod images;
mod ledger;
mod outcome;
mod part;
mod raw;
mod report;
mod resolver;
mod retry;
mod schedule;
mod sniff;
mod stage;
mod transfer;
mod urls;

pub use error::{Error, Result};
pub use images::ImagePlan;
pub use ledger::LedgerEntry;
pub use outcome::Fate;
pub use report::{DownloadReport, ImageReport, RawReport};
pub use stage::run;
