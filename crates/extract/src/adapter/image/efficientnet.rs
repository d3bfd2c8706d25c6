//! EfficientNet: blocks that widen, convolve by channel, weigh the channels and narrow again.
//!
//! Tan and Le 2019 (arXiv 1905.11946). Reference: `EfficientNetModel` of transformers, its pooled output. Layers: candle-nn. Those of
//! candle-transformers have fixed sizes, do not expose their features, and pad differently.

use candle_core::{Module, Result as Computed, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, VarBuilder, batch_norm, conv2d, conv2d_no_bias};

use super::architecture::{Architecture, ImageLayers, ImageModel};
use crate::adapter::layers::{Depthwise, FixedNorm};
use crate::adapter::settings::ArchitectureKeys;
use crate::adapter::{ArchitectureSettings, Tensors};
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::model_files::{CONFIG, PROCESSOR};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_types: &["efficientnet"], files: &[CONFIG, PROCESSOR], load };

const KEYS: ArchitectureKeys = ArchitectureKeys {
    supported: &[
        "batch_norm_eps",
        "depth_coefficient",
        "depth_divisor",
        "depthwise_padding",
        "expand_ratios",
        "in_channels",
        "kernel_sizes",
        "num_block_repeats",
        "out_channels",
        "squeeze_expansion_ratio",
        "strides",
        "width_coefficient",
    ],
    only: &[("hidden_act", &["\"swish\"", "\"silu\""]), ("num_channels", &["3"]), ("pooling_type", &["\"mean\""])],
    // The model takes images of any size, and the width of its last layer follows from the others.
    harmless: &[
        "batch_norm_momentum",
        "drop_connect_rate",
        "dropout_rate",
        "hidden_dim",
        "image_size",
        "num_hidden_layers",
    ],
};

/// The number of channels of the last layer before it is scaled by the width.
const LAST: usize = 1280;

/// A convolution without a bias, and the normalisation after it.
struct Normed<C> {
    convolution: C,
    norm: FixedNorm,
}

impl<C: Module> Module for Normed<C> {
    fn forward(&self, x: &Tensor) -> Computed<Tensor> {
        self.norm.forward(&self.convolution.forward(x)?)
    }
}

struct Block {
    widen: Option<Normed<Conv2d>>,
    spatial: Normed<Depthwise>,
    /// Maps the means of the channels to their weights.
    weigh: [Conv2d; 2],
    narrow: Normed<Conv2d>,
    /// Whether the input is added.
    is_residual: bool,
}

struct EfficientNet {
    stem: Normed<Conv2d>,
    blocks: Vec<Block>,
    top: Normed<Conv2d>,
}

/// The sizes of one block.
struct BlockSizes {
    inputs: usize,
    outputs: usize,
    ratio: usize,
    side: usize,
    stride: usize,
    is_first: bool,
    /// Whether there is one row less of padding before the image than after it.
    adjusts: bool,
    squeezed: usize,
}

fn load(folder: &ModelFolder) -> Result<ImageModel> {
    let settings = ArchitectureSettings::read(folder, &KEYS)?;
    let blocks = blocks(&settings)?;
    let (stem, last) = (rounded(&settings, 32)?, rounded(&settings, LAST)?);
    let eps = settings.number_or("batch_norm_eps", 1e-3)?;
    let tensors = Tensors::read(folder, &["", "efficientnet."], "embeddings.convolution.weight")?;
    let Some(outputs) = blocks.last().map(|block| block.outputs) else {
        return Err(settings.error("num_block_repeats: expected at least one block"));
    };
    let layers = tensors.build(&[], |builder| {
        let made = blocks.iter().enumerate();
        let made = made.map(|(at, sizes)| Block::new(sizes, eps, &builder.pp(format!("encoder.blocks.{at}"))));
        let embeddings = builder.pp("embeddings");
        let stride = Conv2dConfig { stride: 2, ..Conv2dConfig::default() };
        Ok(EfficientNet {
            stem: Normed {
                convolution: conv2d_no_bias(3, stem, 3, stride, embeddings.pp("convolution"))?,
                norm: FixedNorm(batch_norm(stem, eps, embeddings.pp("batchnorm"))?),
            },
            blocks: made.collect::<Computed<_>>()?,
            top: Normed {
                convolution: pointwise(outputs, last, &builder.pp("encoder.top_conv"))?,
                norm: FixedNorm(batch_norm(last, eps, builder.pp("encoder.top_bn"))?),
            },
        })
    })?;
    Ok(ImageModel { layers: Box::new(layers), width: last, processor: folder.processor(224)? })
}

/// The sizes of all blocks, stage by stage.
fn blocks(settings: &ArchitectureSettings<'_>) -> Result<Vec<BlockSizes>> {
    let keys = ["in_channels", "out_channels", "kernel_sizes", "strides", "num_block_repeats", "expand_ratios"];
    let lists = keys.map(|key| settings.sizes(key));
    let lists = lists.into_iter().collect::<Result<Vec<_>>>()?;
    if lists.iter().any(|list| list.len() != lists[0].len() || list.contains(&0)) {
        return Err(settings.error(format!("{}: expected lists of positive numbers, of equal length", keys.join(", "))));
    }
    if let Some(stride) = lists[3].iter().find(|&&stride| stride > 2) {
        return Err(settings.error(format!("strides: expected 1 and 2, found {stride}")));
    }
    let padded = settings.sizes("depthwise_padding")?;
    let depth = settings.number_or("depth_coefficient", 3.1)?;
    let squeeze = settings.number_or("squeeze_expansion_ratio", 0.25)?;
    let mut blocks = Vec::new();
    let stages = (0..lists[0].len()).map(|stage| [0, 1, 2, 3, 4, 5].map(|list: usize| lists[list][stage]));
    for [inputs, outputs, side, stride, repeats, ratio] in stages {
        let (first_inputs, outputs) = (rounded(settings, inputs)?, rounded(settings, outputs)?);
        for at in 0..(depth * repeats as f64).ceil() as usize {
            let is_first = at == 0;
            let inputs = if is_first { first_inputs } else { outputs };
            blocks.push(BlockSizes {
                inputs,
                outputs,
                ratio,
                side,
                stride: if is_first { stride } else { 1 },
                is_first,
                adjusts: !padded.contains(&blocks.len()),
                squeezed: ((inputs as f64 * squeeze) as usize).max(1),
            });
        }
    }
    Ok(blocks)
}

/// The number of channels scaled by the width, as a multiple of `depth_divisor` that is at most a tenth lower.
fn rounded(settings: &ArchitectureSettings<'_>, channels: usize) -> Result<usize> {
    let divisor = settings.size_or("depth_divisor", 8)?;
    let scaled = channels as f64 * settings.number_or("width_coefficient", 2.0)?;
    let near = ((scaled + divisor as f64 / 2.0) as usize / divisor * divisor).max(divisor);
    Ok(if (near as f64) < 0.9 * scaled { near + divisor } else { near })
}

fn pointwise(inputs: usize, outputs: usize, builder: &VarBuilder<'_>) -> Computed<Conv2d> {
    conv2d_no_bias(inputs, outputs, 1, Conv2dConfig::default(), builder.clone())
}

impl Block {
    fn new(sizes: &BlockSizes, eps: f64, builder: &VarBuilder<'_>) -> Computed<Self> {
        let &BlockSizes { inputs, outputs, ratio, side, stride, .. } = sizes;
        let inner = inputs * ratio;
        let norm = |channels, name| Computed::Ok(FixedNorm(batch_norm(channels, eps, builder.pp(name))?));
        let widen = (ratio > 1).then(|| {
            let convolution = pointwise(inputs, inner, &builder.pp("expansion.expand_conv"))?;
            Computed::Ok(Normed { convolution, norm: norm(inner, "expansion.expand_bn")? })
        });
        let half = side / 2;
        let padding = if stride == 2 && sizes.adjusts { (half.saturating_sub(1), half) } else { (half, half) };
        let spatial = &builder.pp("depthwise_conv.depthwise_conv");
        let weigh = |from, to, name: &str| {
            conv2d(from, to, 1, Conv2dConfig::default(), builder.pp(format!("squeeze_excite.{name}")))
        };
        Ok(Self {
            widen: widen.transpose()?,
            spatial: Normed {
                convolution: Depthwise::load(spatial, inner, side, stride, padding, false)?,
                norm: norm(inner, "depthwise_conv.depthwise_norm")?,
            },
            weigh: [weigh(inner, sizes.squeezed, "reduce")?, weigh(sizes.squeezed, inner, "expand")?],
            narrow: Normed {
                convolution: pointwise(inner, outputs, &builder.pp("projection.project_conv"))?,
                norm: norm(outputs, "projection.project_bn")?,
            },
            is_residual: stride == 1 && !sizes.is_first,
        })
    }

    fn forward(&self, x: &Tensor) -> Computed<Tensor> {
        let inside = match &self.widen {
            Some(widen) => widen.forward(x)?.silu()?,
            None => x.clone(),
        };
        let inside = self.spatial.forward(&inside)?.silu()?;
        let weights = self.weigh[0].forward(&inside.mean_keepdim((2, 3))?)?.silu()?;
        let weights = candle_nn::ops::sigmoid(&self.weigh[1].forward(&weights)?)?;
        let narrow = self.narrow.forward(&inside.broadcast_mul(&weights)?)?;
        if self.is_residual { narrow + x } else { Ok(narrow) }
    }
}

impl ImageLayers for EfficientNet {
    fn forward(&self, pixels: &Tensor) -> Computed<Tensor> {
        let padded = pixels.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?;
        let mut x = self.stem.forward(&padded)?.silu()?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        self.top.forward(&x)?.silu()?.mean((2, 3))
    }
}
