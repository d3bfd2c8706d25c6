//! Raw files and items' pictures from their addresses to the data folder.
//!
//! In: `[download]`, and the addresses in `items.parquet` where preprocess has written it. Out: raw files under their names;
//! `downloads/` with a picture an address, `ledger.jsonl`, which says what became of each address, and `report.json`. Must
//! not know: what raw files hold, what pictures are for.
//!
//! The way of an address: `images` and `raw` decide which are wanted; `schedule` hands them to threads, so many a host;
//! `transfer` fetches one, in as many attempts as it takes, over `client` (redirects), `resolver` (private networks) and
//! `part` (what is there already); `picture` looks at what came; `ledger` keeps the outcome.

mod address;
mod client;
pub mod command;
mod error;
mod images;
mod ledger;
mod outcome;
mod part;
mod picture;
mod raw;
mod report;
mod resolver;
mod retry;
mod schedule;
mod sniff;
mod stage;
mod transfer;

pub use error::{Error, Result};
pub use ledger::Entry;
pub use outcome::Fate;
pub use report::Report;
pub use stage::run;
