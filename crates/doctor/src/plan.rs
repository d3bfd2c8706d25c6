//! Which stages would run and why, what they read and write, and what would stop them.

use std::path::{Path, PathBuf};

use mp4sr_artifact::{Manifest, Stage, Status, Timing, files, role};
use mp4sr_extract::{
    EncoderFacts, EncoderLocation, EncoderRole, dictionary, encoder_device, encoders, is_offline, local_stage,
};
use mp4sr_ops::ComputeDevice;
use mp4sr_pipeline::config::{FINETUNE, ImageFeatures, Modality, ModelType, PRETRAIN, SplitBy};
use mp4sr_pipeline::text::bytes;
use mp4sr_pipeline::{Config, Context, StageName, error_chain};
use mp4sr_run::{Inputs, TrainedModel, other_added_items, other_data_settings, other_settings};

use crate::estimate::{Cost, Estimator};
use crate::machine::{Machine, check_writable};
use crate::sizes::{DatasetSizes, InspectedFile, SizeBasis, raw_files};

/// What a stage would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageVerdict {
    /// Its outputs are the same as those that it would write.
    UpToDate,
    /// It would run, for this reason.
    Runs(String),
    /// This pipeline has nothing for it to do, for this reason.
    Nothing(String),
    /// It cannot run, for this reason.
    Blocked(String),
    /// It cannot run, because this stage cannot.
    BlockedBy(StageName),
}

/// The plan for one stage.
#[derive(Clone, Debug)]
pub struct StagePlan {
    /// The stage.
    pub stage: StageName,
    /// What it would do.
    pub verdict: StageVerdict,
    /// The files that it reads, by role.
    pub reads: Vec<(String, PathBuf)>,
    /// The folder that it writes to.
    pub writes: PathBuf,
    /// The estimated cost, if the sizes are known and the stage would run, or would run if it were not blocked.
    pub cost: Option<Cost>,
    /// The time and memory of its last run, if it is up to date.
    pub took: Option<Timing>,
}

/// The stages that a plan covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All stages up to this one.
    Until(StageName),
    /// This stage alone, whose inputs must exist.
    Only(StageName),
}

/// The question that a plan answers.
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    /// The pipeline file.
    pub pipeline: &'q Path,
    /// The stages that the plan covers.
    pub scope: Scope,
    /// Whether to ask the hub for the sizes of encoders.
    pub online: bool,
    /// Whether the raw files are the sample world, which is generated.
    pub is_sample_world: bool,
}

/// What the stages of a pipeline would do.
///
/// ```
/// use std::{path::Path, sync::Arc};
///
/// use mp4sr_artifact::Layout;
/// use mp4sr_doctor::{Plan, Question, Scope, StageVerdict};
/// use mp4sr_pipeline::config::ModelCatalog;
/// use mp4sr_pipeline::{Config, Context, Progress, StageName};
///
/// let models = Arc::new(ModelCatalog::unchecked());
/// let text = "[dataset]\nname = \"shop\"\n[source]\ninteractions = [\"missing.json.gz\"]";
/// let (config, _) = Config::parse(text, "shop.toml", &[], &models)?;
/// let layout = Layout::new(Path::new("artifacts"), "shop", "mp4sr");
/// let context = Context { config, layout, progress: Progress::new(true), models };
/// let scope = Scope::Only(StageName::Preprocess);
/// let question = Question { pipeline: Path::new("shop.toml"), scope, online: false, is_sample_world: false };
/// let plan = Plan::of(&context, question);
/// assert!(matches!(plan.stages[0].verdict, StageVerdict::Blocked(_)), "the raw file does not exist");
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    /// The stages, in their order.
    pub stages: Vec<StagePlan>,
    /// The raw files, if all of them were found.
    pub raw: Vec<InspectedFile>,
    /// The folder of images, if the pipeline names one, with the number of its entries or `None` if it does not exist.
    pub images: Option<(PathBuf, Option<usize>)>,
    /// The encoders, if the plan covers extraction.
    pub encoders: Vec<EncoderFacts>,
    /// The free resources of the machine.
    pub machine: Machine,
    /// The size of the dataset, if it is known.
    pub sizes: Option<DatasetSizes>,
    /// What would stop the run.
    pub problems: Vec<String>,
    /// Other findings that are worth knowing.
    pub notes: Vec<String>,
}

impl Scope {
    fn stages(self, context: &Context) -> Vec<StageName> {
        match self {
            Self::Until(stage) => stage.path_for(&context.config, &context.models),
            Self::Only(stage) => vec![stage],
        }
    }
}

impl Plan {
    /// Makes the plan.
    pub fn of(context: &Context, question: Question<'_>) -> Self {
        let config = &context.config;
        let names = question.scope.stages(context);
        let mut plan = Self {
            stages: Vec::new(),
            raw: Vec::new(),
            images: None,
            encoders: Vec::new(),
            machine: Machine::of(context.layout.root()),
            sizes: None,
            problems: Vec::new(),
            notes: Vec::new(),
        };
        match device(&config.run.device) {
            Ok(()) => plan.problems.extend(precisions(context, &names)),
            Err(problem) => plan.problems.push(problem),
        }
        let raw = plan.inspect_raw_files(context, question, names.contains(&StageName::Preprocess));
        if names.contains(&StageName::Extract) {
            plan.encoders = encoders(context, question.online);
        }
        for stage in names {
            let planned = plan.stage(context, question, stage, raw.as_ref().err());
            plan.stages.push(planned);
        }
        plan.find_sizes(context, question, raw.is_ok());
        plan.estimate(context);
        plan.judge(context);
        plan
    }

    /// Finds the raw files. Fails if they are needed and one of them cannot be read.
    fn inspect_raw_files(&mut self, context: &Context, question: Question<'_>, reads: bool) -> Result<(), String> {
        let config = &context.config;
        let folder = config.source.images.as_str();
        let is_pattern = folder.contains(['{', '*']);
        let is_generated = question.is_sample_world && raw_is_absent(config);
        if reads && !folder.is_empty() && !is_pattern && !is_generated {
            let path = Path::new(&config.dataset.data).join(folder);
            let count = path.is_dir().then(|| files::list(&path).map_or(0, |files| files.len()));
            self.images = Some((path, count));
        }
        let found = mp4sr_preprocess::check_settings(config).and_then(|()| mp4sr_preprocess::inputs(config));
        match found {
            Ok(found) => {
                self.raw = raw_files(config, &found);
                match self.raw.iter().find_map(|file| file.rows.as_ref().err()) {
                    Some(problem) if reads => Err(problem.clone()),
                    _ => Ok(()),
                }
            }
            Err(_) if question.is_sample_world => {
                if reads {
                    self.notes.push(
                        "the sample world does not exist yet; `mp4sr run` generates it in seconds, 10 MB".to_owned(),
                    );
                }
                Ok(())
            }
            Err(error) if reads => Err(error.to_string()),
            // If the dataset already exists, its raw files are not needed.
            Err(_) => Ok(()),
        }
    }

    fn find_sizes(&mut self, context: &Context, question: Question<'_>, raw_is_ok: bool) {
        let makes_dataset = self.stages.iter().any(|planned| {
            planned.stage == StageName::Preprocess && !matches!(planned.verdict, StageVerdict::UpToDate)
        });
        if !makes_dataset {
            self.sizes = DatasetSizes::of_dataset(&context.layout, &context.config, &self.raw);
            return;
        }
        if self.raw.is_empty() && question.is_sample_world {
            self.sizes = Some(DatasetSizes::of_sample_world());
        } else if raw_is_ok {
            match DatasetSizes::of_raw_files(context, &self.raw) {
                Ok(sizes) => self.sizes = Some(sizes),
                Err(error) => self.block(StageName::Preprocess, &error_chain(&error)),
            }
        }
    }

    /// Marks a stage and all stages that depend on it as blocked.
    fn block(&mut self, stage: StageName, why: &str) {
        for planned in &mut self.stages {
            if planned.stage == stage {
                planned.verdict = StageVerdict::Blocked(why.to_owned());
            } else if planned.stage.path().contains(&stage) && matches!(planned.verdict, StageVerdict::Runs(_)) {
                planned.verdict = StageVerdict::BlockedBy(stage);
            }
        }
    }

    fn stage(&self, context: &Context, question: Question<'_>, stage: StageName, raw: Option<&String>) -> StagePlan {
        let (reads, writes) = (reads(context, stage, &self.raw), folder(context, stage));
        let verdict = self.verdict(context, question, stage, &reads, raw);
        let took = match verdict {
            StageVerdict::UpToDate => Timing::read(&Timing::path(&writes, stage.name())).ok().flatten(),
            _ => None,
        };
        StagePlan { stage, verdict, reads, writes, cost: None, took }
    }

    fn verdict(
        &self,
        context: &Context,
        question: Question<'_>,
        stage: StageName,
        reads: &[(String, PathBuf)],
        raw: Option<&String>,
    ) -> StageVerdict {
        let (config, models) = (&context.config, &context.models);
        if let Some(phase) = phase(stage).filter(|phase| !models.trains(config, phase)) {
            let why = match config.pretrain.from.as_str() {
                _ if !models.starts_pretrained(config) => "the run starts from random weights".to_owned(),
                from => format!("the weights are those of `{from}`"),
            };
            debug_assert!(phase == PRETRAIN);
            return StageVerdict::Nothing(why);
        }
        if stage == StageName::Preprocess {
            if let Some(why) = raw {
                return StageVerdict::Blocked(why.clone());
            }
            if self.raw.is_empty() {
                return StageVerdict::Runs("not run yet".to_owned());
            }
        }
        let needs = |planned: &&StagePlan| planned.stage != stage && stage.path().contains(&planned.stage);
        let is_blocked =
            |planned: &&StagePlan| matches!(planned.verdict, StageVerdict::Blocked(_) | StageVerdict::BlockedBy(_));
        if let Some(planned) = self.stages.iter().filter(needs).find(is_blocked) {
            return StageVerdict::BlockedBy(planned.stage);
        }
        let before = self.stages.iter().filter(needs).find(|planned| matches!(planned.verdict, StageVerdict::Runs(_)));
        if let Some(missing) = missing(context, question, stage, reads) {
            return StageVerdict::Blocked(missing);
        }
        if let Err(error) = check_states(context, &[stage]) {
            return StageVerdict::Blocked(error.to_string());
        }
        if let Some(planned) = before {
            return StageVerdict::Runs(format!("after `{}`", planned.stage.name()));
        }
        let runs = |why: String| match stage {
            StageName::Finetune => match mp4sr_train::command::check_start(context) {
                Ok(()) => StageVerdict::Runs(why),
                Err(error) => StageVerdict::Blocked(error_chain(&error)),
            },
            _ => StageVerdict::Runs(why),
        };
        if Manifest::find(&folder(context, stage), stage.name()).is_none() {
            return runs("not run yet".to_owned());
        }
        match record(context, question.pipeline, stage).and_then(|stage| Ok(stage.status()?)) {
            Ok(Status::UpToDate) => StageVerdict::UpToDate,
            Ok(Status::Stale(why)) => runs(why),
            // The current version of its encoders is unknown on this machine; the stage itself will look it up.
            Err(_) if stage == StageName::Extract => StageVerdict::Runs(
                "its encoders are not in the cache; if they are those of its last run, nothing is computed".to_owned(),
            ),
            Err(error) => StageVerdict::Blocked(error_chain(&error)),
        }
    }

    fn estimate(&mut self, context: &Context) {
        let Some(sizes) = self.sizes else { return };
        let runs = |planned: &StagePlan| !matches!(planned.verdict, StageVerdict::UpToDate | StageVerdict::Nothing(_));
        let inspected = if self.encoders.is_empty() && self.stages.iter().any(runs) {
            encoders(context, false)
        } else {
            Vec::new()
        };
        let known = if self.encoders.is_empty() { &inspected } else { &self.encoders };
        let estimator = Estimator { context, sizes, encoders: known, threads: self.machine.threads };
        let has_sounds = known.iter().any(|encoder| encoder.role == EncoderRole::Sounds);
        if has_sounds && self.stages.iter().any(|planned| planned.stage == StageName::Extract && runs(planned)) {
            self.notes.push("the estimate of `extract` leaves out the time for sounds".to_owned());
        }
        let mut kept: f64 = 0.0;
        for planned in &mut self.stages {
            planned.cost = runs(planned).then(|| estimator.cost(planned.stage));
            if let Some(cost) = &mut planned.cost {
                // The stages run one after the other in one process, which does not return the memory of training to the system.
                kept = kept.max(cost.memory.high);
                cost.memory.high = kept;
            }
        }
    }

    /// The stages that would run, with their costs if the sizes are known.
    pub(crate) fn running(&self) -> impl Iterator<Item = (StageName, Cost)> {
        let running = self.stages.iter().filter(|planned| matches!(planned.verdict, StageVerdict::Runs(_)));
        running.filter_map(|planned| planned.cost.map(|cost| (planned.stage, cost)))
    }

    fn runs(&self, stage: StageName) -> bool {
        self.stages.iter().any(|planned| planned.stage == stage && matches!(planned.verdict, StageVerdict::Runs(_)))
    }

    /// Collects what would stop the run and what is worth knowing.
    fn judge(&mut self, context: &Context) {
        for planned in &self.stages {
            if let StageVerdict::Blocked(why) = &planned.verdict {
                self.problems.push(format!("`{}` cannot run: {why}", planned.stage.name()));
            }
        }
        if self.runs(StageName::Extract) {
            self.judge_encoders();
        }
        self.judge_lengths(context);
        self.judge_modalities(context);
        self.judge_categories(context);
        self.judge_settings(context);
        let written: f64 = self.running().map(|(_, cost)| cost.disk).sum();
        if let Some(free) = self.machine.disk.filter(|&free| written > free as f64) {
            self.problems.push(format!(
                "up to {} will be written, but only {} is available on the disk of the artifacts; free disk space, or name another disk \
                 with `--artifacts`",
                bytes(written as u64),
                bytes(free)
            ));
        }
        if let Some(reason) = check_writable(context.layout.root()).err().filter(|_| self.running().next().is_some()) {
            self.problems.push(format!(
                "`{}` cannot be written to ({reason}); name another folder with `--artifacts`, or change its permissions",
                context.layout.root().display()
            ));
        }
        let memory = self.machine.memory;
        for (stage, cost) in self.running().collect::<Vec<_>>() {
            let name = stage.name();
            if cost.memory.low > memory as f64 {
                self.problems.push(format!(
                    "`{name}` needs at least {} of memory, but only {} is available; close other programs, or use fewer items or a smaller batch",
                    bytes(cost.memory.low as u64),
                    bytes(memory)
                ));
            } else if cost.memory.high > memory as f64 {
                self.notes.push(format!(
                    "`{name}` may need up to {} of memory, but only {} is available",
                    bytes(cost.memory.high as u64),
                    bytes(memory)
                ));
            }
        }
    }

    fn judge_encoders(&mut self) {
        let offline = is_offline();
        for encoder in &self.encoders {
            match &encoder.location {
                EncoderLocation::Unusable(why) => self.problems.push(format!("`extract` cannot run: {why}")),
                EncoderLocation::Hub if offline => self.problems.push(format!(
                    "`extract` cannot run: `{}` is not in the hub's cache, and `HF_HUB_OFFLINE` is on; download it once where the hub can be \
                     reached, or name a folder",
                    encoder.name
                )),
                _ => {}
            }
        }
    }

    /// Reports histories that are too short for training with leave-one-out, which takes two events of each for validation and test.
    fn judge_lengths(&mut self, context: &Context) {
        let config = &context.config;
        let trains = self.runs(StageName::Pretrain) || self.runs(StageName::Finetune);
        let needed = context.models.model(&config.model.name).map_or(0, |model| model.training_events(config));
        let is_left_out = config.preprocess.split == SplitBy::LeaveOneOut;
        let is_short = |sizes: &DatasetSizes| needed > 0 && sizes.longest < needed as u64 + 2;
        let Some(sizes) = self.sizes.filter(|sizes| trains && is_left_out && is_short(sizes)) else { return };
        let sentence = format!(
            "no user has more than {} events, and `{}` needs users with {}: {needed} for training, and one each for validation and test; \
             use data with longer histories, or a model without training (`model.name = \"popularity\"`)",
            sizes.longest,
            config.model.name,
            needed + 2
        );
        if sizes.basis == SizeBasis::Sample { self.notes.push(sentence) } else { self.problems.push(sentence) }
    }

    /// Reports modalities that no item has, because they stop the training of models that read them.
    fn judge_modalities(&mut self, context: &Context) {
        let Some(sizes) = self.sizes else { return };
        if !context.models.model(&context.config.model.name).is_none_or(ModelType::reads_features) {
            return;
        }
        let extracted = context.config.extracted();
        let trains = self.runs(StageName::Pretrain) || self.runs(StageName::Finetune);
        if !trains && !self.runs(StageName::Extract) {
            return;
        }
        let fetch = if sizes.image_urls > 0.0 {
            "; its images are URLs, which `mp4sr download` downloads once the dataset exists"
        } else {
            "; name files with images in `[source]`"
        };
        let lost = [
            (extracted.text && sizes.sentences <= 0.0, "text", "; name files with texts in `[source]`"),
            (extracted.image && sizes.images <= 0.0, "image", fetch),
        ];
        for (_, modality, more) in lost.into_iter().filter(|(is_lost, ..)| *is_lost) {
            let sentence = format!(
                "no item has a file or sentence for the modality `{modality}`{more}, or leave it out of `model.modalities`"
            );
            if sizes.basis == SizeBasis::Sample { self.notes.push(sentence) } else { self.problems.push(sentence) }
        }
        if extracted.image && sizes.images > 0.0 && sizes.image_urls > 0.0 {
            self.notes
                .push("some images are URLs that have not been downloaded; `mp4sr download` downloads them".to_owned());
        }
    }

    /// Reports settings with which the results that a single stage reads were not made. A run makes them again.
    fn judge_settings(&mut self, context: &Context) {
        let (layout, config) = (&context.layout, &context.config);
        self.notes.extend(other_added_items(layout, config));
        match self.stages.as_slice() {
            [StagePlan { stage: StageName::Pretrain | StageName::Finetune, .. }] => {
                self.notes.extend(other_data_settings(layout, config));
            }
            [StagePlan { stage: StageName::Evaluate | StageName::Recommend | StageName::Report, .. }] => {
                self.notes.extend(other_settings(layout, config));
            }
            _ => {}
        }
    }

    /// Reports a model that reads categories if no item has one, because its training would stop.
    fn judge_categories(&mut self, context: &Context) {
        let config = &context.config;
        let Some(key) = context.models.model(&config.model.name).and_then(|model| model.category_key(config)) else {
            return;
        };
        let trains = self.runs(StageName::Pretrain) || self.runs(StageName::Finetune);
        let Some(sizes) = self.sizes.filter(|sizes| trains && sizes.categories == 0) else { return };
        let sentence = format!(
            "`{key}` needs categories of items, and no item has one; name their column in `source.columns.categories`, or use the features of \
             the modalities"
        );
        if sizes.basis == SizeBasis::Sample { self.notes.push(sentence) } else { self.problems.push(sentence) }
    }
}

/// The reason why the stage cannot run: it needs a file that is missing and that no earlier stage of the plan writes.
fn missing(context: &Context, question: Question<'_>, stage: StageName, reads: &[(String, PathBuf)]) -> Option<String> {
    let config = &context.config;
    let absent = |(_, path): &&(String, PathBuf)| !path.exists();
    if let Scope::Only(_) = question.scope {
        let (_, path) = reads.iter().find(absent)?;
        let producer = producer(context, stage, path);
        return Some(match producer {
            Some(made_by) => {
                format!("`{}` is missing; `mp4sr run --until {}` creates it", path.display(), made_by.name())
            }
            None => format!("`{}` is missing, and no stage of this pipeline creates it", path.display()),
        });
    }
    if let Some(why) = unreadable_by_key(context, stage) {
        return Some(why);
    }
    // In a run, earlier stages write their outputs first; files from elsewhere must exist already.
    let is_extracted = |modality: &&Modality| modality.features.is_empty() && MODALITIES.contains(&&*modality.name);
    let own = config.model.modalities.iter().filter(|modality| !is_extracted(modality));
    let from_elsewhere = own
        .map(|modality| context.layout.feature_file(&modality.name, &config.feature_name(modality)))
        .chain((!config.pretrain.from.is_empty()).then(|| reads.last().map(|(_, path)| path.clone())).flatten());
    let is_trained = phase(stage) == Some(FINETUNE) || phase(stage) == Some(PRETRAIN);
    let mut lost =
        from_elsewhere.filter(|path| is_trained && reads.iter().any(|(_, read)| read == path) && !path.exists());
    lost.next().map(|path| {
        let is_unknown = |modality: &&Modality| {
            modality.features.is_empty()
                && path == context.layout.feature_file(&modality.name, &config.feature_name(modality))
        };
        let remedy = match config.model.modalities.iter().find(is_unknown) {
            Some(_) => format!("; write it, or name a modality that `extract` computes: {}", MODALITIES.join(", ")),
            None => String::new(),
        };
        format!("`{}` is missing, and no stage of this pipeline creates it{remedy}", path.display())
    })
}

/// Why the first file that a key makes the stage read, and that no stage of this run writes, cannot be read, with what to do.
fn unreadable_by_key(context: &Context, stage: StageName) -> Option<String> {
    let (config, layout) = (&context.config, &context.layout);
    match stage {
        StageName::Extract => {
            let image = &config.extract.image;
            let reads_words = config.extracted().image && image.features == ImageFeatures::Words;
            if !reads_words || image.dictionary.is_empty() {
                return None;
            }
            let path = Path::new(&image.dictionary);
            if !path.exists() {
                return Some(format!("`{}` is missing; correct `extract.image.dictionary`", image.dictionary));
            }
            dictionary::read(path).err().map(|error| error.to_string())
        }
        StageName::Report => {
            let others = config.report.beside.iter().filter(|name| *name != layout.run_name());
            let sets = ["validation", "test"];
            let mut ranks = others.flat_map(|name| sets.map(|set| (name, layout.with_run(name).ranks(set))));
            let (name, path) = ranks.find(|(_, path)| !path.exists())?;
            Some(format!(
                "`{}` is missing; run `mp4sr evaluate` for the run `{name}`, or remove it from `report.beside`",
                path.display()
            ))
        }
        _ => None,
    }
}

/// The modalities whose features `extract` computes.
const MODALITIES: [&str; 3] = ["text", "image", "audio"];

/// Whether any raw file is missing.
fn raw_is_absent(config: &Config) -> bool {
    let data = Path::new(&config.dataset.data);
    config.source.interactions.iter().chain(&config.source.items).any(|name| !data.join(name).exists())
}

/// Returns an error if the device of these stages cannot be used, or lacks the precision of one that has not run yet. The first stages may
/// take hours, so the user should learn of the problem before they start.
pub fn expect_devices(context: &Context, stages: &[StageName]) -> anyhow::Result<()> {
    // These two compute no tensors.
    let computes = |stage: StageName| !matches!(stage, StageName::Preprocess | StageName::Report);
    let is_done = |stage: StageName| {
        record(context, Path::new(""), stage)
            .and_then(|stage| Ok(stage.status()?))
            .is_ok_and(|it| it == Status::UpToDate)
    };
    let ahead: Vec<StageName> = stages.iter().copied().filter(|&stage| computes(stage) && !is_done(stage)).collect();
    if !ahead.is_empty() {
        device(&context.config.run.device).map_err(anyhow::Error::msg)?;
    }
    match precisions(context, &ahead).into_iter().next() {
        Some(problem) => Err(anyhow::Error::msg(problem)),
        None => Ok(()),
    }
}

/// Refuses a run of these stages if one of them needs a file that is missing and that none of them writes.
pub fn check_inputs(context: &Context, stages: &[StageName]) -> anyhow::Result<()> {
    let scope = Scope::Until(StageName::Report);
    let question = Question { pipeline: Path::new(""), scope, online: false, is_sample_world: false };
    let why = |&stage: &StageName| Some((stage, missing(context, question, stage, &reads(context, stage, &[]))?));
    match stages.iter().find_map(why) {
        Some((stage, why)) => Err(anyhow::Error::msg(format!("`{}` cannot run: {why}", stage.name()))),
        None => Ok(()),
    }
}

/// Refuses the states of unfinished trainings that these stages would refuse.
pub fn check_states(context: &Context, stages: &[StageName]) -> anyhow::Result<()> {
    let mut phases = stages.iter().filter_map(|&stage| phase(stage));
    phases.try_for_each(|phase| mp4sr_train::command::check_state(context, phase))
}

fn device(name: &str) -> Result<(), String> {
    if name == "cpu" {
        return Ok(());
    }
    let parsed: Result<ComputeDevice, String> = name.parse();
    let opened = parsed.and_then(|device| device.open().map_err(|e| e.to_string()));
    opened.map(drop).map_err(|why| format!("`run.device` = {name:?} cannot be used: {why}"))
}

/// The errors about precisions that the device of these stages does not support.
fn precisions(context: &Context, stages: &[StageName]) -> Vec<String> {
    let of_encoders = stages.contains(&StageName::Extract).then(|| encoder_device(context).map(drop));
    let trains = stages.iter().any(|&stage| phase(stage).is_some());
    let of_training = trains.then(|| mp4sr_train::command::precision(&context.config).map(drop));
    of_encoders
        .into_iter()
        .chain(of_training)
        .filter_map(|checked| checked.err().map(|why| error_chain(&why)))
        .collect()
}

/// The training phase of a stage.
fn phase(stage: StageName) -> Option<&'static str> {
    match stage {
        StageName::Pretrain => Some(PRETRAIN),
        StageName::Finetune => Some(FINETUNE),
        _ => None,
    }
}

/// The folder that a stage writes to.
fn folder(context: &Context, stage: StageName) -> PathBuf {
    let layout = &context.layout;
    match stage {
        StageName::Preprocess => layout.dataset(),
        StageName::Extract => layout.features(),
        StageName::Report => layout.report(),
        _ => layout.run(),
    }
}

/// The files that a stage reads, by role.
fn reads(context: &Context, stage: StageName, raw: &[InspectedFile]) -> Vec<(String, PathBuf)> {
    let (config, layout) = (&context.config, &context.layout);
    let named = |role: &str, path: PathBuf| (role.to_owned(), path);
    match stage {
        StageName::Preprocess => raw.iter().map(|file| (file.role.clone(), file.path.clone())).collect(),
        StageName::Extract => vec![named(role::ITEMS, layout.items())],
        StageName::Pretrain => mp4sr_train::command::inputs(context, PRETRAIN),
        StageName::Finetune => mp4sr_train::command::inputs(context, FINETUNE),
        StageName::Evaluate => TrainedModel::files(layout, config),
        StageName::Recommend => mp4sr_recommend::command::inputs(context),
        StageName::Report => vec![
            named(role::SEQUENCES, layout.sequences()),
            named(role::ITEMS, layout.items()),
            named("ranks of validation", layout.ranks("validation")),
            named("ranks of test", layout.ranks("test")),
            named("lists", layout.recommendations()),
        ],
    }
}

/// The stage that writes a file which `stage` reads.
fn producer(context: &Context, stage: StageName, path: &Path) -> Option<StageName> {
    let layout = &context.layout;
    let made = |by: StageName, paths: &[PathBuf]| paths.iter().any(|made| made == path).then_some(by);
    let features: Vec<PathBuf> = Inputs::files(layout, &context.config)
        .into_iter()
        .map(|(_, path)| path)
        .filter(|path| path.starts_with(layout.features()))
        .filter(|path| {
            let own = context.config.model.modalities.iter().filter(|modality| !modality.features.is_empty());
            !own.map(|modality| layout.feature_file(&modality.name, &modality.features)).any(|own| own == *path)
        })
        .collect();
    made(StageName::Preprocess, &[layout.sequences(), layout.items(), layout.users()])
        .or_else(|| made(StageName::Extract, &features))
        .or_else(|| made(StageName::Pretrain, &[layout.checkpoint(PRETRAIN)]))
        .or_else(|| made(StageName::Finetune, &[layout.checkpoint(FINETUNE)]))
        .or_else(|| made(StageName::Evaluate, &[layout.ranks("validation"), layout.ranks("test")]))
        .or_else(|| made(StageName::Recommend, &[layout.recommendations()]))
        .filter(|by| *by != stage)
}

/// The stage as its own crate describes it.
fn record(context: &Context, pipeline: &Path, stage: StageName) -> anyhow::Result<Stage> {
    match stage {
        StageName::Preprocess => mp4sr_preprocess::stage(context),
        StageName::Extract => local_stage(context),
        StageName::Pretrain => mp4sr_train::command::stage(context, PRETRAIN),
        StageName::Finetune => mp4sr_train::command::stage(context, FINETUNE),
        StageName::Evaluate => mp4sr_evaluate::command::stage(context),
        StageName::Recommend => mp4sr_recommend::command::stage(context),
        StageName::Report => mp4sr_report::stage(context, pipeline),
    }
}
