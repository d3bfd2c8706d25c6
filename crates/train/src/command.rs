//! The command line of `mp4sr train`: pre-trains and fine-tunes the recommender of a pipeline.

use std::path::Path;
use std::time::Duration;

use clap::Subcommand;
use mp4sr_artifact::{Stage, files};
use mp4sr_evaluate::RankOptions;
use mp4sr_models::{Model, Phase};
use mp4sr_pipeline::config::{Config, FINETUNE_KEYS, Finetune, Pretrain, PretrainItems};
use mp4sr_pipeline::{Context, StageArgs, run_stage};
use mp4sr_run::{Checkpoint, CheckpointInfo, Inputs, build_model, removes_seen};
use serde_json::json;

use crate::{Settings, Training};

/// The version of what training writes.
const VERSION: u32 = 1;

/// Trains the recommender of a pipeline.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The phase of training.
    #[command(subcommand)]
    pub phase: PhaseArgument,
}

/// A phase of training on the command line.
#[derive(Debug, Subcommand)]
pub enum PhaseArgument {
    /// Pre-trains with NIP and CMCL: dataset and features to `pretrain.safetensors`.
    Pretrain(StageArgs),
    /// Fine-tunes on the next item, from the pre-trained weights where the pipeline has them: to `finetune.safetensors`.
    Finetune(StageArgs),
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    mp4sr_ops::start_threads();
    mp4sr_ops::keep_memory();
    match &args.phase {
        PhaseArgument::Pretrain(args) => pretrain(&args.context()?),
        PhaseArgument::Finetune(args) => finetune(&args.context()?),
    }
}

fn pretrain(context: &Context) -> anyhow::Result<()> {
    let config = &context.config;
    if !pretrains(config) || !config.pretrain.from.is_empty() {
        context.progress.say(format!(
            "pretrain: nothing to do, run `{}` starts from {}",
            config.run.name,
            start(config)
        ));
        return Ok(());
    }
    let Pretrain { epochs, patience, batch, learning_rate, weight_decay, clip_norm, .. } = config.pretrain;
    let warm_items = config.pretrain.items == PretrainItems::Warm;
    let settings = Settings {
        epochs,
        patience,
        batch,
        learning_rate,
        weight_decay,
        clip_norm,
        warm_items,
        ..base_settings(config)
    };
    train(context, Phase::Pretrain, settings, &json!(config.pretrain))
}

fn finetune(context: &Context) -> anyhow::Result<()> {
    let config = &context.config;
    let Finetune { epochs, patience, batch, learning_rate, weight_decay, clip_norm, end_to_end, log_test_loss } =
        config.finetune;
    let settings = Settings {
        epochs,
        patience,
        batch,
        learning_rate,
        weight_decay,
        clip_norm,
        log_test_loss,
        ..base_settings(config)
    };
    let recorded = if end_to_end {
        json!({ "finetune": config.finetune, "pretrain": config.pretrain })
    } else {
        json!(config.finetune)
    };
    train(context, Phase::Finetune, settings, &recorded)
}

/// Whether fine-tuning starts from pre-trained weights.
fn pretrains(config: &Config) -> bool {
    config.pretrain.enabled
        && !config.finetune.end_to_end
        && config.model.name == mp4sr_pipeline::config::ModelName::Mp4sr
}

fn start(config: &Config) -> String {
    match config.pretrain.from.as_str() {
        from if pretrains(config) => format!("the weights of `{from}`"),
        _ => "random weights".to_owned(),
    }
}

fn base_settings(config: &Config) -> Settings {
    Settings {
        epochs: 0,
        patience: 0,
        batch: 0,
        positions: config.model.positions,
        learning_rate: 0.0,
        weight_decay: 0.0,
        clip_norm: 0.0,
        k: config.evaluate.k.clone(),
        warm_items: false,
        log_test_loss: false,
        protocol: RankOptions { batch: config.evaluate.batch, remove_seen: false, history: None },
        seed: config.run.seed,
        save_every: Duration::from_secs_f64(config.run.save_seconds),
    }
}

fn train(
    context: &Context,
    phase: Phase,
    settings: Settings,
    phase_settings: &serde_json::Value,
) -> anyhow::Result<()> {
    let (config, layout) = (&context.config, &context.layout);
    let source = config.pretrain.from.split_once('/').map(|(dataset, run)| layout.of(dataset, run));
    let source = source.as_ref().unwrap_or(layout);
    let pretrained = (phase == Phase::Finetune && pretrains(config)).then(|| source.checkpoint(Phase::Pretrain.name()));
    let mut model_settings = json!(config.model);
    if let Some(keys) = model_settings.as_object_mut().filter(|_| phase == Phase::Pretrain) {
        keys.retain(|key, _| !FINETUNE_KEYS.contains(&key.as_str()));
    }
    let evaluate = &config.evaluate;
    let recorded = json!({
        phase.name(): phase_settings,
        "model": model_settings,
        "seed": config.run.seed,
        "evaluate": { "k": evaluate.k, "seen_items": evaluate.seen_items, "batch": evaluate.batch },
    });
    let make_stage = || {
        let mut inputs = Inputs::files(layout, config);
        inputs.extend(pretrained.clone().map(|path| ("pre-trained weights".to_owned(), path)));
        Ok(Stage::new(phase.name(), VERSION, &layout.run(), &recorded, &inputs)?)
    };
    let folder = layout.run();
    let _run = mp4sr_artifact::Lock::take(&folder, "train")?;
    run_stage(context, phase.name(), &folder, make_stage, |stage| {
        files::write_bytes(&layout.run_config(), config.to_toml()?.as_bytes())?;
        let inputs = Inputs::load(layout, config)?;
        let model = build_model(config, &inputs)?;
        if let Some(path) = &pretrained {
            let checkpoint = match config.pretrain.from.as_str() {
                "" => Checkpoint::read(path, Phase::Pretrain, &inputs.sequences.item_hash)?,
                _ => Checkpoint::read_of_any_items(path, Phase::Pretrain)?,
            };
            checkpoint.load_into(model.as_ref(), phase, path)?;
        }
        let state_path = folder.join(format!("state.{}.safetensors", phase.name()));
        let info = run_phase(context, model.as_ref(), &inputs, phase, settings, stage, &state_path)?;
        let output = layout.checkpoint(phase.name());
        let mut parameters = model.parameters().values()?;
        parameters.retain(|(name, ..)| model.uses(phase, name));
        Checkpoint::write(&output, &info, &parameters, &inputs.sequences.item_hash, stage.input_fingerprints())?;
        files::remove_if_present(&state_path)?;
        Ok(vec![output])
    })
}

fn run_phase(
    context: &Context,
    model: &dyn Model,
    inputs: &Inputs,
    phase: Phase,
    mut settings: Settings,
    stage: &Stage,
    state_path: &Path,
) -> anyhow::Result<CheckpointInfo> {
    let mut config = context.config.resolved();
    if let Some(sections) = config.as_object_mut().filter(|_| phase == Phase::Pretrain) {
        sections.remove("finetune");
    }
    let mut info = CheckpointInfo { phase: phase.name().to_owned(), config, ..CheckpointInfo::default() };
    if !model.phases().contains(&phase) {
        return Ok(info);
    }
    settings.protocol.remove_seen = removes_seen(&context.config, model);
    let training = Training {
        model,
        phase,
        sequences: &inputs.sequences,
        settings,
        state_path: state_path.to_owned(),
        log_path: context.layout.metrics_log(),
        identity: json!({ "settings": stage.settings(), "inputs": stage.input_fingerprints() }),
    };
    let bar = context.progress.bar(phase.name(), "samples", training.sample_count() as u64);
    let outcome = training.run(|line| context.progress.say(line), |samples| bar.add(samples))?;
    drop(bar);
    context.progress.say(format!(
        "{}: best epoch {} of {}, validation R@20 {:.4}",
        phase.name(),
        outcome.best_epoch,
        outcome.epochs,
        outcome.best_recall
    ));
    (info.epoch, info.validation_recall_20) = (outcome.best_epoch, outcome.best_recall);
    Ok(info)
}
