//! The frozen stack against the same layers written with candle's operations, and the independence of a sequence from those
//! beside it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{D, Device, Tensor};
use mp4sr_ops::{
    Activation, InferenceLayer, InferenceLinear, InferenceNorm, InferenceShape, InferenceTransformer, RelativeBias,
    RngKey,
};
use proptest::prelude::*;

/// A matrix or vector by name, the same in both twins.
fn values(name: u64, count: usize, deviation: f64) -> Vec<f32> {
    let key = RngKey::new(7).fold_in_index(name);
    (0..count as u64).map(|i| (key.normal(i) * deviation) as f32).collect()
}

fn tensor(name: u64, shape: &[usize], deviation: f64) -> Tensor {
    Tensor::from_vec(values(name, shape.iter().product(), deviation), shape, &Device::Cpu).unwrap()
}

const HIDDEN: usize = 12;
const REACH: usize = 3;
const DEVIATION: f64 = 0.4;

fn linear(name: u64, inputs: usize, outputs: usize) -> InferenceLinear {
    InferenceLinear::new(&values(name, inputs * outputs, DEVIATION), values(name + 1, outputs, DEVIATION))
}

fn norm(name: u64, d: usize) -> InferenceNorm {
    InferenceNorm { weight: values(name, d, 1.0), bias: values(name + 1, d, 1.0) }
}

fn layer(first: u64, d: usize) -> InferenceLayer {
    InferenceLayer {
        qkv: linear(first, d, 3 * d),
        out: linear(first + 2, d, d),
        attention_norm: norm(first + 4, d),
        up: linear(first + 6, d, HIDDEN),
        down: linear(first + 8, HIDDEN, d),
        feed_norm: norm(first + 10, d),
    }
}

fn stack(shape: InferenceShape, layers: u64, biased: bool) -> InferenceTransformer {
    let bias = biased.then(|| RelativeBias { values: values(900, shape.heads * (2 * REACH + 1), 1.0), reach: REACH });
    InferenceTransformer { shape, layers: (0..layers).map(|at| layer(at * 100, shape.width)).collect(), bias }
}

fn plain_linear(x: &Tensor, name: u64, inputs: usize, outputs: usize) -> Tensor {
    let product = x.matmul(&tensor(name, &[outputs, inputs], DEVIATION).t().unwrap()).unwrap();
    product.broadcast_add(&tensor(name + 1, &[outputs], DEVIATION)).unwrap()
}

fn plain_norm(x: &Tensor, name: u64, eps: f32) -> Tensor {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap()).unwrap();
    let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
    let normalised = centred.broadcast_div(&(variance + f64::from(eps)).unwrap().sqrt().unwrap()).unwrap();
    let d = x.dim(1).unwrap();
    normalised.broadcast_mul(&tensor(name, &[d], 1.0)).unwrap().broadcast_add(&tensor(name + 1, &[d], 1.0)).unwrap()
}

/// One sequence `[n, d]`.
fn plain(mut x: Tensor, shape: InferenceShape, layers: u64, biased: bool) -> Tensor {
    let (n, d) = x.dims2().unwrap();
    let width = d / shape.heads;
    let before = |x: &Tensor, name| if shape.norm_first { plain_norm(x, name, shape.eps) } else { x.clone() };
    let after = |x: Tensor, name| if shape.norm_first { x } else { plain_norm(&x, name, shape.eps) };
    for first in (0..layers).map(|at| at * 100) {
        let qkv = plain_linear(&before(&x, first + 4), first, d, 3 * d);
        let mut heads = Vec::new();
        for head in 0..shape.heads {
            let part = |which: usize| qkv.narrow(1, which * d + head * width, width).unwrap().contiguous().unwrap();
            let scores = (part(0).matmul(&part(1).t().unwrap()).unwrap() / (width as f64).sqrt()).unwrap();
            let table = values(900, shape.heads * (2 * REACH + 1), 1.0);
            let extra: Vec<f32> = (0..n * n)
                .map(|at| {
                    let (i, j) = ((at / n) as isize, (at % n) as isize);
                    let distance = (j - i).clamp(-(REACH as isize), REACH as isize) + REACH as isize;
                    let hidden = if shape.causal && j > i { f32::NEG_INFINITY } else { 0.0 };
                    hidden + if biased { table[head * (2 * REACH + 1) + distance as usize] } else { 0.0 }
                })
                .collect();
            let scores = (scores + Tensor::from_vec(extra, (n, n), &Device::Cpu).unwrap()).unwrap();
            heads.push(candle_nn::ops::softmax(&scores, D::Minus1).unwrap().matmul(&part(2)).unwrap());
        }
        let branch = plain_linear(&Tensor::cat(&heads, 1).unwrap(), first + 2, d, d);
        x = after((x + branch).unwrap(), first + 4);
        let up = plain_linear(&before(&x, first + 10), first + 6, d, HIDDEN);
        let up = match shape.activation {
            Activation::Gelu => up.gelu_erf().unwrap(),
            Activation::QuickGelu => (&up * candle_nn::ops::sigmoid(&(&up * 1.702).unwrap()).unwrap()).unwrap(),
        };
        x = after((x + plain_linear(&up, first + 8, HIDDEN, d)).unwrap(), first + 10);
    }
    x
}

fn shape(heads: usize, norm_first: bool, causal: bool) -> InferenceShape {
    let activation = if norm_first { Activation::QuickGelu } else { Activation::Gelu };
    InferenceShape { width: 8 * heads, heads, eps: 1e-5, norm_first, causal, activation }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_stack_agrees_with_plain_operations(
        lengths in proptest::collection::vec(1_usize..9, 0..5), heads in 1_usize..4, norm_first: bool, causal: bool, biased: bool,
    ) {
        let shape = shape(heads, norm_first, causal);
        let tokens: usize = lengths.iter().sum();
        let x = values(5000, tokens * shape.width, 1.0);
        let mut fused = x.clone();
        stack(shape, 2, biased).forward(&mut fused, &lengths);
        let mut first = 0;
        for &length in &lengths {
            let range = first * shape.width..(first + length) * shape.width;
            let one = Tensor::from_vec(x[range.clone()].to_vec(), (length, shape.width), &Device::Cpu).unwrap();
            let expected: Vec<f32> = plain(one, shape, 2, biased).flatten_all().unwrap().to_vec1().unwrap();
            for (a, b) in fused[range].iter().zip(expected) {
                prop_assert!((a - b).abs() <= 2e-5 * b.abs().max(1.0), "{a} {b}");
            }
            first += length;
        }
    }

    /// To the bit: features that are computed in two runs are those of one.
    #[test]
    fn a_sequence_does_not_depend_on_those_beside_it(
        before in proptest::collection::vec(2_usize..40, 0..12), length in 2_usize..40,
        after in proptest::collection::vec(2_usize..40, 0..12),
    ) {
        let shape = InferenceShape { width: 48, heads: 3, eps: 1e-12, norm_first: false, causal: false, activation: Activation::Gelu };
        let stack = stack(shape, 2, true);
        let sequence = values(6000, length * shape.width, 1.0);
        let mut alone = sequence.clone();
        stack.forward(&mut alone, &[length]);
        let lead: usize = before.iter().sum();
        let trail: usize = after.iter().sum();
        let mut x = values(6001, lead * shape.width, 1.0);
        x.extend(&sequence);
        x.extend(values(6002, trail * shape.width, 1.0));
        let lengths: Vec<usize> = before.iter().copied().chain([length]).chain(after.iter().copied()).collect();
        stack.forward(&mut x, &lengths);
        prop_assert_eq!(&x[lead * shape.width..][..alone.len()], &alone[..]);
    }
}
