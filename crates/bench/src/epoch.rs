//! Times epochs of fine-tuning in the stage's own loop: batches, steps, validation, saving.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use mp4sr_artifact::{EpochLine, Sequences, StageSettings, files, hash_ids, read_log};
use mp4sr_evaluate::RankOptions;
use mp4sr_models::mp4sr::{Config, Projection};
use mp4sr_models::{CandidateSampler, ComputeDevice, Model, Mp4sr, RngKey, TrainingSequences, TransformerConfig};
use mp4sr_ops::Precision;
use mp4sr_pipeline::config::{Finetune, PhaseSettings};
use mp4sr_train::{Launch, TrainSettings, Training};
use serde_json::json;

use crate::workload::{Workload, WorkloadSizes};

/// The size of the data that is trained on; the defaults are those of Amazon's Office dataset.
#[derive(Clone, Debug, clap::Args)]
pub struct EpochArgs {
    #[command(flatten)]
    pub sizes: WorkloadSizes,
    /// The number of users, whose sequences give a sample for each prefix.
    #[arg(long, default_value_t = 54_000)]
    pub users: usize,
    /// The device to compute on.
    #[arg(long, default_value = "cpu")]
    pub device: ComputeDevice,
    /// The precision of the large matrix products.
    #[arg(long, default_value = "f32")]
    pub precision: Precision,
    /// The number of items sampled as candidates in addition to the targets; by default, all items are candidates.
    #[arg(long)]
    pub candidates: Option<usize>,
    /// The number of epochs.
    #[arg(long, default_value_t = 3)]
    pub epochs: usize,
}

/// Draws sequences of popular and rare items with lengths from a geometric distribution.
fn sequences(sizes: &WorkloadSizes, users: usize) -> Sequences {
    let key = RngKey::new(sizes.seed).fold_in("sequences");
    let (mut offsets, mut items) = (vec![0], Vec::new());
    for user in 0..users as u64 {
        let u = key.fold_in("lengths").uniform(user);
        let length = ((1.0 - u).ln() / (1.0 - 1.0 / sizes.mean_len).ln()).ceil().max(1.0) as usize + 2;
        let item = |at: usize| 1 + (sizes.items as f64 * key.uniform((user << 20) + at as u64).powf(2.2)) as u32;
        items.extend((0..length.min(sizes.max_len + 2)).map(item));
        offsets.push(items.len() as i64);
    }
    let ids: Vec<String> = (1..=sizes.items).map(|item| item.to_string()).collect();
    Sequences {
        offsets,
        times: (0..items.len() as i64).collect(),
        items,
        item_hash: hash_ids(ids.iter().map(String::as_str)),
        item_count: sizes.items,
        user_hash: None,
        time_kind: mp4sr_artifact::TimeKind::Unstated,
        parts: None,
    }
}

/// Trains, and describes the epochs as one JSON object. Of several processes, only the first returns one.
pub fn run(args: &EpochArgs) -> anyhow::Result<Option<serde_json::Value>> {
    let launch = Launch::find()?;
    let group = launch.as_ref().map(Launch::group);
    anyhow::ensure!(
        group.is_none() || args.candidates.is_none(),
        "several processes can only train with all items as candidates; leave `--candidates` out"
    );
    mp4sr_ops::check_precision(args.device, args.precision).map_err(anyhow::Error::msg)?;
    mp4sr_ops::set_precision(args.precision);
    let Workload { modalities, .. } = Workload::draw(&args.sizes, false)?;
    let sequences = sequences(&args.sizes, args.users);
    let config = Config { projection: Projection::Off, ..Config::default() };
    let transformer = TransformerConfig { max_sequence_length: args.sizes.max_len, ..TransformerConfig::default() };
    let key = RngKey::new(args.sizes.seed);
    let device = args.device.open()?;
    let mut model = Mp4sr::in_group(config, transformer, modalities, &device, key, group.cloned())?;
    if let Some(drawn) = args.candidates {
        let users = 0..sequences.user_count();
        let training = TrainingSequences::new(users.map(|user| mp4sr_protocol::training_items(&sequences, user)));
        model = model.with_candidates(CandidateSampler::new(drawn, args.sizes.items, &training)?);
    }
    let folder = std::env::temp_dir().join(format!("mp4sr-bench-{}", std::process::id()));
    let phase = *model.phases().last().context("the model has no phase")?;
    let training = Training {
        model: &model,
        phase,
        sequences: &sequences,
        settings: TrainSettings {
            phase: PhaseSettings {
                epochs: args.epochs,
                patience: args.epochs,
                batch: args.sizes.batch,
                ..Finetune::default().settings
            },
            metric: mp4sr_protocol::Metric::Recall(20),
            k: vec![20],
            rank_options: RankOptions { batch: 1024, remove_seen: false, history: None },
            warm_items: false,
            log_test_loss: false,
            seed: 1,
            save_every: Duration::from_hours(1),
        },
        state_path: folder.join("state.safetensors"),
        log_path: folder.join("metrics.jsonl"),
        identity: &StageSettings::of(json!({})),
        inputs: BTreeMap::new(),
    };
    let samples = training.sample_count() / args.epochs;
    training.run(|_| {}, |_| {})?;
    // JSON turns NaN into null, which means that the system does not report the peak.
    let own = crate::measure::peak_mib().map_or(f64::NAN, |peak| peak as f64);
    let peaks = group.map_or_else(|| Ok(vec![vec![own]]), |group| group.scalars(&[own]))?.concat();
    if group.is_some_and(|group| !group.is_first()) {
        return Ok(None);
    }
    let lines = read_log::<EpochLine>(&training.log_path, "run the command again")?;
    files::remove_if_present(&training.state_path)?;
    files::remove_if_present(&training.log_path)?;
    let rounded = |seconds: f64| (seconds * 100.0).round() / 100.0;
    let epochs: Vec<[f64; 2]> = lines.iter().map(|line| [rounded(line.seconds.0), rounded(line.seconds.1)]).collect();
    Ok(Some(json!({
        "bench": "epoch", "device": args.device.to_string(), "precision": args.precision.to_string(),
        "items": args.sizes.items, "users": args.users, "samples": samples, "batch": args.sizes.batch,
        "candidates": args.candidates, "processes": peaks.len(), "threads": crate::measure::threads(), "training_and_validation_s": epochs, "peak_mib": peaks,
    })))
}
