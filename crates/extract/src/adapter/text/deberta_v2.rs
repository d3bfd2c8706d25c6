//! DeBERTa-v2 and -v3: separate attention to contents and to relative positions.
//!
//! He et al. 2020 (arXiv 2006.03654). Reference: `DebertaV2Model` of transformers. Layers: `candle_transformers`.

use candle_core::{Result as Computed, Tensor};
use candle_transformers::models::debertav2::{Config, DebertaV2Model};
use serde_json::json;

use super::architecture::{Architecture, TextLayers, TextModel};
use crate::adapter::settings::ArchitectureKeys;
use crate::adapter::{ArchitectureSettings, Tensors};
use crate::error::Result;
use crate::folder::ModelFolder;

pub(super) const ARCHITECTURE: Architecture = Architecture { model_types: &["deberta-v2"], load };

const KEYS: ArchitectureKeys = ArchitectureKeys {
    supported: &[
        "attention_head_size",
        "embedding_size",
        "hidden_size",
        "intermediate_size",
        "layer_norm_eps",
        "max_position_embeddings",
        "max_relative_positions",
        "num_attention_heads",
        "num_hidden_layers",
        "pos_att_type",
        "position_biased_input",
        "position_buckets",
        "share_att_key",
        "type_vocab_size",
        "vocab_size",
    ],
    // A convolution after the first layer is not implemented in candle.
    only: &[
        ("conv_kernel_size", &["0", "null"]),
        ("hidden_act", &["\"gelu\"", "\"relu\""]),
        ("norm_rel_ebd", &["\"none\"", "\"layer_norm\""]),
        ("relative_attention", &["true"]),
    ],
    harmless: &["conv_act", "conv_groups", "legacy", "pooler_dropout", "pooler_hidden_act", "pooler_hidden_size"],
};

fn load(folder: &ModelFolder) -> Result<TextModel> {
    let settings = ArchitectureSettings::read(folder, &KEYS)?;
    let changes = json!({
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": settings.number_or("layer_norm_eps", 1e-7)?,
        "max_relative_positions": settings.number_or("max_relative_positions", -1.0)? as i64,
        "position_biased_input": settings.is_on("position_biased_input", true)?,
        "type_vocab_size": settings.value("type_vocab_size").as_u64().unwrap_or(0),
        // Heads of other tasks, in forms that candle's configuration does not read.
        "id2label": null, "label2id": null, "pooler_dropout": null, "pooler_hidden_act": null, "pooler_hidden_size": null,
    });
    if settings.value("relative_attention").is_null() {
        return Err(settings.refused("relative_attention", "true", settings.value("relative_attention")));
    }
    let config: Config = settings.as_candle(changes)?;
    if !config.pos_att_type.iter().all(|kind| kind == "c2p" || kind == "p2c") {
        return Err(settings.refused("pos_att_type", "c2p and p2c", settings.value("pos_att_type")));
    }
    let tensors = Tensors::read(folder, &["", "deberta."], "embeddings.word_embeddings.weight")?;
    let unused = ["pooler.", "cls.", "lm_predictions.", "mask_predictions.", "embeddings.position_embeddings."];
    // The reference adds positions to the input only if it is configured to, but its files always contain them.
    let unused = if config.position_biased_input { &unused[..4] } else { &unused };
    let layers = tensors.build(unused, |builder| DebertaV2Model::load(builder, &config))?;
    let heads = config.attention_head_size.map_or(config.hidden_size, |size| size * config.num_attention_heads);
    Ok(TextModel {
        layers: Box::new(layers),
        width: config.hidden_size,
        // Candle adds the positions of one text to the embeddings, without repeating them for others.
        narrowest: if config.position_biased_input { 0 } else { config.hidden_size.min(heads) },
        vocabulary: config.vocab_size,
        longest: config.max_position_embeddings,
    })
}

impl TextLayers for DebertaV2Model {
    fn forward(&self, tokens: &Tensor) -> Computed<Tensor> {
        self.forward(tokens, None, None)
    }
}
