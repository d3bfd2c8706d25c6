//! ResNets with fixed weights on a GPU: a convolution is a matrix product of its windows, which are copied side by side unless they are
//! single pixels.

use candle_core::cuda_backend::CudaDevice;
use candle_core::{Result, bail};

use super::gpu::{DevicePointer, Factor, Floats, Gpu, LargeUploads, LaunchGrid, arguments, device_pointer};
use crate::{InferenceBottleneck, InferenceConvolution, Precision};

/// The number of images that are computed together; their windows take a few GiB.
const IMAGES: usize = 128;

/// The number of channels that a block of `map_means` processes.
const COLUMNS: usize = 256;

struct Convolution {
    /// The weights, `[side^2 inputs, outputs]`.
    weight: Factor,
    bias: Floats,
    inputs: usize,
    outputs: usize,
    side: usize,
    stride: usize,
}

/// A grid with a thread for each of `count` values, whose indices have 32 bits in the kernels.
fn threads(count: usize) -> Result<LaunchGrid> {
    // The last block must fit as a whole.
    if count > u32::MAX as usize - COLUMNS {
        bail!("images with too many pixels: {count} values");
    }
    Ok(LaunchGrid::threads(count))
}

/// A feature map with the channels last, `[images, height, width, channels]`.
struct Map {
    values: Factor,
    images: usize,
    height: usize,
    width: usize,
    channels: usize,
}

impl Map {
    /// The number of pixels of all images.
    fn rows(&self) -> usize {
        self.images * self.height * self.width
    }

    fn fours(&self) -> usize {
        self.rows() * self.channels / 4
    }
}

impl Convolution {
    fn new(gpu: &Gpu, convolution: &InferenceConvolution, inputs: usize, precision: Precision) -> Result<Self> {
        let InferenceConvolution { kernel, bias, side, stride, .. } = convolution;
        let (area, outputs) = (side * side, bias.len());
        let is_whole = convolution.inputs == inputs && kernel.len() == outputs * inputs * area && *stride > 0;
        if !is_whole || side.is_multiple_of(2) || outputs == 0 || !outputs.is_multiple_of(4) {
            bail!("a convolution of {} weights from {inputs} to {outputs} channels of side {side}", kernel.len());
        }
        let mut weight = vec![0.0; kernel.len()];
        for (at, &value) in kernel.iter().enumerate() {
            let (output, input, tap) = (at / (inputs * area), at / area % inputs, at % area);
            weight[(tap * inputs + input) * outputs + output] = value;
        }
        let uploaded = gpu.upload(&weight)?;
        let weight = if precision == Precision::Bf16 {
            Factor::Half(gpu.halves(device_pointer(&uploaded), weight.len())?)
        } else {
            Factor::Single(uploaded)
        };
        Ok(Self { weight, bias: gpu.upload(bias)?, inputs, outputs, side: *side, stride: *stride })
    }

    /// The width or height of the result.
    fn across(&self, before: usize) -> usize {
        (before - 1) / self.stride + 1
    }

    fn columns(&self) -> usize {
        self.side * self.side * self.inputs
    }

    /// The product of windows `[rows, side^2 inputs]` with the weights.
    fn product(&self, gpu: &Gpu, windows: &Factor, rows: usize, precision: Precision) -> Result<Factor> {
        let out = gpu.factor(rows * self.outputs, precision)?;
        let weight = self.weight.matrix(self.columns(), self.outputs);
        gpu.product_to(&out, windows.matrix(rows, self.columns()), weight, precision)?;
        Ok(out)
    }

    /// Computes the convolution without its bias.
    fn forward(&self, gpu: &Gpu, map: &Map, precision: Precision) -> Result<Map> {
        let (height, width) = (self.across(map.height), self.across(map.width));
        let (images, rows) = (map.images, map.images * height * width);
        let values = if self.side == 1 && self.stride == 1 {
            self.product(gpu, &map.values, rows, precision)?
        } else {
            let windows = gpu.factor(rows * self.columns(), precision)?;
            let fours = rows * self.columns() / 4;
            gpu.launch(
                &format!("windows_{}", windows.suffix()),
                threads(fours)?,
                arguments![
                    windows.at(),
                    map.values.at(),
                    fours,
                    map.height,
                    map.width,
                    map.channels,
                    self.side,
                    self.stride,
                    height,
                    width,
                ],
            )?;
            self.product(gpu, &windows, rows, precision)?
        };
        Ok(Map { values, images, height, width, channels: self.outputs })
    }

    /// Adds the bias and the map `beside`, if there is one, and applies ReLU if `rectify`.
    fn shift(&self, gpu: &Gpu, map: &Map, beside: Option<&Map>, rectify: bool) -> Result<()> {
        let beside = beside.map_or(DevicePointer::NONE, |beside| beside.values.at());
        let all = arguments![map.values.at(), &self.bias, beside, map.fours(), map.channels, rectify];
        gpu.launch(&format!("shift_{}", map.values.suffix()), threads(map.fours())?, all)
    }
}

struct Bottleneck {
    inside: [Convolution; 3],
    shortcut: Option<Convolution>,
}

/// A ResNet on a GPU.
pub(crate) struct GpuResNet {
    gpu: Gpu,
    precision: Precision,
    stem: Convolution,
    layers: Vec<Bottleneck>,
    staging: LargeUploads,
}

impl std::fmt::Debug for GpuResNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GpuResNet").field("precision", &self.precision).finish_non_exhaustive()
    }
}

impl GpuResNet {
    pub fn new(
        stem: &InferenceConvolution,
        layers: &[InferenceBottleneck],
        device: &CudaDevice,
        precision: Precision,
    ) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        let stem = Convolution::new(&gpu, stem, 3, precision)?;
        let mut channels = stem.outputs;
        let layers = layers.iter().map(|layer| {
            let [down, middle, up] = &layer.inside;
            let down = Convolution::new(&gpu, down, channels, precision)?;
            let middle = Convolution::new(&gpu, middle, down.outputs, precision)?;
            let up = Convolution::new(&gpu, up, middle.outputs, precision)?;
            let shortcut = layer.shortcut.as_ref().map(|c| Convolution::new(&gpu, c, channels, precision));
            let shortcut = shortcut.transpose()?;
            let stride = down.stride * middle.stride * up.stride;
            let beside = shortcut.as_ref().map_or((channels, 1), |shortcut| (shortcut.outputs, shortcut.stride));
            if beside != (up.outputs, stride) {
                bail!("a bottleneck of {:?} channels and stride and {beside:?} beside", (up.outputs, stride));
            }
            channels = up.outputs;
            Ok(Bottleneck { inside: [down, middle, up], shortcut })
        });
        let layers = layers.collect::<Result<_>>()?;
        Ok(Self { stem, layers, precision, gpu, staging: LargeUploads::default() })
    }

    pub fn embed_images(&self, pixels: &[f32], side: usize) -> Result<Vec<f32>> {
        let size = 3 * side * side;
        if size == 0 || !pixels.len().is_multiple_of(size) {
            bail!("{} values: expected images of {side} by {side} pixels", pixels.len());
        }
        let mut all = Vec::new();
        for some in pixels.chunks(IMAGES * size) {
            all.extend(self.embed(some, side)?);
        }
        Ok(all)
    }

    fn embed(&self, pixels: &[f32], side: usize) -> Result<Vec<f32>> {
        let (gpu, precision) = (&self.gpu, self.precision);
        let mut map = self.stem(pixels, side)?;
        for Bottleneck { inside: [down, middle, up], shortcut } in &self.layers {
            let inside = down.forward(gpu, &map, precision)?;
            down.shift(gpu, &inside, None, true)?;
            let inside = middle.forward(gpu, &inside, precision)?;
            middle.shift(gpu, &inside, None, true)?;
            let inside = up.forward(gpu, &inside, precision)?;
            if let Some(shortcut) = shortcut {
                map = {
                    let beside = shortcut.forward(gpu, &map, precision)?;
                    shortcut.shift(gpu, &beside, None, false)?;
                    beside
                };
            }
            up.shift(gpu, &inside, Some(&map), true)?;
            map = inside;
        }
        let out = gpu.allocate::<f32>(map.images * map.channels)?;
        let grid = LaunchGrid::blocks(map.images, map.channels.div_ceil(COLUMNS));
        let all = arguments![&out, map.values.at(), map.height * map.width, map.channels];
        gpu.launch(&format!("map_means_{}", map.values.suffix()), grid, all)?;
        gpu.device().clone_dtoh(&out)
    }

    /// Computes the input of the first bottleneck from pixels.
    fn stem(&self, pixels: &[f32], side: usize) -> Result<Map> {
        let (gpu, stem, precision) = (&self.gpu, &self.stem, self.precision);
        let (images, half) = (pixels.len() / (3 * side * side), stem.across(side));
        let rows = images * half * half;
        let map = {
            let uploaded = self.staging.upload(gpu, pixels)?;
            let windows = gpu.factor(rows * stem.columns(), precision)?;
            let count = rows * stem.columns();
            gpu.launch(
                &format!("pixel_windows_{}", windows.suffix()),
                threads(count)?,
                arguments![windows.at(), &uploaded, count, side, side, stem.side, stem.stride, half, half],
            )?;
            let values = stem.product(gpu, &windows, rows, precision)?;
            Map { values, images, height: half, width: half, channels: stem.outputs }
        };
        stem.shift(gpu, &map, None, true)?;
        let quarter = (half - 1) / 2 + 1;
        let fours = images * quarter * quarter * stem.outputs / 4;
        let values = gpu.factor(4 * fours, precision)?;
        let all = arguments![values.at(), map.values.at(), fours, half, half, stem.outputs, quarter, quarter];
        gpu.launch(&format!("pool_map_{}", values.suffix()), threads(fours)?, all)?;
        Ok(Map { values, images, height: quarter, width: quarter, channels: stem.outputs })
    }
}
