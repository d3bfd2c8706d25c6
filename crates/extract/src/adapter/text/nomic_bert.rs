//! Nomic BERT: BERT with rotary positions and gated feed-forward layers.
//!
//! Nussbaum et al. 2024 (arXiv 2402.01613). Reference: `NomicBertModel` of transformers. Layers: `candle_transformers`. The keys
//! of `config.json` are those of transformers 5 or those of the model's first release.

use candle_core::{Result as Computed, Tensor};
use candle_transformers::models::nomic_bert::{Config, NomicBertModel};
use serde_json::{Value, json};

use super::architecture::{Architecture, TextLayers, TextModel};
use crate::adapter::settings::ArchitectureKeys;
use crate::adapter::{ArchitectureSettings, Tensors};
use crate::error::Result;
use crate::folder::ModelFolder;

pub(super) const ARCHITECTURE: Architecture = Architecture { model_types: &["nomic_bert"], load };

const KEYS: ArchitectureKeys = ArchitectureKeys {
    supported: &[
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "max_position_embeddings",
        "n_embd",
        "n_head",
        "n_inner",
        "n_layer",
        "n_positions",
        "num_attention_heads",
        "num_hidden_layers",
        "rope_parameters",
        "rope_theta",
        "rotary_emb_base",
        "type_vocab_size",
        "vocab_size",
    ],
    only: &[
        ("activation_function", &["\"swiglu\""]),
        ("causal", &["false"]),
        ("hidden_act", &["\"silu\""]),
        ("mlp_fc1_bias", &["false"]),
        ("mlp_fc2_bias", &["false"]),
        ("parallel_block", &["false"]),
        ("prenorm", &["false"]),
        ("qkv_proj_bias", &["false"]),
        ("rotary_emb_fraction", &["1.0", "1"]),
        ("rotary_emb_interleaved", &["false"]),
        ("rotary_emb_scale_base", &["null"]),
        ("rotary_scaling_factor", &["null"]),
        ("scale_attn_by_inverse_layer_idx", &["false"]),
        ("scale_attn_weights", &["true"]),
        ("use_rms_norm", &["false"]),
    ],
    harmless: &[
        "attn_pdrop",
        "dense_seq_output",
        "embd_pdrop",
        "fused_bias_fc",
        "fused_dropout_add_ln",
        "last_layer_subset",
        "max_trained_positions",
        "mlm_checkpoint",
        "moe_every_n_layers",
        "pad_vocab_size_multiple",
        "parallel_block_tied_norm",
        "reorder_and_upcast_attn",
        "resid_pdrop",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "use_flash_attn",
        "use_xentropy",
    ],
};

fn load(folder: &ModelFolder) -> Result<TextModel> {
    let settings = ArchitectureSettings::read(folder, &KEYS)?;
    let size = |new: &str, old: &str, default| match settings.value(new) {
        Value::Null => settings.size_or(old, default),
        _ => settings.size(new),
    };
    let eps = if settings.value("layer_norm_eps").is_null() { "layer_norm_epsilon" } else { "layer_norm_eps" };
    let theta = if settings.value("rotary_emb_base").is_null() { "rope_theta" } else { "rotary_emb_base" };
    let (width, heads) = (size("hidden_size", "n_embd", 768)?, size("num_attention_heads", "n_head", 12)?);
    let changes = json!({
        "n_embd": width,
        "n_head": heads,
        "n_layer": size("num_hidden_layers", "n_layer", 12)?,
        "n_inner": size("intermediate_size", "n_inner", 4 * width)?,
        "n_positions": size("max_position_embeddings", "n_positions", 2048)?,
        "layer_norm_epsilon": settings.number_or(eps, 1e-12)?,
        "rotary_emb_base": settings.rope_theta(None, theta, 1000.0)?,
        "activation_function": "swiglu",
    });
    if settings.size_or("head_dim", width / heads.max(1))? * heads != width {
        return Err(settings.refused("head_dim", "hidden_size divided by the heads", settings.value("head_dim")));
    }
    let config: Config = settings.as_candle(changes)?;
    let tensors = Tensors::read(folder, &["", "nomic_bert.", "bert."], "embeddings.word_embeddings.weight")?;
    let layers = tensors.build(&["pooler."], |builder| NomicBertModel::load(builder, &config))?;
    Ok(TextModel {
        layers: Box::new(layers),
        width: config.n_embd,
        narrowest: config.n_embd,
        vocabulary: config.vocab_size,
        longest: config.n_positions,
    })
}

impl TextLayers for NomicBertModel {
    fn forward(&self, tokens: &Tensor) -> Computed<Tensor> {
        self.forward(tokens, None, None)
    }
}
