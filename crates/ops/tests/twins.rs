//! Every fused operator against its plain twin: values and gradients, over random shapes, with dropout drawn alike; and
//! the same bits whatever the number of threads.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{Device, Result, Tensor, Var};
use mp4sr_ops::{Dropout, Mask, Ragged, SameGroup, Segments, Stream, Uses, plain};
use proptest::prelude::*;

fn var(stream: Stream, shape: &[usize]) -> Var {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count as u64).map(|i| stream.normal(i) as f32).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

/// Values of an operator's result and of all gradients of a random weighting of it.
fn outcome(inputs: &[Var], op: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Vec<f32>> {
    let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
    let result = op(&tensors).unwrap();
    let weights = var(Stream::new(99), result.dims());
    let loss = (&result * weights.as_tensor().detach()).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    let mut all = vec![result.flatten_all().unwrap().to_vec1().unwrap()];
    for input in inputs {
        let gradient = gradients.get(input.as_tensor()).expect("every input has a gradient");
        all.push(gradient.flatten_all().unwrap().to_vec1().unwrap());
    }
    all
}

fn threads<T: Send>(n: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(f)
}

type Op<'a> = &'a (dyn Fn(&[Tensor]) -> Result<Tensor> + Sync);

/// Relative to the largest value, at least 1. Both twins are float32; what divides by a row's norm or deviation is compared
/// at widths from 8 on, because the gradient of a very narrow row is a difference of large numbers.
const TOLERANCE: f32 = 1e-4;

fn twins(name: &str, inputs: &[Var], fused: Op<'_>, plain: Op<'_>) {
    let one = threads(1, || outcome(inputs, fused));
    let three = threads(3, || outcome(inputs, fused));
    assert_eq!(one, three, "{name}: depends on the number of threads");
    for (at, (a, b)) in one.iter().zip(outcome(inputs, plain)).enumerate() {
        let scale = b.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        for (x, y) in a.iter().zip(&b) {
            assert!((x - y).abs() <= TOLERANCE * scale, "{name}: output {at}: fused {x}, plain {y}, scale {scale}");
        }
        assert_eq!(a.len(), b.len());
    }
}

fn drops(seed: u64) -> [Dropout; 2] {
    [Dropout::NONE, Stream::new(seed).purpose("drop").dropout(0.3)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn linear_and_elementwise(t in 1usize..700, a in 1usize..40, b in 1usize..70, seed: u64) {
        let s = Stream::new(seed);
        let (x, w, bias) = (var(s.at(0), &[t, a]), var(s.at(1), &[a, b]), var(s.at(2), &[b]));
        twins("linear", &[x.clone(), w.clone(), bias], &|i| mp4sr_ops::linear(&i[0], &i[1], &i[2]), &|i| plain::linear(&i[0], &i[1], &i[2]));
        twins("product", &[x.clone(), w], &|i| mp4sr_ops::product(&i[0], &i[1]), &|i| plain::product(&i[0], &i[1]));
        twins("gelu", std::slice::from_ref(&x), &|i| mp4sr_ops::gelu(&i[0]), &|i| plain::gelu(&i[0]));
        let wide = var(s.at(3), &[t, a + 7]);
        twins("normalize", std::slice::from_ref(&wide), &|i| mp4sr_ops::normalize(&i[0]), &|i| plain::normalize(&i[0]));
        for drop in drops(seed) {
            twins("dropout", std::slice::from_ref(&x), &|i| mp4sr_ops::dropout(&i[0], drop), &|i| plain::dropout(&i[0], drop));
        }
        let rows: Vec<u32> = (0..2 * t as u64).map(|i| (s.at(9).bits(i) % t as u64) as u32).collect();
        twins("gather", &[x], &|i| mp4sr_ops::gather(&i[0], &rows), &|i| plain::gather(&i[0], &rows));
    }

    #[test]
    fn norms(t in 1usize..700, d in 8usize..70, seed: u64) {
        let s = Stream::new(seed);
        let inputs = [var(s.at(0), &[t, d]), var(s.at(2), &[d]), var(s.at(3), &[d])];
        twins("layer_norm", &inputs, &|i| mp4sr_ops::layer_norm(&i[0], &i[1], &i[2]), &|i| plain::layer_norm(&i[0], &i[1], &i[2]));
        let [x, w, b] = inputs;
        let inputs = [x, var(s.at(1), &[t, d]), w, b];
        for drop in drops(seed) {
            twins("add_norm", &inputs, &|i| mp4sr_ops::add_norm(&i[0], &i[1], &i[2], &i[3], drop), &|i| plain::add_norm(&i[0], &i[1], &i[2], &i[3], drop));
        }
    }

    #[test]
    fn pooling(counts in prop::collection::vec(0usize..6, 1..700), d in 1usize..40, seed: u64) {
        let s = Stream::new(seed);
        let mut offsets = vec![0];
        for c in &counts {
            offsets.push(offsets[offsets.len() - 1] + c);
        }
        let values = (0..(offsets[counts.len()] * d) as u64).map(|i| s.normal(i) as f32).collect();
        let all = Ragged::new(values, d, &offsets).unwrap();
        let some: Vec<u32> = (0..counts.len() as u32).rev().step_by(2).collect();
        for features in [all.select(&some), all] {
            for pad in [None, Some(4)] {
                twins("pool", &[var(s.at(1), &[d, 1])], &|i| mp4sr_ops::pool(&features, &i[0], pad), &|i| plain::pool(&features, &i[0], pad));
            }
        }
    }

    #[test]
    fn mixture(items in 1usize..80, experts in 1usize..6, d in 8usize..40, used in 1usize..200, seed: u64) {
        let s = Stream::new(seed);
        let uses = Uses::new((0..used as u64).map(|i| (s.bits(i) % items as u64) as u32).collect(), items);
        let inputs = [var(s.at(0), &[items, experts * d]), var(s.at(1), &[items, experts]), var(s.at(2), &[2, experts * d])];
        for drop in drops(seed) {
            // A part that dropout leaves with one value or none has next to no variance, and its gradient no digits.
            if drop.is_active() && d < 16 { continue; }
            twins("mixture", &inputs, &|i| mp4sr_ops::mixture(&i[0], &i[1], &i[2], &uses, drop), &|i| plain::mixture(&i[0], &i[1], &i[2], &uses, drop));
        }
    }

    #[test]
    fn attention(lengths in prop::collection::vec(1usize..20, 1..60), heads in 1usize..4, width in 1usize..40, seed: u64) {
        let s = Stream::new(seed);
        let segments = Segments::from_lengths(lengths).unwrap();
        let d = heads * width;
        for last_only in [false, true] {
            let queries = if last_only { segments.count() } else { segments.tokens() };
            let inputs = [var(s.at(0), &[queries, d]), var(s.at(1), &[segments.tokens(), 2 * d])];
            for drop in drops(seed) {
                twins("attention", &inputs,
                    &|i| mp4sr_ops::attention(&i[0], &i[1], &segments, heads, last_only, drop),
                    &|i| plain::attention(&i[0], &i[1], &segments, heads, last_only, drop));
            }
        }
    }

    #[test]
    fn logsumexp(n in 1usize..150, m in 1usize..1200, d in 1usize..40, seed: u64) {
        let s = Stream::new(seed);
        let unit = |at: u64, rows: usize| Var::from_tensor(&plain::normalize(var(s.at(at), &[rows, d]).as_tensor()).unwrap()).unwrap();
        let inputs = [unit(0, n), unit(1, m)];
        twins("row_logsumexp", &inputs, &|i| mp4sr_ops::row_logsumexp(&i[0], &i[1], 14.0, &Mask::None), &|i| plain::row_logsumexp(&i[0], &i[1], 14.0, &Mask::None));
        let groups: Vec<u32> = (0..n as u64).map(|i| (s.bits(i) % (n as u64 / 2 + 1)) as u32).collect();
        let inputs = [unit(0, n), unit(2, n)];
        for same in [SameGroup::LeaveOut, SameGroup::Keep, SameGroup::Zero] {
            let mask = Mask::Groups { groups: groups.clone().into(), same, diagonal: true };
            twins("masked row_logsumexp", &inputs, &|i| mp4sr_ops::row_logsumexp(&i[0], &i[1], 14.0, &mask), &|i| plain::row_logsumexp(&i[0], &i[1], 14.0, &mask));
        }
    }
}

#[test]
fn a_row_without_columns_gives_minus_infinity_and_no_gradient() {
    let a = var(Stream::new(1), &[2, 3]);
    let groups = std::sync::Arc::new(vec![5, 5]);
    let mask = Mask::Groups { groups, same: SameGroup::LeaveOut, diagonal: false };
    let l = mp4sr_ops::row_logsumexp(&a, &a, 1.0, &mask).unwrap();
    assert_eq!(l.to_vec1::<f32>().unwrap(), [f32::NEG_INFINITY; 2]);
    let safe = l.maximum(-1.0e30).unwrap().sum_all().unwrap();
    let gradient =
        safe.backward().unwrap().get(a.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(gradient.iter().all(|g| *g == 0.0), "{gradient:?}");
}
