//! Sound files to samples, and samples to the spectrum that Whisper reads.

mod decode;
mod mel;

pub use decode::{AudioError, decode};
pub(crate) use mel::LogMel;
