//! Items' sentences and images to features.
//!
//! In: `dataset/items.parquet`, the encoders, the `[extract]` settings. Out: `features/<modality>.<encoder>.safetensors` with
//! a vector per sentence and a vector per image, and the words that CLIP chose for each image. A sentence's vector comes from
//! a Sentence-BERT; an image becomes the words of a dictionary that CLIP finds nearest to it, and these go through the same
//! Sentence-BERT; or an image stays the vector of CLIP or a ResNet. Vectors are kept by content in one cache for all datasets.
//!
//! Must not know: users, interactions.

mod builtin;
pub mod cache;
mod clip;
pub mod command;
pub mod dictionary;
mod error;
mod image_encoder;
mod jpeg;
mod picture;
mod resize;
mod resnet;
mod sentence;
mod source;
mod stage;
mod weights;
mod words;

pub use clip::Clip;
pub use error::{Error, Result};
pub use image_encoder::{ImageEncoder, load_image_encoder};
pub use picture::Processor;
pub use sentence::SentenceEncoder;
pub use stage::run;
pub use words::{ImageWords, WordVectors};
