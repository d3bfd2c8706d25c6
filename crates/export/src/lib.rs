//! Exports trained runs to files that other programs read, and imports the datasets of other programs.
//!
//! An export reads a run with its dataset and features. It writes lists, vectors, RecBole's atomic files, MMRec's folder or a model folder
//! for the Hugging Face hub. An import reads a folder of RecBole or MMRec. It writes raw files with a pipeline, and then features beside
//! the resulting dataset. The crate must not know training or encoders.

pub mod command;
mod dataset;
mod exported;
mod folder;
mod format;
mod histories;
mod huggingface;
pub mod import;
mod lists;
mod mmrec;
mod npy;
mod recbole;
mod vectors;
