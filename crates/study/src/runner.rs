//! Executes runs of one pipeline with different settings, each stage in a separate process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use mp4sr_artifact::{EpochLine, Fingerprint, Layout, Manifest, Timing, files, log_line, recorded_settings, role};
use mp4sr_pipeline::config::{FINETUNE, ModelCatalog, PRETRAIN};
use mp4sr_pipeline::{Assignments, Config, Progress, StageArgs, StageName, TIED, hide_passwords, is_warning_line};
use serde_json::{Value, json};

/// One run of a study.
#[derive(Clone, Debug, PartialEq)]
pub struct StudyRun {
    /// The pipeline file of the run.
    pub pipeline: PathBuf,
    /// The name of the run.
    pub name: String,
    /// The settings that it changes in the pipeline, each `section.key=value`.
    pub overrides: Vec<String>,
}

/// A run with its resolved configuration.
#[derive(Clone, Debug)]
pub struct ResolvedRun {
    spec: StudyRun,
    /// The configuration of the run.
    pub config: Config,
    /// The layout of its files.
    pub layout: Layout,
}

/// Executes runs with the stages of this program.
///
/// ```
/// use std::sync::Arc;
///
/// use mp4sr_pipeline::StageArgs;
/// use mp4sr_pipeline::config::ModelCatalog;
/// use mp4sr_study::Runner;
///
/// # let folder = tempfile::tempdir()?;
/// # let pipeline = folder.path().join("shop.toml");
/// # mp4sr_artifact::files::write_bytes(&pipeline, b"dataset.name = \"shop\"")?;
/// let args = StageArgs { pipeline, artifacts: "artifacts".into(), quiet: true, ..StageArgs::default() };
/// let runner = Runner::new(args, 1, &Arc::new(ModelCatalog::unchecked()))?;
/// let run = runner.study_run("small-batches".to_owned(), vec!["finetune.batch=64".to_owned()]);
///
/// let resolved = runner.resolve(&run)?;
/// assert_eq!(resolved.config.finetune.settings.batch, 64);
/// assert!(resolved.layout.run().ends_with("artifacts/shop/runs/small-batches"));
/// // `search` and `run_experiment` execute such runs; this command does so by hand.
/// assert!(runner.command(&run)?.ends_with("--run small-batches --set 'finetune.batch=64'"));
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug)]
pub struct Runner {
    /// The flags that all runs share.
    args: StageArgs,
    jobs: usize,
    progress: Progress,
    /// The path of this program, whose subcommands are the stages.
    program: PathBuf,
    models: Arc<ModelCatalog>,
    /// Whether training starts over if an unfinished run of the same name has other settings.
    restarts: bool,
    /// The runs that would be executed, if they are only planned.
    planned: Option<Mutex<Vec<PlannedRun>>>,
}

/// A run that would be executed.
#[derive(Clone, Debug)]
pub struct PlannedRun {
    /// The run.
    pub run: ResolvedRun,
    /// Its last stage.
    pub last: StageName,
    /// Whether it has finished this stage with its settings, by its records.
    pub is_finished: bool,
}

/// The end of a study whose runs are only planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("runs are only planned with `--dry-run`; leave it out to execute them")]
pub struct OnlyPlanned;

/// Why a run is not finished.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunFailure {
    /// It was not executed.
    #[error(transparent)]
    OnlyPlanned(#[from] OnlyPlanned),
    /// A stage failed.
    #[error("{0}")]
    Failed(String),
}

impl RunFailure {
    /// The failure of a stage.
    pub fn of(error: &anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }

    /// The error of a command that cannot go on without the run.
    pub fn into_error(self) -> anyhow::Error {
        match self {
            Self::OnlyPlanned(error) => error.into(),
            Self::Failed(reason) => anyhow::anyhow!(reason),
        }
    }
}

/// The last step of a run that is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The dataset.
    Dataset,
    /// The features.
    Features,
    /// The pre-trained weights.
    Pretrained,
    /// The trained weights; of the held-out sets, only the validation set is read.
    Trained,
    /// The ranks.
    Evaluated,
    /// The ranks, and the lists.
    Listed,
}

impl Until {
    fn stage(self) -> StageName {
        match self {
            Self::Dataset => StageName::Preprocess,
            Self::Features => StageName::Extract,
            Self::Pretrained => StageName::Pretrain,
            Self::Trained => StageName::Finetune,
            Self::Evaluated => StageName::Evaluate,
            Self::Listed => StageName::Recommend,
        }
    }
}

impl ResolvedRun {
    /// The run that was resolved.
    pub fn spec(&self) -> &StudyRun {
        &self.spec
    }
}

impl Runner {
    /// A runner that executes `jobs` runs at once, with the stages of the running program. Naming one run is an error.
    pub fn new(mut args: StageArgs, jobs: usize, models: &Arc<ModelCatalog>) -> anyhow::Result<Self> {
        if let Some(run) = args.run.as_ref().filter(|_| !args.run_is_inherited) {
            anyhow::bail!(
                "`--run {run}` has no effect here, because runs are named after their settings; leave it out, and give the pipeline by `--pipeline`"
            );
        }
        args.overrides = args.all_overrides();
        args.more_overrides = None;
        args.dry_run = false;
        let program = std::env::current_exe().context("failed to find the path of this program")?;
        let progress = Progress::new(args.quiet);
        Ok(Self { args, jobs: jobs.max(1), progress, program, models: models.clone(), restarts: false, planned: None })
    }

    /// A runner that executes nothing: every run fails, and [`Self::planned`] returns those that would be executed.
    #[must_use]
    pub fn planning(self) -> Self {
        Self { planned: Some(Mutex::default()), ..self }
    }

    /// Whether runs are only planned.
    pub fn is_planning(&self) -> bool {
        self.planned.is_some()
    }

    /// Ends a study before it writes anything if its runs are only planned.
    pub fn expect_executing(&self) -> Result<(), OnlyPlanned> {
        if self.is_planning() { Err(OnlyPlanned) } else { Ok(()) }
    }

    /// The runs that would be executed, each once.
    pub fn planned(&self) -> Vec<PlannedRun> {
        let planned =
            self.planned.as_ref().map(|planned| planned.lock().unwrap_or_else(PoisonError::into_inner).clone());
        planned.unwrap_or_default()
    }

    /// Plans runs up to the stage `last`. Of datasets and features, only those that do not exist are planned.
    fn plan(&self, planned: &Mutex<Vec<PlannedRun>>, runs: &[ResolvedRun], last: StageName) -> Vec<Option<RunFailure>> {
        let mut planned = planned.lock().unwrap_or_else(PoisonError::into_inner);
        let plan_one = |run: &ResolvedRun| {
            let (folder, is_data) = match last {
                StageName::Preprocess => (run.layout.dataset(), true),
                StageName::Extract => (run.layout.features(), true),
                _ => (run.layout.run(), false),
            };
            let is_finished =
                Manifest::find(&folder, last.name()).is_some() && (is_data || self.trained_otherwise(run).is_none());
            if is_data && is_finished {
                return None;
            }
            let own = PlannedRun { run: run.clone(), last, is_finished };
            match planned.iter_mut().find(|other| other.run.layout.run() == run.layout.run()) {
                Some(earlier) => *earlier = own,
                None => planned.push(own),
            }
            Some(OnlyPlanned.into())
        };
        runs.iter().map(plan_one).collect()
    }

    /// A runner that retrains an unfinished run from the start if it has other settings, which is safe for the runs of a study because
    /// nothing else uses them.
    #[must_use]
    pub fn restarting(self) -> Self {
        Self { restarts: true, ..self }
    }

    /// The first setting in which the run's configuration differs from that with which it was trained, or began to be trained.
    pub fn trained_otherwise(&self, run: &ResolvedRun) -> Option<String> {
        let phases = [PRETRAIN, FINETUNE].into_iter().filter(|phase| self.models.trains(&run.config, phase));
        phases.into_iter().find_map(|phase| {
            let settings = self.models.phase_settings(&run.config, phase);
            let finished =
                Manifest::find(&run.layout.run(), phase).and_then(|own| settings.changed_since(&own.settings));
            finished.or_else(|| self.models.changed_since_begun(&run.config, &run.layout, phase))
        })
    }

    /// The first setting of the dataset in which the run's configuration differs from that of its weights.
    pub fn trained_on_other_data(&self, run: &ResolvedRun) -> Option<String> {
        let of_phase = |phase: &str| recorded_settings(&run.layout.checkpoint(phase));
        let recorded = of_phase(FINETUNE).or_else(|| of_phase(PRETRAIN))?["config"].take();
        let sections = |config: &Config| json!({ "source": config.source, "preprocess": config.preprocess.deciding() });
        self.models.settings(sections(&run.config), sections(&Config::default())).changed_since(&recorded)
    }

    /// The flags that all runs share.
    pub fn args(&self) -> &StageArgs {
        &self.args
    }

    /// The progress output.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The data folder that replaces the pipeline's. It applies to the runner's own pipeline, and to others that do not set one.
    fn data(&self, pipeline: &Path) -> anyhow::Result<Option<String>> {
        let names_its_own = pipeline != self.args.pipeline && {
            let table: toml::Table = files::read_to_string(pipeline)?.parse().unwrap_or_default();
            table.get("dataset").and_then(|dataset| dataset.get("data")).is_some()
        };
        Ok(self.args.data.clone().filter(|_| !names_its_own))
    }

    /// The shell command that evaluates a run, with all of the runner's flags except passwords.
    pub fn command(&self, run: &StudyRun) -> anyhow::Result<String> {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        let mut line = format!(
            "mp4sr evaluate --pipeline {} --artifacts {} --run {}",
            quoted(&run.pipeline.to_string_lossy()),
            quoted(&self.args.artifacts.to_string_lossy()),
            run.name
        );
        if let Some(data) = self.data(&run.pipeline)? {
            let _ = write!(line, " --data {}", quoted(&data));
        }
        for assignment in self.overrides(run) {
            let _ = write!(line, " --set {}", quoted(&hide_passwords(&assignment)));
        }
        Ok(line)
    }

    /// The settings that a run changes: its own assignments take precedence over those that all runs share.
    fn overrides(&self, run: &StudyRun) -> Vec<String> {
        Assignments::last_of_each(&[self.args.overrides.as_slice(), &run.overrides].concat())
    }

    /// A run of the runner's own pipeline.
    pub fn study_run(&self, name: String, overrides: Vec<String>) -> StudyRun {
        StudyRun { pipeline: self.args.pipeline.clone(), name, overrides }
    }

    /// The flags of the stages of a run.
    pub fn args_of(&self, run: &StudyRun) -> anyhow::Result<StageArgs> {
        Ok(StageArgs {
            pipeline: run.pipeline.clone(),
            data: self.data(&run.pipeline)?,
            run: Some(run.name.clone()),
            overrides: self.overrides(run),
            ..self.args.clone()
        })
    }

    /// The configuration and the files of a run.
    pub fn resolve(&self, run: &StudyRun) -> anyhow::Result<ResolvedRun> {
        let context = self.args_of(run)?.context(&self.models)?;
        Ok(ResolvedRun { spec: run.clone(), config: context.config, layout: context.layout })
    }

    /// Executes all runs up to `until`, `jobs` at once. Datasets and features are computed first, one after the other. Of the runs with the
    /// same pre-training, one is pre-trained and the others copy its weights, and so are weights of earlier runs with the same settings.
    /// Returns each run's error, if any: a run that fails does not stop the others.
    pub fn run(&self, runs: &[ResolvedRun], until: Until) -> Vec<Option<RunFailure>> {
        if let Some(planned) = &self.planned {
            return self.plan(planned, runs, until.stage());
        }
        let mut failed: Vec<Option<RunFailure>> = vec![None; runs.len()];
        for alike in groups(runs, |run| Some(features_key(&run.config))) {
            let last = if until == Until::Dataset { StageName::Preprocess } else { StageName::Extract };
            if let Err(error) = self.command_of(&runs[alike[0]], &["run", "--until", last.name()]) {
                alike.iter().for_each(|&at| failed[at] = Some(RunFailure::of(&error)));
            }
        }
        if [Until::Dataset, Until::Features].contains(&until) {
            return failed;
        }
        let open =
            |failed: &[Option<RunFailure>]| (0..runs.len()).filter(|&at| failed[at].is_none()).collect::<Vec<_>>();
        for at in open(&failed) {
            // Without the weights of another run, this one is trained.
            if let Err(error) = self.adopt(&runs[at]) {
                let name = &runs[at].spec.name;
                self.progress
                    .warn("runs", format!("`{name}` is trained, because earlier weights cannot be copied: {error:#}"));
            }
        }
        let mut sources = groups(runs, |run| self.pretrain_key(run));
        // A run of an earlier study may already have the weights.
        sources.iter_mut().for_each(|alike| alike.sort_by_key(|&at| !self.has_pretrained(&runs[at])));
        let first: Vec<usize> = sources.iter().map(|alike| alike[0]).filter(|&at| failed[at].is_none()).collect();
        self.parallel(&first, &mut failed, "pre-trained", |at| self.stage(&runs[at], StageName::Pretrain));
        for alike in &sources {
            for &at in &alike[1..] {
                let source = failed[alike[0]].clone();
                let take = || self.take_pretrained(&runs[alike[0]].layout, &runs[at]).err();
                let not_taken = source.or_else(|| take().map(|error| RunFailure::of(&error)));
                failed[at] = failed[at].take().or(not_taken);
            }
        }
        if until == Until::Pretrained {
            return failed;
        }
        let rest = open(&failed);
        self.parallel(&rest, &mut failed, "finished", |at| {
            self.stage(&runs[at], StageName::Pretrain)?;
            self.stage(&runs[at], StageName::Finetune)?;
            if [Until::Evaluated, Until::Listed].contains(&until) {
                self.stage(&runs[at], StageName::Evaluate)?;
            }
            if until == Until::Listed { self.stage(&runs[at], StageName::Recommend) } else { Ok(()) }
        });
        failed
    }

    /// Whether the run was pre-trained with its settings.
    fn has_pretrained(&self, run: &ResolvedRun) -> bool {
        let settings = self.models.phase_settings(&run.config, PRETRAIN);
        let record = Manifest::find(&run.layout.run(), PRETRAIN);
        record.is_some_and(|record| settings.changed_since(&record.settings).is_none())
    }

    /// Copies the pre-trained weights of the run `from`, unless `run` was pre-trained with the same settings and on the same files before.
    fn take_pretrained(&self, from: &Layout, run: &ResolvedRun) -> anyhow::Result<()> {
        let of_inputs = |record: &Manifest| -> Vec<(String, Fingerprint)> {
            record.inputs.iter().map(|(role, input)| (role.clone(), input.fingerprint.clone())).collect()
        };
        let (own, source) = (Manifest::find(&run.layout.run(), PRETRAIN), Manifest::find(&from.run(), PRETRAIN));
        let settings = self.models.phase_settings(&run.config, PRETRAIN);
        let is_taken = own.zip(source).is_some_and(|(own, source)| {
            let is_same = own.version == source.version && of_inputs(&own) == of_inputs(&source);
            is_same && settings.changed_since(&own.settings).is_none()
        });
        if is_taken { Ok(()) } else { copy_phase(from, &run.layout, PRETRAIN) }
    }

    /// Pre-trains runs whose dataset and features are not written by a stage. Returns each run's error, if any.
    pub fn pretrain_as_is(&self, runs: &[ResolvedRun]) -> Vec<Option<RunFailure>> {
        let mut failed = vec![None; runs.len()];
        if let Some(planned) = &self.planned {
            self.plan(planned, runs, StageName::Pretrain);
            // What follows can be planned, too.
            return failed;
        }
        let all: Vec<usize> = (0..runs.len()).collect();
        self.parallel(&all, &mut failed, "pre-trained", |at| self.stage(&runs[at], StageName::Pretrain));
        failed
    }

    /// Copies the weights of another run of the same dataset that was trained with the same settings, phase by phase, if this one has none.
    /// Whether they are those of the present dataset and features is decided by the stage, which otherwise trains the run.
    fn adopt(&self, run: &ResolvedRun) -> anyhow::Result<()> {
        let own = run.layout.run();
        let phases: Vec<&str> =
            [PRETRAIN, FINETUNE].into_iter().filter(|phase| self.models.trains(&run.config, phase)).collect();
        for phase in &phases {
            if Manifest::read(&own, phase)?.is_some() || run.layout.training_state(phase).exists() {
                return Ok(());
            }
        }
        let runs = own.parent().filter(|runs| runs.is_dir());
        let others = runs.map(files::list).transpose()?.unwrap_or_default();
        for phase in phases {
            let settings = self.models.phase_settings(&run.config, phase);
            let start = (phase == FINETUNE && self.models.starts_pretrained(&run.config)).then(|| {
                let of_start = Manifest::find(&run.config.pretraining_run(&run.layout).run(), PRETRAIN);
                of_start.and_then(|record| record.outputs.into_values().next()).map(|weights| weights.fingerprint)
            });
            if matches!(start, Some(None)) {
                return Ok(());
            }
            // Fine-tuning has to start from the same weights, or from random ones as well.
            let starts_alike = |record: &Manifest| match &start {
                None => !record.inputs.contains_key(role::PRETRAINED_WEIGHTS),
                Some(weights) => {
                    record.inputs.get(role::PRETRAINED_WEIGHTS).map(|input| &input.fingerprint) == weights.as_ref()
                }
            };
            let is_same = |path: &&PathBuf| {
                Manifest::find(path, phase)
                    .is_some_and(|record| settings.changed_since(&record.settings).is_none() && starts_alike(&record))
                    && Config::load(&path.join("config.toml"), &[], &self.models)
                        .is_ok_and(|(config, _)| features_key(&config) == features_key(&run.config))
            };
            let Some(other) = others.iter().find(is_same) else { return Ok(()) };
            let name = other.file_name().unwrap_or_default().to_string_lossy();
            copy_phase(&run.layout.of(&run.config.dataset.name, &name), &run.layout, phase)?;
            files::write_bytes(&run.layout.run_config(), run.config.to_toml()?.as_bytes())?;
            self.progress.log(format!(
                "runs: `{}` has the weights of `{name}`, which has the same settings ({phase})",
                run.spec.name
            ));
        }
        Ok(())
    }

    /// The settings that determine pre-training; `None` if the run does not pre-train. Equal keys do not guarantee that runs can share
    /// weights: the stage decides this from its record.
    fn pretrain_key(&self, run: &ResolvedRun) -> Option<Value> {
        let settings = || self.models.phase_settings(&run.config, PRETRAIN).values().clone();
        self.models.trains(&run.config, PRETRAIN).then(|| json!([features_key(&run.config), settings()]))
    }

    /// The catalogue of models.
    pub fn models(&self) -> &ModelCatalog {
        &self.models
    }

    /// Calls `work` for the runs `which`, several at once.
    fn parallel(
        &self,
        which: &[usize],
        failed: &mut [Option<RunFailure>],
        done_word: &str,
        work: impl Fn(usize) -> anyhow::Result<()> + Sync,
    ) {
        let (next, done, errors) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.min(which.len()) {
                scope.spawn(|| {
                    while let Some(&at) = which.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = work(at)
                            && let Ok(mut errors) = errors.lock()
                        {
                            errors.push((at, RunFailure::of(&error)));
                        }
                        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                        self.progress.log(format!("runs: {done} of {} {done_word}", which.len()));
                    }
                });
            }
        });
        for (at, error) in errors.into_inner().unwrap_or_default() {
            failed[at] = Some(error);
        }
    }

    /// Runs one stage for a run.
    fn stage(&self, resolved: &ResolvedRun, stage: StageName) -> anyhow::Result<()> {
        let is_training = [StageName::Pretrain, StageName::Finetune].contains(&stage);
        let restart: &[&str] = if is_training && self.restarts { &["--restart"] } else { &[] };
        self.command_of(resolved, &[stage.words(), restart].concat())
    }

    /// Runs the subcommand in `words` for a run in a separate process, and passes on its warnings. Its error is that of the subcommand.
    fn command_of(&self, resolved: &ResolvedRun, words: &[&str]) -> anyhow::Result<()> {
        let (args, run) = (&self.args, &resolved.spec);
        let mut command = Command::new(&self.program);
        command.args(words).arg("--pipeline").arg(&run.pipeline).arg("--run").arg(&run.name);
        command.arg("--artifacts").arg(&args.artifacts);
        // The settings of these variables are already in the runner's own flags, and not every run shares them.
        command.env_remove("MP4SR_DATA").env_remove("MP4SR_SET");
        if let Some(data) = self.data(&run.pipeline)? {
            command.arg("--data").arg(data);
        }
        self.overrides(run).iter().for_each(|assignment| {
            command.arg("--set").arg(assignment);
        });
        if self.jobs > 1 {
            command.env("RAYON_NUM_THREADS", (rayon::current_num_threads() / self.jobs).max(1).to_string());
        }
        command.env(TIED, "1").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut run_it = || -> std::io::Result<Output> {
            let mut child = command.spawn()?;
            // The pipe is open for as long as this process lives; the child exits when it closes.
            let _tie = child.stdin.take();
            child.wait_with_output()
        };
        let output = run_it()
            .with_context(|| format!("failed to run `mp4sr {}` (`{}`)", words.join(" "), self.program.display()))?;
        let messages = String::from_utf8_lossy(&output.stderr);
        for warning in messages.lines().filter(|line| is_warning_line(line)) {
            self.progress.log(format!("run `{}`: {warning}", run.name));
        }
        if output.status.success() {
            return Ok(());
        }
        let last = messages.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        // The last line of a process that was killed may be about its work, and not say why it ended.
        if output.status.code().is_none() {
            let (name, status) = (&run.name, output.status);
            anyhow::bail!("run `{name}`: it ended with {status} after `{last}`; run the command again to resume it");
        }
        anyhow::bail!("run `{}`: {}", run.name, last.trim_start_matches("error: "))
    }
}

/// Groups the indices of runs by equal keys, ordered by their first run; runs without a key are in no group.
fn groups(runs: &[ResolvedRun], key: impl Fn(&ResolvedRun) -> Option<Value>) -> Vec<Vec<usize>> {
    let mut index: BTreeMap<String, usize> = BTreeMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (at, run) in runs.iter().enumerate() {
        let Some(key) = key(run) else { continue };
        let group = *index.entry(key.to_string()).or_insert(groups.len());
        if group == groups.len() {
            groups.push(Vec::new());
        }
        groups[group].push(at);
    }
    groups
}

/// The settings that determine the dataset and the features.
fn features_key(config: &Config) -> Value {
    let Config { dataset, source, preprocess, extract, .. } = config;
    json!([dataset, source, preprocess, extract, config.extracted()])
}

/// Copies the record, weights, log and times of a phase to a run.
fn copy_phase(from: &Layout, to: &Layout, phase: &str) -> anyhow::Result<()> {
    let record = Manifest::read(&from.run(), phase)?;
    let record =
        record.with_context(|| format!("`{}` has no weights of {phase}; run it again", from.run().display()))?;
    let read = |layout: &Layout, is_kept: fn(&str, &str) -> bool| -> mp4sr_artifact::Result<Vec<EpochLine>> {
        let path = layout.metrics_log();
        let mut lines =
            if path.exists() { EpochLine::read(&path, "delete the run's folder and try again")? } else { Vec::new() };
        lines.retain(|line| is_kept(&line.phase, phase));
        Ok(lines)
    };
    let lines = [read(to, |own, phase| own != phase)?, read(from, |own, phase| own == phase)?].concat();
    if !lines.is_empty() {
        let log: String = lines.iter().map(log_line).collect();
        files::write_bytes(&to.metrics_log(), log.as_bytes())?;
    }
    let (times, own) = (Timing::path(&from.run(), phase), Timing::path(&to.run(), phase));
    if times.exists() {
        files::copy(&times, &own)?;
    }
    files::copy(&from.checkpoint(phase), &to.checkpoint(phase))?;
    // The record is written last, so that the phase runs again if the copy was interrupted.
    Ok(files::write_json(&Manifest::path(&to.run(), phase), &record)?)
}
