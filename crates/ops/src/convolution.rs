//! A residual network with fixed weights on an NVIDIA GPU. On the CPU, [`InferenceResNet`](crate::InferenceResNet) computes it.
//!
//! The type exists in every build, so callers do not need a Cargo feature; without the feature `cuda` it cannot be constructed.

use candle_core::{Device, Result, bail};

use crate::Precision;
#[cfg(feature = "cuda")]
use crate::cuda::GpuResNet;

/// Takes the place of the type for GPUs, which does not exist without the feature.
#[cfg(not(feature = "cuda"))]
type GpuResNet = std::convert::Infallible;

/// A convolution with a bias, padded by half its side.
#[derive(Clone, Debug)]
pub struct InferenceConvolution {
    /// The weights, `[outputs, inputs, side, side]`.
    pub kernel: Vec<f32>,
    /// The biases, `[outputs]`.
    pub bias: Vec<f32>,
    /// The number of input channels.
    pub inputs: usize,
    /// The width and height of a window.
    pub side: usize,
    /// The number of pixels from one window to the next.
    pub stride: usize,
}

/// Three convolutions, each followed by a ReLU; the input is added before the last ReLU.
#[derive(Clone, Debug)]
pub struct InferenceBottleneck {
    /// The convolutions, in order.
    pub inside: [InferenceConvolution; 3],
    /// The convolution of the input that is added; without one, the input itself is added.
    pub shortcut: Option<InferenceConvolution>,
}

/// A ResNet whose weights are on a GPU: a convolution of the pixels, a ReLU, max pooling of 3 by 3 pixels with stride 2, bottlenecks, and
/// the mean of the last feature map. All numbers of channels but the three of the pixels are multiples of four.
#[derive(Debug)]
pub struct DeviceResNet(GpuResNet);

#[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "without the feature no such value exists"))]
impl DeviceResNet {
    /// Uploads the weights to a GPU; products are computed in `precision`. Fails if the device is not a GPU, or if the convolutions do
    /// not fit each other.
    pub fn new(
        stem: &InferenceConvolution,
        layers: &[InferenceBottleneck],
        device: &Device,
        precision: Precision,
    ) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = device {
            return Ok(Self(GpuResNet::new(stem, layers, device, precision)?));
        }
        let (side, layers) = (stem.side, layers.len());
        bail!(
            "a ResNet of {side} pixels and {layers} layers in {precision}: {:?} is not an NVIDIA GPU",
            device.location()
        )
    }

    /// The vectors `[images, channels of the last map]` of images with the pixels `[images, 3, side, side]`.
    pub fn embed_images(&self, pixels: &[f32], side: usize) -> Result<Vec<f32>> {
        #[cfg(feature = "cuda")]
        return self.0.embed_images(pixels, side);
        #[cfg(not(feature = "cuda"))]
        match self.0 {}
    }
}
