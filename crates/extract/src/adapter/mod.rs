//! Encoders on candle-transformers and candle-nn, for every `model_type` that has no hand-written fast path.
//!
//! Every architecture is one small file. It says which keys of `config.json` it supports, which it accepts because they do not change a
//! vector, and how the model is built from the tensors of the folder. Everything else is refused by name: a key of the configuration that
//! is not known, a value that the layers do not support, and a tensor that they do not read ([`ArchitectureSettings`], [`Tensors`]).
//! Layers of candle without a backward pass are fine here, because nothing is trained.
//!
//! Nothing is padded: only texts of equal length go through the layers together, and every image and window of sound goes through them
//! alone, so a vector is exactly the same whatever else is in the batch. Models compute in f32 on the CPU, whatever type the weights are
//! stored in; `docs/encoders.md` lists what each of them was compared with.

pub(crate) mod audio;
pub(crate) mod image;
pub(crate) mod layers;
mod settings;
mod tensors;
pub(crate) mod text;

pub(crate) use settings::ArchitectureSettings;
pub(crate) use tensors::Tensors;
