//! What the language models of all architectures share: the trait of their layers, and how tokens become vectors.

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::folder::ModelFolder;

/// The layers of a language model.
pub(crate) trait TextLayers: Send + Sync {
    /// The vectors `[1, tokens, d]` of a text's tokens `[1, tokens]`.
    fn forward(&self, tokens: &Tensor) -> candle_core::Result<Tensor>;
}

/// A language model with its sizes.
pub(crate) struct TextModel {
    pub(super) layers: Box<dyn TextLayers>,
    /// d, the width of a token's vector.
    pub width: usize,
    /// The number of tokens in the vocabulary.
    pub vocabulary: usize,
    /// The largest number of tokens in a sequence.
    pub longest: usize,
}

/// An architecture: the values of `model_type` by which a configuration names it, and how it is loaded.
pub(super) struct Architecture {
    pub(super) model_types: &'static [&'static str],
    pub(super) load: fn(&ModelFolder) -> Result<TextModel>,
}

impl TextModel {
    /// The vectors of sequences' tokens, one after the other, `[tokens, d]`. Each text goes through the layers alone: products over several
    /// texts, even of equal length, round differently, and a vector would depend on its neighbours.
    pub fn forward(&self, sequences: &[&[u32]]) -> Result<Vec<f32>> {
        let mut states = Vec::with_capacity(sequences.iter().map(|tokens| tokens.len()).sum::<usize>() * self.width);
        for tokens in sequences.iter().filter(|tokens| !tokens.is_empty()) {
            let tokens = Tensor::from_slice(tokens, (1, tokens.len()), &Device::Cpu)?;
            states.extend(self.layers.forward(&tokens)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(states)
    }
}
