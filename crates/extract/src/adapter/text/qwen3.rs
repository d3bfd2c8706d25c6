//! Qwen3 as an embedding model: a decoder whose last token represents the text (Qwen3-Embedding).
//!
//! Zhang et al. 2025 (arXiv 2506.05176). Reference: `Qwen3Model` of transformers. Layers: `candle_transformers`.

use candle_core::{Result as Computed, Tensor};
use candle_transformers::models::qwen3::{Config, Model};
use serde_json::{Value, json};

use super::architecture::{Architecture, TextLayers, TextModel};
use crate::adapter::settings::ArchitectureKeys;
use crate::adapter::{ArchitectureSettings, Tensors};
use crate::error::Result;
use crate::folder::ModelFolder;

pub(super) const ARCHITECTURE: Architecture = Architecture { model_types: &["qwen3"], load };

const KEYS: ArchitectureKeys = ArchitectureKeys {
    supported: &[
        "attention_bias",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_parameters",
        "rope_theta",
        "vocab_size",
    ],
    only: &[("hidden_act", &["\"silu\""]), ("rope_scaling", &["null"]), ("use_sliding_window", &["false"])],
    // Keys of layers with a sliding window, which are refused.
    harmless: &["max_window_layers", "sliding_window"],
};

fn load(folder: &ModelFolder) -> Result<TextModel> {
    let settings = ArchitectureSettings::read(folder, &KEYS)?;
    let kinds = settings.value("layer_types");
    if kinds.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind != "full_attention")) {
        return Err(settings.refused("layer_types", "full_attention in every layer", kinds));
    }
    let heads = settings.size("num_attention_heads")?;
    let pairs = settings.size_or("num_key_value_heads", 32)?;
    if !heads.is_multiple_of(pairs) {
        return Err(settings.refused("num_key_value_heads", "a divisor of num_attention_heads", &json!(pairs)));
    }
    let changes = json!({
        "attention_bias": settings.is_on("attention_bias", false)?,
        "head_dim": settings.size_or("head_dim", 128)?,
        "num_key_value_heads": pairs,
        "rms_norm_eps": settings.number_or("rms_norm_eps", 1e-6)?,
        "rope_theta": settings.rope_theta(None, "rope_theta", 10_000.0)?,
        "max_position_embeddings": settings.size_or("max_position_embeddings", 32_768)?,
        "sliding_window": Value::Null,
        "max_window_layers": 0,
        "use_sliding_window": false,
        "tie_word_embeddings": true,
        "hidden_act": "silu",
    });
    let config: Config = settings.as_candle(changes)?;
    let tensors = Tensors::read(folder, &["", "model."], "embed_tokens.weight")?;
    let tensors = tensors.renamed(|name| format!("model.{name}"));
    let layers = tensors.build(&["model.lm_head."], |builder| Model::new(&config, builder))?;
    Ok(TextModel {
        layers: Box::new(Decoder(layers)),
        width: config.hidden_size,
        narrowest: config.hidden_size.min(config.num_key_value_heads * config.head_dim),
        vocabulary: config.vocab_size,
        longest: config.max_position_embeddings,
    })
}

struct Decoder(Model);

impl TextLayers for Decoder {
    fn forward(&self, tokens: &Tensor) -> Computed<Tensor> {
        // Candle's layers keep keys and values for the next token; a copy with an empty cache sees this text alone.
        let mut layers = self.0.clone();
        layers.forward(tokens, 0)
    }
}
