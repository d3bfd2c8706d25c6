//! Language models on candle-transformers, which map the tokens of a text to one vector per token.

mod deberta_v2;
mod jina_bert;
mod modernbert;
mod nomic_bert;
mod qwen3;
mod t5;

use candle_core::{Device, Tensor};

pub(crate) use self::jina_bert::MODEL_TYPE as JINA_BERT;
use crate::error::Result;
use crate::folder::ModelFolder;

/// The layers of a language model.
pub(crate) trait TextLayers: Send + Sync {
    /// The vectors `[1, tokens, d]` of a text's tokens `[1, tokens]`.
    fn forward(&self, tokens: &Tensor) -> candle_core::Result<Tensor>;
}

/// A language model with its sizes.
pub(crate) struct TextModel {
    layers: Box<dyn TextLayers>,
    /// d, the width of a token's vector.
    pub width: usize,
    /// The number of tokens in the vocabulary.
    pub vocabulary: usize,
    /// The largest number of tokens in a sequence.
    pub longest: usize,
}

/// An architecture: the values of `model_type` by which a configuration names it, and how it is loaded.
struct Architecture {
    model_types: &'static [&'static str],
    load: fn(&ModelFolder) -> Result<TextModel>,
}

const ARCHITECTURES: [Architecture; 6] = [
    deberta_v2::ARCHITECTURE,
    jina_bert::ARCHITECTURE,
    modernbert::ARCHITECTURE,
    nomic_bert::ARCHITECTURE,
    qwen3::ARCHITECTURE,
    t5::ARCHITECTURE,
];

/// The values of `model_type` that are supported.
pub(crate) fn model_types() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().flat_map(|architecture| architecture.model_types).copied()
}

/// Loads the language model of a folder; `None` if its `model_type` is not one of these.
pub(crate) fn load(folder: &ModelFolder, model_type: &str) -> Result<Option<TextModel>> {
    let found = ARCHITECTURES.iter().find(|architecture| architecture.model_types.contains(&model_type));
    found.map(|architecture| (architecture.load)(folder)).transpose()
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
