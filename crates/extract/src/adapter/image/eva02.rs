//! EVA-02, base and large at 448 pixels: a transformer over patches with rotary positions and gated feed-forward layers.
//!
//! Fang et al. 2023 (arXiv 2303.11331). Reference: `Eva` of timm, the features before its classifier: the normalised mean of the patches'
//! vectors. Layers: `candle_transformers`. A folder of timm describes both the architecture and the processor in `config.json`.

use candle_core::{D, Device, IndexOp, Module, Result as Computed, Tensor};
use candle_nn::{LayerNorm, layer_norm};
use candle_transformers::models::eva2::EVA2VisionTransformer;
use serde_json::{Map, Value};

use super::architecture::{Architecture, ImageLayers, ImageModel};
use crate::adapter::Tensors;
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::model_files::CONFIG;
use crate::processor::Processor;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_types: &["eva02_base_patch14_448", "eva02_large_patch14_448"], files: &[CONFIG], load };

const SIDE: usize = 448;
/// The number of patches along a side.
const GRID: usize = SIDE / 14;
/// The number of patches along a side of the images that rotary positions refer to.
const REFERENCE_GRID: usize = 16;
/// The width of a head.
const HEAD: usize = 64;
/// The number of classes of the head that candle's model must have; it is not used.
const CLASSES: usize = 1000;
const EPS: f64 = 1e-6;
/// A number of blocks that is larger than that of any of these models.
const MOST_BLOCKS: usize = 1000;

struct Eva02 {
    blocks: EVA2VisionTransformer,
    last: usize,
    norm: LayerNorm,
}

fn load(folder: &ModelFolder) -> Result<ImageModel> {
    let values: Map<String, Value> = folder.config.parse()?;
    let harmless =
        ["architecture", "num_classes", "num_features", "pretrained_cfg", "label_names", "label_descriptions"];
    for (key, value) in &values {
        let is_known = harmless.contains(&key.as_str());
        if !is_known && (key != "global_pool" || value != "avg") {
            return Err(folder
                .config
                .error(format!("{key}: expected global_pool avg and no model_args, found {value}")));
        }
    }
    let processor = Processor::of_timm(values.get("pretrained_cfg").unwrap_or(&Value::Null))
        .map_err(|reason| folder.config.error(reason))?;
    if processor.side() != SIDE {
        let found = processor.side();
        return Err(folder.config.error(format!("pretrained_cfg.input_size: expected {SIDE}, found {found}")));
    }
    let tensors = Tensors::read(folder, &[""], "patch_embed.proj.weight")?;
    let width = tensors.get("cls_token")?.dim(D::Minus1)?;
    if !width.is_multiple_of(HEAD) {
        return Err(
            tensors.error(format!("tensor `cls_token`: expected heads of {HEAD} numbers, found {width} in all"))
        );
    }
    let depth = (0..MOST_BLOCKS).take_while(|at| tensors.has(&format!("blocks.{at}.norm1.weight"))).count();
    // Candle's model expects stored positions and another name for the last normalisation.
    let tensors = tensors.renamed(|name| name.replace("fc_norm.", "norm."));
    let tensors = tensors
        .with("rot_pos_embed", rotary()?)
        .with("head.weight", Tensor::zeros((CLASSES, width), candle_core::DType::F32, &Device::Cpu)?)
        .with("head.bias", Tensor::zeros(CLASSES, candle_core::DType::F32, &Device::Cpu)?);
    let layers = tensors.build(&[], |builder| {
        Ok(Eva02 {
            norm: layer_norm(width, EPS, builder.pp("norm"))?,
            last: depth.saturating_sub(1),
            blocks: EVA2VisionTransformer::new(builder, depth, width, width / HEAD)?,
        })
    })?;
    Ok(ImageModel { layers: Box::new(layers), width, processor })
}

/// Sines and then cosines of the patches' positions, `[patches, 2 * head]`: a quarter of a head for the row, a quarter for the
/// column, each angle for two neighbouring numbers.
fn rotary() -> Computed<Tensor> {
    let bands = HEAD / 4;
    let frequency = |band: usize| 1.0 / 10_000_f32.powf(band as f32 / bands as f32);
    let position = |at: usize| at as f32 / GRID as f32 * REFERENCE_GRID as f32;
    let mut values = Vec::with_capacity(GRID * GRID * 2 * HEAD);
    for row in 0..GRID {
        for column in 0..GRID {
            let angles: Vec<f32> = [row, column]
                .into_iter()
                .flat_map(|at| (0..bands).map(move |band| position(at) * frequency(band)))
                .flat_map(|angle| [angle, angle])
                .collect();
            values.extend(angles.iter().map(|angle| angle.sin()));
            values.extend(angles.iter().map(|angle| angle.cos()));
        }
    }
    Tensor::from_vec(values, (GRID * GRID, 2 * HEAD), &Device::Cpu)
}

impl ImageLayers for Eva02 {
    fn forward(&self, pixels: &Tensor) -> Computed<Tensor> {
        let patches = self.blocks.get_intermediate_layers(pixels, &[self.last], false, false, false)?.i(0)?;
        self.norm.forward(&patches.mean(1)?)
    }
}
