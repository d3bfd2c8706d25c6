//! The command lines of `mp4sr compare`, `mp4sr search` and `mp4sr study`.

pub mod compare;
pub mod search;
pub mod study;
