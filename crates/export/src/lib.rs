//! A trained run to the files that other programs read, and their data sets back.
//!
//! In: a run with its dataset and features; folders of RecBole and MMRec. Out: lists, vectors, RecBole's atomic files, MMRec's folder
//! and a model folder as on the Hugging Face hub; raw files with a pipeline, and the features beside the dataset that it gives. Must not
//! know: training, encoders.

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
