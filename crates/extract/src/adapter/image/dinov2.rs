//! DINOv2: a transformer over patches whose positions are interpolated to the size of the image.
//!
//! Oquab et al. 2023 (arXiv 2304.07193). Reference: `Dinov2Model` of transformers, its pooled output: the class token after the last
//! normalisation. Layers: candle-nn. Those of candle-transformers take only images of 518 pixels, and interpolate positions by the nearest
//! neighbour where the reference does it bicubically.

use candle_core::{IndexOp, Module, Result as Computed, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, LayerNorm, Linear, VarBuilder, conv2d, layer_norm};
use serde_json::Value;

use super::architecture::{Architecture, ImageLayers, ImageModel};
use crate::adapter::layers::{attention, linear};
use crate::adapter::settings::ArchitectureKeys;
use crate::adapter::{ArchitectureSettings, Tensors};
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::model_files::{CONFIG, PROCESSOR};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_types: &["dinov2"], files: &[CONFIG, PROCESSOR], load };

const KEYS: ArchitectureKeys = ArchitectureKeys {
    supported: &[
        "hidden_size",
        "image_size",
        "layer_norm_eps",
        "mlp_ratio",
        "num_attention_heads",
        "num_hidden_layers",
        "patch_size",
        "qkv_bias",
        "use_swiglu_ffn",
    ],
    only: &[("hidden_act", &["\"gelu\""]), ("num_channels", &["3"])],
    // Keys of the initialisation, of training, and of the feature maps of a backbone.
    harmless: &[
        "apply_layernorm",
        "drop_path_rate",
        "layerscale_value",
        "out_features",
        "out_indices",
        "reshape_hidden_states",
        "stage_names",
        "use_mask_token",
    ],
};

struct Sizes {
    width: usize,
    heads: usize,
    layers: usize,
    /// The width inside the feed-forward layer.
    inner: usize,
    is_gated: bool,
    patch: usize,
    /// The number of patches along a side of the images that positions were learned on.
    grid: usize,
    eps: f64,
    has_bias: bool,
}

enum FeedForward {
    Plain {
        up: Linear,
        down: Linear,
    },
    /// The first half, through SiLU, times the second half.
    Gated {
        up: Linear,
        down: Linear,
    },
}

struct Layer {
    norms: [LayerNorm; 2],
    qkv: [Linear; 3],
    out: Linear,
    feed: FeedForward,
    /// The scales per channel of the two residual branches.
    scales: [Tensor; 2],
    heads: usize,
}

struct Dinov2 {
    patches: Conv2d,
    class: Tensor,
    /// `[1, 1 + patches, d]`, for images of the processor's size.
    positions: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
}

fn load(folder: &ModelFolder) -> Result<ImageModel> {
    let settings = ArchitectureSettings::read(folder, &KEYS)?;
    let (width, heads) = (settings.size_or("hidden_size", 768)?, settings.size_or("num_attention_heads", 12)?);
    if !width.is_multiple_of(heads) {
        return Err(settings.refused("num_attention_heads", "a divisor of hidden_size", &Value::from(heads)));
    }
    let inner = (width as f64 * settings.number_or("mlp_ratio", 4.0)?) as usize;
    let is_gated = settings.is_on("use_swiglu_ffn", false)?;
    let patch = settings.size_or("patch_size", 14)?;
    let sizes = Sizes {
        width,
        heads,
        layers: settings.size_or("num_hidden_layers", 12)?,
        // A gated layer has as many weights as a plain one, in multiples of eight.
        inner: if is_gated { (inner * 2 / 3).next_multiple_of(8) } else { inner },
        is_gated,
        patch,
        grid: settings.size_or("image_size", 224)? / patch,
        eps: settings.number_or("layer_norm_eps", 1e-6)?,
        has_bias: settings.is_on("qkv_bias", true)?,
    };
    let processor = folder.processor(224)?;
    let grid = processor.side() / patch;
    if grid == 0 || sizes.grid == 0 {
        return Err(settings.refused("patch_size", "no more than the size of the images", &Value::from(patch)));
    }
    let tensors = Tensors::read(folder, &["", "dinov2."], "embeddings.cls_token")?;
    let layers = tensors.build(&["embeddings.mask_token"], |builder| Dinov2::new(&sizes, grid, &builder))?;
    Ok(ImageModel { layers: Box::new(layers), width, processor })
}

impl Dinov2 {
    fn new(sizes: &Sizes, grid: usize, builder: &VarBuilder<'_>) -> Computed<Self> {
        let (d, embeddings) = (sizes.width, builder.pp("embeddings"));
        let learned = embeddings.get((1, 1 + sizes.grid * sizes.grid, d), "position_embeddings")?;
        let stride = Conv2dConfig { stride: sizes.patch, ..Conv2dConfig::default() };
        let layers = (0..sizes.layers).map(|at| Layer::new(sizes, &builder.pp(format!("encoder.layer.{at}"))));
        Ok(Self {
            patches: conv2d(3, d, sizes.patch, stride, embeddings.pp("patch_embeddings.projection"))?,
            class: embeddings.get((1, 1, d), "cls_token")?,
            positions: stretched(&learned, sizes.grid, grid)?,
            layers: layers.collect::<Computed<_>>()?,
            norm: layer_norm(d, sizes.eps, builder.pp("layernorm"))?,
        })
    }
}

impl ImageLayers for Dinov2 {
    fn forward(&self, pixels: &Tensor) -> Computed<Tensor> {
        let patches = self.patches.forward(pixels)?.flatten_from(2)?.transpose(1, 2)?;
        let (images, _, d) = patches.dims3()?;
        let class = self.class.broadcast_as((images, 1, d))?;
        let mut x = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.positions)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        self.norm.forward(&x.i((.., 0))?)
    }
}

impl Layer {
    fn new(sizes: &Sizes, builder: &VarBuilder<'_>) -> Computed<Self> {
        let d = sizes.width;
        let norm = |name| layer_norm(d, sizes.eps, builder.pp(name));
        let of = |name: &str| linear(d, d, sizes.has_bias, builder.pp(format!("attention.attention.{name}")));
        let up = |name, outputs| linear(d, outputs, true, builder.pp(name));
        let down = |name| linear(sizes.inner, d, true, builder.pp(name));
        let feed = if sizes.is_gated {
            FeedForward::Gated { up: up("mlp.weights_in", 2 * sizes.inner)?, down: down("mlp.weights_out")? }
        } else {
            FeedForward::Plain { up: up("mlp.fc1", sizes.inner)?, down: down("mlp.fc2")? }
        };
        Ok(Self {
            norms: [norm("norm1")?, norm("norm2")?],
            qkv: [of("query")?, of("key")?, of("value")?],
            out: linear(d, d, true, builder.pp("attention.output.dense"))?,
            feed,
            scales: [builder.get(d, "layer_scale1.lambda1")?, builder.get(d, "layer_scale2.lambda1")?],
            heads: sizes.heads,
        })
    }

    fn forward(&self, x: &Tensor) -> Computed<Tensor> {
        let inside = self.norms[0].forward(x)?;
        let [q, k, v] = [&self.qkv[0], &self.qkv[1], &self.qkv[2]].map(|map| map.forward(&inside));
        let mixed = self.out.forward(&attention(&q?, &k?, &v?, self.heads)?)?;
        let x = (x + mixed.broadcast_mul(&self.scales[0])?)?;
        let fed = self.feed.forward(&self.norms[1].forward(&x)?)?;
        x + fed.broadcast_mul(&self.scales[1])?
    }
}

impl Module for FeedForward {
    fn forward(&self, x: &Tensor) -> Computed<Tensor> {
        match self {
            Self::Plain { up, down } => down.forward(&up.forward(x)?.gelu_erf()?),
            Self::Gated { up, down } => {
                let halves = up.forward(x)?.chunk(2, 2)?;
                down.forward(&(halves[0].silu()? * &halves[1])?)
            }
        }
    }
}

/// Interpolates positions `[1, 1 + from * from, d]` to `to` patches along a side: the class token's stays, the others are bicubic.
fn stretched(positions: &Tensor, from: usize, to: usize) -> Computed<Tensor> {
    if from == to {
        return Ok(positions.clone());
    }
    let d = positions.dim(2)?;
    let rows = Tensor::from_vec(bicubic(from, to), (to, from), positions.device())?;
    let patches = positions.i((0, 1..))?;
    // Rows of the grid, then columns: each is a product with the same matrix.
    let down = rows.matmul(&patches.reshape((from, from * d))?)?.reshape((to, from, d))?;
    let across = rows.matmul(&down.transpose(0, 1)?.contiguous()?.reshape((from, to * d))?)?;
    let grid = across.reshape((to, to, d))?.transpose(0, 1)?.contiguous()?.reshape((1, to * to, d))?;
    Tensor::cat(&[&positions.i((.., ..1))?, &grid], 1)
}

/// The weights `[to, from]` of PyTorch's bicubic interpolation without aligned corners: Keys' cubic with a = -3/4, without antialiasing,
/// and with the outermost value repeated beyond the edge.
fn bicubic(from: usize, to: usize) -> Vec<f32> {
    const A: f64 = -0.75;
    let kernel = |x: f64| match x.abs() {
        x if x <= 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A,
        _ => 0.0,
    };
    let mut weights = vec![0.0; to * from];
    for (at, row) in weights.chunks_exact_mut(from).enumerate() {
        let centre = (at as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let first = centre.floor() as i64 - 1;
        for tap in first..first + 4 {
            row[tap.clamp(0, from as i64 - 1) as usize] += kernel(tap as f64 - centre) as f32;
        }
    }
    weights
}
