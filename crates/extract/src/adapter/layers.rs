//! Layers that candle-nn lacks or computes slowly on the CPU.

use candle_core::{Device, Result, Tensor};
use candle_nn::{BatchNorm, LayerNorm, Linear, Module, ModuleT, VarBuilder};
use rayon::prelude::*;

/// A depthwise convolution. Candle computes one group after the other, which takes minutes for hundreds of groups.
pub(crate) struct Depthwise {
    /// `[channels, side, side]`.
    kernel: Vec<f32>,
    side: usize,
    bias: Option<Vec<f32>>,
    stride: usize,
    /// Rows and columns of zeros before and after the image.
    padding: (usize, usize),
}

impl Depthwise {
    /// Reads `weight` `[channels, 1, side, side]`, and `bias` if `has_bias`.
    pub fn load(
        builder: &VarBuilder<'_>,
        channels: usize,
        side: usize,
        stride: usize,
        padding: (usize, usize),
        has_bias: bool,
    ) -> Result<Self> {
        let kernel = builder.get((channels, 1, side, side), "weight")?.flatten_all()?.to_vec1()?;
        let bias = if has_bias { Some(builder.get(channels, "bias")?.to_vec1()?) } else { None };
        Ok(Self { kernel, side, bias, stride, padding })
    }

    /// The sums of one channel, `[rows, columns]`.
    fn channel(
        &self,
        channel: usize,
        x: &[f32],
        (height, width): (usize, usize),
        (rows, columns): (usize, usize),
    ) -> Vec<f32> {
        let kernel = &self.kernel[channel * self.side * self.side..][..self.side * self.side];
        let start = self.bias.as_ref().map_or(0.0, |bias| bias[channel]);
        let mut sums = vec![start; rows * columns];
        for (row, sums) in sums.chunks_exact_mut(columns).enumerate() {
            for (ky, weights) in kernel.chunks_exact(self.side).enumerate() {
                let Some(y) = (row * self.stride + ky).checked_sub(self.padding.0).filter(|&y| y < height) else {
                    continue;
                };
                let line = &x[y * width..(y + 1) * width];
                for (kx, weight) in weights.iter().enumerate() {
                    for (column, sum) in sums.iter_mut().enumerate() {
                        let at = (column * self.stride + kx).checked_sub(self.padding.0);
                        *sum += at.and_then(|at| line.get(at)).map_or(0.0, |value| weight * value);
                    }
                }
            }
        }
        sums
    }
}

impl Module for Depthwise {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (images, channels, height, width) = x.dims4()?;
        let size = |from: usize| (from + self.padding.0 + self.padding.1 - self.side) / self.stride + 1;
        let (rows, columns) = (size(height), size(width));
        let values: Vec<f32> = x.flatten_all()?.to_vec1()?;
        let planes: Vec<Vec<f32>> = values
            .par_chunks_exact(height * width)
            .enumerate()
            .map(|(at, plane)| self.channel(at % channels, plane, (height, width), (rows, columns)))
            .collect();
        Tensor::from_vec(planes.concat(), (images, channels, rows, columns), &Device::Cpu)
    }
}

/// A normalisation over the channels of an image `[images, channels, height, width]`.
pub(crate) struct ChannelNorm(pub LayerNorm);

impl Module for ChannelNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(&x.permute((0, 2, 3, 1))?.contiguous()?)?.permute((0, 3, 1, 2))?.contiguous()
    }
}

/// A batch normalisation with the statistics that were learned.
pub(crate) struct FixedNorm(pub BatchNorm);

impl Module for FixedNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward_t(x, false)
    }
}

/// A linear map, with a bias if `has_bias`.
pub(crate) fn linear(inputs: usize, outputs: usize, has_bias: bool, builder: VarBuilder<'_>) -> Result<Linear> {
    if has_bias {
        candle_nn::linear(inputs, outputs, builder)
    } else {
        candle_nn::linear_no_bias(inputs, outputs, builder)
    }
}

/// Multi-head attention of every token to all tokens, `[images, tokens, d]`.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (images, tokens, d) = q.dims3()?;
    let split = |x: &Tensor| x.reshape((images, tokens, heads, d / heads))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q)?, split(k)?, split(v)?);
    let scores = (q.matmul(&k.t()?)? / ((d / heads) as f64).sqrt())?;
    let mixed = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
    mixed.transpose(1, 2)?.reshape((images, tokens, d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_depthwise_convolution_equals_candles_grouped_convolution() {
        let fill = |count: usize| (0..count).map(|at| ((at * 37 + 11) % 23) as f32 - 11.0).collect::<Vec<_>>();
        let x = Tensor::from_vec(fill(2 * 3 * 9 * 7), (2, 3, 9, 7), &Device::Cpu).unwrap();
        for (side, stride, padding) in [(7, 1, (3, 3)), (3, 2, (1, 1)), (3, 2, (0, 1)), (5, 2, (1, 2))] {
            let kernel = Tensor::from_vec(fill(3 * side * side), (3, 1, side, side), &Device::Cpu).unwrap();
            let depthwise = Depthwise { kernel: fill(3 * side * side), side, bias: None, stride, padding };
            let padded =
                x.pad_with_zeros(2, padding.0, padding.1).unwrap().pad_with_zeros(3, padding.0, padding.1).unwrap();
            let expected = padded.conv2d(&kernel, 0, stride, 1, 3).unwrap();
            let found = depthwise.forward(&x).unwrap();
            assert_eq!(found.dims(), expected.dims());
            let apart = (found - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(apart < 1e-3, "{side} {stride} {padding:?}: {apart}");
        }
    }
}
