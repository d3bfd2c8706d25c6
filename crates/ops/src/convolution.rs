//! A residual network with fixed weights on an NVIDIA card. On the CPU candle's operations do this work.
//!
//! The type exists in every build, so that callers need no feature of their own; without the feature `cuda` it cannot be made.

use candle_core::{Device, Result, bail};

use crate::Precision;
#[cfg(feature = "cuda")]
use crate::cuda::CardResNet;

/// What takes the place of what only cards have.
#[cfg(not(feature = "cuda"))]
type CardResNet = std::convert::Infallible;

/// A convolution with a bias, padded by half its side.
#[derive(Clone, Debug)]
pub struct InferenceConvolution {
    /// The weights, `[outputs, inputs, side, side]`.
    pub kernel: Vec<f32>,
    /// The biases, `[outputs]`.
    pub bias: Vec<f32>,
    /// Channels of the input.
    pub inputs: usize,
    /// Width and height of a window.
    pub side: usize,
    /// Pixels from a window to the next one.
    pub stride: usize,
}

/// Three convolutions with a rectifier after each, and their input added before the last one.
#[derive(Clone, Debug)]
pub struct InferenceBottleneck {
    /// The convolutions, in order.
    pub inside: [InferenceConvolution; 3],
    /// The map of the input that is added, where it is not the input itself.
    pub shortcut: Option<InferenceConvolution>,
}

/// A ResNet whose weights lie on a card: a convolution of the pixels, a rectifier, the largest values of 3 by 3 at every second
/// place, bottlenecks, and the mean of the last map. Numbers of channels but the pixels' three are multiples of four.
#[derive(Debug)]
pub struct DeviceResNet(CardResNet);

#[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "without the feature no such value exists"))]
impl DeviceResNet {
    /// Uploads the weights to a card, whose products are computed in `precision`. It fails for a device that is not a card, and where
    /// the convolutions do not fit each other.
    pub fn new(
        stem: &InferenceConvolution,
        layers: &[InferenceBottleneck],
        device: &Device,
        precision: Precision,
    ) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = device {
            return Ok(Self(CardResNet::new(stem, layers, device, precision)?));
        }
        let (side, layers) = (stem.side, layers.len());
        bail!(
            "a ResNet of {side} pixels and {layers} layers in {precision}: {:?} is not an NVIDIA card",
            device.location()
        )
    }

    /// The vectors `[images, channels of the last map]` of the pixels `[images, 3, side, side]` of images.
    pub fn embed_images(&self, pixels: &[f32], side: usize) -> Result<Vec<f32>> {
        #[cfg(feature = "cuda")]
        return self.0.embed_images(pixels, side);
        #[cfg(not(feature = "cuda"))]
        match self.0 {}
    }
}
