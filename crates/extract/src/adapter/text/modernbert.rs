//! ModernBERT: rotary positions, local attention in most layers, gated feed-forward layers.
//!
//! Warner et al. 2024 (arXiv 2412.13663). Reference: `ModernBertModel` of transformers. Layers: `candle_transformers`.

use candle_core::{DType, Result as Computed, Tensor};
use candle_transformers::models::modernbert::{Config, ModernBert};
use serde_json::{Value, json};

use super::architecture::{Architecture, TextLayers, TextModel};
use crate::adapter::settings::ArchitectureKeys;
use crate::adapter::{ArchitectureSettings, Tensors};
use crate::error::Result;
use crate::folder::ModelFolder;

pub(super) const ARCHITECTURE: Architecture = Architecture { model_types: &["modernbert"], load };

const KEYS: ArchitectureKeys = ArchitectureKeys {
    supported: &[
        "global_attn_every_n_layers",
        "global_rope_theta",
        "hidden_size",
        "intermediate_size",
        "layer_types",
        "local_attention",
        "local_rope_theta",
        "max_position_embeddings",
        "norm_eps",
        "num_attention_heads",
        "num_hidden_layers",
        "rope_parameters",
        "vocab_size",
    ],
    only: &[
        ("attention_bias", &["false"]),
        ("hidden_activation", &["\"gelu\""]),
        ("mlp_bias", &["false"]),
        ("norm_bias", &["false"]),
        ("position_embedding_type", &["\"absolute\"", "\"sans_pos\"", "\"rope\""]),
    ],
    // The reference reads `norm_eps`; files contain `layer_norm_eps` too.
    harmless: &[
        "compile",
        "decoder_bias",
        "deterministic_flash_attn",
        "embedding_dropout",
        "initializer_cutoff_factor",
        "layer_norm_eps",
        "mlp_dropout",
        "reference_compile",
        "repad_logits_with_grad",
        "sparse_pred_ignore_index",
        "sparse_prediction",
    ],
};

fn load(folder: &ModelFolder) -> Result<TextModel> {
    let settings = ArchitectureSettings::read(folder, &KEYS)?;
    let every = full_attention_every(&settings)?;
    let changes = json!({
        "layer_norm_eps": settings.number_or("norm_eps", 1e-5)?,
        "pad_token_id": 0,
        "global_attn_every_n_layers": every,
        "global_rope_theta": settings.rope_theta(Some("full_attention"), "global_rope_theta", 160_000.0)?,
        "local_rope_theta": settings.rope_theta(Some("sliding_attention"), "local_rope_theta", 10_000.0)?,
        "local_attention": settings.size_or("local_attention", 128)?,
        "classifier_pooling": "cls",
    });
    let config: Config = settings.as_candle(changes)?;
    let tensors = Tensors::read(folder, &["", "model."], "embeddings.tok_embeddings.weight")?;
    let tensors = tensors.renamed(|name| format!("model.{name}"));
    let layers = tensors.build(&["model.head.", "model.decoder."], |builder| ModernBert::load(builder, &config))?;
    Ok(TextModel {
        layers: Box::new(layers),
        width: config.hidden_size,
        narrowest: config.hidden_size,
        vocabulary: config.vocab_size,
        longest: config.max_position_embeddings,
    })
}

/// The distance from one layer with full attention to the next. Transformers 5 writes the kind of every layer.
fn full_attention_every(settings: &ArchitectureSettings<'_>) -> Result<usize> {
    let kinds = settings.value("layer_types");
    let Value::Array(list) = kinds else { return settings.size_or("global_attn_every_n_layers", 3) };
    let is_full = |kind: &Value| kind == "full_attention";
    let every = list.iter().skip(1).position(is_full).map_or(list.len().max(1), |at| at + 1);
    let regular = list.iter().enumerate().all(|(at, kind)| is_full(kind) == at.is_multiple_of(every));
    let known = list.iter().all(|kind| is_full(kind) || kind == "sliding_attention");
    if regular && known {
        Ok(every)
    } else {
        Err(settings.refused("layer_types", "full_attention at equal distances from the first layer on", kinds))
    }
}

impl TextLayers for ModernBert {
    fn forward(&self, tokens: &Tensor) -> Computed<Tensor> {
        self.forward(tokens, &tokens.ones_like()?.to_dtype(DType::F32)?)
    }
}
