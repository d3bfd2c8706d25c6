//! A transformer stack with fixed weights, as used by encoders of sentences and images: packed sequences, no dropout, no gradient, one
//! thread per call.
//!
//! Vaswani et al., Attention Is All You Need, 2017 (arXiv 1706.03762). LayerNorm comes after each residual sum (BERT) or before each branch
//! (CLIP). Nothing is padded, and no sum runs over more than one sequence, so the result of a sequence does not depend on the sequences
//! beside it. All products of a layer run over the tokens of a call at once, so a call should have a few hundred tokens; attention runs
//! over one sequence and one head at a time.

use multiversion::multiversion;

use crate::Precision;
use crate::kernel::{Mat, dot, erf, exp, matmul_f32, matmul_in, max, sum, transpose};
use crate::scratch::Scratch;

/// The activation between the two products of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x Phi(x).
    Gelu,
    /// x sigmoid(1.702 x).
    QuickGelu,
}

/// The settings that the layers of a stack share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InferenceShape {
    /// d, the width of a token.
    pub width: usize,
    /// The number of attention heads, which divides the width.
    pub heads: usize,
    /// The value that is added to the variance in LayerNorm.
    pub eps: f32,
    /// Whether LayerNorm comes before each branch instead of after each sum.
    pub norm_first: bool,
    /// Whether a token sees only itself and the tokens before it.
    pub causal: bool,
    /// The activation of the feed-forward block.
    pub activation: Activation,
    /// The precision of the layers' maps on the CPU, f32 or bf16; attention is computed in f32.
    pub precision: Precision,
}

/// y = x W + b with W `[in, out]`.
#[derive(Clone, Debug)]
pub struct InferenceLinear {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl InferenceLinear {
    /// Builds the map from a weight as PyTorch stores it, `[out, in]`, and a bias `[out]`.
    pub fn new(weight: &[f32], bias: Vec<f32>) -> Self {
        let inputs = weight.len() / bias.len().max(1);
        let mut transposed = vec![0.0; weight.len()];
        transpose(&mut transposed, weight, inputs);
        Self { weight: transposed, bias }
    }

    /// Several maps of the same input as one, their outputs side by side.
    pub fn side_by_side(parts: &[(&[f32], &[f32])]) -> Self {
        let weight: Vec<f32> = parts.iter().flat_map(|(weight, _)| weight.iter().copied()).collect();
        Self::new(&weight, parts.iter().flat_map(|(_, bias)| bias.iter().copied()).collect())
    }

    /// The width of the output.
    pub fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// The width of the input.
    pub fn inputs(&self) -> usize {
        self.weight.len() / self.outputs().max(1)
    }

    /// Maps `[rows, in]` to `[rows, out]` in f32.
    pub fn forward(&self, out: &mut [f32], x: &[f32]) {
        self.forward_in(Precision::F32, out, x);
    }

    fn forward_in(&self, precision: Precision, out: &mut [f32], x: &[f32]) {
        let (outputs, inputs) = (self.outputs(), self.inputs());
        for row in out.chunks_exact_mut(outputs) {
            row.copy_from_slice(&self.bias);
        }
        let (x, weight) = (Mat::new(x, x.len() / inputs, inputs), Mat::new(&self.weight, inputs, outputs));
        matmul_in(precision, out, x, weight, true);
    }
}

/// LayerNorm's weight and bias, each `[d]`.
#[derive(Clone, Debug)]
pub struct InferenceNorm {
    /// The weight, by which the normalised row is multiplied.
    pub weight: Vec<f32>,
    /// The bias, which is added to that.
    pub bias: Vec<f32>,
}

impl InferenceNorm {
    /// Normalises every row of `x` `[rows, d]` in place.
    pub fn forward(&self, x: &mut [f32], eps: f32) {
        norm_rows(x, &self.weight, &self.bias, eps);
    }
}

/// A layer of the stack.
#[derive(Clone, Debug)]
pub struct InferenceLayer {
    /// Maps the input to queries, keys and values: d to 3 d.
    pub qkv: InferenceLinear,
    /// Maps the outputs of the heads: d to d.
    pub out: InferenceLinear,
    /// The LayerNorm of the attention block.
    pub attention_norm: InferenceNorm,
    /// Maps d to the width of the feed-forward block.
    pub up: InferenceLinear,
    /// Maps the width of the feed-forward block back to d.
    pub down: InferenceLinear,
    /// The LayerNorm of the feed-forward block.
    pub feed_norm: InferenceNorm,
}

/// The bias of attention scores by head and distance (the key's position minus the query's), as in MPNet.
#[derive(Clone, Debug)]
pub struct RelativeBias {
    /// The biases of the distances from -reach to reach, `[heads, 2 reach + 1]`.
    pub values: Vec<f32>,
    /// The largest distance; larger ones count as it.
    pub reach: usize,
}

impl RelativeBias {
    /// Adds the biases of `head` to the scores of a query at `position`, one score per key.
    fn add(&self, scores: &mut [f32], head: usize, position: usize) {
        let (reach, row) = (self.reach as isize, head * (2 * self.reach + 1));
        for (key, score) in scores.iter_mut().enumerate() {
            let distance = (key as isize - position as isize).clamp(-reach, reach);
            *score += self.values[row + (distance + reach) as usize];
        }
    }
}

/// A stack of layers.
#[derive(Clone, Debug)]
pub struct InferenceTransformer {
    /// The settings that the layers share.
    pub shape: InferenceShape,
    /// The layers, in order.
    pub layers: Vec<InferenceLayer>,
    /// The bias of attention scores by distance in every layer, if any.
    pub bias: Option<RelativeBias>,
}

impl InferenceTransformer {
    /// Computes the tokens `x` `[sum of lengths, d]` of sequences, one sequence after the other, in place.
    ///
    /// # Panics
    ///
    /// If the length of `x` does not match `lengths`.
    pub fn forward(&self, x: &mut [f32], lengths: &[usize]) {
        let InferenceShape { width, eps, norm_first, activation, precision, .. } = self.shape;
        assert_eq!(x.len(), lengths.iter().sum::<usize>() * width, "tokens of another number");
        let (mut branch, mut input) = (Scratch::take(x.len()), Scratch::take(x.len()));
        let mut qkv = Scratch::take(3 * x.len());
        let hidden = self.layers.iter().map(|layer| layer.up.outputs()).max().unwrap_or(0);
        let mut up = Scratch::take(x.len() / width.max(1) * hidden);
        for layer in &self.layers {
            input.copy_from_slice(x);
            if norm_first {
                layer.attention_norm.forward(&mut input, eps);
            }
            layer.qkv.forward_in(precision, &mut qkv, &input);
            self.attend(&mut input, &qkv, lengths);
            layer.out.forward_in(precision, &mut branch, &input);
            add(x, &branch);
            if !norm_first {
                layer.attention_norm.forward(x, eps);
            }
            input.copy_from_slice(x);
            if norm_first {
                layer.feed_norm.forward(&mut input, eps);
            }
            let up = &mut up[..x.len() / width * layer.up.outputs()];
            layer.up.forward_in(precision, up, &input);
            activate(up, activation);
            layer.down.forward_in(precision, &mut branch, up);
            add(x, &branch);
            if !norm_first {
                layer.feed_norm.forward(x, eps);
            }
        }
    }

    /// Computes the heads' outputs side by side, `[tokens, d]`, from `qkv` `[tokens, 3 d]`.
    fn attend(&self, out: &mut [f32], qkv: &[f32], lengths: &[usize]) {
        let (d, heads) = (self.shape.width, self.shape.heads);
        let head_width = d / heads;
        let scale = 1.0 / (head_width as f32).sqrt();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let (mut scores, mut mixed) = (Scratch::take(longest * longest), Scratch::take(longest * head_width));
        let mut first = 0;
        for &length in lengths.iter().filter(|&&length| length > 0) {
            let (scores, mixed) = (&mut scores[..length * length], &mut mixed[..length * head_width]);
            for head in 0..heads {
                let part = |which: usize| {
                    Mat::strided(&qkv[first * 3 * d + which * d + head * head_width..], length, head_width, 3 * d)
                };
                matmul_f32(scores, part(0), part(1).t(), false);
                for (position, row) in scores.chunks_exact_mut(length).enumerate() {
                    row.iter_mut().for_each(|score| *score *= scale);
                    if let Some(bias) = &self.bias {
                        bias.add(row, head, position);
                    }
                    let seen = if self.shape.causal { position + 1 } else { length };
                    softmax(&mut row[..seen]);
                    row[seen..].fill(0.0);
                }
                matmul_f32(mixed, Mat::new(scores, length, length), part(2), false);
                for (token, row) in mixed.chunks_exact(head_width).enumerate() {
                    out[(first + token) * d + head * head_width..][..head_width].copy_from_slice(row);
                }
            }
            first += length;
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn norm_rows(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let d = weight.len();
    for x in x.chunks_exact_mut(d) {
        let mean = sum(x) / d as f32;
        x.iter_mut().for_each(|x| *x -= mean);
        let scale = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
        for i in 0..d {
            x[i] = x[i] * scale * weight[i] + bias[i];
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn activate(x: &mut [f32], activation: Activation) {
    match activation {
        Activation::Gelu => {
            x.iter_mut().for_each(|x| *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2)));
        }
        Activation::QuickGelu => x.iter_mut().for_each(|x| *x /= 1.0 + exp(-1.702 * *x)),
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn softmax(x: &mut [f32]) {
    let top = max(x);
    x.iter_mut().for_each(|x| *x = exp(*x - top));
    let scale = 1.0 / sum(x);
    x.iter_mut().for_each(|x| *x *= scale);
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn add(x: &mut [f32], branch: &[f32]) {
    x.iter_mut().zip(branch).for_each(|(x, branch)| *x += branch);
}
