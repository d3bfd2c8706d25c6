//! The encoder of T5, for sentence-t5 and GTR.
//!
//! Raffel et al. 2019 (arXiv 1910.10683), Ni et al. 2021 (2108.08877, 2112.07899). Reference: `T5EncoderModel` of transformers. Layers:
//! `candle_transformers`, whose feed-forward layer has a ReLU or is gated.

use candle_core::{Result as Computed, Tensor};
use candle_transformers::models::t5::{Config, T5EncoderModel};
use serde_json::json;

use super::architecture::{Architecture, TextLayers, TextModel};
use crate::adapter::settings::ArchitectureKeys;
use crate::adapter::{ArchitectureSettings, Tensors};
use crate::error::Result;
use crate::folder::ModelFolder;

pub(super) const ARCHITECTURE: Architecture = Architecture { model_types: &["t5", "mt5"], load };

const KEYS: ArchitectureKeys = ArchitectureKeys {
    supported: &[
        "d_ff",
        "d_kv",
        "d_model",
        "layer_norm_epsilon",
        "num_heads",
        "num_layers",
        "relative_attention_max_distance",
        "relative_attention_num_buckets",
        "vocab_size",
    ],
    only: &[("feed_forward_proj", &["\"relu\"", "\"gated-gelu\"", "\"gated-silu\""])],
    // Keys of the decoder, and what `feed_forward_proj` already says. Positions are relative, so `n_positions` does not limit anything.
    harmless: &[
        "dense_act_fn",
        "dropout_rate",
        "is_gated_act",
        "n_positions",
        "num_decoder_layers",
        "scale_decoder_outputs",
    ],
};

fn load(folder: &ModelFolder) -> Result<TextModel> {
    let settings = ArchitectureSettings::read(folder, &KEYS)?;
    let is_mt5 = folder.model_type()? == "mt5";
    let feed = settings.value("feed_forward_proj").as_str().unwrap_or(if is_mt5 { "gated-gelu" } else { "relu" });
    let changes = json!({
        "feed_forward_proj": feed,
        "dropout_rate": 0.0,
        "initializer_factor": 1.0,
        "is_decoder": false,
        "is_encoder_decoder": false,
        "use_cache": false,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "layer_norm_epsilon": settings.number_or("layer_norm_epsilon", 1e-6)?,
        "relative_attention_num_buckets": settings.size_or("relative_attention_num_buckets", 32)?,
        "relative_attention_max_distance": settings.size_or("relative_attention_max_distance", 128)?,
    });
    let config: Config = settings.as_candle(changes)?;
    let tensors = Tensors::read(folder, &["", "t5."], "encoder.final_layer_norm.weight")?;
    let unused = ["decoder.", "lm_head.", "encoder.embed_tokens."];
    let layers = tensors.build(&unused, |builder| T5EncoderModel::load(builder, &config))?;
    Ok(TextModel {
        layers: Box::new(layers),
        width: config.d_model,
        narrowest: config.d_model.min(config.num_heads * config.d_kv),
        vocabulary: config.vocab_size,
        longest: usize::MAX,
    })
}

impl TextLayers for T5EncoderModel {
    fn forward(&self, tokens: &Tensor) -> Computed<Tensor> {
        // Candle's layers change a cache that encoders do not use; tensors are shared with the copy.
        let mut layers = self.clone();
        T5EncoderModel::forward(&mut layers, tokens)
    }
}
