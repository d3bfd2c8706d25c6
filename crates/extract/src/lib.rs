//! Computes features from items' sentences, images and sounds.
//!
//! The crate reads `dataset/items.parquet`, the encoders and the settings in `[extract]`. It writes
//! `features/<modality>.<encoder>.safetensors` with a vector per sentence, per image and per sound, and the words that CLIP chose for each
//! image. It must not know users or interactions.
//!
//! A Sentence-BERT computes the vectors of sentences. CLIP describes an image by the nearest words of a dictionary, which go through the
//! same Sentence-BERT; or an image is represented by the vector that an image encoder computes for it. Whisper computes the vectors of
//! sounds. BERT and its relatives, CLIP and ResNet are implemented here; every other architecture uses candle-transformers and candle-nn
//! (`adapter`). Vectors are cached by content in one cache for all datasets.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests write damaged files"))]

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
mod model_files;
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
pub use encoder_facts::{EncoderFacts, EncoderLocation, EncoderRole, encoders};
pub use error::{Error, Result};
pub use hub::is_offline;
pub use open::{load_image_encoder, load_image_encoder_on};
pub use processor::Processor;
pub use sentence::SentenceEncoder;
pub use stage::{Encoders, encoder_device, local_stage, run, run_shard};
pub use words::{ImageWords, WordVectors};
