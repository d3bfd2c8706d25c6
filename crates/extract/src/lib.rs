//! Items' sentences and images to features.
//!
//! In: `dataset/items.parquet`, the encoders, the `[extract]` settings. Out: `features/<modality>.<encoder>.safetensors` with
//! a vector per sentence and a vector per image, and the words that CLIP chose for each image. A sentence's vector comes from
//! a Sentence-BERT; an image becomes the words of a dictionary that CLIP finds nearest to it, and these go through the same
//! Sentence-BERT.
//!
//! Must not know: users, interactions.

mod clip;
pub mod dictionary;
mod error;
mod picture;
mod sentence;
mod source;
mod stage;

pub use clip::{Clip, Described, ImageWords};
pub use error::{Error, Result};
pub use sentence::SentenceEncoder;
pub use stage::run;
