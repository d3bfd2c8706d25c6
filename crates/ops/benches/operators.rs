//! Benchmarks of operators on the CPU at the size of a training step (1,024 sequences of mean length 9, 7,670 items with features of width
//! 768), forward alone and with backward. After criterion's own report, one JSON object per operator and direction follows: milliseconds,
//! and GFLOP/s of its products, or GB/s of what it reads and writes if it has no products.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, missing_docs, reason = "a benchmark fails by panicking")]
#![allow(clippy::print_stdout, reason = "its result goes there")]

use std::path::Path;

use candle_core::{Device, Tensor, Var};
use criterion::Criterion;
use mp4sr_ops::{
    Cell, Edges, FalseNegatives, GatherIndex, ItemRows, LayerDropout, LayerSizes, Mask, PackedOffsets, Ragged, Result,
    RngKey, Rows, ScoreFusion, Side, SourceScope, SourceSizes, candidates, cross_entropy, edge_sum, encode,
    expert_products, normalize, recurrent, row_logsumexp, row_softplus, sequence_input, source_attention,
    transformer_layer,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ITEMS: usize = 7670;
const BATCH: usize = 1024;
const WIDTH: usize = 64;
const FEATURES: usize = 768;
const EXPERTS: usize = 8;
const FEED_FORWARD: usize = 256;

fn var(seed: u64, shape: &[usize]) -> Var {
    let (key, count) = (RngKey::new(seed), shape.iter().product::<usize>() as u64);
    let values: Vec<f32> = (0..count).map(|i| key.uniform(i) as f32 - 0.5).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

/// One operator at its size, with the cost of its forward pass: the floating-point operations of its products, or, without products, the
/// bytes that it reads and writes.
struct BenchCase {
    name: &'static str,
    shapes: String,
    flops: f64,
    bytes: f64,
    run: Box<dyn Fn() -> Result<Tensor>>,
}

fn cases() -> Vec<BenchCase> {
    let key = RngKey::new(1);
    let lengths: Vec<usize> = (0..BATCH as u64).map(|j| 1 + (key.bits(j) % 17) as usize).collect();
    let offsets = PackedOffsets::from_lengths(lengths).unwrap().repeat(2);
    let tokens = offsets.tokens();
    let drop = |purpose: &str| key.fold_in(purpose).dropout(0.2);
    let mut cases = Vec::new();

    let rows = 5 * ITEMS;
    let starts: Vec<usize> = (0..=ITEMS).map(|i| 5 * i).collect();
    let values = (0..(rows * FEATURES) as u64).map(|i| key.uniform(i) as f32 - 0.5).collect();
    let features = Ragged::new(values, FEATURES, &starts).unwrap();
    let item_rows =
        [ItemRows { features, pooling_rows: None, experts: EXPERTS, width: WIDTH, dropout: drop("experts") }];
    let packed = EXPERTS * (FEATURES * WIDTH + FEATURES + 3 * WIDTH);
    let (w, packed) = (var(2, &[FEATURES]), var(3, &[packed]));
    let index = GatherIndex::new(
        (0..(tokens / 2 + ITEMS) as u64).map(|i| (key.bits(i) % ITEMS as u64) as u32).collect(),
        ITEMS,
    );
    cases.push(BenchCase {
        name: "encode",
        shapes: format!("{rows} rows of {ITEMS} items x {FEATURES}, {} uses", index.count()),
        flops: 2.0 * (ITEMS * FEATURES * (EXPERTS * WIDTH + EXPERTS)) as f64,
        bytes: 0.0,
        run: Box::new(move || encode(&item_rows, &w, &packed, &index)),
    });

    let sizes = LayerSizes { width: WIDTH, heads: 2, feed_forward: FEED_FORWARD, bidirectional: false };
    let count = 4 * WIDTH * WIDTH + 8 * WIDTH + 2 * WIDTH * FEED_FORWARD + FEED_FORWARD + WIDTH;
    let (x, packed) = (var(4, &[tokens, WIDTH]), var(5, &[count]));
    let dropout = LayerDropout { weights: drop("w"), attention: drop("a"), feed_forward: drop("f") };
    let own = offsets.clone();
    cases.push(BenchCase {
        name: "transformer_layer",
        shapes: format!("{tokens} tokens x {WIDTH}, feed-forward {FEED_FORWARD}"),
        flops: 2.0 * (tokens * (4 * WIDTH * WIDTH + 2 * WIDTH * FEED_FORWARD)) as f64,
        bytes: 0.0,
        run: Box::new(move || transformer_layer(&x, &packed, sizes, &own, false, dropout)),
    });

    let (a, b) = (var(6, &[BATCH, 2 * WIDTH]), var(7, &[ITEMS, 2 * WIDTH]));
    let targets: Vec<u32> = (0..BATCH as u64).map(|j| (key.bits(j) % ITEMS as u64) as u32).collect();
    cases.push(BenchCase {
        name: "cross_entropy",
        shapes: format!("{BATCH} x {} against {ITEMS}", 2 * WIDTH),
        flops: 2.0 * (BATCH * ITEMS * 2 * WIDTH) as f64,
        bytes: 0.0,
        run: Box::new(move || cross_entropy(&a, &b, &targets, 1.0)),
    });

    let (a, b) = (var(8, &[BATCH, WIDTH]), var(9, &[BATCH, WIDTH]));
    let groups = std::sync::Arc::new((0..BATCH as u64).map(|j| (key.bits(j) % 700) as u32).collect());
    let mask = Mask::FalseNegatives { groups, false_negatives: FalseNegatives::Exclude, diagonal: true, first_row: 0 };
    cases.push(BenchCase {
        name: "row_logsumexp",
        shapes: format!("{BATCH} x {WIDTH} against {BATCH}"),
        flops: 2.0 * (BATCH * BATCH * WIDTH) as f64,
        bytes: 0.0,
        run: Box::new(move || row_logsumexp(&a, &b, 1.0, &mask)),
    });

    let z = var(10, &[2 * (tokens / 2 + ITEMS), WIDTH]);
    let (ids, position_table) = (var(11, &[ITEMS + 1, WIDTH]), var(12, &[52, WIDTH]));
    let taken: Vec<u32> = (0..tokens as u32).collect();
    let items: Vec<u32> = taken.iter().map(|t| 1 + t % ITEMS as u32).collect();
    let (positions, dropout) = (offsets.positions(), drop("input"));
    let (z_too, ids_too) = (z.clone(), ids.clone());
    cases.push(BenchCase {
        name: "sequence_input",
        shapes: format!("{tokens} tokens x {WIDTH}"),
        flops: 0.0,
        bytes: 4.0 * (4 * tokens * WIDTH) as f64,
        run: Box::new(move || {
            sequence_input(
                Rows::new(&z, &taken),
                Some(Rows::new(&ids, &items)),
                Rows::new(&position_table, &positions),
                dropout,
            )
        }),
    });
    let starts = [0, tokens / 2 + ITEMS];
    cases.push(BenchCase {
        name: "candidates",
        shapes: format!("{ITEMS} items x 2 x {WIDTH}"),
        flops: 0.0,
        bytes: 4.0 * (5 * ITEMS * WIDTH) as f64,
        run: Box::new(move || candidates(&z_too, &starts, ITEMS, Some(&ids_too), true)),
    });
    let x = var(13, &[ITEMS, WIDTH]);
    cases.push(BenchCase {
        name: "normalize",
        shapes: format!("{ITEMS} x {WIDTH}"),
        flops: 0.0,
        bytes: 4.0 * (2 * ITEMS * WIDTH) as f64,
        run: Box::new(move || normalize(&x)),
    });
    cases.extend(cases_of_baselines());
    cases
}

/// The operators that only baselines use.
fn cases_of_baselines() -> Vec<BenchCase> {
    let key = RngKey::new(2);
    let lengths: Vec<usize> = (0..BATCH as u64).map(|j| 1 + (key.bits(j) % 17) as usize).collect();
    let offsets = PackedOffsets::from_lengths(lengths).unwrap();
    let tokens = offsets.tokens();
    let mut cases = Vec::new();

    let sources = vec![WIDTH; 4];
    let sizes = SourceSizes { sources, width: WIDTH, heads: 2, max_sequence_length: 50, fusion: ScoreFusion::Gate };
    let (query, key_value) = (var(20, &[tokens, sizes.queries()]), var(21, &[tokens, sizes.queries() + WIDTH]));
    let (fusion, own) = (var(22, &[sizes.fusion_count()]), offsets.clone());
    let squares: usize = (0..BATCH).map(|j| offsets.range(j).len().pow(2)).sum();
    let dropout = key.fold_in("weights").dropout(0.2);
    cases.push(BenchCase {
        name: "source_attention",
        shapes: format!("{tokens} tokens, 4 sources x {WIDTH}, a gate over 50 positions"),
        flops: 2.0 * (squares * (5 * WIDTH + 2 * 4 * 50)) as f64,
        bytes: 0.0,
        run: Box::new(move || {
            let scope = SourceScope { real: None, last_only: false, bidirectional: false };
            source_attention(&query, &key_value, Some(&fusion), &sizes, &own, scope, dropout)
        }),
    });

    let w = 3 * WIDTH;
    let (x, hidden, own) = (var(23, &[tokens, 4 * w]), var(24, &[w, 4 * w]), offsets.clone());
    cases.push(BenchCase {
        name: "recurrent",
        shapes: format!("{tokens} tokens, an LSTM of width {w}"),
        flops: 2.0 * ((tokens - BATCH) * 4 * w * w) as f64,
        bytes: 0.0,
        run: Box::new(move || recurrent(&x, &hidden, &own, Cell::Lstm)),
    });

    let (a, b) = (var(25, &[2 * BATCH, WIDTH]), var(26, &[ITEMS, WIDTH]));
    cases.push(BenchCase {
        name: "row_softplus",
        shapes: format!("{} x {WIDTH} against {ITEMS}", 2 * BATCH),
        flops: 2.0 * (2 * BATCH * ITEMS * WIDTH) as f64,
        bytes: 0.0,
        run: Box::new(move || row_softplus(&a, &b)),
    });

    let table = var(27, &[ITEMS, FEATURES]).as_tensor().detach();
    let rows: Vec<u32> = (0..(tokens + ITEMS) as u64).map(|i| (key.bits(i) % ITEMS as u64) as u32).collect();
    let weights = var(28, &[EXPERTS * FEATURES, WIDTH]);
    cases.push(BenchCase {
        name: "expert_products",
        shapes: format!("{} rows x {FEATURES}, {EXPERTS} experts x {WIDTH}, each with its dropout", rows.len()),
        flops: 2.0 * (rows.len() * FEATURES * EXPERTS * WIDTH) as f64,
        bytes: 0.0,
        run: Box::new(move || expert_products(&table, &rows, &weights, EXPERTS, dropout)),
    });

    let of_user = |user: u64| {
        let mut own: Vec<u32> = (0..10).map(|at| (key.bits(100 * user + at) % ITEMS as u64) as u32).collect();
        own.sort_unstable();
        own.dedup();
        own
    };
    let edges = Edges::new(&(0..6000).map(of_user).collect::<Vec<_>>(), ITEMS).unwrap();
    let (weights, x) = (var(29, &[edges.count()]), var(30, &[ITEMS, WIDTH]));
    cases.push(BenchCase {
        name: "edge_sum",
        shapes: format!("{} edges of 6000 users and {ITEMS} items x {WIDTH}", edges.count()),
        flops: 0.0,
        bytes: 4.0 * (edges.count() * (WIDTH + 2) + 6000 * WIDTH) as f64,
        run: Box::new(move || edge_sum(&weights, &x, &edges, Side::Rows)),
    });
    cases
}

/// The median in milliseconds that criterion wrote to `folder`.
fn median(folder: &Path, group: &str, name: &str) -> Option<f64> {
    let text = std::fs::read_to_string(folder.join(group).join(name).join("new/estimates.json")).ok()?;
    let estimates: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(estimates["median"]["point_estimate"].as_f64()? / 1e6)
}

fn main() {
    mp4sr_ops::start_threads();
    mp4sr_ops::keep_memory();
    let folder = tempfile::tempdir().unwrap();
    let mut criterion = Criterion::default()
        .configure_from_args()
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(2))
        .output_directory(folder.path());
    let cases = cases();
    for (group, both) in [("forward", false), ("forward and backward", true)] {
        let mut group = criterion.benchmark_group(group);
        for case in &cases {
            group.bench_function(case.name, |bench| {
                bench.iter(|| {
                    let result = (case.run)().unwrap();
                    both.then(|| result.sum_all().unwrap().backward().unwrap())
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
    for case in &cases {
        for (group, passes) in [("forward", 1.0), ("forward and backward", 3.0)] {
            let Some(ms) = median(folder.path(), group, case.name) else { continue };
            let round = |x: f64| (x * 1000.0).round() / 1000.0;
            let mut line = serde_json::json!({
                "bench": "operator", "operator": case.name, "direction": group, "shapes": case.shapes,
                "threads": mp4sr_ops::threads(), "ms": round(ms),
            });
            if case.flops > 0.0 {
                line["gflop_per_s"] = round(passes * case.flops / ms / 1e6).into();
            } else {
                line["gb_per_s"] = round(passes * case.bytes / ms / 1e6).into();
            }
            println!("{line}");
        }
    }
}
