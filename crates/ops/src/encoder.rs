//! Encoders whose weights are on an NVIDIA GPU. They include what comes before and after the stack, so that only token ids or pixels go to
//! the GPU and only vectors come back.
//!
//! Both types exist in every build, so callers do not need a Cargo feature; without the feature `cuda` they cannot be constructed.

use candle_core::{Device, Result, bail};

#[cfg(feature = "cuda")]
use crate::cuda::{GpuEncoder, GpuTransformer};
use crate::{InferenceLinear, InferenceNorm, InferenceTransformer, Precision};

/// These take the place of the types for GPUs, which do not exist without the feature.
#[cfg(not(feature = "cuda"))]
type GpuTransformer = std::convert::Infallible;
#[cfg(not(feature = "cuda"))]
type GpuEncoder = std::convert::Infallible;

/// The input from which an encoder computes its tokens.
#[derive(Clone, Copy, Debug)]
pub enum EncoderInput<'a> {
    /// Rows of a table of embeddings.
    Tokens {
        /// The embeddings, `[vocabulary, d]`.
        table: &'a [f32],
        /// The embedding of the segment, which is added to every token, `[d]`.
        segment: Option<&'a [f32]>,
    },
    /// Square patches of images, after a token for the whole image.
    Images {
        /// Maps the values of a patch, channel by channel, to d; its bias is not used.
        patches: &'a InferenceLinear,
        /// The token for the whole image, `[d]`.
        class: &'a [f32],
        /// The width and height of an image in pixels.
        side: usize,
        /// The width and height of a patch in pixels.
        patch: usize,
    },
}

/// The weights of an encoder.
#[derive(Clone, Copy, Debug)]
pub struct EncoderParts<'a> {
    /// The input from which the tokens are computed.
    pub input: EncoderInput<'a>,
    /// The embeddings of the positions, `[positions, d]`, which are added to the tokens.
    pub positions: &'a [f32],
    /// The LayerNorm of the tokens before the first layer.
    pub norm: Option<&'a InferenceNorm>,
    /// The layers.
    pub stack: &'a InferenceTransformer,
    /// The LayerNorm and the projection of the vectors that are read out; the projection's bias is not used.
    pub output: Option<(&'a InferenceNorm, &'a InferenceLinear)>,
}

/// How the tokens of a sequence become its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readout<'a> {
    /// The mean of the tokens; zeros for a sequence without tokens.
    Mean,
    /// The first token; zeros for a sequence without tokens.
    First,
    /// The largest value of every component; zeros for a sequence without tokens.
    Max,
    /// The token with this number among the tokens of all sequences, one number per sequence.
    Rows(&'a [u32]),
}

/// A stack whose weights are on a GPU.
#[derive(Debug)]
pub struct DeviceTransformer(GpuTransformer);

#[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "without the feature no such value exists"))]
impl DeviceTransformer {
    /// Uploads the weights of a stack to a GPU; products are computed in `precision`. Fails if the device is not a GPU, if tokens are
    /// wider than 4,096, or if heads are wider than 128.
    pub fn new(stack: &InferenceTransformer, device: &Device, precision: Precision) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = device {
            return Ok(Self(GpuTransformer::new(stack, device, precision)?));
        }
        bail!("a stack of {} layers in {precision}: {:?} is not an NVIDIA GPU", stack.layers.len(), device.location())
    }

    /// Computes the tokens `x` `[sum of lengths, d]` of sequences, one sequence after the other, in place.
    pub fn forward(&self, x: &mut [f32], lengths: &[usize]) -> Result<()> {
        #[cfg(feature = "cuda")]
        return self.0.forward(x, lengths);
        #[cfg(not(feature = "cuda"))]
        match self.0 {}
    }
}

/// An encoder whose weights are on a GPU. Calls from several threads are computed one after the other.
#[derive(Debug)]
pub struct DeviceEncoder(GpuEncoder);

#[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "without the feature no such value exists"))]
impl DeviceEncoder {
    /// Uploads the weights of an encoder; see [`DeviceTransformer::new`].
    pub fn new(parts: EncoderParts<'_>, device: &Device, precision: Precision) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = device {
            return Ok(Self(GpuEncoder::new(parts, device, precision)?));
        }
        let layers = parts.stack.layers.len();
        bail!("an encoder of {layers} layers in {precision}: {:?} is not an NVIDIA GPU", device.location())
    }

    /// The vectors `[sequences, width]` of sequences of tokens, one sequence after the other. `tokens` has the row of every token in the
    /// table of embeddings, and `positions` the number of its position.
    pub fn embed_tokens(
        &self,
        tokens: &[u32],
        positions: &[u32],
        lengths: &[usize],
        readout: Readout<'_>,
    ) -> Result<Vec<f32>> {
        #[cfg(feature = "cuda")]
        return self.0.embed_tokens(tokens, positions, lengths, readout);
        #[cfg(not(feature = "cuda"))]
        match self.0 {}
    }

    /// The vectors `[images, width]` of images with the pixels `[images, 3, side, side]`.
    pub fn embed_images(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        #[cfg(feature = "cuda")]
        return self.0.embed_images(pixels);
        #[cfg(not(feature = "cuda"))]
        match self.0 {}
    }
}
