//! Compares the fused operators with their plain twins, values and gradients, over random shapes and with the same dropout masks, and
//! checks that the number of threads does not change a bit.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says what it leaves out"
)]

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor, Var};
use mp4sr_ops::{
    Cell, CmclDirection, ComputeDevice, Contrast, Dropout, Edges, FalseNegatives, GatherIndex, ItemRows, LayerDropout,
    LayerSizes, Mask, PackedOffsets, Ragged, RngKey, Rows, ScoreFusion, Side, SourceScope, SourceSizes, SparseEntry,
    SparseMatrix, StoredValues, plain,
};
use proptest::prelude::*;

fn var(key: RngKey, shape: &[usize]) -> Var {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count as u64).map(|i| key.normal(i) as f32).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

/// The values of an operator's result, and of all gradients of a randomly weighted sum of it, on a device.
fn outcome(inputs: &[Var], device: &Device, op: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Vec<f32>> {
    let inputs: Vec<Var> =
        inputs.iter().map(|v| Var::from_tensor(&v.as_detached_tensor().to_device(device).unwrap()).unwrap()).collect();
    let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
    let result = op(&tensors).unwrap();
    let weights = var(RngKey::new(99), result.dims()).as_detached_tensor().to_device(device).unwrap();
    let loss = (&result * weights).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    let mut all = vec![result.flatten_all().unwrap().to_vec1().unwrap()];
    for input in &inputs {
        let gradient = gradients.get(input.as_tensor()).expect("every input has a gradient");
        all.push(gradient.flatten_all().unwrap().to_vec1().unwrap());
    }
    all
}

fn threads<T: Send>(n: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(f)
}

type Op<'a> = &'a (dyn Fn(&[Tensor]) -> Result<Tensor> + Sync);

/// The tolerance relative to the largest value, or to 1 if that is larger. Both twins compute in f32. Operators that divide by a row's norm
/// or deviation are compared at widths from 8 on, because the gradient of a very narrow row is a difference of large numbers.
const TOLERANCE: f32 = 1e-4;

/// The first NVIDIA GPU, if the program is built for GPUs and the machine has one.
fn gpu() -> Option<&'static Device> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    let open = || match ComputeDevice::Cuda(0).open() {
        Ok(device) => Some(device),
        Err(error) => {
            println!("the operators of GPUs are not compared: {error}");
            None
        }
    };
    GPU.get_or_init(open).as_ref()
}

fn compare(name: &str, found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        let scale = b.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        for (x, y) in a.iter().zip(b) {
            let close = (x - y).abs() <= tolerance * scale || x.to_bits() == y.to_bits();
            assert!(close, "{name}: output {at}: {x}, plain {y}, scale {scale}");
        }
        assert_eq!(a.len(), b.len());
    }
}

fn twins(name: &str, inputs: &[Var], fused: Op<'_>, plain: Op<'_>) {
    let cpu = &Device::Cpu;
    let one = threads(1, || outcome(inputs, cpu, fused));
    let three = threads(3, || outcome(inputs, cpu, fused));
    assert_eq!(one, three, "{name}: depends on the number of threads");
    let plain = outcome(inputs, cpu, plain);
    compare(name, &one, &plain, TOLERANCE);
    if let Some(gpu) = gpu() {
        let found = outcome(inputs, gpu, fused);
        assert_eq!(found, outcome(inputs, gpu, fused), "{name}: two runs on a GPU differ");
        compare(&format!("{name} on a GPU"), &found, &plain, TOLERANCE);
    }
}

const TEMPERATURE: f64 = 0.07;

/// f of every pair of rows, `[rows of a, rows of b]`.
fn similarities(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    (a.matmul(&b.t()?)? / TEMPERATURE)?.exp()
}

/// f of the pairs of equal rows, `[B]`.
fn pairs(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    ((a * b)?.sum(1)? / TEMPERATURE)?.exp()
}

/// NIP: the negative logarithm of the share that the pairs of a sequence and its target have of all pairs that `counted` keeps.
fn nip_of_sums(views: &[Tensor], targets: &Tensor, counted: Counted<'_>) -> Result<Tensor> {
    let (mut all, mut own) = (targets.zeros_like()?.sum(1)?, targets.zeros_like()?.sum(1)?);
    for view in views {
        all = (all + counted(similarities(view, targets)?)?.sum(1)?)?;
        own = (own + pairs(view, targets)?)?;
    }
    (own / all)?.log()?.neg()
}

/// Replaces the values of f, `[B, B]`, that do not count as they are.
type Counted<'a> = &'a (dyn Fn(Tensor) -> Result<Tensor> + Sync);

/// Replaces f of false negatives, and, without `own`, leaves out that of each sample with itself.
fn without_false_negatives(f: &Tensor, contrast: &Contrast, own: bool) -> Result<Tensor> {
    let groups = &contrast.groups;
    let is_false = |i: usize, j: usize| i != j && groups[i] == groups[j];
    let entries = |value: &dyn Fn(usize, usize) -> bool| {
        let count = groups.len();
        let entries: Vec<f32> =
            (0..count * count).map(|at| if value(at / count, at % count) { 1.0 } else { 0.0 }).collect();
        Tensor::from_vec(entries, (count, count), f.device())
    };
    let (kept, ones) = match contrast.false_negatives {
        FalseNegatives::Keep => (entries(&|i, j| own || i != j)?, entries(&|_, _| false)?),
        FalseNegatives::Exclude => (entries(&|i, j| (own || i != j) && !is_false(i, j))?, entries(&|_, _| false)?),
        FalseNegatives::ZeroLogit => (entries(&|i, j| (own || i != j) && !is_false(i, j))?, entries(&is_false)?),
    };
    (f * kept)? + ones
}

/// How the denominators of CMCL are added up.
struct Sums<'a> {
    all: Counted<'a>,
    others: Counted<'a>,
    direction: CmclDirection,
}

impl Sums<'_> {
    /// The mean over the ordered pairs of different views.
    fn cmcl(&self, views: &[Tensor]) -> Result<Tensor> {
        let mut terms = Vec::new();
        for (a, first) in views.iter().enumerate() {
            for (b, second) in views.iter().enumerate().filter(|(b, _)| *b != a) {
                // The sum over a row of the matrix of the second and the first view is one over a column of that of the first and second.
                let cross = if self.direction == CmclDirection::RowSums && b < a {
                    (self.all)(similarities(second, first)?)?.sum(1)?
                } else {
                    (self.all)(similarities(first, second)?)?.sum(1)?
                };
                let within = (self.others)(similarities(first, first)?)?.sum(1)?;
                terms.push((pairs(first, second)? / (cross + within)?)?.log()?.neg()?);
            }
        }
        Tensor::stack(&terms, 0)?.mean(0)
    }
}

fn drops(seed: u64) -> [Dropout; 2] {
    [Dropout::NONE, RngKey::new(seed).fold_in("drop").dropout(0.3)]
}

fn encode_agrees(counts: &[usize], experts: usize, d: usize, width: usize, used: usize, seed: u64) {
    let s = RngKey::new(seed);
    let ragged = |s: RngKey, d: usize, shift: usize| {
        let mut offsets = vec![0];
        for i in 0..counts.len() {
            offsets.push(offsets[i] + counts[(i + shift) % counts.len()]);
        }
        let values = (0..(offsets[counts.len()] * d) as u64).map(|i| s.normal(i) as f32).collect();
        Ragged::new(values, d, &offsets).unwrap()
    };
    let all = [ragged(s.fold_in_index(0), d, 0), ragged(s.fold_in_index(1), d + 3, 1)];
    let some: Vec<u32> = (0..counts.len() as u32).rev().step_by(2).collect();
    let [first, second] = &all;
    for features in [[first.select(&some), second.select(&some)], all.clone()] {
        let items = features[0].count();
        let drawn = GatherIndex::new((0..used as u64).map(|i| (s.bits(i) % items as u64) as u32).collect(), items);
        for (index, pooling_rows) in [(&drawn, None), (&drawn, Some(4)), (&GatherIndex::each_once(items), None)] {
            for dropout in drops(seed) {
                // If dropout leaves at most one value in a part, the part has almost no variance, and its gradient no correct digits.
                if dropout.is_active() && width < 16 {
                    continue;
                }
                let rows: Vec<ItemRows> = features
                    .iter()
                    .map(|f| ItemRows { features: f.clone(), pooling_rows, experts, width, dropout })
                    .collect();
                let packed = |d: usize| experts * (d * width + d + 3 * width);
                let inputs =
                    [var(s.fold_in_index(2), &[2 * d + 3]), var(s.fold_in_index(3), &[packed(d) + packed(d + 3)])];
                // Without gradients nothing is kept, which is another path to the same values.
                let kept = mp4sr_ops::encode(&rows, &inputs[0], &inputs[1], index).unwrap();
                let streamed =
                    mp4sr_ops::encode(&rows, &inputs[0].as_detached_tensor(), &inputs[1].as_detached_tensor(), index)
                        .unwrap();
                let distance = (kept - streamed).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
                assert!(distance.to_scalar::<f32>().unwrap() < TOLERANCE);
                twins("encode", &inputs, &|i| mp4sr_ops::encode(&rows, &i[0], &i[1], index), &|i| {
                    plain::encode(&rows, &i[0], &i[1], index)
                });
            }
        }
    }
}

fn transformer_layer_agrees(lengths: Vec<usize>, heads: usize, width: usize, feed_forward: usize, seed: u64) {
    let s = RngKey::new(seed);
    let offsets = PackedOffsets::from_lengths(lengths).unwrap();
    let sizes = LayerSizes { width: heads * width, heads, feed_forward, bidirectional: seed % 2 == 1 };
    let d = sizes.width;
    let count = sizes.count();
    // The weights are small, as in the model, because the gradients of a saturated softmax are rounding errors.
    let packed = Var::from_tensor(&(var(s.fold_in_index(1), &[count]).as_tensor() * 0.2).unwrap()).unwrap();
    let inputs = [var(s.fold_in_index(0), &[offsets.tokens(), d]), packed];
    for last_only in [false, true] {
        for drop in drops(seed) {
            let again = |p: &str| if drop.is_active() { s.fold_in(p).dropout(0.3) } else { Dropout::NONE };
            let dropout = LayerDropout { weights: drop, attention: again("a"), feed_forward: again("f") };
            twins(
                "transformer_layer",
                &inputs,
                &|i| mp4sr_ops::transformer_layer(&i[0], &i[1], sizes, &offsets, last_only, dropout),
                &|i| plain::transformer_layer(&i[0], &i[1], sizes, &offsets, last_only, dropout),
            );
        }
    }
}

fn logsumexp_agrees(n: usize, m: usize, d: usize, seed: u64) {
    let s = RngKey::new(seed);
    let unit = |at: u64, rows: usize| {
        Var::from_tensor(&plain::normalize(var(s.fold_in_index(at), &[rows, d]).as_tensor()).unwrap()).unwrap()
    };
    let inputs = [unit(0, n), unit(1, m)];
    twins("row_logsumexp", &inputs, &|i| mp4sr_ops::row_logsumexp(&i[0], &i[1], 14.0, &Mask::None), &|i| {
        plain::row_logsumexp(&i[0], &i[1], 14.0, &Mask::None)
    });
    let targets: Vec<u32> = (0..n as u64).map(|i| (s.bits(i) % m as u64) as u32).collect();
    twins("cross_entropy", &inputs, &|i| mp4sr_ops::cross_entropy(&i[0], &i[1], &targets, 14.0), &|i| {
        plain::cross_entropy(&i[0], &i[1], &targets, 14.0)
    });
    let shifts: Vec<f32> = (0..m as u64).map(|i| (s.bits(i + 7) % 100) as f32 / 20.0).collect();
    twins(
        "sampled_cross_entropy",
        &inputs,
        &|i| mp4sr_ops::sampled_cross_entropy(&i[0], &i[1], &targets, &shifts, 14.0),
        &|i| plain::sampled_cross_entropy(&i[0], &i[1], &targets, &shifts, 14.0),
    );
    let groups: Vec<u32> = (0..n as u64).map(|i| (s.bits(i) % (n as u64 / 2 + 1)) as u32).collect();
    let inputs = [unit(0, n), unit(2, n)];
    for false_negatives in [FalseNegatives::Exclude, FalseNegatives::Keep, FalseNegatives::ZeroLogit] {
        let mask =
            Mask::FalseNegatives { groups: groups.clone().into(), false_negatives, diagonal: true, first_row: 0 };
        twins("masked row_logsumexp", &inputs, &|i| mp4sr_ops::row_logsumexp(&i[0], &i[1], 14.0, &mask), &|i| {
            plain::row_logsumexp(&i[0], &i[1], 14.0, &mask)
        });
    }
}

/// Every thread then has several blocks of columns, items or sequences, each of which starts elsewhere.
#[test]
fn operators_agree_at_the_sizes_of_real_data() {
    logsumexp_agrees(150, 9_000, 4, 1);
    let s = RngKey::new(2);
    let (x, vectors) = (var(s.fold_in_index(0), &[150, 4]), var(s.fold_in_index(1), &[9_000, 4]));
    twins("row_softplus", &[x, vectors], &|i| mp4sr_ops::row_softplus(&i[0], &i[1]), &|i| {
        plain::row_softplus(&i[0], &i[1])
    });
    let counts: Vec<usize> = (0..2_600).map(|item| item % 4).collect();
    encode_agrees(&counts, 2, 3, 16, 3_000, 3);
    let lengths: Vec<usize> = (0..450).map(|sequence| 1 + sequence % 24).collect();
    transformer_layer_agrees(lengths, 2, 4, 12, 4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn linear_and_elementwise(t in 1usize..700, a in 1usize..40, b in 1usize..70, seed: u64) {
        let s = RngKey::new(seed);
        let (x, w, bias) = (var(s.fold_in_index(0), &[t, a]), var(s.fold_in_index(1), &[a, b]), var(s.fold_in_index(2), &[b]));
        twins("linear", &[x.clone(), w.clone(), bias], &|i| mp4sr_ops::linear(&i[0], &i[1], &i[2]), &|i| plain::linear(&i[0], &i[1], &i[2]));
        twins("product", &[x.clone(), w], &|i| mp4sr_ops::product(&i[0], &i[1]), &|i| plain::product(&i[0], &i[1]));
        let wide = var(s.fold_in_index(3), &[t, a + 7]);
        twins("normalize", std::slice::from_ref(&wide), &|i| mp4sr_ops::normalize(&i[0]), &|i| plain::normalize(&i[0]));
        let rows: Vec<u32> = (0..2 * t as u64).map(|i| (s.fold_in_index(9).bits(i) % t as u64) as u32).collect();
        twins("gather", &[x], &|i| mp4sr_ops::gather(&i[0], &rows), &|i| plain::gather(&i[0], &rows));
    }

    #[test]
    fn encode(
        counts in prop_oneof![4 => prop::collection::vec(0usize..6, 1..120), 1 => prop::collection::vec(0usize..6, 120..1200)],
        experts in 1usize..5,
        (d, width) in (1usize..40, prop_oneof![8 => 8usize..40, 2 => Just(64), 1 => Just(300)]),
        used in 1usize..600,
        seed: u64,
    ) {
        encode_agrees(&counts, experts, d, width, used, seed);
    }

    #[test]
    fn sequence_input(tokens in 1usize..1300, rows in 1usize..90, (n, d) in (1usize..30, 8usize..70), seed: u64) {
        let s = RngKey::new(seed);
        let draw = |s: RngKey, below: usize| (0..tokens as u64).map(|i| (s.bits(i) % below as u64) as u32).collect::<Vec<_>>();
        let (z, ids, positions) = (draw(s.fold_in_index(1), rows), draw(s.fold_in_index(2), rows + 1), draw(s.fold_in_index(3), n));
        let inputs = [var(s.fold_in_index(4), &[rows, d]), var(s.fold_in_index(5), &[n + 2, d]), var(s.fold_in_index(6), &[rows + 1, d])];
        for drop in drops(seed) {
            twins("sequence_input with ids", &inputs,
                &|i| mp4sr_ops::sequence_input(Rows::new(&i[0], &z), Some(Rows::new(&i[2], &ids)), Rows::new(&i[1], &positions), drop),
                &|i| plain::sequence_input(Rows::new(&i[0], &z), Some(Rows::new(&i[2], &ids)), Rows::new(&i[1], &positions), drop));
            twins("sequence_input", &inputs[..2],
                &|i| mp4sr_ops::sequence_input(Rows::new(&i[0], &z), None, Rows::new(&i[1], &positions), drop),
                &|i| plain::sequence_input(Rows::new(&i[0], &z), None, Rows::new(&i[1], &positions), drop));
        }
    }

    #[test]
    fn sparse_products(n in 1usize..90, m in 1usize..90, d in 1usize..150, share in 0u64..100, layers in 0usize..4, seed: u64) {
        let s = RngKey::new(seed);
        let entries = |rows: usize, columns: usize| {
            let entries = (0..rows).flat_map(move |row| (0..columns).map(move |column| (row, column)));
            entries
                .filter(|&(row, column)| s.bits((row * columns + column) as u64) % 100 < share)
                .map(|(row, column)| SparseEntry { row: row as u32, column: column as u32, weight: s.normal((row * 7 + column) as u64) as f32 })
                .collect::<Vec<_>>()
        };
        let matrix = SparseMatrix::new(n, m, entries(n, m)).unwrap();
        twins("sparse_product", &[var(s.fold_in_index(1), &[m, d])],
            &|i| mp4sr_ops::sparse_product(&matrix, &i[0]), &|i| plain::sparse_product(&matrix, &i[0]));
        let some: Vec<u32> = (0..n as u32).rev().step_by(2).collect();
        let selected = matrix.select_rows(&some).unwrap();
        let x = var(s.fold_in_index(1), &[m, d]);
        let whole = mp4sr_ops::gather(&mp4sr_ops::sparse_product(&matrix, &x).unwrap(), &some).unwrap();
        let part = mp4sr_ops::sparse_product(&selected, &x).unwrap();
        prop_assert_eq!(whole.to_vec2::<f32>().unwrap(), part.to_vec2::<f32>().unwrap());
        // The weights are divided by n, as in a graph, so that powers of the matrix stay small.
        let mut square = entries(n, n);
        square.iter_mut().for_each(|entry| entry.weight /= n as f32);
        let square = SparseMatrix::new(n, n, square).unwrap();
        twins("propagate", &[var(s.fold_in_index(2), &[n, d])],
            &|i| mp4sr_ops::propagate(&square, &i[0], layers), &|i| plain::propagate(&square, &i[0], layers));
    }

    #[test]
    fn edges(n in 1usize..90, m in 1usize..90, d in 1usize..150, share in 1u64..100, seed: u64) {
        let s = RngKey::new(seed);
        let row = |row: usize| (0..m).filter(|column| s.bits((row * m + column) as u64) % 100 < share).map(|column| column as u32).collect();
        let mut rows: Vec<Vec<u32>> = (0..n).map(row).collect();
        rows[0] = vec![m as u32 - 1];
        let edges = Edges::new(&rows, m).unwrap();
        let (a, b, w) = (var(s.fold_in_index(1), &[n, d]), var(s.fold_in_index(2), &[m, d]), var(s.fold_in_index(3), &[edges.count()]));
        twins("edge_dot", &[a.clone(), b.clone()], &|i| mp4sr_ops::edge_dot(&i[0], &i[1], &edges), &|i| plain::edge_dot(&i[0], &i[1], &edges));
        for (side, x) in [(Side::Rows, &b), (Side::Columns, &a)] {
            twins("edge_softmax", std::slice::from_ref(&w),
                &|i| mp4sr_ops::edge_softmax(&i[0], &edges, side), &|i| plain::edge_softmax(&i[0], &edges, side));
            twins("edge_sum", &[w.clone(), x.clone()],
                &|i| mp4sr_ops::edge_sum(&i[0], &i[1], &edges, side), &|i| plain::edge_sum(&i[0], &i[1], &edges, side));
        }
        let picked: Vec<u32> = (0..5 * n as u64).map(|i| (s.fold_in_index(4).bits(i) % m as u64) as u32).collect();
        twins("picked_dot", &[a, b], &|i| mp4sr_ops::picked_dot(&i[0], &i[1], &picked), &|i| plain::picked_dot(&i[0], &i[1], &picked));
    }

    #[test]
    fn recurrent(lengths in prop::collection::vec(1usize..9, 1..150), w in 1usize..20, seed: u64) {
        let s = RngKey::new(seed);
        let mut lengths = lengths;
        lengths.push(2);
        let offsets = PackedOffsets::from_lengths(lengths).unwrap();
        for cell in [Cell::Lstm, Cell::Gru] {
            let small = |at: u64, shape: &[usize]| Var::from_tensor(&(var(s.fold_in_index(at), shape).as_tensor() * 0.4).unwrap()).unwrap();
            let inputs = [small(0, &[offsets.tokens(), cell.gates() * w]), small(1, &[w, cell.gates() * w])];
            twins("recurrent", &inputs,
                &|i| mp4sr_ops::recurrent(&i[0], &i[1], &offsets, cell), &|i| plain::recurrent(&i[0], &i[1], &offsets, cell));
        }
    }

    #[test]
    fn source_attention(
        lengths in prop_oneof![3 => prop::collection::vec(1usize..12, 1..6), 1 => prop::collection::vec(1usize..12, 6..20)],
        heads in 1usize..4,
        widths in prop::collection::vec(1usize..7, 1..5),
        width in 1usize..9,
        seed: u64,
    ) {
        let s = RngKey::new(seed);
        let offsets = PackedOffsets::from_lengths(lengths.clone()).unwrap();
        let real: Vec<usize> = lengths.iter().enumerate().map(|(j, &length)| 1 + (s.bits(j as u64) % length as u64) as usize).collect();
        let small = |at: u64, shape: &[usize]| Var::from_tensor(&(var(s.fold_in_index(at), shape).as_tensor() * 0.4).unwrap()).unwrap();
        for fusion in [ScoreFusion::Sum, ScoreFusion::Gate, ScoreFusion::Concat] {
            let sources: Vec<usize> = widths.iter().map(|width| width * heads).collect();
            let sizes = SourceSizes { sources, width: heads * width, heads, max_sequence_length: 12, fusion };
            let key_value = small(1, &[offsets.tokens(), sizes.queries() + sizes.width]);
            for (real, last_only) in [(None, false), (None, true), (Some(&real[..]), false), (Some(&real[..]), true)] {
                let rows = if last_only { offsets.count() } else { offsets.tokens() };
                let mut inputs = vec![small(0, &[rows, sizes.queries()]), key_value.clone()];
                if sizes.fusion_count() > 0 {
                    inputs.push(small(2, &[sizes.fusion_count()]));
                }
                for drop in drops(seed) {
                    let scope = SourceScope { real, last_only, bidirectional: seed % 2 == 1 };
                    twins("source_attention", &inputs,
                        &|i| mp4sr_ops::source_attention(&i[0], &i[1], i.get(2), &sizes, &offsets, scope, drop),
                        &|i| plain::source_attention(&i[0], &i[1], i.get(2), &sizes, &offsets, scope, drop));
                }
            }
        }
    }

    #[test]
    fn rows_and_segments(
        lengths in prop::collection::vec(1usize..30, 1..150),
        (k, d) in (1usize..5, prop_oneof![8usize..40, Just(64)]),
        seed: u64,
    ) {
        let s = RngKey::new(seed);
        let offsets = PackedOffsets::from_lengths(lengths).unwrap();
        let (t, b) = (offsets.tokens(), offsets.count());
        let (x, wide) = (var(s.fold_in_index(0), &[t, d]), var(s.fold_in_index(1), &[t, k * d]));
        let (weights, vectors) = (var(s.fold_in_index(2), &[t, k]), var(s.fold_in_index(3), &[b * k, d]));
        let (scale, shift) = (var(s.fold_in_index(4), &[d]), var(s.fold_in_index(5), &[d]));
        for drop in drops(seed) {
            twins("dropout", std::slice::from_ref(&x), &|i| mp4sr_ops::dropout(&i[0], drop), &|i| plain::dropout(&i[0], drop));
        }
        twins("layer_norm", &[x.clone(), scale, shift], &|i| mp4sr_ops::layer_norm(&i[0], &i[1], &i[2]), &|i| plain::layer_norm(&i[0], &i[1], &i[2]));
        twins("additive_scores", &[wide, var(s.fold_in_index(6), &[k, d])],
            &|i| mp4sr_ops::additive_scores(&i[0], &i[1]), &|i| plain::additive_scores(&i[0], &i[1]));
        twins("gelu", std::slice::from_ref(&x), &|i| mp4sr_ops::gelu(&i[0]), &|i| plain::gelu(&i[0]));
        twins("row_softplus", &[x.clone(), vectors.clone()], &|i| mp4sr_ops::row_softplus(&i[0], &i[1]), &|i| plain::row_softplus(&i[0], &i[1]));
        let table = var(s.fold_in_index(7), &[t, d]).as_tensor().detach();
        let rows: Vec<u32> = (0..2 * t as u64).map(|i| (s.bits(i) % t as u64) as u32).collect();
        for drop in drops(seed) {
            twins("expert_products", &[var(s.fold_in_index(8), &[k * d, 5])],
                &|i| mp4sr_ops::expert_products(&table.to_device(i[0].device())?, &rows, &i[0], k, drop),
                &|i| plain::expert_products(&table.to_device(i[0].device())?, &rows, &i[0], k, drop));
        }
        twins("segment_softmax", std::slice::from_ref(&weights),
            &|i| mp4sr_ops::segment_softmax(&i[0], &offsets), &|i| plain::segment_softmax(&i[0], &offsets));
        twins("segment_sum", &[weights.clone(), x.clone()],
            &|i| mp4sr_ops::segment_sum(&i[0], &i[1], &offsets), &|i| plain::segment_sum(&i[0], &i[1], &offsets));
        twins("segment_dot", &[x, vectors.clone()],
            &|i| mp4sr_ops::segment_dot(&i[0], &i[1], &offsets), &|i| plain::segment_dot(&i[0], &i[1], &offsets));
        twins("segment_mix", &[weights, vectors],
            &|i| mp4sr_ops::segment_mix(&i[0], &i[1], &offsets), &|i| plain::segment_mix(&i[0], &i[1], &offsets));
    }

    #[test]
    fn transformer_layer(
        lengths in prop_oneof![prop::collection::vec(1usize..20, 1..60), prop::collection::vec(50usize..=50, 1..7)],
        heads in 1usize..4,
        width in prop_oneof![4usize..20, Just(32)],
        feed_forward in 1usize..60,
        seed: u64,
    ) {
        transformer_layer_agrees(lengths, heads, width, feed_forward, seed);
    }

    #[test]
    fn candidates(items in 1usize..300, modalities in 1usize..4, d in 8usize..70, seed: u64) {
        let s = RngKey::new(seed);
        let starts: Vec<usize> = (0..modalities).map(|m| 2 + m * (items + 3)).collect();
        let inputs = [var(s.fold_in_index(0), &[modalities * (items + 3) + 2, d]), var(s.fold_in_index(1), &[items + 1, d])];
        for cosine in [false, true] {
            twins("candidates with ids", &inputs,
                &|i| mp4sr_ops::candidates(&i[0], &starts, items, Some(&i[1]), cosine),
                &|i| plain::candidates(&i[0], &starts, items, Some(&i[1]), cosine));
            twins("candidates", &inputs[..1],
                &|i| mp4sr_ops::candidates(&i[0], &starts, items, None, cosine),
                &|i| plain::candidates(&i[0], &starts, items, None, cosine));
        }
    }

    #[test]
    fn logsumexp(n in 1usize..150, m in 1usize..1200, d in 1usize..40, seed: u64) {
        logsumexp_agrees(n, m, d, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// On the CPU, this is a composition of other operators; on a GPU, it is one operator. The twin adds up f(a, b) = exp(a b / tau), as the
    /// paper's equations 7 to 10 do.
    #[test]
    fn contrastive_terms(batch in 1usize..90, views in 1usize..4, d in 8usize..40, seed: u64) {
        let s = RngKey::new(seed);
        let unit = |at: u64| Var::from_tensor(&plain::normalize(var(s.fold_in_index(at), &[batch, d]).as_tensor()).unwrap()).unwrap();
        let inputs: Vec<Var> = (0..=views as u64).map(unit).collect();
        let groups: Vec<u32> = (0..batch as u64).map(|i| (s.bits(i) % (batch as u64 / 2 + 1)) as u32).collect();
        let every: Vec<u32> = (0..batch as u32).collect();
        let among = |i: &[Tensor]| {
            let (candidates, views) = i.split_last().unwrap();
            mp4sr_ops::next_item_prediction(views, candidates, &every, TEMPERATURE)
        };
        let among_twin = |i: &[Tensor]| {
            let (candidates, views) = i.split_last().unwrap();
            nip_of_sums(views, candidates, &|f| Ok(f))
        };
        twins("next_item_prediction", &inputs, &among, &among_twin);
        for false_negatives in [FalseNegatives::Exclude, FalseNegatives::Keep, FalseNegatives::ZeroLogit] {
            for direction in [CmclDirection::Symmetric, CmclDirection::RowSums] {
                let contrast = Contrast { groups: groups.clone().into(), false_negatives, temperature: TEMPERATURE, direction };
                let terms = |i: &[Tensor]| {
                    let (targets, views) = i.split_last().unwrap();
                    let terms = mp4sr_ops::contrastive(views, Some(targets), true, &contrast)?;
                    let nip = terms.nip.unwrap();
                    match terms.cmcl {
                        Some(cmcl) => nip + (cmcl * 0.7)?,
                        None => Ok(nip),
                    }
                };
                let all = |f: Tensor| without_false_negatives(&f, &contrast, true);
                let others = |f: Tensor| without_false_negatives(&f, &contrast, false);
                let sums = Sums { all: &all, others: &others, direction };
                let terms_twin = |i: &[Tensor]| {
                    let (targets, views) = i.split_last().unwrap();
                    let nip = nip_of_sums(views, targets, &all)?;
                    if views.len() > 1 { nip + (sums.cmcl(views)? * 0.7)? } else { Ok(nip) }
                };
                twins("contrastive", &inputs, &terms, &terms_twin);
                if views > 1 {
                    let cross = |i: &[Tensor]| Ok(mp4sr_ops::contrastive(i, None, true, &contrast)?.cmcl.unwrap());
                    twins("contrastive without targets", &inputs[..views], &cross, &|i| sums.cmcl(i));
                }
            }
        }
    }
}

#[test]
fn rows_stored_as_halves_are_the_same_rows() {
    use half::{bf16, f16};
    let s = RngKey::new(3);
    // These values are exact in every type.
    let values: Vec<f32> = (0..7 * 21u64).map(|i| (s.bits(i) % 256) as f32 / 64.0 - 2.0).collect();
    let offsets = [0, 2, 2, 5, 21];
    let stored = [
        StoredValues::F32(Arc::new(values.clone())),
        StoredValues::F16(Arc::new(values.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>())),
        StoredValues::Bf16(Arc::new(values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>())),
    ];
    let w = var(s.fold_in_index(1), &[7, 1]);
    let results = stored.map(|stored| {
        let all = Ragged::stored(stored, 7, &offsets).unwrap();
        let mut room = Vec::new();
        assert_eq!(all.rows(2, &mut room), &values[2 * 7..5 * 7]);
        assert_eq!((all.rows_of(1), all.row_count(), all.select(&[3, 1]).rows_of(0)), (0, 21, 16));
        plain::pool(&all, &w, None).unwrap().to_vec2::<f32>().unwrap()
    });
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

#[test]
fn a_row_without_columns_gives_minus_infinity_and_no_gradient() {
    let a = var(RngKey::new(1), &[2, 3]);
    let groups = std::sync::Arc::new(vec![5, 5]);
    let mask = Mask::FalseNegatives { groups, false_negatives: FalseNegatives::Exclude, diagonal: false, first_row: 0 };
    let l = mp4sr_ops::row_logsumexp(&a, &a, 1.0, &mask).unwrap();
    assert_eq!(l.to_vec1::<f32>().unwrap(), [f32::NEG_INFINITY; 2]);
    let safe = l.maximum(-1.0e30).unwrap().sum_all().unwrap();
    let gradient =
        safe.backward().unwrap().get(a.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(gradient.iter().all(|g| *g == 0.0), "{gradient:?}");
}

#[test]
fn a_constant_input_has_no_gradient_and_changes_none_of_the_weights() {
    let s = RngKey::new(3);
    let (x, weight, bias) = (var(s, &[70, 5]), var(s.fold_in_index(1), &[5, 6]), var(s.fold_in_index(2), &[6]));
    let gradients = |x: &Tensor| {
        let linear = mp4sr_ops::linear(x, &weight, &bias).unwrap().sqr().unwrap().sum_all().unwrap();
        let product = mp4sr_ops::product(x, &weight).unwrap().sqr().unwrap().sum_all().unwrap();
        (linear + product).unwrap().backward().unwrap()
    };
    let (whole, constant) = (gradients(&x), gradients(&x.detach()));
    assert!(whole.get(&x).is_some() && constant.get_ids().count() < whole.get_ids().count());
    for var in [&weight, &bias] {
        let values =
            [&whole, &constant].map(|all| all.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
        assert_eq!(values[0], values[1]);
    }
}

#[test]
fn a_sparse_matrix_refuses_entries_outside_of_it_and_duplicate_entries() {
    let entry = |row, column| SparseEntry { row, column, weight: 1.0 };
    let refusal = |entries: Vec<SparseEntry>| SparseMatrix::new(2, 3, entries).unwrap_err().to_string();
    assert!(refusal(vec![entry(0, 3)]).contains("(0, 3) is outside of [2, 3]"));
    assert!(refusal(vec![entry(2, 0)]).contains("outside"));
    assert!(refusal(vec![entry(1, 2), entry(0, 0), entry(1, 2)]).contains("(1, 2) occurs twice"));
    assert_eq!(SparseMatrix::new(2, 3, vec![]).unwrap().entries(), 0);
}
