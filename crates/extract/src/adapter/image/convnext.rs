//! ConvNeXt and ConvNeXt V2: convolutions of 7 x 7 by channel, each followed by a feed-forward layer.
//!
//! Liu et al. 2022 (arXiv 2201.03545), Woo et al. 2023 (2301.00808). Reference: `ConvNextModel` and `ConvNextV2Model` of
//! transformers, their pooled output. Layers: candle-nn. Those of candle-transformers have fixed sizes and the names of another
//! library's files.

use candle_core::{D, Module, Result as Computed, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, LayerNorm, Linear, VarBuilder, conv2d, layer_norm};

use super::architecture::{Architecture, ImageLayers, ImageModel};
use crate::adapter::layers::{ChannelNorm, Depthwise, linear};
use crate::adapter::settings::ArchitectureKeys;
use crate::adapter::{ArchitectureSettings, Tensors};
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::model_files::{CONFIG, PROCESSOR};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_types: &["convnext", "convnextv2"], files: &[CONFIG, PROCESSOR], load };

const KEYS: ArchitectureKeys = ArchitectureKeys {
    supported: &["depths", "hidden_sizes", "layer_norm_eps", "patch_size"],
    only: &[("hidden_act", &["\"gelu\""]), ("num_channels", &["3"]), ("num_stages", &["4"])],
    // The model takes images of any size; the others are about training and about backbones.
    harmless: &["drop_path_rate", "image_size", "layer_scale_init_value", "out_features", "out_indices", "stage_names"],
};

/// Added to the variance in every normalisation but the last.
const EPS: f64 = 1e-6;

/// How a block scales its channels.
enum Scale {
    /// By a number per channel (ConvNeXt).
    Layer(Tensor),
    /// By the channel's share of the response inside the feed-forward layer, with its weight and bias (ConvNeXt V2).
    Response(Tensor, Tensor),
}

struct Block {
    spatial: Depthwise,
    norm: LayerNorm,
    up: Linear,
    down: Linear,
    scale: Scale,
}

struct Stage {
    /// The normalisation and the convolution by which the image is halved before the blocks.
    halving: Option<(ChannelNorm, Conv2d)>,
    blocks: Vec<Block>,
}

struct ConvNext {
    patches: Conv2d,
    patches_norm: ChannelNorm,
    stages: Vec<Stage>,
    norm: LayerNorm,
}

fn load(folder: &ModelFolder) -> Result<ImageModel> {
    let settings = ArchitectureSettings::read(folder, &KEYS)?;
    let (widths, depths) = (settings.sizes("hidden_sizes")?, settings.sizes("depths")?);
    if widths.len() != 4 || depths.len() != 4 || widths.contains(&0) {
        return Err(settings.error("hidden_sizes and depths: expected lists of four sizes"));
    }
    let (patch, eps) = (settings.size_or("patch_size", 4)?, settings.number_or("layer_norm_eps", 1e-12)?);
    let is_v2 = folder.model_type()? == "convnextv2";
    let tensors = Tensors::read(folder, &["", "convnext.", "convnextv2."], "embeddings.layernorm.weight")?;
    let layers = tensors.build(&[], |builder| {
        let stride = Conv2dConfig { stride: patch, ..Conv2dConfig::default() };
        let stage = |at: usize| {
            let before = at.checked_sub(1).map(|before| widths[before]);
            Stage::new(before, widths[at], depths[at], is_v2, &builder.pp(format!("encoder.stages.{at}")))
        };
        Ok(ConvNext {
            patches: conv2d(3, widths[0], patch, stride, builder.pp("embeddings.patch_embeddings"))?,
            patches_norm: ChannelNorm(layer_norm(widths[0], EPS, builder.pp("embeddings.layernorm"))?),
            stages: (0..4).map(stage).collect::<Computed<_>>()?,
            norm: layer_norm(widths[3], eps, builder.pp("layernorm"))?,
        })
    })?;
    Ok(ImageModel { layers: Box::new(layers), width: widths[3], processor: folder.processor(224)? })
}

impl Stage {
    fn new(before: Option<usize>, width: usize, depth: usize, is_v2: bool, builder: &VarBuilder<'_>) -> Computed<Self> {
        let halving = before.map(|before| {
            let stride = Conv2dConfig { stride: 2, ..Conv2dConfig::default() };
            let norm = layer_norm(before, EPS, builder.pp("downsampling_layer.0"))?;
            Computed::Ok((ChannelNorm(norm), conv2d(before, width, 2, stride, builder.pp("downsampling_layer.1"))?))
        });
        let blocks = (0..depth).map(|at| Block::new(width, is_v2, &builder.pp(format!("layers.{at}"))));
        Ok(Self { halving: halving.transpose()?, blocks: blocks.collect::<Computed<_>>()? })
    }
}

impl Block {
    fn new(width: usize, is_v2: bool, builder: &VarBuilder<'_>) -> Computed<Self> {
        let inner = 4 * width;
        let scale = if is_v2 {
            let of = |name| builder.pp("grn").get((1, 1, 1, inner), name);
            Scale::Response(of("weight")?, of("bias")?)
        } else {
            Scale::Layer(builder.get(width, "layer_scale_parameter")?)
        };
        Ok(Self {
            spatial: Depthwise::load(&builder.pp("dwconv"), width, 7, 1, (3, 3), true)?,
            norm: layer_norm(width, EPS, builder.pp("layernorm"))?,
            up: linear(width, inner, true, builder.pp("pwconv1"))?,
            down: linear(inner, width, true, builder.pp("pwconv2"))?,
            scale,
        })
    }

    fn forward(&self, x: &Tensor) -> Computed<Tensor> {
        let inside = self.spatial.forward(x)?.permute((0, 2, 3, 1))?.contiguous()?;
        let inside = self.up.forward(&self.norm.forward(&inside)?)?.gelu_erf()?;
        let inside = match &self.scale {
            Scale::Layer(scale) => self.down.forward(&inside)?.broadcast_mul(scale)?,
            Scale::Response(weight, bias) => {
                let response = inside.sqr()?.sum_keepdim((1, 2))?.sqrt()?;
                let share = response.broadcast_div(&(response.mean_keepdim(D::Minus1)? + 1e-6)?)?;
                let scaled = inside.broadcast_mul(&share)?.broadcast_mul(weight)?.broadcast_add(bias)?;
                self.down.forward(&(scaled + inside)?)?
            }
        };
        x + inside.permute((0, 3, 1, 2))?
    }
}

impl ImageLayers for ConvNext {
    fn forward(&self, pixels: &Tensor) -> Computed<Tensor> {
        let mut x = self.patches_norm.forward(&self.patches.forward(pixels)?)?;
        for stage in &self.stages {
            if let Some((norm, convolution)) = &stage.halving {
                x = convolution.forward(&norm.forward(&x)?)?;
            }
            for block in &stage.blocks {
                x = block.forward(&x)?.contiguous()?;
            }
        }
        self.norm.forward(&x.mean((2, 3))?)
    }
}
