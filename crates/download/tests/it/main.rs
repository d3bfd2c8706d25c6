//! Runs the program against a local server that misbehaves in every way we know of.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;
mod images;
mod interrupted;
mod raw;
