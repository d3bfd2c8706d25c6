//! ResNet: maps an image to the mean of its last feature map, 2,048 numbers for ResNet-50.
//!
//! He et al., Deep Residual Learning for Image Recognition, 2015 (arXiv 1512.03385), with the stride in the 3 x 3 convolution.
//! Reference: `ResNetModel` of the Python library transformers.

use mp4sr_ops::{DeviceResNet, InferenceBottleneck, InferenceConvolution, InferenceResNet};
use serde::Deserialize;

use crate::device::EncoderDevice;
use crate::encoder::ImageEncoder;
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::model_files::{CONFIG, PROCESSOR};
use crate::processor::Processor;
use crate::weights::Weights;

/// Added to the variance in batch normalisation.
const EPS: f32 = 1e-5;
/// The factor by which the inside of a bottleneck is narrower.
const REDUCTION: usize = 4;

/// The number of images that go through the layers together on a GPU.
const IMAGES_ON_GPU: usize = 256;
/// The number of images that go through the layers together on a thread of the CPU.
const IMAGES_ON_CPU: usize = 4;

/// `config.json`.
#[derive(Deserialize)]
#[serde(default)]
struct Config {
    num_channels: usize,
    embedding_size: usize,
    hidden_sizes: Vec<usize>,
    depths: Vec<usize>,
    layer_type: String,
    hidden_act: String,
    downsample_in_first_stage: bool,
    downsample_in_bottleneck: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            num_channels: 3,
            embedding_size: 64,
            hidden_sizes: vec![256, 512, 1024, 2048],
            depths: vec![3, 4, 6, 3],
            layer_type: "bottleneck".to_owned(),
            hidden_act: "relu".to_owned(),
            downsample_in_first_stage: false,
            downsample_in_bottleneck: false,
        }
    }
}

impl Config {
    fn check(&self) -> std::result::Result<(), String> {
        if self.num_channels != 3 {
            return Err(format!("num_channels: expected 3, found {}", self.num_channels));
        }
        if self.layer_type != "bottleneck" || self.hidden_act != "relu" || self.downsample_in_bottleneck {
            return Err("expected layer_type bottleneck, hidden_act relu, downsample_in_bottleneck false".to_owned());
        }
        if self.embedding_size == 0 || self.hidden_sizes.iter().any(|&size| size < REDUCTION) {
            return Err(format!("embedding_size and hidden_sizes: expected at least 1 and {REDUCTION} channels"));
        }
        if self.hidden_sizes.is_empty() || self.hidden_sizes.len() != self.depths.len() {
            return Err("hidden_sizes and depths: expected lists of equal length".to_owned());
        }
        Ok(())
    }
}

/// Reads a convolution with the batch normalisation after it folded in.
fn convolution(weights: &Weights<'_>, name: &str, shape: [usize; 4], stride: usize) -> Result<InferenceConvolution> {
    let [outputs, inputs, side, _] = shape;
    let mut kernel = weights.read(&format!("{name}.convolution.weight"), &shape)?;
    let vector = |part: &str| weights.read(&format!("{name}.normalization.{part}"), &[outputs]);
    let (weight, bias) = (vector("weight")?, vector("bias")?);
    let (mean, variance) = (vector("running_mean")?, vector("running_var")?);
    // ReLU would turn NaN into zeros.
    if variance.iter().any(|variance| variance + EPS <= 0.0) {
        return Err(weights.error(&format!("{name}.normalization.running_var"), "expected no negative values"));
    }
    let scale: Vec<f32> =
        weight.iter().zip(&variance).map(|(weight, variance)| weight / (variance + EPS).sqrt()).collect();
    for (kernel, scale) in kernel.chunks_exact_mut(inputs * side * side).zip(&scale) {
        kernel.iter_mut().for_each(|k| *k *= scale);
    }
    let bias: Vec<f32> = bias.iter().zip(&mean).zip(&scale).map(|((bias, mean), scale)| bias - mean * scale).collect();
    Ok(InferenceConvolution { kernel, bias, inputs, side, stride })
}

/// Reads a bottleneck block: 1 x 1 down, 3 x 3, 1 x 1 up, and the sum with the input or its shortcut.
fn bottleneck(
    weights: &Weights<'_>,
    name: &str,
    inputs: usize,
    outputs: usize,
    stride: usize,
) -> Result<InferenceBottleneck> {
    let narrow = outputs / REDUCTION;
    let inside = |at: usize, shape, stride| convolution(weights, &format!("{name}.layer.{at}"), shape, stride);
    let shortcut = (inputs != outputs || stride != 1)
        .then(|| convolution(weights, &format!("{name}.shortcut"), [outputs, inputs, 1, 1], stride));
    Ok(InferenceBottleneck {
        inside: [
            inside(0, [narrow, inputs, 1, 1], 1)?,
            inside(1, [narrow, narrow, 3, 3], stride)?,
            inside(2, [outputs, narrow, 1, 1], 1)?,
        ],
        shortcut: shortcut.transpose()?,
    })
}

/// The layers, on the device where they compute.
enum Network {
    Processor(InferenceResNet),
    Gpu(Box<DeviceResNet>),
}

/// A ResNet with its processor.
pub(crate) struct ResNet {
    network: Network,
    processor: Processor,
    width: usize,
}

impl ResNet {
    /// The files that determine the vectors, in addition to the weights.
    pub(crate) const FILES: [&str; 2] = [CONFIG, PROCESSOR];

    /// A usual side in pixels, for messages; the model takes squares of any size.
    const SIDE: usize = 224;

    pub(crate) fn load(folder: &ModelFolder, device: &EncoderDevice) -> Result<Self> {
        let config: Config = folder.config.parse()?;
        config.check().map_err(|reason| folder.config.error(reason))?;
        let file = folder.weights()?;
        let weights = file.tensors(&["", "resnet."], "embedder.embedder.convolution.weight")?;
        let stem = [config.embedding_size, 3, 7, 7];
        let mut layers = Vec::new();
        let mut inputs = config.embedding_size;
        for (stage, (&outputs, &depth)) in config.hidden_sizes.iter().zip(&config.depths).enumerate() {
            for layer in 0..depth {
                let halves = layer == 0 && (stage > 0 || config.downsample_in_first_stage);
                let name = format!("encoder.stages.{stage}.layers.{layer}");
                layers.push(bottleneck(&weights, &name, inputs, outputs, 1 + usize::from(halves))?);
                inputs = outputs;
            }
        }
        let stem = convolution(&weights, "embedder.embedder", stem, 2)?;
        let network = if device.is_gpu() {
            Network::Gpu(Box::new(DeviceResNet::new(&stem, &layers, device.tensors(), device.precision())?))
        } else {
            Network::Processor(InferenceResNet::new(stem, layers, device.precision())?)
        };
        Ok(Self { network, processor: folder.processor(Self::SIDE)?, width: inputs })
    }
}

impl ImageEncoder for ResNet {
    fn width(&self) -> usize {
        self.width
    }

    fn processor(&self) -> &Processor {
        &self.processor
    }

    fn images_at_once(&self) -> usize {
        if self.is_on_gpu() { IMAGES_ON_GPU } else { IMAGES_ON_CPU }
    }

    fn is_on_gpu(&self) -> bool {
        matches!(self.network, Network::Gpu(_))
    }

    fn embed(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        let side = self.processor.side();
        match &self.network {
            Network::Processor(network) => Ok(network.embed_images(pixels, side)),
            Network::Gpu(network) => Ok(network.embed_images(pixels, side)?),
        }
    }
}
