//! Times one training step of MP4SR: forward, backward, clipping, Adam. Everything that depends on the batch is included.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use mp4sr_models::mp4sr::{Config, Projection};
use mp4sr_models::{CandidateSampler, Model, Mp4sr, PRETRAIN, RngKey, TrainingSequences, TransformerConfig};
use mp4sr_ops::{Adam, ComputeDevice, Precision, check_precision, set_precision};
use serde_json::json;

use crate::workload::{Workload, WorkloadSizes};

/// A step and how often it is timed.
#[derive(Clone, Debug, clap::Args)]
pub struct StepArgs {
    /// The step to time.
    #[arg(long, value_parser = ["pretrain", "finetune"], default_value = "pretrain")]
    pub stage: String,
    /// A file with a workload and parameters, written by `torch_step.py --dump`, to use instead of generated ones.
    #[arg(long, value_name = "FILE")]
    pub workload: Option<PathBuf>,
    #[command(flatten)]
    pub sizes: WorkloadSizes,
    /// The dropout of the experts and the transformer.
    #[arg(long, default_value_t = 0.2)]
    pub dropout: f64,
    /// The device to compute on.
    #[arg(long, default_value = "cpu")]
    pub device: ComputeDevice,
    /// The precision of the large matrix products.
    #[arg(long, default_value = "f32")]
    pub precision: Precision,
    /// The number of items that fine-tuning samples as candidates in addition to the targets; by default, all items are candidates.
    #[arg(long)]
    pub candidates: Option<usize>,
    /// The number of timed steps.
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
    /// The number of steps before the timed ones.
    #[arg(long, default_value_t = 3)]
    pub warmup: usize,
}

const LEARNING_RATE: f64 = 1e-3;
const WEIGHT_DECAY: f64 = 1e-4;
const CLIP_NORM: f64 = 5.0;

/// The peer's settings, which are those of the paper.
fn config(dropout: f64, pretrains: bool) -> Config {
    Config {
        expert_dropout: dropout,
        id_embedding: !pretrains,
        projection: if pretrains { Projection::On } else { Projection::Off },
        ..Config::default()
    }
}

/// Times the step and describes it as one JSON object.
pub fn run(args: &StepArgs) -> anyhow::Result<serde_json::Value> {
    let pretrains = args.stage == PRETRAIN;
    let Workload { modalities, batch, shift, parameters } = match &args.workload {
        Some(path) => Workload::read(path)?,
        None => Workload::draw(&args.sizes, pretrains)?,
    };
    let rows: Vec<usize> = modalities.iter().map(|m| m.features.row_count()).collect();
    let dim = modalities[0].features.width();
    let transformer = TransformerConfig {
        max_sequence_length: args.sizes.max_len,
        dropout: args.dropout,
        ..TransformerConfig::default()
    };
    let key = RngKey::new(args.sizes.seed);
    check_precision(args.device, args.precision).map_err(anyhow::Error::msg)?;
    set_precision(args.precision);
    let device = args.device.open()?;
    let mut model = Mp4sr::new(config(args.dropout, pretrains), transformer, modalities, &device, key)?;
    if let Some(drawn) = args.candidates {
        let training = TrainingSequences::new((0..batch.count()).map(|j| &batch.items[batch.offsets.range(j)]));
        let items = model.item_count();
        model = model.with_candidates(CandidateSampler::new(drawn, items, &training)?);
    }
    for (name, values, shape) in parameters {
        model.parameters().set(&name, &values, &shape)?;
    }
    let vars = model.parameters().variables(|_| true)?;
    let mut adam = Adam::new(&vars, LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM)?;
    let key = key.fold_in("steps");
    let (mut losses, mut times) = (Vec::new(), Vec::new());
    let (mut spent, mut spent_adam) = (BTreeMap::new(), 0.0);
    for step in 0..args.warmup + args.steps {
        if step == args.warmup {
            mp4sr_ops::take_timings();
            spent_adam = 0.0;
        }
        let began = Instant::now();
        let key = Some(key.fold_in_index(step as u64)).filter(|_| args.dropout > 0.0 || args.candidates.is_some());
        let loss =
            if pretrains { model.pretrain_loss(&batch, &shift, key)? } else { model.finetune_loss(&batch, key)? };
        let gradients = loss.backward()?;
        let stepping = Instant::now();
        let pending = adam.step(&vars, &gradients, &loss)?;
        losses.push(adam.finish(&pending)?.loss);
        spent_adam += stepping.elapsed().as_secs_f64();
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    for ((operator, direction), time) in mp4sr_ops::take_timings() {
        spent.insert(format!("{operator} {direction}"), time.as_secs_f64());
    }
    spent.insert("adam".to_owned(), spent_adam);
    let total: f64 = times[args.warmup..].iter().sum::<f64>() / 1e3;
    spent.insert("between operators".to_owned(), total - spent.values().sum::<f64>());
    let parts: BTreeMap<String, f64> = spent
        .into_iter()
        .map(|(part, seconds)| (part, (seconds / args.steps.max(1) as f64 * 1e5).round() / 100.0))
        .collect();
    let times = crate::measure::MedianRange::of(&times[args.warmup..]);
    let tokens = batch.items.len();
    let mut distinct: Vec<u32> = batch.items.iter().chain(&batch.targets).copied().collect();
    distinct.sort_unstable();
    distinct.dedup();
    losses.truncate(3);
    Ok(json!({
        "bench": "step", "stage": args.stage, "dtype": args.precision.to_string(), "device": args.device.to_string(), "threads": crate::measure::threads(), "dropout": args.dropout, "candidates": args.candidates,
        "items": model.item_count(), "batch": batch.count(), "tokens": tokens, "unique_items": distinct.len(), "dim": dim,
        "rows": rows, "median_ms": times.median, "min_ms": times.least, "max_ms": times.most, "steps": args.steps,
        "tokens_per_s": (tokens as f64 / times.median * 1e3).round(), "loss": losses,
        "peak_mib": crate::measure::peak_mib(), "parts_ms": parts,
    }))
}
