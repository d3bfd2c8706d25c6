//! The language models under sentence encoders: BERT, DistilBERT, RoBERTa and XLM-RoBERTa, MPNet.
//!
//! Devlin et al. 2018 (arXiv 1810.04805), Sanh et al. 2019 (1910.01108), Liu et al. 2019 (1907.11692), Conneau et al. 2019
//! (1911.02116), Song et al. 2020 (2004.09297). Reference: the classes of these names in the Python library transformers.
//! They differ in the names of tensors, in where positions begin, and in MPNet's bias by distance; the layers are alike.

use mp4sr_ops::{
    Activation, DeviceEncoder, EncoderInput, EncoderParts, InferenceLayer, InferenceNorm, InferenceShape,
    InferenceTransformer, Precision, Readout, RelativeBias,
};
use serde::Deserialize;

use crate::adapter::text::JINA_BERT;
use crate::device::EncoderDevice;
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::weights::Weights;

/// `config.json`, whose keys have other names in DistilBERT.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "activation", default = "gelu")]
    hidden_act: String,
    max_position_embeddings: usize,
    #[serde(default)]
    type_vocab_size: usize,
    #[serde(default = "smallest")]
    layer_norm_eps: f32,
    pad_token_id: Option<u32>,
    #[serde(default = "absolute")]
    position_embedding_type: String,
    #[serde(default = "buckets")]
    relative_attention_num_buckets: usize,
    #[serde(default)]
    is_decoder: bool,
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn smallest() -> f32 {
    1e-12
}

fn absolute() -> String {
    "absolute".to_owned()
}

fn buckets() -> usize {
    32
}

/// The supported models.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Architecture {
    Bert,
    DistilBert,
    Roberta,
    MpNet,
}

/// The names of a layer's tensors, which follow the name of the layer.
struct Names {
    layers: &'static str,
    qkv: [&'static str; 3],
    out: &'static str,
    attention_norm: &'static str,
    up: &'static str,
    down: &'static str,
    feed_norm: &'static str,
}

impl Architecture {
    fn of(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "bert" => Self::Bert,
            "distilbert" => Self::DistilBert,
            "roberta" | "xlm-roberta" | "camembert" => Self::Roberta,
            "mpnet" => Self::MpNet,
            _ => return None,
        })
    }

    fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::Bert => &["", "bert."],
            Self::DistilBert => &["", "distilbert."],
            Self::Roberta => &["", "roberta."],
            Self::MpNet => &["", "mpnet."],
        }
    }

    fn names(self) -> Names {
        let bert = Names {
            layers: "encoder.layer",
            qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
            out: "attention.output.dense",
            attention_norm: "attention.output.LayerNorm",
            up: "intermediate.dense",
            down: "output.dense",
            feed_norm: "output.LayerNorm",
        };
        match self {
            Self::Bert | Self::Roberta => bert,
            Self::DistilBert => Names {
                layers: "transformer.layer",
                qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
                out: "attention.out_lin",
                attention_norm: "sa_layer_norm",
                up: "ffn.lin1",
                down: "ffn.lin2",
                feed_norm: "output_layer_norm",
            },
            Self::MpNet => Names {
                qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
                out: "attention.attn.o",
                attention_norm: "attention.LayerNorm",
                ..bert
            },
        }
    }

    /// The padding token's id if positions start after it; it is also the position of padding tokens in the text. `configured` is
    /// `pad_token_id`.
    fn padding(self, configured: Option<u32>) -> Option<u32> {
        match self {
            Self::Roberta => Some(configured.unwrap_or(1)),
            // The reference counts from 1, whatever the configuration says.
            Self::MpNet => Some(1),
            _ => None,
        }
    }
}

/// A language model, which maps tokens to vectors.
pub(super) struct LanguageModel {
    stack: InferenceTransformer,
    words: Vec<f32>,
    positions: Vec<f32>,
    /// The embedding of the first segment type, the only one used here; it is added to every token.
    segment: Vec<f32>,
    norm: InferenceNorm,
    /// The padding token, in models whose positions count from it.
    padding: Option<u32>,
    /// The largest number of tokens in a sequence.
    pub longest: usize,
    gpu: Option<DeviceEncoder>,
}

impl LanguageModel {
    /// The values of `model_type` that it loads.
    pub const MODEL_TYPES: [&'static str; 6] = ["bert", "camembert", "distilbert", "mpnet", "roberta", "xlm-roberta"];

    /// The `model_type` of a folder; `jina_bert` if the configuration says `bert` with ALiBi.
    pub fn model_type(folder: &ModelFolder) -> Result<String> {
        let model_type = folder.model_type()?;
        let config: serde_json::Value = folder.config.parse()?;
        let is_jina = model_type == "bert" && config["position_embedding_type"] == "alibi";
        Ok(if is_jina { JINA_BERT.to_owned() } else { model_type })
    }

    /// Loads the model of a folder; `None` if its `model_type` is not one of these.
    pub fn load(folder: &ModelFolder, model_type: &str, device: &EncoderDevice) -> Result<Option<Self>> {
        let Some(kind) = Architecture::of(model_type) else { return Ok(None) };
        let config: Config = folder.config.parse()?;
        config.check(kind).map_err(|reason| folder.config.error(reason))?;
        let file = folder.weights()?;
        let weights = file.tensors(kind.prefixes(), "embeddings.word_embeddings.weight")?;
        let mut model = Self::build(&config, kind, &weights, device.precision())?;
        model.gpu = device.upload(EncoderParts {
            input: EncoderInput::Tokens { table: &model.words, segment: Some(&model.segment) },
            positions: &model.positions,
            norm: Some(&model.norm),
            stack: &model.stack,
            output: None,
        })?;
        Ok(Some(model))
    }

    fn build(config: &Config, kind: Architecture, weights: &Weights<'_>, precision: Precision) -> Result<Self> {
        let d = config.hidden_size;
        let names = kind.names();
        let layers = (0..config.num_hidden_layers).map(|at| {
            let full = |name: &str| format!("{}.{at}.{name}", names.layers);
            let qkv = names.qkv.map(full);
            Ok(InferenceLayer {
                qkv: weights.side_by_side(&[qkv[0].as_str(), qkv[1].as_str(), qkv[2].as_str()], d, d)?,
                out: weights.linear(&full(names.out), d, d)?,
                attention_norm: weights.norm(&full(names.attention_norm), d)?,
                up: weights.linear(&full(names.up), d, config.intermediate_size)?,
                down: weights.linear(&full(names.down), config.intermediate_size, d)?,
                feed_norm: weights.norm(&full(names.feed_norm), d)?,
            })
        });
        let shape = InferenceShape {
            width: d,
            heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            norm_first: false,
            causal: false,
            activation: Activation::Gelu,
            precision,
        };
        let bias = match kind {
            Architecture::MpNet => Some(relative_bias(config, weights)?),
            _ => None,
        };
        let segment = match config.type_vocab_size {
            0 => vec![0.0; d],
            kinds => {
                let table = weights.optional("embeddings.token_type_embeddings.weight", &[kinds, d])?;
                table.map_or_else(|| vec![0.0; d], |table| table[..d].to_vec())
            }
        };
        let padding = kind.padding(config.pad_token_id);
        let reserved = padding.map_or(0, |padding| padding as usize + 1);
        Ok(Self {
            stack: InferenceTransformer { shape, layers: layers.collect::<Result<_>>()?, bias },
            words: weights.read("embeddings.word_embeddings.weight", &[config.vocab_size, d])?,
            positions: weights.read("embeddings.position_embeddings.weight", &[config.max_position_embeddings, d])?,
            segment,
            norm: weights.norm("embeddings.LayerNorm", d)?,
            padding,
            longest: config.max_position_embeddings.saturating_sub(reserved),
            gpu: None,
        })
    }

    /// d, the width of a token's vector.
    pub fn width(&self) -> usize {
        self.segment.len()
    }

    /// The number of tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.words.len() / self.width()
    }

    /// The encoder on a GPU, if the model was loaded onto one.
    pub fn gpu(&self) -> Option<&DeviceEncoder> {
        self.gpu.as_ref()
    }

    /// The vectors of sequences on a GPU, `[sequences, d]`.
    pub fn embed_on(&self, gpu: &DeviceEncoder, sequences: &[&[u32]], readout: Readout<'_>) -> Result<Vec<f32>> {
        let positions: Vec<u32> =
            sequences.iter().flat_map(|tokens| self.position_ids(tokens)).map(|position| position as u32).collect();
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.len()).collect();
        Ok(gpu.embed_tokens(&sequences.concat(), &positions, &lengths, readout)?)
    }

    /// The vectors of sequences' tokens, one after the other, `[tokens, d]`.
    pub fn forward(&self, sequences: &[&[u32]]) -> Vec<f32> {
        let d = self.width();
        let mut x = Vec::with_capacity(sequences.iter().map(|tokens| tokens.len()).sum::<usize>() * d);
        for tokens in sequences {
            for (&token, position) in tokens.iter().zip(self.position_ids(tokens)) {
                let (word, position) = (&self.words[token as usize * d..][..d], &self.positions[position * d..][..d]);
                // The order of the additions is the reference's.
                x.extend((0..d).map(|c| (word[c] + self.segment[c]) + position[c]));
            }
        }
        self.norm.forward(&mut x, self.stack.shape.eps);
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.len()).collect();
        self.stack.forward(&mut x, &lengths);
        x
    }

    fn position_ids(&self, tokens: &[u32]) -> Vec<usize> {
        let Some(padding) = self.padding else { return (0..tokens.len()).collect() };
        let mut next = padding as usize;
        let position_id = |&token: &u32| {
            next += usize::from(token != padding);
            if token == padding { padding as usize } else { next }
        };
        tokens.iter().map(position_id).collect()
    }
}

impl Config {
    fn check(&self, kind: Architecture) -> std::result::Result<(), String> {
        if self.hidden_act != "gelu" {
            return Err(format!("hidden_act: expected gelu, found {}", self.hidden_act));
        }
        if kind != Architecture::MpNet && self.position_embedding_type != "absolute" {
            return Err(format!("position_embedding_type: expected absolute, found {}", self.position_embedding_type));
        }
        if self.is_decoder {
            return Err(
                "is_decoder: expected false (tokens attend to those before and after them), found true".to_owned()
            );
        }
        let (d, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || d == 0 || !d.is_multiple_of(heads) {
            return Err(format!("hidden_size {d} is not a multiple of num_attention_heads {heads}"));
        }
        if self.relative_attention_num_buckets < 4 {
            return Err(format!(
                "relative_attention_num_buckets: expected 4 or more, found {}",
                self.relative_attention_num_buckets
            ));
        }
        Ok(())
    }
}

/// The distance from which on all distances share a bucket.
const FARTHEST: usize = 128;

/// Reads the biases by distance. Near distances have a bucket each, farther ones share buckets on a logarithmic scale (as in T5, arXiv
/// 1910.10683).
fn relative_bias(config: &Config, weights: &Weights<'_>) -> Result<RelativeBias> {
    let (buckets, heads) = (config.relative_attention_num_buckets, config.num_attention_heads);
    let table = weights.read("encoder.relative_attention_bias.weight", &[buckets, heads])?;
    let distances = -(FARTHEST as isize)..=FARTHEST as isize;
    let values = (0..heads)
        .flat_map(|head| distances.clone().map(move |distance| (head, distance)))
        .map(|(head, distance)| table[bucket(distance, buckets) * heads + head])
        .collect();
    Ok(RelativeBias { values, reach: FARTHEST })
}

/// The bucket of a distance. Half of the buckets are for keys after the query, half for those before it.
fn bucket(distance: isize, buckets: usize) -> usize {
    let half = buckets / 2;
    let (after, far) = (if distance > 0 { half } else { 0 }, distance.unsigned_abs());
    let exact = half / 2;
    if far < exact {
        return after + far;
    }
    // In single precision, as in the reference: its rounding decides on which side of a boundary a power of two falls.
    let span = ((FARTHEST as f64 / exact as f64).ln()) as f32;
    let share = (far as f32 / exact as f32).ln() / span * (half - exact) as f32;
    after + (exact + share as usize).min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected buckets are those of `MPNetEncoder.relative_position_bucket` in the Python library transformers 4.57.
    #[test]
    fn buckets_are_those_of_the_reference() {
        let of = |distances: &[isize]| distances.iter().map(|&d| bucket(d, 32)).collect::<Vec<_>>();
        assert_eq!(of(&[0, -1, -7, -8, -11, -12, -16, -23, -32, -64, -91, -127, -128, -500]), BEFORE);
        assert_eq!(of(&[1, 7, 8, 11, 12, 16, 23, 32, 64, 91, 127, 128]), AFTER);
    }

    #[test]
    fn mpnet_counts_positions_from_one_whatever_its_padding_token_is() {
        assert_eq!(Architecture::MpNet.padding(Some(0)), Some(1));
        assert_eq!(Architecture::Roberta.padding(Some(0)), Some(0));
        assert_eq!(Architecture::Roberta.padding(None), Some(1));
    }

    const BEFORE: [usize; 14] = [0, 1, 7, 8, 8, 9, 10, 11, 12, 14, 15, 15, 15, 15];
    const AFTER: [usize; 12] = [17, 23, 24, 24, 25, 26, 27, 28, 30, 31, 31, 31];
}
