//! A trained run as an HTTP service.
//!
//! The crate takes a run, and requests with original ids. It answers with lists, neighbours and items as JSON, a page to try them, and
//! metrics. One thread owns the model and answers waiting requests in batches; a reloaded run replaces the old one between two batches. The
//! crate must not know training or the files of interactions.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests write damaged files"))]

mod admission;
mod api;
mod changes;
mod command;
mod encoders;
mod engine;
mod error;
mod file_states;
mod index;
mod keys;
mod limits;
mod log;
mod metrics;
mod paths;
mod routes;
mod server;
mod state;
mod watch;

pub use command::{Args, check, run};
