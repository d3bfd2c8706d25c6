//! Drafts a first pipeline file for raw files of unknown structure.
//!
//! The crate takes files of interactions and of items, and what a user states about them. It returns what was found, what is uncertain, and
//! a commented pipeline file that the configuration reader has read back. It must not know how a file is read (`preprocess` does that) or
//! what any later stage does.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests write damaged files"))]

pub mod command;
mod data_folder;
mod draft;
mod error;
mod events;
mod found;
mod image_folders;
mod items;
mod join;
mod words;

pub use error::{Error, Result};
