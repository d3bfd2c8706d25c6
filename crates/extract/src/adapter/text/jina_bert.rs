//! Jina BERT (jina-embeddings-v2): BERT with attention that falls off with the distance (ALiBi) and gated feed-forward layers.
//!
//! Günther et al. 2023 (arXiv 2310.19923), Press et al. 2022 (2108.12409). Reference: the paper; the model's code is only on the hub.
//! Layers: `candle_transformers`. Its configuration says `bert`, with `position_embedding_type = "alibi"`.

use std::sync::{Mutex, PoisonError};

use candle_core::{Module, Result as Computed, Tensor};
use candle_transformers::models::jina_bert::{BertModel, Config};
use serde_json::{Value, json};

use super::architecture::{Architecture, TextLayers, TextModel};
use crate::adapter::settings::ArchitectureKeys;
use crate::adapter::{ArchitectureSettings, Tensors};
use crate::error::Result;
use crate::folder::ModelFolder;

/// The name by which a configuration of `bert` with ALiBi is loaded.
pub(crate) const MODEL_TYPE: &str = "jina_bert";

pub(super) const ARCHITECTURE: Architecture = Architecture { model_types: &[MODEL_TYPE], load };

const KEYS: ArchitectureKeys = ArchitectureKeys {
    supported: &[
        "hidden_size",
        "intermediate_size",
        "layer_norm_eps",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "type_vocab_size",
        "vocab_size",
    ],
    only: &[
        ("feed_forward_type", &["\"geglu\""]),
        ("hidden_act", &["\"gelu\""]),
        ("position_embedding_type", &["\"alibi\""]),
        ("use_qk_norm", &["false"]),
    ],
    harmless: &["attn_implementation", "emb_pooler", "model_max_length"],
};

/// The number of tokens for which the biases by distance are computed when the model is loaded.
const USUAL_LENGTH: usize = 512;

/// The layers. Their biases by distance take `heads x longest x longest` numbers, so they are computed for the longest text so far.
struct JinaBert {
    tensors: Tensors,
    config: Config,
    /// The layers, and the length that they are built for.
    layers: Mutex<(BertModel, usize)>,
}

fn load(folder: &ModelFolder) -> Result<TextModel> {
    let settings = ArchitectureSettings::read(folder, &KEYS)?;
    // The paper's feed-forward layer must be named; files that do not name it have a plain one.
    if settings.value("feed_forward_type").is_null() || settings.value("position_embedding_type").is_null() {
        let key =
            if settings.value("feed_forward_type").is_null() { "feed_forward_type" } else { "position_embedding_type" };
        return Err(settings.refused(key, "\"geglu\" with \"alibi\"", &Value::Null));
    }
    let longest = settings.size_or("max_position_embeddings", 8192)?;
    let start = USUAL_LENGTH.min(longest);
    let changes = json!({
        "layer_norm_eps": settings.number_or("layer_norm_eps", 1e-12)?,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "type_vocab_size": settings.size_or("type_vocab_size", 2)?,
        "max_position_embeddings": start,
    });
    let config: Config = settings.as_candle(changes)?;
    let tensors = Tensors::read(folder, &["", "bert."], "embeddings.word_embeddings.weight")?;
    let layers = tensors.build(&["pooler."], |builder| BertModel::new(builder, &config))?;
    Ok(TextModel {
        width: config.hidden_size,
        narrowest: config.hidden_size,
        vocabulary: config.vocab_size,
        longest,
        layers: Box::new(JinaBert { tensors, config, layers: Mutex::new((layers, start)) }),
    })
}

impl JinaBert {
    fn layers_for(&self, length: usize) -> Computed<BertModel> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if layers.1 < length {
            let longest = length.next_power_of_two();
            let config = Config { max_position_embeddings: longest, ..self.config.clone() };
            let made = self.tensors.build(&["pooler."], |builder| BertModel::new(builder, &config));
            *layers = (made.map_err(|e| candle_core::Error::Msg(e.to_string()))?, longest);
        }
        Ok(layers.0.clone())
    }
}

impl TextLayers for JinaBert {
    fn forward(&self, tokens: &Tensor) -> Computed<Tensor> {
        self.layers_for(tokens.dim(1)?)?.forward(tokens)
    }
}
