//! Times the steps of a group of processes, and their messages.

use std::collections::BTreeMap;
use std::time::Instant;

use mp4sr_models::mp4sr::Config;
use mp4sr_models::{Model, Mp4sr, PRETRAIN, ProcessGroup, RngKey, Step, TransformerConfig};
use mp4sr_ops::Adam;
use mp4sr_train::Launch;
use serde_json::{Value, json};

use crate::measure::MedianRange;
use crate::workload::{Workload, WorkloadSizes};

/// Times training steps, or with `--messages` only messages. To use several processes, start it with mpirun.
#[derive(Clone, Debug, clap::Args)]
pub struct GroupArgs {
    /// The step to time.
    #[arg(long, value_parser = ["pretrain", "finetune"], default_value = "pretrain")]
    pub stage: String,
    #[command(flatten)]
    pub sizes: WorkloadSizes,
    /// The number of timed steps, or of rounds of messages.
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
    /// The number of steps before the timed ones.
    #[arg(long, default_value_t = 2)]
    pub warmup: usize,
    /// Times messages of 1 KiB to 64 MiB instead of steps.
    #[arg(long)]
    pub messages: bool,
}

/// Runs the measurement that the arguments select. Only the first process returns lines.
pub fn run(args: &GroupArgs) -> anyhow::Result<Vec<Value>> {
    let launch = Launch::find()?;
    let group = launch.as_ref().map(Launch::group);
    let lines = match group.filter(|_| args.messages) {
        Some(group) => messages(group, args.steps)?,
        None => vec![steps(args, group)?],
    };
    Ok(if group.is_none_or(ProcessGroup::is_first) { lines } else { Vec::new() })
}

fn steps(args: &GroupArgs, group: Option<&ProcessGroup>) -> anyhow::Result<Value> {
    let pretrains = args.stage == PRETRAIN;
    let Workload { modalities, batch, .. } = Workload::draw(&args.sizes, pretrains)?;
    let transformer = TransformerConfig { max_sequence_length: args.sizes.max_len, ..TransformerConfig::default() };
    let key = RngKey::new(args.sizes.seed);
    let model =
        Mp4sr::in_group(Config::default(), transformer, modalities, &candle_core::Device::Cpu, key, group.cloned())?;
    let phase = model.phases()[usize::from(!pretrains)];
    let parameters = model.parameters();
    let vars = parameters.variables(|name| model.trains(&phase, name))?;
    let mut adam = Adam::new(&vars, 1e-3, 1e-4, 5.0)?;
    let (mut times, mut processor, mut losses) = (Vec::new(), 0.0, Vec::new());
    for index in 0..args.warmup + args.steps {
        if index == args.warmup {
            group.map(ProcessGroup::take_traffic);
            processor = crate::measure::processor_ms().unwrap_or(0.0);
        }
        let began = Instant::now();
        let key = key.fold_in_index(index as u64);
        let step = Step { epoch: 1, index, global: index as u64, epoch_key: key, key };
        let loss = model.loss(&phase, &batch, &step)?;
        let gradients = loss.backward()?;
        let pending = match group {
            Some(group) => {
                let vars = vars.iter().map(|var| (var, parameters.is_shard(var)));
                adam.step_in_group(group, vars, &gradients, &loss)?
            }
            None => adam.step(&vars, &gradients, &loss)?,
        };
        losses.push(adam.finish(&pending)?.loss);
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let processor = crate::measure::processor_ms().unwrap_or(0.0) - processor;
    let count = args.steps.max(1) as f64;
    let per_step = |value: f64| (value / count * 100.0).round() / 100.0;
    let traffic: BTreeMap<&str, Value> = group
        .map(ProcessGroup::take_traffic)
        .unwrap_or_default()
        .into_iter()
        .map(|(kind, of)| {
            let ms = per_step(of.seconds * 1e3);
            (kind, json!({ "calls": of.calls / args.steps.max(1) as u64, "bytes": of.sent_bytes / args.steps.max(1) as u64, "ms": ms }))
        })
        .collect();
    let own = [crate::measure::peak_mib().unwrap_or(0) as f64, per_step(processor)];
    let of_all = group.map_or_else(|| Ok(vec![own.to_vec()]), |group| group.scalars(&own))?;
    let times = MedianRange::of(&times[args.warmup..]);
    losses.truncate(2);
    Ok(json!({
        "bench": "group", "stage": args.stage, "processes": group.map_or(1, ProcessGroup::size), "threads": crate::measure::threads(),
        "items": args.sizes.items, "batch": batch.count(), "tokens": batch.items.len(), "dim": args.sizes.dim,
        "min_ms": times.least, "median_ms": times.median, "max_ms": times.most, "steps": args.steps, "loss": losses,
        "processor_ms": of_all.iter().map(|of| of[1]).collect::<Vec<_>>(),
        "peak_mib": of_all.iter().map(|of| of[0]).collect::<Vec<_>>(), "sent_per_step": traffic,
    }))
}

/// Times the collective operations of a step, by the number of bytes per process.
fn messages(group: &ProcessGroup, rounds: usize) -> anyhow::Result<Vec<Value>> {
    let mut lines = Vec::new();
    for bytes in (10..=26).step_by(2).map(|power| 1usize << power) {
        let values = vec![1.0f32; bytes / 4];
        let shares: Vec<usize> = group.shares(values.len()).into_iter().map(|share| share.len()).collect();
        let own = &values[..shares[group.rank()]];
        let mut all_gather = || group.all_gather("all-gather", own, &shares).map(drop);
        let mut all_reduce = || group.all_reduce("all-reduce", &values).map(drop);
        let time = |call: &mut dyn FnMut() -> mp4sr_models::Result<()>| -> anyhow::Result<f64> {
            let mut least = f64::INFINITY;
            for _ in 0..rounds {
                group.scalars(&[0.0])?;
                let began = Instant::now();
                call()?;
                least = least.min(began.elapsed().as_secs_f64() * 1e6);
            }
            Ok((least * 10.0).round() / 10.0)
        };
        lines.push(json!({
            "bench": "messages", "processes": group.size(), "bytes": bytes,
            "all_gather_us": time(&mut all_gather)?, "all_reduce_us": time(&mut all_reduce)?, "rounds": rounds,
        }));
    }
    Ok(lines)
}
