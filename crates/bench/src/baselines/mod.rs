//! Times a training step of a baseline: loss, backward, clipping, Adam, and the work that follows a step.
//!
//! The world, the batch and the random samples (negatives, masks, views) are created before the step is timed. `--dump` writes them, with
//! the initial parameters, for the peer `tools/bench_baselines`.

mod case;
mod world;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use case::{BaselineCase, Values};
use mp4sr_artifact::files;
use mp4sr_models::{RngKey, Step};
use mp4sr_ops::Adam;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use crate::measure::MedianRange;

/// A step of a baseline and how often it is timed.
#[derive(Clone, Debug, clap::Args)]
pub struct BaselineArgs {
    /// The step to time.
    #[arg(long, value_enum)]
    pub model: case::StepOf,
    #[command(flatten)]
    pub sizes: world::WorldSizes,
    /// Disables all dropout.
    #[arg(long)]
    pub no_dropout: bool,
    /// The number of timed steps.
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
    /// The number of steps before the timed ones.
    #[arg(long, default_value_t = 3)]
    pub warmup: usize,
    /// Writes the inputs and the initial parameters for the PyTorch peer to one safetensors file.
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
}

const LEARNING_RATE: f64 = 1e-3;
const CLIP_NORM: f64 = 5.0;
/// The standard deviation of the noise that is added to the initial parameters, so that the loss depends on all of them.
const SPREAD: f64 = 0.1;

/// Adds noise to the initial parameters.
fn spread_parameters(case: &BaselineCase, key: RngKey) -> anyhow::Result<()> {
    let parameters = case.model.parameters();
    for (name, values, shape) in parameters.values()? {
        let key = key.fold_in(&name);
        let values: Vec<f32> =
            values.iter().zip(0..).map(|(value, at)| value + (SPREAD * key.normal(at)) as f32).collect();
        parameters.set(&name, &values, &shape)?;
    }
    Ok(())
}

/// Writes the inputs as `in.*`, the parameters as `param.*`, and the settings as metadata.
fn dump(args: &BaselineArgs, case: &BaselineCase, path: &Path) -> anyhow::Result<()> {
    let mut tensors: BTreeMap<String, (Dtype, Vec<u8>, Vec<usize>)> = BTreeMap::new();
    for input in &case.inputs {
        let (dtype, bytes) = match &input.values {
            Values::F32(values) => (Dtype::F32, bytemuck::cast_slice(values).to_vec()),
            Values::I64(values) => (Dtype::I64, bytemuck::cast_slice(values).to_vec()),
        };
        tensors.insert(format!("in.{}", input.name), (dtype, bytes, input.shape.clone()));
    }
    for (name, values, shape) in case.model.parameters().values()? {
        if case.model.trains(&case.phase, &name) || case.model.uses(&case.phase, &name) {
            tensors.insert(format!("param.{name}"), (Dtype::F32, bytemuck::cast_slice(&values).to_vec(), shape));
        }
    }
    let names = case.model.parameters().names();
    let trained: Vec<&str> = names.filter(|name| case.model.trains(&case.phase, name)).collect();
    let description = json!({
        "model": step_name(args), "settings": case.settings, "trained": trained, "items": args.sizes.items,
        "users": args.sizes.users,
        "adam": { "lr": LEARNING_RATE, "weight_decay": case.weight_decay, "clip_norm": CLIP_NORM },
    });
    let views = tensors
        .iter()
        .map(|(name, (dtype, bytes, shape))| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = HashMap::from([("case".to_owned(), description.to_string())]);
    let bytes = safetensors::serialize(views, Some(metadata)).context("failed to write the inputs")?;
    Ok(files::write_bytes(path, &bytes)?)
}

fn step_name(args: &BaselineArgs) -> String {
    clap::ValueEnum::to_possible_value(&args.model).map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Times the step and describes it as one JSON object: first with the same samples in all steps, then with new samples in each step.
pub fn run(args: &BaselineArgs) -> anyhow::Result<serde_json::Value> {
    let world = world::BaselineWorld::draw(&args.sizes)?;
    let key = RngKey::new(args.sizes.seed);
    let case = args.model.case(&world, key)?;
    spread_parameters(&case, key.fold_in("spread"))?;
    if let Some(path) = &args.dump {
        dump(args, &case, path)?;
    }
    let vars = case.model.parameters().variables(|name| case.model.trains(&case.phase, name))?;
    let mut adam = Adam::new(&vars, LEARNING_RATE, case.weight_decay, CLIP_NORM)?;
    let (mut losses, mut global) = (Vec::new(), 0);
    let mut step = |draws: bool| -> anyhow::Result<f64> {
        let began = Instant::now();
        let key = key.fold_in("steps").fold_in_index(global);
        let step = Step { epoch: 1_000, index: global as usize, global, epoch_key: key, key };
        global += 1;
        let loss = if draws {
            case.model.loss(&case.phase, &case.batch, &step)?
        } else {
            (case.loss)(Some(key).filter(|_| !args.no_dropout))?
        };
        let gradients = loss.backward()?;
        let pending = adam.step(&vars, &gradients, &loss)?;
        losses.push(adam.finish(&pending)?.loss);
        case.model.after_step(&case.phase, &case.batch, &step)?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    let mut times_of = |count: usize, draws: bool| (0..count).map(|_| step(draws)).collect::<anyhow::Result<Vec<_>>>();
    times_of(args.warmup, false)?;
    mp4sr_ops::take_timings();
    let before = crate::measure::processor_ms();
    let times = times_of(args.steps, false)?;
    let each_step = |(before, after): (f64, f64)| ((after - before) / args.steps.max(1) as f64 * 10.0).round() / 10.0;
    let processor = before.zip(crate::measure::processor_ms()).map(each_step);
    let timings = mp4sr_ops::take_timings();
    let drawing = if args.no_dropout { Vec::new() } else { times_of(args.steps, true)? };
    losses.truncate(3);
    let each = |seconds: f64| (seconds / args.steps.max(1) as f64 * 1e5).round() / 100.0;
    let mut parts: BTreeMap<String, f64> = timings
        .into_iter()
        .map(|((operator, direction), time)| (format!("{operator} {direction}"), each(time.as_secs_f64())))
        .collect();
    let rest = times.iter().sum::<f64>() / args.steps.max(1) as f64 - parts.values().sum::<f64>();
    parts.insert("outside operators".to_owned(), (rest * 100.0).round() / 100.0);
    let (times, drawing) = (MedianRange::of(&times), MedianRange::of(&drawing));
    Ok(json!({
        "bench": "baseline", "model": step_name(args), "threads": crate::measure::threads(), "users": args.sizes.users,
        "items": args.sizes.items, "events": world.data.training.items.len(), "batch": case.batch.count(),
        "tokens": case.batch.items.len(), "dim": args.sizes.dim, "dropout": !args.no_dropout, "steps": args.steps,
        "median_ms": times.median, "min_ms": times.least, "max_ms": times.most, "processor_ms": processor, "with_drawing_ms": drawing.median,
        "loss": losses, "peak_mib": crate::measure::peak_mib(), "parts_ms": parts,
    }))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_step_runs_in_a_small_world_and_dumps_all_trained_parameters() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step.safetensors");
        for &model in case::StepOf::value_variants() {
            let sizes = world::WorldSizes { users: 200, items: 300, events: 8.0, batch: Some(24), dim: 12, seed: 1 };
            let dump = Some(path.clone());
            let args = BaselineArgs { model, sizes, no_dropout: false, steps: 1, warmup: 0, dump };
            let found = run(&args).unwrap();
            let losses: Vec<f64> = serde_json::from_value(found["loss"].clone()).unwrap();
            assert!(losses.len() == 2 && losses.iter().all(|loss| loss.is_finite()), "{model:?}: {losses:?}");
            let bytes = files::read(&path).unwrap();
            let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            let case: serde_json::Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["case"]).unwrap();
            let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let trained: Vec<String> = serde_json::from_value(case["trained"].clone()).unwrap();
            assert!(!trained.is_empty());
            for name in trained {
                assert!(stored.tensor(&format!("param.{name}")).is_ok(), "{model:?} lacks {name}");
            }
        }
    }
}
