//! Exports trained runs to files that other programs read, and imports the datasets of other programs.
//!
//! In: a run with its dataset and features; folders of RecBole and MMRec. Out: lists, vectors, RecBole's atomic files, MMRec's folder and a
//! model folder for the Hugging Face hub; raw files with a pipeline, and features beside the resulting dataset. Must not know: training,
//! encoders.

pub mod command;
mod dataset;
mod folder;
mod histories;
mod huggingface;
pub mod import;
mod lists;
mod mmrec;
mod npy;
mod recbole;
mod vectors;
