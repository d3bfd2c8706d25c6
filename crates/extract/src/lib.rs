//! Items' sentences, images and sounds to features.
//!
//! In: `dataset/items.parquet`, the encoders, the `[extract]` settings. Out: `features/<modality>.<encoder>.safetensors` with
//! a vector per sentence, per image and per sound, and the words that CLIP chose for each image. The vector of a sentence comes
//! from a Sentence-BERT. CLIP describes an image by the nearest words of a dictionary, which go through the same
//! Sentence-BERT; or the image is represented by the vector that an image encoder gives it. A Whisper gives sounds theirs. BERT
//! and its kin, CLIP and ResNet are written here; every other architecture goes through candle-transformers and candle-nn
//! (`adapter`). Vectors are kept by content in one cache for all datasets.
//!
//! Must not know: users, interactions.

mod adapter;
mod audio;
mod builtin;
pub mod cache;
mod clip;
pub mod command;
mod device;
pub mod dictionary;
mod encoder;
mod encoder_facts;
mod error;
mod folder;
mod hub;
mod open;
mod processor;
mod resize;
mod resnet;
mod sentence;
mod stage;
mod tokens;
mod weights;
mod words;

pub use adapter::audio::AudioEncoder;
pub use audio::{AudioError, decode as decode_audio};
pub use device::{EncoderDevice, overlap};
pub use encoder::{ImageEncoder, WordEncoder};
pub use encoder_facts::{EncoderFacts, EncoderPlace, EncoderRole, encoders};
pub use error::{Error, Result};
pub use open::{load_image_encoder, load_image_encoder_on};
pub use processor::Processor;
pub use sentence::SentenceEncoder;
pub use stage::{Encoders, encoder_device, local_stage, run, run_shard};
pub use words::{ImageWords, WordVectors};
