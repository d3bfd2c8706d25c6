//! SigLIP's image tower: a transformer over patches, pooled by attention of one learned query.
//!
//! Zhai et al. 2023 (arXiv 2303.15343). Reference: `SiglipVisionModel` of transformers, its pooled output, which is what
//! `get_image_features` returns. Layers: `candle_transformers`.

use candle_core::{Module, Result as Computed, Tensor};
use candle_transformers::models::siglip::{VisionConfig, VisionModel};
use serde_json::{Value, json};

use super::architecture::{Architecture, ImageLayers, ImageModel};
use crate::adapter::settings::ArchitectureKeys;
use crate::adapter::{ArchitectureSettings, Tensors};
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::model_files::{CONFIG, PROCESSOR};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_types: &["siglip", "siglip_vision_model"], files: &[CONFIG, PROCESSOR], load };

const KEYS: ArchitectureKeys = ArchitectureKeys {
    supported: &[
        "hidden_size",
        "image_size",
        "intermediate_size",
        "layer_norm_eps",
        "num_attention_heads",
        "num_hidden_layers",
        "patch_size",
    ],
    only: &[("hidden_act", &["\"gelu_pytorch_tanh\""]), ("num_channels", &["3"]), ("vision_use_head", &["true"])],
    harmless: &["projection_dim"],
};

/// The keys of the whole model, which contains the image tower as a section.
const WHOLE: ArchitectureKeys =
    ArchitectureKeys { supported: &["text_config", "vision_config"], only: &[], harmless: &[] };

fn load(folder: &ModelFolder) -> Result<ImageModel> {
    let settings = if folder.model_type()? == "siglip" {
        ArchitectureSettings::read(folder, &WHOLE)?;
        ArchitectureSettings::section(folder, "vision_config.", &KEYS)?
    } else {
        ArchitectureSettings::read(folder, &KEYS)?
    };
    let changes = json!({
        "hidden_size": settings.size_or("hidden_size", 768)?,
        "intermediate_size": settings.size_or("intermediate_size", 3072)?,
        "num_hidden_layers": settings.size_or("num_hidden_layers", 12)?,
        "num_attention_heads": settings.size_or("num_attention_heads", 12)?,
        "image_size": settings.size_or("image_size", 224)?,
        "patch_size": settings.size_or("patch_size", 16)?,
        "layer_norm_eps": settings.number_or("layer_norm_eps", 1e-6)?,
        "hidden_act": "gelu_pytorch_tanh",
        "num_channels": 3,
    });
    let config: VisionConfig = settings.as_candle(changes)?;
    if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        let found = Value::from(config.num_attention_heads);
        return Err(settings.refused("num_attention_heads", "a divisor of hidden_size", &found));
    }
    let tensors = Tensors::read(folder, &["vision_model.", ""], "post_layernorm.weight")?;
    let layers = tensors.build(&[], |builder| VisionModel::new(&config, true, builder))?;
    Ok(ImageModel {
        layers: Box::new(layers),
        width: config.hidden_size,
        processor: folder.processor_of_side(config.image_size)?,
    })
}

impl ImageLayers for VisionModel {
    fn forward(&self, pixels: &Tensor) -> Computed<Tensor> {
        Module::forward(self, pixels)
    }
}
