//! What the language models of all architectures share: the trait of their layers, and how tokens become vectors.

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::folder::ModelFolder;

/// The largest number of values of a product for which the crate `gemm` has another algorithm.
const SMALL_PRODUCT: usize = 16 * 16;

/// The layers of a language model.
pub(crate) trait TextLayers: Send + Sync {
    /// The vectors `[texts, tokens, d]` of the tokens `[texts, tokens]` of texts of equal length.
    fn forward(&self, tokens: &Tensor) -> candle_core::Result<Tensor>;
}

/// A language model with its sizes.
pub(crate) struct TextModel {
    pub(super) layers: Box<dyn TextLayers>,
    /// d, the width of a token's vector.
    pub width: usize,
    /// The number of columns of the narrowest product over all tokens; 0 if the layers accept only one text at a time.
    pub(super) narrowest: usize,
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
    /// The vectors of sequences' tokens, one after the other, `[tokens, d]`. Sequences of equal length that follow one another go through
    /// the layers together, and none is padded.
    pub fn forward(&self, sequences: &[&[u32]]) -> Result<Vec<f32>> {
        let mut states = Vec::with_capacity(sequences.iter().map(|tokens| tokens.len()).sum::<usize>() * self.width);
        for equal in sequences.chunk_by(|one, next| one.len() == next.len()).filter(|equal| !equal[0].is_empty()) {
            let length = equal[0].len();
            let at_once = if self.rounds_rows_alone(length) { equal.len() } else { 1 };
            for texts in equal.chunks(at_once) {
                let tokens = Tensor::from_vec(texts.concat(), (texts.len(), length), &Device::Cpu)?;
                states.extend(self.layers.forward(&tokens)?.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        Ok(states)
    }

    /// Whether the rows of a product over `tokens` tokens are rounded as in a product over more tokens. If they are, the vector of a text
    /// does not depend on its neighbours. The products of candle add up each value in the same order, except for one row and for small
    /// products.
    fn rounds_rows_alone(&self, tokens: usize) -> bool {
        tokens > 1 && tokens * self.narrowest > SMALL_PRODUCT
    }
}
