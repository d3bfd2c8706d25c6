//! Images to words: CLIP scores every word of a dictionary against an image.
//!
//! Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021 (arXiv 2103.00020). Reference:
//! `CLIPModel` of the Python library transformers.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{D, Device, Tensor};
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig};
use candle_transformers::models::clip::vision_model::ClipVisionConfig;
use candle_transformers::models::clip::{ClipConfig, ClipModel};
use rayon::prelude::*;
use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::error::{Error, Result};
use crate::picture::Processor;
use crate::source::Source;

const FILES: [&str; 4] = ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"];

/// `config.json`; the defaults are those of the reference.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    #[serde(rename = "text_config")]
    text: TextConfig,
    #[serde(rename = "vision_config")]
    vision: VisionConfig,
    #[serde(default = "default_projection")]
    projection_dim: usize,
}

fn default_projection() -> usize {
    512
}

#[derive(Deserialize)]
#[serde(default)]
struct TextConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: String,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".to_owned(),
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct VisionConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: String,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".to_owned(),
        }
    }
}

impl Config {
    fn resolve(&self) -> std::result::Result<ClipConfig, String> {
        if self.model_type != "clip" {
            return Err(format!("model_type: expected clip, found {}", self.model_type));
        }
        for activation in [&self.text.hidden_act, &self.vision.hidden_act] {
            if activation != "quick_gelu" {
                return Err(format!("hidden_act: expected quick_gelu, found {activation}"));
            }
        }
        let (text, vision) = (&self.text, &self.vision);
        Ok(ClipConfig {
            text_config: ClipTextConfig {
                vocab_size: text.vocab_size,
                embed_dim: text.hidden_size,
                activation: Activation::QuickGelu,
                intermediate_size: text.intermediate_size,
                max_position_embeddings: text.max_position_embeddings,
                pad_with: None,
                num_hidden_layers: text.num_hidden_layers,
                num_attention_heads: text.num_attention_heads,
                projection_dim: self.projection_dim,
            },
            vision_config: ClipVisionConfig {
                embed_dim: vision.hidden_size,
                activation: Activation::QuickGelu,
                intermediate_size: vision.intermediate_size,
                num_hidden_layers: vision.num_hidden_layers,
                num_attention_heads: vision.num_attention_heads,
                projection_dim: self.projection_dim,
                num_channels: vision.num_channels,
                image_size: vision.image_size,
                patch_size: vision.patch_size,
            },
            logit_scale_init_value: 2.6592,
            image_size: vision.image_size,
        })
    }
}

/// A CLIP model with its processor and tokenizer.
pub struct Clip {
    model: ClipModel,
    tokenizer: Tokenizer,
    processor: Processor,
    side: usize,
    width: usize,
}

/// The words that describe an image, best first, with their cosines.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageWords {
    /// Indices into the dictionary.
    pub words: Vec<usize>,
    /// Cosine of the image's and the word's embedding.
    pub scores: Vec<f32>,
}

/// What became of one image file: its words, or why it can't be read.
pub type Described = std::result::Result<ImageWords, String>;

impl Clip {
    /// Loads from a folder or, where `name` is none, through the hub's cache.
    pub fn load(name: &str) -> Result<Self> {
        Self::from_source(&Source::find(name)?)
    }

    pub(crate) fn inputs(source: &Source) -> Result<Vec<(String, std::path::PathBuf)>> {
        source.inputs("image", &FILES, &[])
    }

    pub(crate) fn from_source(source: &Source) -> Result<Self> {
        let raw: Config = source.json("config.json")?;
        let config = raw.resolve().map_err(|reason| Error::model(&source.path_of("config.json"), reason))?;
        let processor: Processor = source.json("preprocessor_config.json")?;
        let side = config.image_size;
        processor.check(side).map_err(|reason| Error::model(&source.path_of("preprocessor_config.json"), reason))?;
        let tokenizer = source.tokenizer(config.text_config.max_position_embeddings)?;
        let weights = source.weights()?;
        let model =
            ClipModel::new(weights, &config).map_err(|e| Error::model(&source.path_of("model.safetensors"), e))?;
        Ok(Self { model, tokenizer, processor, side, width: raw.projection_dim })
    }

    /// Unit embeddings of words, `[words, width]`.
    pub fn word_vectors<S: AsRef<str> + Sync>(&self, words: &[S]) -> Result<Tensor> {
        let tokens = words
            .par_iter()
            .map(|word| {
                let word = word.as_ref();
                let encoding = self.tokenizer.encode(word, true);
                let encoding = encoding.map_err(|e| Error::Tokens { text: word.to_owned(), reason: e.to_string() })?;
                Ok(encoding.get_ids().to_vec())
            })
            .collect::<Result<Vec<_>>>()?;
        // Only words of equal length share a batch, so nothing is padded and the end mark is where the model looks for it.
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, row) in tokens.iter().enumerate() {
            by_length.entry(row.len()).or_default().push(i);
        }
        let blocks: Vec<(usize, &[usize])> =
            by_length.iter().flat_map(|(&length, rows)| rows.chunks(256).map(move |block| (length, block))).collect();
        let vectors = blocks
            .par_iter()
            .map(|&(length, block)| {
                let ids: Vec<u32> = block.iter().flat_map(|&i| tokens[i].iter().copied()).collect();
                let ids = Tensor::from_vec(ids, (block.len(), length), &Device::Cpu)?;
                Ok(unit(&self.model.get_text_features(&ids)?)?.flatten_all()?.to_vec1::<f32>()?)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut all = vec![0.0; words.len() * self.width];
        for (&(_, block), vectors) in blocks.iter().zip(&vectors) {
            for (&i, vector) in block.iter().zip(vectors.chunks_exact(self.width)) {
                all[i * self.width..(i + 1) * self.width].copy_from_slice(vector);
            }
        }
        Ok(Tensor::from_vec(all, (words.len(), self.width), &Device::Cpu)?)
    }

    /// The `count` words nearest to each image file, best first; equal scores in the dictionary's order. `words` is what
    /// [`Self::word_vectors`] gave. `done` hears how many more are done.
    pub fn describe<P: AsRef<Path> + Sync>(
        &self,
        paths: &[P],
        words: &Tensor,
        count: usize,
        batch: usize,
        done: impl Fn(u64) + Sync,
    ) -> Result<Vec<Described>> {
        let transposed = words.t()?.contiguous()?;
        let blocks = paths
            .par_chunks(batch.max(1))
            .map(|block| {
                let described = self.describe_block(block, &transposed, count)?;
                done(block.len() as u64);
                Ok(described)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(blocks.into_iter().flatten().collect())
    }

    fn describe_block<P: AsRef<Path>>(&self, paths: &[P], words: &Tensor, count: usize) -> Result<Vec<Described>> {
        let read: Vec<_> = paths.iter().map(|path| self.processor.read(path.as_ref())).collect();
        let pixels: Vec<f32> = read.iter().flatten().flatten().copied().collect();
        let readable = read.iter().filter(|pixels| pixels.is_ok()).count();
        let mut scores = Vec::new();
        if readable > 0 {
            let pixels = Tensor::from_vec(pixels, (readable, 3, self.side, self.side), &Device::Cpu)?;
            scores = unit(&self.model.get_image_features(&pixels)?)?.matmul(words)?.to_vec2::<f32>()?;
        }
        let mut scores = scores.into_iter();
        Ok(read.into_iter().map(|outcome| outcome.map(|_| best(&scores.next().unwrap_or_default(), count))).collect())
    }
}

fn unit(vectors: &Tensor) -> candle_core::Result<Tensor> {
    vectors.broadcast_div(&vectors.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?)
}

fn best(scores: &[f32], count: usize) -> ImageWords {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(count);
    ImageWords { scores: order.iter().map(|&i| scores[i]).collect(), words: order }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_words_come_first_and_ties_keep_the_order_of_the_dictionary() {
        let found = best(&[0.1, 0.5, 0.3, 0.5, -1.0], 3);
        assert_eq!(found, ImageWords { words: vec![1, 3, 2], scores: vec![0.5, 0.5, 0.3] });
        assert_eq!(best(&[0.1], 15).words, [0]);
    }
}
