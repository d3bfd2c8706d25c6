//! Decodes sound files to samples, and computes the spectrogram that Whisper reads.

mod decode;
mod mel;

pub use decode::{AudioError, decode};
pub(crate) use mel::LogMel;
