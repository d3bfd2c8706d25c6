//! Compares operators whose products are computed from bf16 with the same operators in f32, values and gradients, and checks that the
//! number of threads does not change a bit. This test is a separate program, because the precision is one setting for all threads of a
//! process.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says what it leaves out"
)]

use candle_core::{Device, Result, Tensor, Var};
use mp4sr_ops::{
    ComputeDevice, Dropout, FalseNegatives, GatherIndex, ItemRows, LayerDropout, LayerSizes, Mask, MixtureSizes,
    PackedOffsets, Precision, Ragged, RngKey, check_precision, set_precision,
};

/// The least cosine that is accepted between results in bf16 and in f32, and between their gradients.
const LEAST_COSINE: f64 = 0.9999;

fn var(key: RngKey, shape: &[usize], scale: f64) -> Var {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count as u64).map(|i| (scale * key.normal(i)) as f32).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

/// The result of an operator, and the gradients of a randomly weighted sum of it.
fn outcome(inputs: &[Var], precision: Precision, threads: usize, op: Op<'_>) -> Vec<Vec<f32>> {
    set_precision(precision);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let all = pool.install(|| {
        let result = op(&inputs.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>()).unwrap();
        let weights = var(RngKey::new(99), result.dims(), 1.0);
        let gradients = (&result * weights.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
        let of_inputs = inputs.iter().map(|input| flat(gradients.get(input.as_tensor()).unwrap()));
        std::iter::once(flat(&result)).chain(of_inputs).collect()
    });
    set_precision(Precision::F32);
    all
}

type Op<'a> = &'a (dyn Fn(&[Tensor]) -> Result<Tensor> + Sync);

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn compare(name: &str, inputs: &[Var], op: Op<'_>) {
    let bf16 = outcome(inputs, Precision::Bf16, 1, op);
    assert_eq!(bf16, outcome(inputs, Precision::Bf16, 3, op), "{name}: depends on the number of threads");
    let f32 = outcome(inputs, Precision::F32, 1, op);
    assert_ne!(bf16, f32, "{name}: bf16 changes nothing");
    for (at, (a, b)) in bf16.iter().zip(&f32).enumerate() {
        let cosine = cosine(a, b);
        assert!(cosine >= LEAST_COSINE, "{name}, output {at}: the cosine is {cosine}");
    }
}

/// If every row is far nearer to its target than to all other columns, the loss and the gradient are 0 but for the order of sums, however
/// the factors are rounded.
fn a_sure_prediction_has_no_loss(key: RngKey) {
    let columns = var(key, &[600, 64], 1.0);
    let rows = Var::from_tensor(&columns.narrow(0, 0, 300).unwrap().contiguous().unwrap()).unwrap();
    let targets: Vec<u32> = (0..300).collect();
    let found =
        outcome(&[rows, columns], Precision::Bf16, 1, &|i| mp4sr_ops::cross_entropy(&i[0], &i[1], &targets, 1.0));
    let largest = |values: &[f32]| values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    assert!(largest(&found[0]) < 1e-4, "the loss is up to {}", largest(&found[0]));
    assert!(largest(&found[1]) < 1e-3 && largest(&found[2]) < 1e-3, "{} {}", largest(&found[1]), largest(&found[2]));
}

/// There is only one test, so that no two tests set the precision at the same time.
#[test]
fn operators_in_bf16_are_close_to_those_in_f32() {
    if let Err(reason) = check_precision(ComputeDevice::Cpu, Precision::Bf16) {
        println!("bf16 is not tested: {reason}");
        return;
    }
    let s = RngKey::new(7);
    let (x, w, bias) = (
        var(s.fold_in_index(0), &[700, 96], 1.0),
        var(s.fold_in_index(1), &[96, 50], 0.1),
        var(s.fold_in_index(2), &[50], 1.0),
    );
    compare("linear", &[x.clone(), w, bias], &|i| mp4sr_ops::linear(&i[0], &i[1], &i[2]));

    let unit = |at, rows: usize| var(s.fold_in_index(at), &[rows, 64], 0.125);
    let targets: Vec<u32> = (0..300).collect();
    let inputs = [unit(3, 300), unit(4, 1100)];
    compare("cross_entropy", &inputs, &|i| mp4sr_ops::cross_entropy(&i[0], &i[1], &targets, 3.0));
    a_sure_prediction_has_no_loss(s.fold_in("sure"));
    let mask = Mask::FalseNegatives {
        groups: (0..300).map(|i| i / 2).collect::<Vec<u32>>().into(),
        false_negatives: FalseNegatives::Exclude,
        diagonal: true,
        first_row: 0,
    };
    compare("row_logsumexp", &[unit(5, 300), unit(6, 300)], &|i| mp4sr_ops::row_logsumexp(&i[0], &i[1], 3.0, &mask));

    let sizes = MixtureSizes { features: 100, experts: 4, width: 64 };
    let offsets: Vec<usize> = (0..=200).map(|item| 3 * item).collect();
    let values = (0..600 * 100).map(|i| s.fold_in_index(8).normal(i) as f32).collect();
    let features = Ragged::new(values, 100, &offsets).unwrap();
    let rows =
        [ItemRows { features, pooling_rows: None, experts: sizes.experts, width: sizes.width, dropout: Dropout::NONE }];
    let index = GatherIndex::each_once(200);
    let inputs = [var(s.fold_in_index(9), &[100], 0.1), var(s.fold_in_index(10), &[sizes.count()], 0.1)];
    compare("encode", &inputs, &|i| mp4sr_ops::encode(&rows, &i[0], &i[1], &index));

    let sizes = LayerSizes { width: 64, heads: 4, feed_forward: 128, bidirectional: false };
    let offsets = PackedOffsets::from_lengths((0..60).map(|j| 1 + j % 9)).unwrap();
    let dropout = LayerDropout { weights: Dropout::NONE, attention: Dropout::NONE, feed_forward: Dropout::NONE };
    let inputs =
        [var(s.fold_in_index(11), &[offsets.tokens(), 64], 1.0), var(s.fold_in_index(12), &[sizes.count()], 0.1)];
    compare("transformer_layer", &inputs, &|i| {
        mp4sr_ops::transformer_layer(&i[0], &i[1], sizes, &offsets, false, dropout)
    });
}
