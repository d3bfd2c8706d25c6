//! ViT: a transformer over patches; the vector is that of the class token after the last normalisation.
//!
//! Dosovitskiy et al. 2020 (arXiv 2010.11929). Reference: `ViTModel` of transformers, the first token of its last hidden state.
//! Layers: `candle_transformers`.

use candle_core::{IndexOp, Module, Result as Computed, Tensor};
use candle_nn::{LayerNorm, layer_norm};
use candle_transformers::models::vit::{Config, Embeddings, Encoder};
use serde_json::json;

use super::architecture::{Architecture, ImageLayers, ImageModel};
use crate::adapter::settings::ArchitectureKeys;
use crate::adapter::{ArchitectureSettings, Tensors};
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::model_files::{CONFIG, PROCESSOR};

pub(super) const ARCHITECTURE: Architecture = Architecture { model_types: &["vit"], files: &[CONFIG, PROCESSOR], load };

const KEYS: ArchitectureKeys = ArchitectureKeys {
    supported: &[
        "hidden_size",
        "image_size",
        "intermediate_size",
        "layer_norm_eps",
        "num_attention_heads",
        "num_hidden_layers",
        "patch_size",
        "qkv_bias",
    ],
    only: &[("hidden_act", &["\"gelu\""]), ("num_channels", &["3"])],
    harmless: &["encoder_stride", "pooler_act", "pooler_output_size"],
};

struct Vit {
    embeddings: Embeddings,
    encoder: Encoder,
    norm: LayerNorm,
}

fn load(folder: &ModelFolder) -> Result<ImageModel> {
    let settings = ArchitectureSettings::read(folder, &KEYS)?;
    let changes = json!({
        "hidden_size": settings.size_or("hidden_size", 768)?,
        "intermediate_size": settings.size_or("intermediate_size", 3072)?,
        "num_hidden_layers": settings.size_or("num_hidden_layers", 12)?,
        "num_attention_heads": settings.size_or("num_attention_heads", 12)?,
        "image_size": settings.size_or("image_size", 224)?,
        "patch_size": settings.size_or("patch_size", 16)?,
        "layer_norm_eps": settings.number_or("layer_norm_eps", 1e-12)?,
        "qkv_bias": settings.is_on("qkv_bias", true)?,
        "hidden_act": "gelu",
        "num_channels": 3,
    });
    let config: Config = settings.as_candle(changes)?;
    let tensors = Tensors::read(folder, &["", "vit."], "embeddings.cls_token")?;
    let layers = tensors.build(&["pooler.", "embeddings.mask_token"], |builder| {
        Ok(Vit {
            embeddings: Embeddings::new(&config, false, builder.pp("embeddings"))?,
            encoder: Encoder::new(&config, builder.pp("encoder"))?,
            norm: layer_norm(config.hidden_size, config.layer_norm_eps, builder.pp("layernorm"))?,
        })
    })?;
    Ok(ImageModel {
        layers: Box::new(layers),
        width: config.hidden_size,
        processor: folder.processor_of_side(config.image_size)?,
    })
}

impl ImageLayers for Vit {
    fn forward(&self, pixels: &Tensor) -> Computed<Tensor> {
        let states = self.encoder.forward(&self.embeddings.forward(pixels, None, false)?)?;
        self.norm.forward(&states.i((.., 0))?)
    }
}
