//! One phase of training: steps, epochs, validation and early stopping.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::Var;
use mp4sr_artifact::{EpochLine, Fingerprint, Sequences, StageSettings, files, log_line};
use mp4sr_evaluate::{RankError, RankOptions, mean_loss, mean_loss_in_group, rank_users, rank_users_in_group};
use mp4sr_models::{Batch, Buffers, Model, PRETRAIN, Phase, ProcessGroup, RngKey, Step, Stop, scorer_of};
use mp4sr_ops::{Adam, Pending, Precision, with_precision};
use mp4sr_pipeline::config::PhaseSettings;
use mp4sr_pipeline::warning_line;
use mp4sr_protocol::{COLD_EVENTS, EvalCase, Metric, MetricMeans, Split, popularity_value, training_events};

use crate::PhaseState;
use crate::samples::SampleList;
use crate::state::{PhaseLimits, PhaseParameters, PhaseProgress, PhaseWeights, StateIdentity, UnderWay};

/// The metric that is logged for every epoch, whichever metric epochs are selected by.
const LOGGED: Metric = Metric::Recall(20);

/// The settings of one phase.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSettings {
    /// The number of epochs, the batch size and the settings of the optimiser.
    pub phase: PhaseSettings,
    /// The metric by which epochs are selected, on the validation set.
    pub metric: Metric,
    /// The cut-offs K of the validation metrics in the log.
    pub k: Vec<usize>,
    /// The options of the ranking in validation.
    pub rank_options: RankOptions,
    /// Whether cold items are removed from the sequences that are trained on.
    pub warm_items: bool,
    /// Whether the loss on the test set is logged.
    pub log_test_loss: bool,
    /// The seed of all random draws.
    pub seed: u64,
    /// The state is written after every epoch, and after a step if this much time has passed since it was last written.
    pub save_every: Duration,
}

/// One phase of training of one model. In a group of processes, each trains its share of the model, and only the first one writes files.
///
/// ```
/// use std::time::Duration;
///
/// use mp4sr_artifact::StageSettings;
/// use mp4sr_evaluate::RankOptions;
/// use mp4sr_pipeline::{Config, config::PhaseSettings};
/// use mp4sr_run::{Inputs, build_model, last_phase, model_catalog};
/// use mp4sr_train::{TrainSettings, Training};
///
/// # use mp4sr_artifact::{Sequences, hash_ids};
/// # let sequences = Sequences {
/// #     offsets: vec![0, 5, 10],
/// #     items: vec![2, 3, 1, 3, 2, 3, 1, 2, 1, 3],
/// #     times: vec![1, 2, 3, 4, 5, 1, 2, 3, 4, 5],
/// #     item_hash: hash_ids(["cup", "pot", "pan"]),
/// #     item_count: 3,
/// #     user_hash: None,
/// #     time_kind: mp4sr_artifact::TimeKind::Unstated,
/// #     parts: None,
/// # };
/// # let folder = tempfile::tempdir()?;
/// let text = "[dataset]\nname = \"shop\"\n[model]\nname = \"sasrec\"\n[model.transformer]\nwidth = 8\nfeed_forward = 8";
/// let (config, _) = Config::parse(text, "shop.toml", &[], model_catalog())?;
/// let inputs = Inputs { sequences: sequences.clone(), modalities: Vec::new(), encoders: Default::default(), categories: None };
/// let model = build_model(&config, &inputs)?;
/// let training = Training {
///     model: model.as_ref(),
///     phase: last_phase(model.as_ref())?.clone(),
///     sequences: &sequences,
///     settings: TrainSettings {
///         phase: PhaseSettings { epochs: 2, patience: 2, batch: 2, ..config.finetune.settings.clone() },
///         metric: "R@1".parse()?,
///         k: vec![1],
///         rank_options: RankOptions { batch: 2, remove_seen: false, history: None },
///         warm_items: false,
///         log_test_loss: false,
///         seed: 1,
///         save_every: Duration::from_secs(60),
///     },
///     state_path: folder.path().join("state.safetensors"),
///     log_path: folder.path().join("metrics.jsonl"),
///     identity: &StageSettings::of(config.resolved()),
///     inputs: Default::default(),
/// };
/// let outcome = training.run(|message| println!("{message}"), |_samples| ())?;
/// assert!(outcome.best_epoch >= 1 && outcome.epochs <= 2);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Training<'a> {
    /// The model, with the parameters that the phase starts from.
    pub model: &'a dyn Model,
    /// The phase to train.
    pub phase: Phase,
    /// All sequences; training reads their training events, validation their validation targets.
    pub sequences: &'a Sequences,
    /// The settings of the phase.
    pub settings: TrainSettings,
    /// The path of the state, which exists while the phase is unfinished.
    pub state_path: PathBuf,
    /// The path of the log. Its lines of other phases are kept.
    pub log_path: PathBuf,
    /// The settings that the state belongs to.
    pub identity: &'a StageSettings,
    /// The fingerprints of the inputs that the state belongs to, by role.
    pub inputs: BTreeMap<String, Fingerprint>,
}

/// The outcome of a phase. The model then holds the weights of the best epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct PhaseOutcome {
    /// The number of the best epoch.
    pub best_epoch: usize,
    /// The number of epochs that were trained.
    pub epochs: usize,
    /// The best epoch's value of the metric that epochs are selected by.
    pub best_value: f64,
    /// The best epoch's validation R@20, which is logged beside the metric that selects epochs (`train.metric`).
    pub recall_20: f64,
    /// Whether the metric had the same value in all of several epochs, so it cannot tell them apart.
    pub is_indifferent: bool,
    /// The value of that metric if the items are ranked by popularity; `None` if every ranking has it.
    pub popularity: Option<f64>,
}

/// An error that ended training early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] mp4sr_artifact::Error),
    /// The model failed before its first step or between steps.
    #[error(transparent)]
    Model(#[from] mp4sr_models::Error),
    /// The model failed in a step.
    #[error("the model failed in {phase} epoch {epoch}, step {step}; earlier checkpoints are kept")]
    Step {
        /// The name of the phase.
        phase: &'static str,
        /// The number of the epoch, from 1.
        epoch: usize,
        /// The number of the step in its epoch, from 1.
        step: usize,
        /// The error of the model.
        source: mp4sr_models::Error,
    },
    /// Validation failed.
    #[error(transparent)]
    Rank(#[from] RankError),
    /// There is no sample to train on.
    #[error(
        "no training data: no user has two training events in addition to the validation and test events; use data with longer \
         histories, or all items (`pretrain.items`)"
    )]
    NoSamples,
    /// Another process of the group has failed and reports why.
    #[error("another process has failed")]
    Elsewhere,
    /// This process of a group failed while the others went on. They wait for it and have to be stopped.
    #[error("process {} of {size}: {source}", rank + 1)]
    Alone {
        /// The number of the process, from 0.
        rank: usize,
        /// The number of processes.
        size: usize,
        /// The error of the process.
        source: Box<TrainError>,
    },
    /// The loss or its gradient became non-finite.
    #[error(
        "the loss or its gradient became non-finite in {phase} epoch {epoch}, step {step} (loss {loss}{}); weights and samples of that step \
         are in `{}`, earlier checkpoints are kept; try a smaller learning rate",
        norm_before(*norm), inputs.display()
    )]
    Diverged {
        /// The loss of the step.
        loss: f32,
        /// The name of the phase.
        phase: &'static str,
        /// The number of the epoch, from 1.
        epoch: usize,
        /// The number of the step in its epoch, from 1.
        step: usize,
        /// The gradient norm of the step before, unless it was made by an earlier process, or there is none.
        norm: Option<f64>,
        /// The path of the file with the weights and samples of the step.
        inputs: PathBuf,
    },
}

fn norm_before(norm: Option<f64>) -> String {
    norm.map_or_else(String::new, |norm| format!(", gradient norm of the step before {norm}"))
}

/// The part of a phase's state that changes while it runs.
struct TrainingState {
    /// The variables that are trained.
    vars: Vec<Var>,
    /// Whether each variable is divided by rows among the processes of a group.
    shards: Vec<bool>,
    adam: Adam,
    progress: PhaseProgress,
    best: PhaseWeights,
    /// The gradient norm of the last step of this process.
    norm: Option<f64>,
    saved: Instant,
}

/// A step that was started and is not settled yet.
struct InFlight {
    pending: Pending,
    batch: Batch,
    step: Step,
}

impl Training<'_> {
    /// Trains until patience or epochs run out, resuming from the state of an unfinished run if there is one. `log` is called with a line
    /// per epoch, `on_samples` with the number of samples of every finished step.
    pub fn run(&self, mut log: impl FnMut(&str), mut on_samples: impl FnMut(u64)) -> Result<PhaseOutcome, TrainError> {
        let samples = self.samples();
        if samples.count() == 0 {
            return Err(TrainError::NoSamples);
        }
        let Some(group) = self.group() else { return self.train(self.start()?, &samples, &mut log, &mut on_samples) };
        let started = self.start();
        let failed = group.first_failure(started.is_err())?;
        let state = match failed {
            Some(rank) if rank != group.rank() => return Err(TrainError::Elsewhere),
            _ => started?,
        };
        self.train(state, &samples, &mut log, &mut on_samples).map_err(|error| match error {
            // All processes see the same loss, norm and scores, so only the first one reports them.
            TrainError::Diverged { .. } | TrainError::Rank(RankError::Score { .. }) if !group.is_first() => {
                TrainError::Elsewhere
            }
            TrainError::Diverged { .. } | TrainError::Rank(RankError::Score { .. }) => error,
            _ => TrainError::Alone { rank: group.rank(), size: group.size(), source: Box::new(error) },
        })
    }

    fn train(
        &self,
        mut state: TrainingState,
        samples: &SampleList,
        log: &mut impl FnMut(&str),
        on_samples: &mut impl FnMut(u64),
    ) -> Result<PhaseOutcome, TrainError> {
        let settings = &self.settings.phase;
        let (epoch, step) = (state.progress.epoch, state.progress.under_way.step);
        if epoch + step > 0 {
            let within = if step > 0 { format!(" and {step} steps") } else { String::new() };
            log(&format!("{}: resuming after epoch {epoch}{within}", self.phase.name));
            on_samples((epoch * samples.count()) as u64);
            // The run may have been interrupted after writing the state and before writing the log.
            self.write_log(&state.progress.lines)?;
        }
        let described = samples.described(settings.batch, self.model.training_sequence_length());
        log(&format!("{}: {described}", self.phase.name));
        while state.progress.epoch < settings.epochs && !self.patience_is_exhausted(&state.progress) {
            let line = self.epoch(&mut state, samples, on_samples)?;
            log(&self.report(&line));
            if line.gradient_norm == 0.0 {
                let (phase, epoch) = (self.phase.name, line.epoch);
                let warning = format!(
                    "the gradient was 0 in every step of epoch {epoch}, so no weight was changed by the loss; check that the loss of the \
                     model depends on parameters that the phase trains"
                );
                log(&warning_line(phase, warning));
            }
            let progress = &mut state.progress;
            progress.epoch += 1;
            progress.under_way = UnderWay::default();
            if line.best {
                progress.best_epoch = progress.epoch;
                progress.best_value = self.value(&line).unwrap_or_default();
                state.best = self.weights()?;
            }
            state.progress.lines.push(line);
            self.save(&mut state)?;
            self.write_log(&state.progress.lines)?;
        }
        self.restore(state.best)?;
        let PhaseProgress { best_epoch, epoch, best_value, lines, .. } = state.progress;
        let values: Vec<Option<f64>> = lines.iter().map(|line| self.value(line)).collect();
        let is_indifferent = values.len() > 1 && values[0].is_some() && values.iter().all(|value| *value == values[0]);
        let best = best_epoch.checked_sub(1).and_then(|at| lines.get(at));
        let recall_20 = best.and_then(|line| line.validation.get(&LOGGED.to_string()).copied()).unwrap_or_default();
        let TrainSettings { metric, rank_options, .. } = self.settings;
        let popularity = popularity_value(self.sequences, metric, rank_options.remove_seen);
        Ok(PhaseOutcome { best_epoch, epochs: epoch, best_value, recall_20, is_indifferent, popularity })
    }

    /// The value of the metric by which epochs are selected; `None` for a phase without validation.
    fn value(&self, line: &EpochLine) -> Option<f64> {
        line.validation.get(&self.settings.metric.to_string()).copied()
    }

    /// The number of samples of all epochs together.
    pub fn sample_count(&self) -> usize {
        self.samples().count() * self.settings.phase.epochs
    }

    fn patience_is_exhausted(&self, progress: &PhaseProgress) -> bool {
        match self.phase.stop {
            Stop::Validation { .. } => progress.epoch - progress.best_epoch >= self.settings.phase.patience,
            Stop::Epochs => false,
        }
    }

    /// The message about a finished epoch.
    fn report(&self, line: &EpochLine) -> String {
        let metric = self.settings.metric;
        let validation = self.value(line).map_or(String::new(), |value| {
            format!(", validation {metric} {value:.4}{}", if line.best { " *" } else { "" })
        });
        let (epoch, loss, seconds) = (line.epoch, line.loss, line.seconds.0 + line.seconds.1);
        format!("{} epoch {epoch}: loss {loss:.4}{validation}, {seconds:.1} s", self.phase.name)
    }

    fn samples(&self) -> SampleList {
        let kind = self.phase.samples;
        if !self.settings.warm_items {
            return SampleList::new(kind, self.sequences, |_| true);
        }
        let events = training_events(self.sequences);
        SampleList::new(kind, self.sequences, |item| events[item as usize - 1] >= COLD_EVENTS)
    }

    /// Prepares the start of the phase, or restores the stored state of an unfinished run.
    fn start(&self) -> Result<TrainingState, TrainError> {
        let s = &self.settings.phase;
        let parameters = self.model.parameters();
        let trains = |name: &str| self.model.trains(&self.phase, name);
        let vars = parameters.variables(trains)?;
        let shards = vars.iter().map(|var| parameters.is_shard(var)).collect();
        let mut adam = Adam::new(&vars, s.learning_rate, s.weight_decay, s.clip_norm)?;
        let mut progress = PhaseProgress { identity: self.identity(), ..PhaseProgress::default() };
        let mut best = self.weights()?;
        if self.state_path.exists() {
            let used: Vec<String> = best.parameters.iter().map(|(name, ..)| name.clone()).collect();
            let trained: Vec<String> = parameters.names().filter(|name| trains(name)).map(ToOwned::to_owned).collect();
            let stored = PhaseParameters { used: &used, trained: &trained, ..self.parameters() };
            let state = PhaseState::read(&self.state_path, &self.sequences.item_hash, &self.expected(), stored)?;
            self.restore(state.current)?;
            adam.restore(parameters.join_state(&vars, &state.adam)?)?;
            best = state.best;
            progress = PhaseProgress { identity: self.identity(), ..state.progress };
        }
        Ok(TrainingState { vars, shards, adam, progress, best, norm: None, saved: Instant::now() })
    }

    /// The settings and inputs that the state of an unfinished run must belong to.
    fn expected(&self) -> StateIdentity<'_> {
        let PhaseSettings { epochs, patience, .. } = self.settings.phase;
        let limits = PhaseLimits { phase: self.phase.name, epochs, patience, stops: self.phase.stop != Stop::Epochs };
        StateIdentity { settings: self.identity, inputs: &self.inputs, limits }
    }

    /// Removes the state of an unfinished run that belongs to other settings or inputs. Returns the name of the first that differs, if any.
    pub fn discard_other_state(&self) -> Result<Option<String>, TrainError> {
        if !self.state_path.exists() {
            return Ok(None);
        }
        let other = PhaseState::other(&self.state_path, &self.expected())?;
        if other.is_some() {
            files::remove_if_present(&self.state_path)?;
        }
        Ok(other)
    }

    fn identity(&self) -> serde_json::Value {
        serde_json::json!({ "settings": self.identity.values(), "inputs": self.inputs })
    }

    /// The current values of the buffers and of the parameters that the phase uses; of a divided table, those of this process's rows.
    fn weights(&self) -> Result<PhaseWeights, TrainError> {
        let mut parameters = self.model.parameters().own_values()?;
        parameters.retain(|(name, ..)| self.model.uses(&self.phase, name));
        let buffers = self.model.buffers().map(Buffers::snapshot).unwrap_or_default();
        Ok(PhaseWeights { parameters, buffers })
    }

    fn restore(&self, weights: PhaseWeights) -> Result<(), TrainError> {
        for (name, values, shape) in weights.parameters {
            self.model.parameters().set(&name, &values, &shape)?;
        }
        if let Some(buffers) = self.model.buffers() {
            buffers.restore(weights.buffers)?;
        }
        Ok(())
    }

    /// Writes the state, with the samples of the next step if they are given. In a group, this is a collective operation.
    fn write_state(&self, state: &TrainingState, path: &Path, next: Option<&Batch>) -> Result<(), TrainError> {
        let (trained, adam) = self.model.parameters().split_state(&state.vars, &state.adam.state()?);
        let (current, best) = (self.weights()?, state.best.clone());
        let stored = PhaseState { progress: state.progress.clone(), trained, current, best, adam };
        Ok(stored.write(path, &self.sequences.item_hash, self.parameters(), next)?)
    }

    fn parameters(&self) -> PhaseParameters<'_> {
        PhaseParameters { all: self.model.parameters(), group: self.group(), used: &[], trained: &[] }
    }

    /// The processes that train together.
    fn group(&self) -> Option<&ProcessGroup> {
        self.model.group()
    }

    /// Whether this process writes files.
    fn writes(&self) -> bool {
        self.group().is_none_or(ProcessGroup::is_first)
    }

    fn save(&self, state: &mut TrainingState) -> Result<(), TrainError> {
        self.write_state(state, &self.state_path, None)?;
        state.saved = Instant::now();
        Ok(())
    }

    /// Whether the state has to be written after a step. In a group, the first process decides.
    fn is_due(&self, state: &TrainingState) -> Result<bool, TrainError> {
        let due = state.saved.elapsed() >= self.settings.save_every;
        let Some(group) = self.group() else { return Ok(due) };
        Ok(group.scalars(&[f64::from(u8::from(due))])?[0][0] > 0.0)
    }

    /// Writes the weights and the samples of a step whose loss or gradient is not finite to a file, and returns the error that names the
    /// file. If the file replaces the state, training repeats that step.
    fn diverged(&self, state: &TrainingState, batch: &Batch, loss: f32, norm: Option<f64>) -> TrainError {
        let path = self.state_path.with_file_name(format!("diverged.{}.safetensors", self.phase.name));
        let (epoch, step) = (state.progress.epoch + 1, state.progress.under_way.step + 1);
        match self.write_state(state, &path, Some(batch)) {
            Ok(()) => TrainError::Diverged { loss, phase: self.phase.name, epoch, step, norm, inputs: path },
            Err(error) => error,
        }
    }

    /// Trains the rest of the current epoch, then validates.
    fn epoch(
        &self,
        state: &mut TrainingState,
        samples: &SampleList,
        on_samples: &mut impl FnMut(u64),
    ) -> Result<EpochLine, TrainError> {
        let epoch = state.progress.epoch + 1;
        let step_count = self.remaining_steps(state, samples, on_samples)?;
        let started = Instant::now();
        let (validation, test_loss) = match self.phase.stop {
            // Epochs are selected by the ranks that `evaluate` computes, in f32.
            Stop::Validation { .. } => with_precision(Precision::F32, || self.validate())?,
            Stop::Epochs => (BTreeMap::new(), None),
        };
        let best = match self.phase.stop {
            Stop::Validation { warm_up } => {
                epoch <= warm_up + 1 || validation[&self.settings.metric.to_string()] > state.progress.best_value
            }
            Stop::Epochs => true,
        };
        let UnderWay { loss_sum, norm_sum, seconds, .. } = state.progress.under_way;
        Ok(EpochLine {
            phase: self.phase.name.to_owned(),
            epoch,
            loss: loss_sum / samples.count() as f64,
            gradient_norm: norm_sum / step_count as f64,
            validation,
            test_loss,
            best,
            seconds: (seconds, started.elapsed().as_secs_f64()),
        })
    }

    /// Takes the steps that are left of the current epoch, and returns the number of all its steps.
    fn remaining_steps(
        &self,
        state: &mut TrainingState,
        samples: &SampleList,
        on_samples: &mut impl FnMut(u64),
    ) -> Result<usize, TrainError> {
        let settings = &self.settings.phase;
        let epoch = state.progress.epoch + 1;
        let epoch_key = RngKey::new(self.settings.seed).fold_in(self.phase.name).fold_in_index(epoch as u64);
        let order = samples.shuffled(epoch_key.fold_in("shuffle"));
        let longest = self.model.training_sequence_length();
        let batches = samples.batches(&order, settings.batch, longest);
        let done = state.progress.under_way.step;
        on_samples(batches[..done].iter().map(|batch| batch.len() as u64).sum());
        let mut started = Instant::now();
        // On a GPU, the host prepares the next step while this one is computed. A model with buffers does not run ahead, because its
        // buffers change only after a step that is known to be finite.
        let ahead = usize::from(self.model.buffers().is_none());
        let mut flight: VecDeque<InFlight> = VecDeque::new();
        for (index, chosen) in batches.iter().enumerate().skip(done) {
            let chosen = &order[chosen.clone()];
            let batch = Batch::new(chosen.iter().map(|&i| samples.get(i as usize)), longest)?;
            let key = epoch_key.fold_in("step").fold_in_index(index as u64);
            let global = state.progress.steps + flight.len() as u64;
            let step = Step { epoch, index, global, epoch_key, key };
            state.adam.learning_rate = settings.learning_rate_at(epoch, (index + 1) as f64 / batches.len() as f64);
            let pending = self.begin(state, &batch, &step).map_err(|source| TrainError::Step {
                phase: self.phase.name,
                epoch,
                step: index + 1,
                source,
            })?;
            let ahead = if pending.is_known() { 0 } else { ahead };
            flight.push_back(InFlight { pending, batch, step });
            while flight.len() > ahead {
                self.settle(state, &mut flight, &mut started, on_samples)?;
            }
            if self.is_due(state)? {
                while !flight.is_empty() {
                    self.settle(state, &mut flight, &mut started, on_samples)?;
                }
                self.save(state)?;
            }
        }
        while !flight.is_empty() {
            self.settle(state, &mut flight, &mut started, on_samples)?;
        }
        Ok(batches.len())
    }

    /// Computes the loss and the gradients of a batch, and begins the optimizer's step.
    fn begin(&self, state: &mut TrainingState, batch: &Batch, step: &Step) -> mp4sr_models::Result<Pending> {
        let loss = self.model.loss(&self.phase, batch, step)?;
        let gradients = loss.backward()?;
        Ok(match self.group() {
            Some(group) => {
                let vars = state.vars.iter().zip(state.shards.iter().copied());
                state.adam.step_in_group(group, vars, &gradients, &loss)?
            }
            None => state.adam.step(&state.vars, &gradients, &loss)?,
        })
    }

    /// Waits for the oldest step in flight and adds it to the sums of the epoch. If the step is not finite, neither it nor those after it
    /// have changed anything.
    fn settle(
        &self,
        state: &mut TrainingState,
        flight: &mut VecDeque<InFlight>,
        started: &mut Instant,
        on_samples: &mut impl FnMut(u64),
    ) -> Result<(), TrainError> {
        let Some(InFlight { pending, batch, step }) = flight.pop_front() else { return Ok(()) };
        let outcome = state.adam.finish(&pending)?;
        if !outcome.is_finite() {
            for later in flight.drain(..) {
                state.adam.finish(&later.pending)?;
            }
            return Err(self.diverged(state, &batch, outcome.loss, state.norm));
        }
        state.norm = Some(outcome.norm);
        self.model.after_step(&self.phase, &batch, &step)?;
        state.progress.steps += 1;
        let under_way = &mut state.progress.under_way;
        under_way.step = step.index + 1;
        under_way.loss_sum += f64::from(outcome.loss) * batch.count() as f64;
        under_way.norm_sum += outcome.norm;
        under_way.seconds += started.elapsed().as_secs_f64();
        *started = Instant::now();
        on_samples(batch.count() as u64);
        Ok(())
    }

    /// The metrics of the validation set by name, and the loss on the test set if it is logged.
    fn validate(&self) -> Result<(BTreeMap<String, f64>, Option<f64>), TrainError> {
        let scorer = scorer_of(self.model, &self.phase, self.sequences.item_count)?;
        let users = self.sequences.user_count();
        let case = |split| move |user| EvalCase::of(self.sequences, user, split);
        let (scorer, options) = (scorer.as_ref(), self.settings.rank_options);
        let ranks = match self.group() {
            Some(group) => rank_users_in_group(group, scorer, users, case(Split::Validation), options)?,
            None => rank_users(scorer, users, case(Split::Validation), options, |_| {})?,
        };
        let mut metrics = Metric::columns(&self.settings.k);
        for metric in [LOGGED, self.settings.metric] {
            if !metrics.contains(&metric) {
                metrics.push(metric);
            }
        }
        let test_loss = || match self.group() {
            Some(group) => mean_loss_in_group(group, scorer, users, case(Split::Test), options.batch),
            None => mean_loss(scorer, users, case(Split::Test), options.batch),
        };
        let test_loss = self.settings.log_test_loss.then(test_loss).transpose()?.flatten();
        let means = MetricMeans::of(&ranks, &metrics).values;
        Ok((means.into_iter().map(|(metric, value)| (metric.to_string(), value)).collect(), test_loss))
    }

    fn write_log(&self, lines: &[EpochLine]) -> Result<(), TrainError> {
        if !self.writes() {
            return Ok(());
        }
        let mut text = String::new();
        // Fine-tuning that is up to date does not run again after pre-training does.
        let others = self.other_lines()?;
        let (first, second) =
            if self.phase.name == PRETRAIN { (lines, others.as_slice()) } else { (others.as_slice(), lines) };
        for line in first.iter().chain(second) {
            text.push_str(&log_line(line));
        }
        Ok(files::write_bytes(&self.log_path, text.as_bytes())?)
    }

    /// The lines of the log that belong to other phases.
    fn other_lines(&self) -> Result<Vec<EpochLine>, TrainError> {
        let mut others = EpochLine::read(&self.log_path, "delete it")?;
        others.retain(|line| line.phase != self.phase.name);
        Ok(others)
    }
}
