//! Compares the inference stack with the same layers in candle's operations, and checks that a sequence does not depend on those beside it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::OnceLock;

use candle_core::{D, Device, Tensor};
use mp4sr_ops::{
    Activation, ComputeDevice, DeviceEncoder, DeviceTransformer, EncoderInput, EncoderParts, InferenceLayer,
    InferenceLinear, InferenceNorm, InferenceShape, InferenceTransformer, Precision, Readout, RelativeBias, RngKey,
    check_precision,
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

/// Computes one sequence `[n, d]` with candle's operations.
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
    InferenceShape { width: 8 * heads, heads, eps: 1e-5, norm_first, causal, activation, precision: Precision::F32 }
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

    /// The results agree to the bit, so that features are the same whether they are computed in one run or in two.
    #[test]
    fn a_sequence_does_not_depend_on_the_rest_of_the_batch(
        before in proptest::collection::vec(2_usize..40, 0..12), length in 2_usize..40,
        after in proptest::collection::vec(2_usize..40, 0..12), in_bf16: bool,
    ) {
        let precision = if in_bf16 && has_bf16() { Precision::Bf16 } else { Precision::F32 };
        let shape = InferenceShape { width: 48, heads: 3, eps: 1e-12, norm_first: false, causal: false, activation: Activation::Gelu, precision };
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

/// Whether the processor computes products from bf16.
fn has_bf16() -> bool {
    check_precision(ComputeDevice::Cpu, Precision::Bf16).is_ok()
}

#[test]
#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
fn outputs_of_a_stack_in_bf16_have_nearly_the_same_direction_as_in_f32() {
    if !has_bf16() {
        println!("skipped: this processor has no products of bf16");
        return;
    }
    let lengths = [7, 1, 30, 12];
    let [f32, bf16] = [Precision::F32, Precision::Bf16].map(|precision| {
        let shape = InferenceShape { width: 96, precision, ..shape(3, false, false) };
        let mut x = values(7000, lengths.iter().sum::<usize>() * shape.width, 1.0);
        wide_stack(shape, 200, true).forward(&mut x, &lengths);
        x
    });
    assert_ne!(f32, bf16);
    for (a, b) in f32.chunks_exact(96).zip(bf16.chunks_exact(96)) {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        assert!(cosine >= 0.9999, "{cosine}");
    }
}

/// The first NVIDIA GPU, if the program is built for GPUs and the machine has one.
#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
fn gpu() -> Option<&'static Device> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    let open = || match ComputeDevice::Cuda(0).open() {
        Ok(device) => Some(device),
        Err(error) => {
            println!("skipped: encoders on GPUs are not compared: {error}");
            None
        }
    };
    GPU.get_or_init(open).as_ref()
}

/// A stack of any width, whose weights keep sums at the scale of their input: larger weights would make softmax choose one token, and hide
/// a wrong bias or head.
fn wide_stack(shape: InferenceShape, hidden: usize, biased: bool) -> InferenceTransformer {
    let d = shape.width;
    let linear = |name: u64, inputs: usize, outputs: usize| {
        let deviation = 1.0 / (inputs as f64).sqrt();
        InferenceLinear::new(&values(name, inputs * outputs, deviation), values(name + 1, outputs, 0.3))
    };
    let norm = |name: u64| InferenceNorm {
        weight: values(name, d, 0.3).iter().map(|x| 1.0 + x).collect(),
        bias: values(name + 1, d, 0.3),
    };
    let layer = |first: u64| InferenceLayer {
        qkv: linear(first, d, 3 * d),
        out: linear(first + 2, d, d),
        attention_norm: norm(first + 4),
        up: linear(first + 6, d, hidden),
        down: linear(first + 8, hidden, d),
        feed_norm: norm(first + 10),
    };
    let bias = biased.then(|| RelativeBias { values: values(900, shape.heads * (2 * REACH + 1), 1.0), reach: REACH });
    InferenceTransformer { shape, layers: vec![layer(0), layer(100)], bias }
}

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0_f32, |most, x| most.max(x.abs()));
    let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let is_number = found.iter().all(|x| x.is_finite());
    assert!(is_number && apart <= tolerance * scale, "{what}: {apart} apart of {scale}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_stack_on_a_gpu_agrees_with_the_cpu(
        lengths in prop_oneof![
            prop::collection::vec(1_usize..33, 1..20), prop::collection::vec(1_usize..80, 1..8), prop::collection::vec(1_usize..301, 1..3),
        ],
        (head_width, heads) in prop_oneof![
            (8_usize..33, 1_usize..5), Just((32, 12)), Just((64, 6)), (33_usize..65, 1_usize..4), (65_usize..129, 1_usize..3), Just((128, 2)),
        ],
        hidden in 1_usize..300, norm_first: bool, causal: bool, biased: bool,
    ) {
        if let Some(gpu) = gpu() {
            let shape = InferenceShape { width: head_width * heads, ..shape(heads, norm_first, causal) };
            let stack = wide_stack(shape, hidden, biased);
            let mut x = values(5000, lengths.iter().sum::<usize>() * shape.width, 1.0);
            let mut found = x.clone();
            stack.forward(&mut x, &lengths);
            for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 0.1)] {
                let on_gpu = DeviceTransformer::new(&stack, gpu, precision).unwrap();
                let input = found.clone();
                on_gpu.forward(&mut found, &lengths).unwrap();
                assert_close(&format!("{shape:?} {precision}"), &found, &x, tolerance);
                let mut again = input.clone();
                on_gpu.forward(&mut again, &lengths).unwrap();
                prop_assert_eq!(&found, &again, "two calls on a GPU differ");
                found = input;
            }
        }
    }
}

#[test]
fn wide_tokens_on_a_gpu_agree_with_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for (heads, head_width) in [(12, 64), (16, 64), (16, 128), (32, 128)] {
        for norm_first in [false, true] {
            let shape = InferenceShape { width: heads * head_width, ..shape(heads, norm_first, false) };
            let stack = wide_stack(shape, 100, false);
            let lengths = [5, 70];
            let mut expected = values(5000, 75 * shape.width, 1.0);
            let mut found = expected.clone();
            stack.forward(&mut expected, &lengths);
            DeviceTransformer::new(&stack, gpu, Precision::F32).unwrap().forward(&mut found, &lengths).unwrap();
            assert_close(&format!("{shape:?}"), &found, &expected, 1e-4);
        }
    }
}

#[test]
fn a_sequence_on_a_gpu_does_not_depend_on_the_rest_of_the_batch() {
    let Some(gpu) = gpu() else { return };
    let shape = InferenceShape { width: 96, ..shape(3, false, false) };
    let stack = DeviceTransformer::new(&wide_stack(shape, 50, true), gpu, Precision::F32).unwrap();
    let lengths = [40, 7, 90];
    let own = values(6000, 7 * shape.width, 1.0);
    let vectors = [6001, 6002].map(|beside| {
        let mut x = values(beside, 137 * shape.width, 1.0);
        x[40 * shape.width..47 * shape.width].copy_from_slice(&own);
        stack.forward(&mut x, &lengths).unwrap();
        x[40 * shape.width..47 * shape.width].to_vec()
    });
    assert_eq!(vectors[0], vectors[1]);
}

#[test]
fn inputs_and_outputs_of_a_stack_on_a_gpu_agree_with_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let shape = InferenceShape { width: 48, ..shape(3, false, false) };
    let (d, stack) = (48, wide_stack(shape, 100, true));
    let (table, segment, positions) = (values(1, 50 * d, 1.0), values(2, d, 1.0), values(3, 40 * d, 1.0));
    let norm = norm(4000, d);
    let lengths = [3, 0, 40, 1];
    let tokens: Vec<u32> = (0..44).map(|at| at * 7 % 50).collect();
    let rows: Vec<u32> = lengths.iter().flat_map(|&length| 0..length as u32).collect();
    let mut x: Vec<f32> = Vec::new();
    for (&token, &row) in tokens.iter().zip(&rows) {
        let at = |row: u32, c: usize| row as usize * d + c;
        x.extend((0..d).map(|c| table[at(token, c)] + segment[c] + positions[at(row, c)]));
    }
    norm.forward(&mut x, shape.eps);
    stack.forward(&mut x, &lengths);
    let parts = EncoderParts {
        input: EncoderInput::Tokens { table: &table, segment: Some(&segment) },
        positions: &positions,
        norm: Some(&norm),
        stack: &stack,
        output: None,
    };
    let encoder = DeviceEncoder::new(parts, gpu, Precision::F32).unwrap();
    let first_of = [0, 3, 3, 43];
    let expected = |combine: &dyn Fn(&[f32]) -> f32| -> Vec<f32> {
        let sequences = first_of.iter().zip(lengths);
        let column = |(first, length): (&usize, usize), c: usize| -> Vec<f32> {
            (*first..first + length).map(|token| x[token * d + c]).collect()
        };
        sequences.flat_map(|of| (0..d).map(move |c| combine(&column(of, c)))).collect()
    };
    let mean = |column: &[f32]| column.iter().sum::<f32>() / column.len().max(1) as f32;
    let first = |column: &[f32]| column.first().copied().unwrap_or(0.0);
    let most = |column: &[f32]| column.iter().copied().reduce(f32::max).unwrap_or(0.0);
    let embed = |readout| encoder.embed_tokens(&tokens, &rows, &lengths, readout).unwrap();
    assert_close("mean", &embed(Readout::Mean), &expected(&mean), 1e-4);
    assert_close("first", &embed(Readout::First), &expected(&first), 1e-4);
    assert_close("max", &embed(Readout::Max), &expected(&most), 1e-4);
    let rows = [2, 0, 3, 43];
    let of_rows: Vec<f32> = rows.iter().flat_map(|&row| x[row as usize * d..][..d].to_vec()).collect();
    assert_close("rows", &embed(Readout::Rows(&rows)), &of_rows, 1e-4);
    for (tokens, rows) in [([50], [0]), ([0], [40])] {
        assert!(encoder.embed_tokens(&tokens, &rows, &[1], Readout::Mean).is_err());
    }
}

#[test]
fn a_sequence_without_tokens_changes_nothing() {
    let stack = wide_stack(InferenceShape { width: 48, ..shape(3, false, false) }, 100, true);
    let tokens = values(1, 5 * 48, 1.0);
    let (mut with, mut without) = (tokens.clone(), tokens);
    stack.forward(&mut with, &[0, 2, 0, 3, 0]);
    stack.forward(&mut without, &[2, 3]);
    assert_eq!(with, without);
}
