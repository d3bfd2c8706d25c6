//! The command line of `mp4sr train`: pre-trains and fine-tunes the recommender of a pipeline.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use mp4sr_artifact::{EpochLine, Fingerprint, Layout, Manifest, Stage, files, log_line, role};
use mp4sr_evaluate::RankOptions;
use mp4sr_models::{FINETUNE, Model, PRETRAIN, Phase, ProcessGroup, Samples, Stop};
use mp4sr_ops::{ComputeDevice, Precision, check_precision, with_precision};
use mp4sr_pipeline::config::{self, ModelCatalog, PhaseSettings, PretrainItems};
use mp4sr_pipeline::{AlreadyReported, Context, Progress, StageArgs, report_error, run_stage};
use mp4sr_protocol::Metric;
use mp4sr_run::{
    Checkpoint, CheckpointInfo, Inputs, TrainedPhase, build_model_in_group, other_data_settings, record_data,
    removes_seen,
};

use crate::state::other_state;
use crate::{Launch, PhaseOutcome, TrainError, TrainSettings, Training};

/// The version of the stage's output.
const VERSION: u32 = 1;

/// Trains the recommender of a pipeline.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The training phase to run.
    #[command(subcommand)]
    pub phase: PhaseArgument,
}

/// A phase of training on the command line.
#[derive(Debug, Subcommand)]
pub enum PhaseArgument {
    /// Pre-trains the model, if it has pre-training, on the dataset and the features, and writes `pretrain.safetensors`.
    Pretrain(TrainArgs),
    /// Fine-tunes the model to predict the next item, starting from pre-trained weights if the pipeline has them, and writes
    /// `finetune.safetensors`.
    Finetune(TrainArgs),
}

/// The flags of a phase.
#[derive(Debug, clap::Args)]
pub struct TrainArgs {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Trains from the start if an unfinished run of this name has other settings or inputs; without this flag, that is an error.
    #[arg(long)]
    pub restart: bool,
}

/// Runs `mp4sr train`, in this process alone or together with all processes of a launch.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    mp4sr_ops::start_threads();
    mp4sr_ops::keep_memory();
    let (args, phase) = match &args.phase {
        PhaseArgument::Pretrain(args) => (args, PRETRAIN),
        PhaseArgument::Finetune(args) => (args, FINETUNE),
    };
    match Launch::find()? {
        None => train(&args.stage.context(models)?, phase, args.restart),
        Some(launch) => {
            let Err(error) = train_in_group(launch.group(), args, models, phase) else { return Ok(()) };
            let is_alone = matches!(error.downcast_ref(), Some(TrainError::Alone { .. }));
            if is_alone {
                launch.wait_for_first();
            }
            // The error is reported before MPI ends: the launcher may kill the processes that still run once one of them has failed.
            report_error(&error);
            if is_alone {
                launch.abort();
            }
            Err(AlreadyReported.into())
        }
    }
}

/// Brings the weights of a phase up to date. With `restart`, the state of an unfinished run with other settings is removed.
pub fn train(context: &Context, phase: &str, restart: bool) -> anyhow::Result<()> {
    train_phase(context, phase, |stage| train_stage(context, stage, phase, restart, None))
}

/// Brings the weights of a phase up to date with a group of processes. Only the first one decides whether there is anything to do, and only
/// it writes files and messages.
fn train_in_group(
    group: &ProcessGroup,
    args: &TrainArgs,
    models: &Arc<ModelCatalog>,
    phase: &str,
) -> anyhow::Result<()> {
    let mut stage_args = args.stage.clone();
    stage_args.quiet |= !group.is_first();
    let outcome = agree(group, stage_args.context(models)).and_then(|context| {
        let work = |stage: &Stage| train_stage(&context, stage, phase, args.restart, Some(group));
        if group.is_first() {
            let started = Cell::new(false);
            let outcome = train_phase(&context, phase, |stage| {
                started.set(true);
                group.scalars(&[1.0])?;
                agree(group, Ok(()))?;
                expect_alike(group, &context, stage, phase)?;
                work(stage)
            });
            if !started.get() {
                group.scalars(&[0.0])?;
            }
            return outcome;
        }
        if group.scalars(&[0.0])?[0][0] == 0.0 {
            return Ok(());
        }
        let stage = agree(group, stage(&context, phase))?;
        expect_alike(group, &context, &stage, phase)?;
        work(&stage).map(drop)
    });
    match outcome {
        // The other processes do not reach a point at which they would learn of this failure.
        Err(error) if matches!(error.downcast_ref(), Some(TrainError::Alone { .. })) => Err(error),
        outcome => agree(group, outcome),
    }
}

/// Refuses processes that do not have the same settings and the same files: they would train one model in different ways.
fn expect_alike(group: &ProcessGroup, context: &Context, stage: &Stage, phase: &str) -> anyhow::Result<()> {
    let Context { layout, config, .. } = context;
    let settings = stage.settings().values().as_object().cloned().unwrap_or_default();
    let mut parts: Vec<(String, String)> =
        settings.into_iter().map(|(key, value)| (format!("other settings (`{key}`)"), value.to_string())).collect();
    // All processes rank the same blocks of users together.
    parts.push(("other settings (`evaluate.batch`)".to_owned(), config.evaluate.batch.to_string()));
    parts.push(("another run".to_owned(), format!("{phase} {} {}", config.dataset.name, layout.run_name())));
    parts.push((
        "another dataset, other features or other pre-trained weights".to_owned(),
        format!("{:?}", stage.input_fingerprints()),
    ));
    // 48 bits of a hash are exact in a number of 64 bits.
    let hash = |text: &String| u64::from_str_radix(&Fingerprint::of_bytes(text.as_bytes()).as_str()[..12], 16);
    let hashes = parts.iter().map(|(_, text)| hash(text).map(|hash| hash as f64)).collect::<Result<Vec<_>, _>>()?;
    let all = group.scalars(&hashes)?;
    let differs = |own: &Vec<f64>| own.iter().zip(&all[0]).position(|(own, first)| own.to_bits() != first.to_bits());
    match all.iter().enumerate().find_map(|(rank, own)| Some((rank, differs(own)?))) {
        None => Ok(()),
        Some((rank, part)) => bail!(
            "process {} of {} has {} than the first one; give all processes the same pipeline, `--set`, `MP4SR_SET` and artifacts",
            rank + 1,
            group.size(),
            parts[part].0
        ),
    }
}

/// Returns this process's outcome if all processes succeeded. If any failed, the first of these returns its error, and the others return
/// [`AlreadyReported`].
fn agree<T>(group: &ProcessGroup, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
    let reports = outcome.as_ref().is_err_and(|error| !error.is::<AlreadyReported>());
    match group.first_failure(reports)? {
        Some(rank) if rank != group.rank() => Err(AlreadyReported.into()),
        _ => outcome,
    }
}

/// Runs the stage of a phase if its weights are not up to date.
fn train_phase(
    context: &Context,
    phase: &str,
    work: impl FnOnce(&Stage) -> anyhow::Result<Vec<PathBuf>>,
) -> anyhow::Result<()> {
    let Context { config, layout, models, .. } = context;
    if !models.trains(config, phase) {
        let start = if models.starts_pretrained(config) {
            format!("the weights of `{}`", config.pretrain.from)
        } else {
            "random weights".to_owned()
        };
        let name = &config.run.name;
        context.progress.log(format!("{phase}: nothing to do, because the run `{name}` starts from {start}"));
        return Ok(());
    }
    for warning in other_data_settings(layout, config) {
        context.progress.warn(phase, warning);
    }
    let folder = layout.run();
    let mut run = mp4sr_artifact::Lock::acquire_to_check(&folder, "train")?;
    let is_trained = Cell::new(false);
    run_stage(
        context,
        phase,
        &folder,
        || stage(context, phase),
        |stage| {
            run.begin_work()?;
            let outputs = work(stage)?;
            is_trained.set(true);
            Ok(outputs)
        },
    )?;
    // A process that is killed before the weights are recorded must be able to resume.
    if is_trained.get() {
        return Ok(files::remove_if_present(&layout.training_state(phase))?);
    }
    // Keys that do not decide the weights may have changed.
    if describes_run(layout, phase) {
        write_config(layout, config)?;
    }
    if layout.retraining_log().exists() { Ok(files::remove_if_present(&layout.retraining_log())?) } else { Ok(()) }
}

/// Trains a phase and writes its checkpoint.
fn train_stage(
    context: &Context,
    stage: &Stage,
    phase: &str,
    restart: bool,
    group: Option<&ProcessGroup>,
) -> anyhow::Result<Vec<PathBuf>> {
    let Context { config, layout, .. } = context;
    let writes = group.is_none_or(ProcessGroup::is_first);
    let run_files = RunFiles::of(layout, stage, phase, writes);
    let run_files = match group {
        Some(group) => agree(group, run_files)?,
        None => run_files?,
    };
    // A refused command must not change what the run says about itself.
    let ready = Ready::new(context, stage, phase, group).and_then(|ready| {
        run_files.begin(config)?;
        Ok(ready)
    });
    let ready = match group {
        Some(group) => agree(group, ready)?,
        None => ready?,
    };
    let Ready { model, phase: own, inputs, resolved } = ready;
    let state_path = layout.training_state(phase);
    let start = PhaseStart {
        model: model.as_ref(),
        phase: own,
        inputs: &inputs,
        state_path: &state_path,
        log_path: &run_files.log,
        restart,
    };
    let (epoch, validation_recall_20) = run_phase(context, stage, start)?;
    let output = layout.checkpoint(phase);
    let encoders = inputs.encoders.clone();
    let users = inputs.sequences.user_hash.clone().filter(|_| model.has_user_vectors());
    let info =
        CheckpointInfo { phase: phase.to_owned(), epoch, validation_recall_20, encoders, users, config: resolved };
    let (items, fingerprints) = (&inputs.sequences.item_hash, stage.input_fingerprints());
    let weights = TrainedPhase { model: model.as_ref(), phase: &own };
    Checkpoint::write(&output, &info, weights, items, fingerprints)?;
    // As with the weights, the other processes learn of a failure when the phase ends.
    run_files.publish(config)?;
    Ok(vec![output])
}

/// The files of a run, beside its weights, that training writes. If the run has weights already, these files describe them until the new
/// weights are written, so that a training that fails or is killed changes nothing.
struct RunFiles<'a> {
    layout: &'a Layout,
    /// The log that training writes.
    log: PathBuf,
    /// Whether this process writes them.
    writes: bool,
    /// Whether the configuration is that of this phase. Otherwise it belongs to later weights.
    has_config: bool,
    /// Whether the run has weights of the phase.
    replaces: bool,
}

impl<'a> RunFiles<'a> {
    fn of(layout: &'a Layout, stage: &Stage, phase: &str, writes: bool) -> anyhow::Result<Self> {
        let replaces = writes && stage.outputs_are_unchanged()?;
        let log = if replaces { layout.retraining_log() } else { layout.metrics_log() };
        Ok(Self { layout, log, writes, has_config: describes_run(layout, phase), replaces })
    }

    /// Prepares the files for training.
    fn begin(&self, config: &config::Config) -> anyhow::Result<()> {
        if self.writes {
            files::remove_if_present(&self.layout.retraining_log())?;
        }
        if self.replaces && self.layout.metrics_log().exists() {
            files::copy(&self.layout.metrics_log(), &self.log)?;
        }
        if self.writes && self.has_config && !self.replaces {
            write_config(self.layout, config)?;
        }
        Ok(())
    }

    /// Puts the files beside the weights, which have been written.
    fn publish(&self, config: &config::Config) -> anyhow::Result<()> {
        if self.writes && self.has_config {
            write_config(self.layout, config)?;
        }
        if self.replaces && self.log.exists() {
            files::rename(&self.log, &self.layout.metrics_log())?;
        }
        Ok(())
    }
}

/// Whether the configuration of the run is that of the phase: it describes the last weights.
fn describes_run(layout: &Layout, phase: &str) -> bool {
    phase == FINETUNE || !layout.checkpoint(FINETUNE).exists()
}

/// Writes the configuration of the run, unless it is the same.
fn write_config(layout: &Layout, config: &config::Config) -> anyhow::Result<()> {
    let (path, text) = (layout.run_config(), config.to_toml()?);
    let is_same = path.exists() && files::read(&path).is_ok_and(|there| there == text.as_bytes());
    if is_same { Ok(()) } else { Ok(files::write_bytes(&path, text.as_bytes())?) }
}

/// A model that is ready to be trained.
struct Ready {
    model: Box<dyn Model>,
    phase: Phase,
    inputs: Inputs,
    /// The configuration that the checkpoint records.
    resolved: serde_json::Value,
}

impl Ready {
    fn new(context: &Context, stage: &Stage, phase: &str, group: Option<&ProcessGroup>) -> anyhow::Result<Self> {
        let Context { config, layout, models, .. } = context;
        precision(config)?;
        let inputs = Inputs::load(layout, config)?;
        for warning in inputs.sparse_modalities() {
            context.progress.warn(phase, warning);
        }
        let model = build_model_in_group(config, &inputs, group)?;
        let own = model.phases().iter().find(|own| own.name == phase).copied();
        let own = own.with_context(|| format!("the model has no phase `{phase}`"))?;
        let batch = config.phase(phase).batch;
        if let Some(group) = group.filter(|group| batch < group.size()) {
            let size = group.size();
            bail!(
                "`{phase}.batch` is {batch}, which cannot be divided among {size} processes; start at most {batch}, or set a larger batch"
            );
        }
        if phase == FINETUNE && group.is_some() && config.finetune.drawn_candidates().is_ok_and(|drawn| drawn.is_some())
        {
            let found = &config.finetune.candidates;
            bail!(
                "several processes can only train with all items as candidates, found `finetune.candidates = {found}`; set it to \
                 \"all\", or start one process"
            );
        }
        let mut resolved = config.resolved();
        record_data(&mut resolved, layout, config);
        if let Some(sections) = resolved.as_object_mut().filter(|_| phase == PRETRAIN) {
            sections.remove(FINETUNE);
        }
        if let Some(path) = &pretrained_of(context, phase) {
            let Start { checkpoint, warnings } = Start::read(context, stage, &inputs, path)?;
            warnings.into_iter().for_each(|warning| context.progress.warn(phase, warning));
            checkpoint.info.record_in(&mut resolved, models, config);
            checkpoint.load_into(model.as_ref(), &own, path)?;
        }
        // What was loaded is what the record says; later changes do not matter.
        stage.expect_unchanged_inputs()?;
        Ok(Self { model, phase: own, inputs, resolved })
    }
}

/// The weights with which fine-tuning starts.
struct Start {
    checkpoint: Checkpoint,
    /// What differs between pre-training and this run.
    warnings: Vec<String>,
}

impl Start {
    /// Reads the pre-trained weights at `path`, and refuses those with which this run cannot start.
    fn read(context: &Context, stage: &Stage, inputs: &Inputs, path: &Path) -> anyhow::Result<Self> {
        let Context { config, layout, models, .. } = context;
        let checkpoint = match config.pretrain.from.as_str() {
            "" => Checkpoint::read(path, PRETRAIN, &inputs.sequences.item_hash)?,
            _ => Checkpoint::read_of_any_items(path, PRETRAIN)?,
        };
        let before = &checkpoint.info;
        before.expect_model(models, config, PRETRAIN, FINETUNE, path)?;
        before.expect_encoders(inputs, path)?;
        let mut warnings = Vec::from_iter(before.other_training(models, config, PRETRAIN));
        if config.pretraining_run(layout).dataset() == layout.dataset() {
            let read = stage.input_fingerprints();
            before.expect_features(config, inputs, |modality| checkpoint.was_trained_on(modality, &read), path)?;
            warnings.extend(checkpoint.trained_on_others(&read, PRETRAIN));
        }
        Ok(Self { checkpoint, warnings })
    }
}

/// Refuses pre-trained weights with which fine-tuning cannot start, if there are any.
pub fn check_start(context: &Context) -> anyhow::Result<()> {
    let Some(path) = pretrained_of(context, FINETUNE).filter(|path| path.exists()) else { return Ok(()) };
    let inputs = Inputs::load(&context.layout, &context.config)?;
    Start::read(context, &stage(context, FINETUNE)?, &inputs, &path).map(drop)
}

/// Refuses the state of an unfinished training with other settings than those with which the phase will be trained. The stages before it may
/// take hours, so the user should learn of it before they start.
pub fn check_state(context: &Context, phase: &str) -> anyhow::Result<()> {
    let Context { config, layout, models, .. } = context;
    let settings = models.phase_settings(config, phase);
    let is_trained =
        Manifest::find(&layout.run(), phase).is_some_and(|own| settings.changed_since(&own.settings).is_none());
    let has_epochs = models.model(&config.model.name).is_some_and(|model| model.has_epochs(config));
    if is_trained || !has_epochs || !models.trains(config, phase) {
        return Ok(());
    }
    match models.changed_since_begun(config, layout, phase) {
        Some(key) => Err(other_state(&layout.training_state(phase), &key).into()),
        None => Ok(()),
    }
}

/// The files that a phase reads, by role.
pub fn inputs(context: &Context, phase: &str) -> Vec<(String, PathBuf)> {
    let mut inputs = Inputs::files(&context.layout, &context.config);
    inputs.extend(pretrained_of(context, phase).map(|path| (role::PRETRAINED_WEIGHTS.to_owned(), path)));
    inputs
}

/// The stage of a phase, with its inputs and the settings that determine its weights.
pub fn stage(context: &Context, phase: &str) -> anyhow::Result<Stage> {
    let settings = context.models.phase_settings(&context.config, phase);
    Ok(Stage::new(phase, VERSION, &context.layout.run(), settings, &inputs(context, phase))?)
}

/// The path of the pre-trained weights that a phase starts from, if any.
fn pretrained_of(context: &Context, phase: &str) -> Option<PathBuf> {
    let Context { config, layout, models, .. } = context;
    (phase == FINETUNE && models.starts_pretrained(config)).then(|| config.pretraining_run(layout).checkpoint(PRETRAIN))
}

/// A phase that is about to be trained.
#[derive(Clone, Copy)]
struct PhaseStart<'a> {
    model: &'a dyn Model,
    phase: Phase,
    inputs: &'a Inputs,
    state_path: &'a Path,
    log_path: &'a Path,
    restart: bool,
}

/// The value of `train.precision`, or an error if the device does not support it.
pub fn precision(config: &config::Config) -> anyhow::Result<Precision> {
    let precision = config.train.precision.to_string();
    let precision: Precision = precision.parse().map_err(anyhow::Error::msg).context("train.precision")?;
    let device: ComputeDevice = config.run.device.parse().map_err(anyhow::Error::msg).context("run.device")?;
    let refused = |reason| {
        anyhow::anyhow!(
            "`train.precision` = \"{precision}\" cannot be used: {reason}; use \"f32\", or a GPU in `run.device`"
        )
    };
    check_precision(device, precision).map_err(refused)?;
    Ok(precision)
}

/// The metric by which epochs are selected: `train.metric`, or MRR if there are so few items that `train.metric` is the same for every
/// ranking.
fn metric(context: &Context, items: usize) -> anyhow::Result<Metric> {
    let metric: Metric = context.config.train.metric.parse()?;
    let selecting = metric.selecting(items);
    if selecting != metric {
        context.progress.warn(
            "train",
            format!(
                "{metric} is the same for every ranking of {items} items; epochs are selected by {selecting} instead (`train.metric`)"
            ),
        );
    }
    Ok(selecting)
}

/// Trains the phase. Returns the epoch whose weights the model then holds, and the validation R@20 of that epoch.
fn run_phase(context: &Context, stage: &Stage, start: PhaseStart<'_>) -> anyhow::Result<(usize, f64)> {
    let config = &context.config;
    let PhaseStart { model, phase, inputs, state_path, log_path, restart } = start;
    if phase.samples == Samples::None {
        if model.group().is_none_or(ProcessGroup::is_first) {
            forget_epochs(log_path, phase.name)?;
        }
        return Ok((0, 0.0));
    }
    let remove_seen = removes_seen(config, model);
    let precision = precision(config)?;
    let settings = TrainSettings {
        phase: config.phase(phase.name).clone(),
        metric: metric(context, inputs.sequences.item_count)?,
        k: config.evaluate.k.clone(),
        rank_options: RankOptions { batch: config.evaluate.batch, remove_seen, history: None },
        warm_items: phase.name == PRETRAIN && config.pretrain.items == PretrainItems::Warm,
        log_test_loss: phase.name == FINETUNE && config.finetune.log_test_loss,
        seed: config.run.seed,
        save_every: Duration::from_secs_f64(config.run.save_seconds),
    };
    let training = Training {
        model,
        phase,
        sequences: &inputs.sequences,
        settings,
        state_path: state_path.to_owned(),
        log_path: log_path.to_owned(),
        identity: stage.settings(),
        inputs: stage.input_fingerprints(),
    };
    let writes = model.group().is_none_or(ProcessGroup::is_first);
    let discarded = if restart && writes { training.discard_other_state() } else { Ok(None) };
    let discarded = match model.group() {
        Some(group) => agree(group, discarded.map_err(Into::into))?,
        None => discarded?,
    };
    if let Some(key) = discarded {
        let name = phase.name;
        context
            .progress
            .log(format!("{name}: an unfinished run with another `{key}` was removed; training from the start"));
    }
    let metric = training.settings.metric;
    let bar = context.progress.bar(phase.name, "samples", training.sample_count() as u64);
    let train = || training.run(|line| context.progress.log(line), |samples| bar.add(samples));
    let outcome = with_precision(precision, train).map_err(|error| match error {
        TrainError::Elsewhere => AlreadyReported.into(),
        error => anyhow::Error::from(error),
    })?;
    drop(bar);
    log_outcome(&context.progress, phase, config.phase(phase.name), metric, &outcome);
    Ok((outcome.best_epoch, outcome.recall_20))
}

/// Removes the epochs of a phase from the log: those of a model that was trained in this run before.
fn forget_epochs(log: &Path, phase: &str) -> mp4sr_artifact::Result<()> {
    let mut lines = EpochLine::read(log, "delete it")?;
    lines.retain(|line| line.phase != phase);
    if lines.is_empty() {
        return files::remove_if_present(log);
    }
    files::write_bytes(log, lines.iter().map(log_line).collect::<String>().as_bytes())
}

/// Logs how a phase ended.
fn log_outcome(progress: &Progress, phase: Phase, settings: &PhaseSettings, metric: Metric, outcome: &PhaseOutcome) {
    let PhaseOutcome { best_epoch, epochs, best_value, .. } = *outcome;
    let name = phase.name;
    for warning in warnings_about(phase, settings, metric, outcome) {
        progress.warn(name, warning);
    }
    progress.log(match phase.stop {
        Stop::Validation { warm_up } if warm_up == 0 || epochs > warm_up => {
            format!("{name}: best epoch {best_epoch} of {epochs}, validation {metric} {best_value:.4}")
        }
        _ => format!("{name}: {epochs} epochs"),
    });
}

/// Why the weights of a phase may be of little use.
fn warnings_about(phase: Phase, settings: &PhaseSettings, metric: Metric, outcome: &PhaseOutcome) -> Vec<String> {
    let PhaseOutcome { epochs, best_value, is_indifferent, popularity, .. } = *outcome;
    let name = phase.name;
    let model_warm_up = match phase.stop {
        Stop::Validation { warm_up } => warm_up,
        Stop::Epochs => 0,
    };
    let mut warnings = Vec::new();
    if model_warm_up > 0 && epochs <= model_warm_up {
        warnings.push(format!(
            "training ended after {epochs} epochs, during the {model_warm_up} epochs of warm-up of the model, so no epoch was selected \
             and the last one is kept; raise `{name}.epochs`, or lower the warm-up in the section of the model"
        ));
    } else if is_indifferent {
        warnings.push(format!(
            "validation {metric} was {best_value:.4} in every epoch and cannot tell them apart; select by another metric (`train.metric`)"
        ));
    } else if phase.stop != Stop::Epochs
        && let Some(popularity) = popularity.filter(|&popularity| best_value <= popularity)
    {
        warnings.push(format!(
            "no epoch ranks better than popularity does (validation {metric} {best_value:.4} and {popularity:.4}); if the loss has \
             hardly fallen, train for longer (`{name}.epochs`, `{name}.patience`) or in smaller batches (`{name}.batch`)"
        ));
    }
    let learning_rate_warm_up = settings.learning_rate_warm_up;
    if epochs < learning_rate_warm_up {
        warnings.push(format!(
            "training ended after {epochs} epochs, during the warm-up of {learning_rate_warm_up} epochs, so the learning rate never \
             reached `{name}.learning_rate`; set a smaller `{name}.learning_rate_warm_up`"
        ));
    }
    warnings
}
