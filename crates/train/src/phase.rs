use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::Var;
use mp4sr_artifact::{Sequences, files, log_line, read_log};
use mp4sr_evaluate::{RankError, RankOptions, mean_loss, rank_users};
use mp4sr_models::{Batch, Model, Phase, RngKey, Stored};
use mp4sr_ops::Adam;
use mp4sr_protocol::{COLD_EVENTS, Measure, Metrics, Split, training_events};

use crate::state::{Progress, UnderWay};
use crate::{EpochLine, Samples, State};

/// What early stopping looks at.
const STOP: Measure = Measure::Recall(20);

/// One phase's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// At most this many epochs.
    pub epochs: usize,
    /// Stops after this many epochs without a better validation R@20.
    pub patience: usize,
    /// Samples in a step.
    pub batch: usize,
    /// The last items of a history that are read.
    pub positions: usize,
    /// Adam's learning rate.
    pub learning_rate: f64,
    /// L2 weight decay, added to the gradient.
    pub weight_decay: f64,
    /// The joint norm of all gradients is clipped at this.
    pub clip_norm: f64,
    /// K of the validation metrics in the log.
    pub k: Vec<usize>,
    /// How validation ranks.
    pub protocol: RankOptions,
    /// Whether cold items are taken out of the sequences that are trained on.
    pub warm_items: bool,
    /// Whether the log has the loss of the test split.
    pub log_test_loss: bool,
    /// The seed of all draws.
    pub seed: u64,
    /// The state is written after every epoch, and after a step when this much time has passed.
    pub save_every: Duration,
}

/// One phase of training of one model.
pub struct Training<'a> {
    /// The model, as the phase starts.
    pub model: &'a dyn Model,
    /// The phase.
    pub phase: Phase,
    /// All sequences; training reads their training parts, validation their validation targets.
    pub sequences: &'a Sequences,
    /// How.
    pub settings: Settings,
    /// Where the state lies while the phase runs.
    pub state_path: PathBuf,
    /// Where the log lies; the lines of other phases in it stay.
    pub log_path: PathBuf,
    /// What the state is good for: settings and fingerprints of the inputs.
    pub identity: serde_json::Value,
}

/// How a phase ended; the model then holds the best epoch's weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The best epoch.
    pub best_epoch: usize,
    /// The epochs run.
    pub epochs: usize,
    /// The best validation R@20.
    pub best_recall: f64,
}

/// Why training stopped before its end.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file.
    #[error(transparent)]
    File(#[from] mp4sr_artifact::Error),
    /// The model.
    #[error(transparent)]
    Model(#[from] mp4sr_models::Error),
    /// Validation.
    #[error(transparent)]
    Rank(#[from] RankError),
    /// No sample to train on.
    #[error("there is nothing to train on: no user has two events before the last two; keep longer sequences")]
    NoSamples,
    /// The loss is no number any more.
    #[error(
        "the loss or its gradient is no number any more in {phase} epoch {epoch}, step {step} (loss {loss}, gradient norm of the \
         step before {norm}); weights and samples of that step are in `{}`, what was saved before stays; try a smaller \
         learning rate", inputs.display()
    )]
    Diverged {
        /// The loss.
        loss: f32,
        /// The phase.
        phase: &'static str,
        /// From 1.
        epoch: usize,
        /// From 1.
        step: usize,
        /// The last gradient norm.
        norm: f64,
        /// Where weights and samples of the step are kept.
        inputs: PathBuf,
    },
}

/// What a phase changes while it runs.
struct Standing {
    names: Vec<String>,
    vars: Vec<Var>,
    adam: Adam,
    progress: Progress,
    best: Vec<Stored>,
    saved: Instant,
}

impl Training<'_> {
    /// Trains until patience or epochs run out, going on from the state of a killed run where there is one. `say` gets a
    /// line an epoch, `steps` the number of samples of every step done.
    pub fn run(&self, mut say: impl FnMut(&str), mut steps: impl FnMut(u64)) -> Result<Outcome, TrainError> {
        let samples = self.samples();
        if samples.count() == 0 {
            return Err(TrainError::NoSamples);
        }
        let mut standing = self.start()?;
        let (epoch, step) = (standing.progress.epoch, standing.progress.under_way.step);
        if epoch + step > 0 {
            let within = if step > 0 { format!(" and {step} steps") } else { String::new() };
            say(&format!("{}: going on after epoch {epoch}{within}", self.phase.name()));
            steps((epoch * samples.count() + (step * self.settings.batch).min(samples.count())) as u64);
            // The kill may have come between the state and the log.
            self.write_log(&standing.progress.lines)?;
        }
        while standing.progress.epoch < self.settings.epochs
            && standing.progress.epoch - standing.progress.best_epoch < self.settings.patience
        {
            let line = self.epoch(&mut standing, &samples, &mut steps)?;
            let recall = line.validation[&STOP.to_string()];
            say(&format!(
                "{} epoch {}: loss {:.4}, validation {STOP} {recall:.4}{}, {:.1} s",
                self.phase.name(),
                line.epoch,
                line.loss,
                if line.best { " *" } else { "" },
                line.seconds.0 + line.seconds.1,
            ));
            let progress = &mut standing.progress;
            progress.epoch += 1;
            progress.under_way = UnderWay::default();
            if line.best {
                (progress.best_epoch, progress.best_recall) = (progress.epoch, recall);
                standing.best = self.values(&standing.names)?;
            }
            standing.progress.lines.push(line);
            self.save(&mut standing)?;
            self.write_log(&standing.progress.lines)?;
        }
        for (name, values, shape) in standing.best {
            self.model.parameters().set(&name, values, &shape)?;
        }
        let Progress { best_epoch, epoch, best_recall, .. } = standing.progress;
        Ok(Outcome { best_epoch, epochs: epoch, best_recall })
    }

    /// Samples of all epochs together.
    pub fn sample_count(&self) -> usize {
        self.samples().count() * self.settings.epochs
    }

    fn samples(&self) -> Samples {
        if !self.settings.warm_items {
            return Samples::new(self.sequences, |_| true);
        }
        let events = training_events(self.sequences);
        Samples::new(self.sequences, |item| events[item as usize - 1] >= COLD_EVENTS)
    }

    /// The start of the phase, or where its state says that it stands.
    fn start(&self) -> Result<Standing, TrainError> {
        let s = &self.settings;
        let used = self.model.parameters().iter().filter(|(name, _)| self.model.uses(self.phase, name));
        let (names, vars): (Vec<String>, Vec<Var>) = used.map(|(name, var)| (name.to_owned(), var.clone())).unzip();
        let mut adam = Adam::new(&vars, s.learning_rate, s.weight_decay, s.clip_norm);
        let mut progress = Progress { identity: self.identity.clone(), ..Progress::default() };
        let mut best = self.values(&names)?;
        if self.state_path.exists() {
            let state = State::read(&self.state_path, &self.sequences.item_hash, &self.identity, &names)?;
            for (name, values, shape) in state.current {
                self.model.parameters().set(&name, values, &shape)?;
            }
            adam.restore(state.adam)?;
            (progress, best) = (state.progress, state.best);
        }
        Ok(Standing { names, vars, adam, progress, best, saved: Instant::now() })
    }

    fn save(&self, standing: &mut Standing) -> Result<(), TrainError> {
        let (current, adam) = (self.values(&standing.names)?, standing.adam.state().clone());
        let state = State { progress: standing.progress.clone(), current, best: standing.best.clone(), adam };
        state.write(&self.state_path, &self.sequences.item_hash, None)?;
        standing.saved = Instant::now();
        Ok(())
    }

    /// Keeps where a step stands that has no loss, with its samples, and says so. Put in the place of the state, it does that
    /// step again.
    fn diverged(&self, standing: &Standing, batch: &Batch, loss: f32, norm: f64) -> TrainError {
        let path = self.state_path.with_file_name(format!("diverged.{}.safetensors", self.phase.name()));
        let progress = standing.progress.clone();
        let (epoch, step) = (progress.epoch + 1, progress.under_way.step + 1);
        let write = || -> Result<(), TrainError> {
            let (current, adam) = (self.values(&standing.names)?, standing.adam.state().clone());
            let state = State { progress, current, best: standing.best.clone(), adam };
            Ok(state.write(&path, &self.sequences.item_hash, Some(batch))?)
        };
        match write() {
            Ok(()) => TrainError::Diverged { loss, phase: self.phase.name(), epoch, step, norm, inputs: path },
            Err(error) => error,
        }
    }

    fn values(&self, names: &[String]) -> Result<Vec<Stored>, TrainError> {
        Ok(self.model.parameters().values()?.into_iter().filter(|(name, ..)| names.contains(name)).collect())
    }

    /// What is left of the epoch under way, then validation.
    fn epoch(
        &self,
        standing: &mut Standing,
        samples: &Samples,
        steps: &mut impl FnMut(u64),
    ) -> Result<EpochLine, TrainError> {
        let s = &self.settings;
        let epoch = standing.progress.epoch + 1;
        let key = RngKey::new(s.seed).fold_in(self.phase.name()).fold_in_index(epoch as u64);
        let order = samples.shuffled(key.fold_in("shuffle"));
        let (mut started, mut norm) = (Instant::now(), 0.0);
        for (step, chosen) in order.chunks(s.batch).enumerate().skip(standing.progress.under_way.step) {
            let batch = Batch::new(chosen.iter().map(|&i| samples.get(i as usize)), s.positions)?;
            let loss = self.model.loss(self.phase, &batch, key.fold_in("step").fold_in_index(step as u64))?;
            let value = loss.to_scalar::<f32>()?;
            if !value.is_finite() {
                return Err(self.diverged(standing, &batch, value, norm));
            }
            let before = norm;
            norm = standing.adam.step(&standing.vars, &loss.backward()?)?;
            if !norm.is_finite() {
                return Err(self.diverged(standing, &batch, value, before));
            }
            let under_way = &mut standing.progress.under_way;
            under_way.step = step + 1;
            under_way.loss_sum += f64::from(value) * chosen.len() as f64;
            under_way.norm_sum += norm;
            under_way.seconds += started.elapsed().as_secs_f64();
            started = Instant::now();
            steps(chosen.len() as u64);
            if standing.saved.elapsed() >= s.save_every {
                self.save(standing)?;
            }
        }
        let (metrics, test_loss) = self.validate()?;
        let validation = EpochLine::named(&metrics);
        let recall = validation[&STOP.to_string()];
        let UnderWay { loss_sum, norm_sum, seconds, .. } = standing.progress.under_way;
        Ok(EpochLine {
            phase: self.phase.name().to_owned(),
            epoch,
            loss: loss_sum / samples.count() as f64,
            gradient_norm: norm_sum / order.len().div_ceil(s.batch) as f64,
            validation,
            test_loss,
            best: epoch == 1 || recall > standing.progress.best_recall,
            seconds: (seconds, started.elapsed().as_secs_f64()),
        })
    }

    /// Metrics of the validation split, and the loss of the test split where the log has it.
    fn validate(&self) -> Result<(Metrics, Option<f64>), TrainError> {
        let scorer = self.model.scorer(self.phase)?;
        let users = self.sequences.user_count();
        let of = |user| self.sequences.of(user);
        let ranks = rank_users(scorer.as_ref(), users, of, Split::Validation, self.settings.protocol, |_| {})?;
        let mut measures = Measure::columns(&self.settings.k);
        if !measures.contains(&STOP) {
            measures.push(STOP);
        }
        let test_loss = || mean_loss(scorer.as_ref(), users, of, Split::Test, self.settings.protocol.batch);
        let test_loss = self.settings.log_test_loss.then(test_loss).transpose()?;
        Ok((Metrics::of(&ranks, &measures), test_loss))
    }

    fn write_log(&self, lines: &[EpochLine]) -> Result<(), TrainError> {
        let mut text = String::new();
        for line in other_phases(&self.log_path, self.phase)?.iter().chain(lines) {
            text.push_str(&log_line(line));
        }
        Ok(files::write_bytes(&self.log_path, text.as_bytes())?)
    }
}

/// The log's lines of phases before `phase`.
fn other_phases(path: &Path, phase: Phase) -> Result<Vec<EpochLine>, TrainError> {
    if phase == Phase::Pretrain || !path.exists() {
        return Ok(Vec::new());
    }
    let mut others: Vec<EpochLine> = read_log(path, "delete it")?;
    others.retain(|line| line.phase != phase.name());
    Ok(others)
}
