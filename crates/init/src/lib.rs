//! A first pipeline file for files that nobody has described yet.
//!
//! In: files of interactions and of items, and what a user says of them. Out: what was found, what was not sure, and a commented
//! pipeline file that the configuration reader has read back. Must not know: how a file is read (`preprocess` looks at it), what any later
//! stage does.

pub mod command;
mod draft;
mod error;
mod events;
mod found;
mod items;
mod join;
mod places;
mod words;

pub use error::{Error, Result};
