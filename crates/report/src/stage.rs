//! The stage: reads the files of the runs and writes the report.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::slice;

use mp4sr_artifact::{
    Downloads, Error as FileError, ExtractReport, FINETUNE, Items, Layout, PRETRAIN, PreprocessReport, Sequences,
    Stage, StageSettings, Timing, files, recorded_settings, role,
};
use mp4sr_pipeline::{Bug, Config, Context, STAGES, StageName, print, run_stage};
use mp4sr_protocol::{
    Comparison, ItemFacts, ListComparison, Metric, MetricMeans, Reference, SeedLists, SeedRuns, Split, StoredRanks,
    UserFacts,
};
use serde_json::json;

use crate::breakdown::{BreakdownTable, RunRanks, breakdown_tables, breakdown_values, headline};
use crate::comparison;
use crate::curves::{RESTORE_LOG, TrainingLog, panels, sheet};
use crate::lists::{ListsTable, list_table};
use crate::page::Page;
use crate::table::{MetricsTable, RunMetrics, metric_values};
use crate::thumbnail::is_missing;
use crate::users::{ShownUser, UserCounts, UserLists};
use crate::words::{Words, read_words};
use crate::{Error, Result};

/// The version of the stage, which changes whenever the same files would give another report.
const VERSION: u32 = 5;
/// The evaluated sets, in the order of the page.
const SETS: [Split; 2] = [Split::Test, Split::Validation];

/// The prefix of the role of an input that is an image.
const IMAGE: &str = "image ";
/// The prefix of the role of an input that holds the time of a stage.
const TIMING: &str = "timing of ";
/// The number of images whose words are shown.
const DESCRIBED: usize = 8;
/// The number of most frequent words that are shown.
const FREQUENT: usize = 30;

/// Brings the report up to date and prints the metrics of the test set, with the runs side by side. `pipeline` is the file that the
/// commands in error messages name.
///
/// ```
/// use std::{path::Path, sync::Arc};
///
/// use mp4sr_artifact::{Layout, files};
/// use mp4sr_pipeline::config::ModelCatalog;
/// use mp4sr_pipeline::{Config, Context, Progress};
/// # use mp4sr_artifact::{Column, Items, Sequences, Table, TimeKind};
/// # use mp4sr_protocol::{RanksInfo, Split, StoredRanks};
///
/// # let folder = tempfile::tempdir()?;
/// let text = "dataset.name = \"shop\"\nevaluate.k = [1]\nreport.users = 0";
/// let models = Arc::new(ModelCatalog::unchecked());
/// let (config, _) = Config::parse(text, "shop.toml", &[], &models)?;
/// let layout = Layout::new(folder.path(), "shop", "mp4sr");
/// let context = Context { config, layout, progress: Progress::new(true), models };
///
/// # let layout = &context.layout;
/// # let texts = |texts: [&str; 3]| texts.map(str::to_owned).to_vec();
/// # let none = vec![Vec::new(); 3];
/// # let items = Items {
/// #     ids: texts(["cup", "pot", "pan"]),
/// #     titles: texts(["A cup", "A pot", "A pan"]),
/// #     sentences: none.clone(),
/// #     images: none.clone(),
/// #     categories: none.clone(),
/// #     sounds: none,
/// # };
/// # items.write(&layout.items())?;
/// # let sequences = Sequences {
/// #     offsets: vec![0, 3, 6],
/// #     items: vec![1, 2, 3, 2, 1, 3],
/// #     times: vec![1, 2, 3, 1, 2, 3],
/// #     item_hash: items.hash(),
/// #     item_count: 3,
/// #     user_hash: None,
/// #     time_kind: TimeKind::Unstated,
/// #     parts: None,
/// # };
/// # sequences.write(&layout.sequences(), serde_json::Value::Null)?;
/// # for split in [Split::Validation, Split::Test] {
/// #     let config = serde_json::Value::Null;
/// #     let info = RanksInfo { split: split.name().to_owned(), history: None, removes_seen: None, config };
/// #     StoredRanks { ranks: vec![1, 3], info }.write(&layout.ranks(split.name()), &items.hash(), Default::default())?;
/// # }
/// # let lists = vec![vec!["pan".to_owned()], vec!["cup".to_owned()]];
/// # Table::new(vec![("user", Column::U32(vec![1, 2])), ("items", Column::Texts(lists))]).write(&layout.recommendations())?;
/// // The run has been evaluated: the targets of its two users have the ranks 1 and 3.
/// mp4sr_report::run(&context, Path::new("shop.toml"))?;
/// let folder = context.layout.report();
/// assert!(folder.join("index.html").is_file());
/// let metrics = files::read_to_string(&folder.join("metrics.csv"))?;
/// assert!(metrics.starts_with("run,split,users,R@1,N@1,MRR\nmp4sr,test,2,0.5,0.5,0.66"));
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn run(context: &Context, pipeline: &Path) -> anyhow::Result<()> {
    let report = ReportStage { context, pipeline, runs: runs(context) };
    let folder = context.layout.report();
    run_stage(
        context,
        "report",
        &folder,
        || report.stage(),
        |stage| {
            let outputs = report.write(stage, &folder)?;
            stage.expect_unchanged_inputs()?;
            Ok(outputs)
        },
    )
    .map_err(|error| match error.downcast_ref::<Error>() {
        Some(Error::Chart(_)) => anyhow::Error::new(Bug(error.to_string())),
        _ => error,
    })?;
    let sequences = Sequences::read(&context.layout.sequences())?;
    print(&report.table(SETS[0], &report.ranked(SETS[0], &sequences)?)?.markdown(false))
}

/// The stage, with its inputs and the settings that determine the page.
pub fn stage(context: &Context, pipeline: &Path) -> anyhow::Result<Stage> {
    ReportStage { context, pipeline, runs: runs(context) }.stage()
}

/// The runs of `report.beside` in their order, then the run itself.
fn runs(context: &Context) -> Vec<Layout> {
    let own = context.layout.run_name();
    let mut names: Vec<&str> = Vec::new();
    for name in &context.config.report.beside {
        if name != own && !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.push(own);
    names.into_iter().map(|name| context.layout.with_run(name)).collect()
}

fn shown_items(users: &[ShownUser]) -> BTreeSet<usize> {
    users.iter().flat_map(ShownUser::items).collect()
}

/// Replaces the URL of an image that was downloaded by the path of its file.
fn to_fetched(downloads: &Downloads, name: &mut String) {
    let file = downloads.file(name);
    if Downloads::is_url(name) && file.is_file() {
        *name = file.to_string_lossy().into_owned();
    }
}

/// Reads the counts of preprocessing. It is an error if they do not belong to these sequences.
fn read_counts(layout: &Layout, sequences: &Sequences) -> Result<Option<PreprocessReport>> {
    let path = layout.statistics();
    let Some(report) = PreprocessReport::read(&path)? else { return Ok(None) };
    let counts = &report.statistics;
    let found = (counts.users, counts.items, counts.events);
    let expected = (sequences.user_count() as u64, sequences.item_count as u64, sequences.items.len() as u64);
    if found != expected {
        let reason = format!(
            "expected {} users, {} items and {} events as in the sequences beside it, found {}, {} and {}",
            expected.0, expected.1, expected.2, found.0, found.1, found.2
        );
        return Err(FileError::unusable(&path, reason, "run `mp4sr preprocess` again").into());
    }
    Ok(Some(report))
}

struct ReportStage<'a> {
    context: &'a Context,
    pipeline: &'a Path,
    /// The layouts of the runs; never empty, and the last is the run itself.
    runs: Vec<Layout>,
}

impl ReportStage<'_> {
    fn stage(&self) -> anyhow::Result<Stage> {
        let config = &self.context.config;
        let keys = |config: &Config| {
            json!({
                "beside": config.report.beside,
                "users": config.report.users,
                "k": config.evaluate.k,
                "metrics": config.evaluate.metrics,
            })
        };
        let mut values = keys(config);
        values["run"] = json!(self.context.layout.run_name());
        values["program"] = json!(env!("CARGO_PKG_VERSION"));
        let settings = StageSettings::new(values, keys(&Config::default())).shown_as(&[
            ("beside", "report.beside"),
            ("users", "report.users"),
            ("k", "evaluate.k"),
            ("metrics", "evaluate.metrics"),
            ("run", "run.name"),
        ]);
        Ok(Stage::new("report", VERSION, &self.context.layout.report(), settings, &self.inputs()?)?)
    }

    /// All files from which the report is built. A required file that is missing is an error.
    fn inputs(&self) -> Result<Vec<(String, PathBuf)>> {
        let own = &self.context.layout;
        let mut inputs = Vec::new();
        for layout in &self.runs {
            let run = layout.run_name();
            for split in SETS {
                let split = split.name();
                let path = self.required(layout, "ranks", layout.ranks(split), "evaluate")?;
                inputs.push((format!("ranks of {run}, {split}"), path));
            }
            inputs.push((format!("log of {run}"), layout.metrics_log()));
            if run != own.run_name() {
                inputs.push((format!("lists of {run}"), layout.recommendations()));
            }
        }
        let lists = self.required(own, "lists", own.recommendations(), "recommend")?;
        inputs.push(("lists".to_owned(), lists));
        inputs.push((role::SEQUENCES.to_owned(), self.required(own, role::SEQUENCES, own.sequences(), "preprocess")?));
        inputs.push((role::ITEMS.to_owned(), self.required(own, role::ITEMS, own.items(), "preprocess")?));
        inputs.push(("statistics".to_owned(), own.statistics()));
        inputs.extend(self.context.config.feature_files(own));
        inputs.push(("images".to_owned(), own.extract_report()));
        inputs.push(("configuration".to_owned(), own.run_config()));
        inputs.extend(self.words_file().map(|path| ("words of images".to_owned(), path)));
        // A stage that is up to date leaves its timing unchanged, so timings change only together with the outputs that they describe.
        inputs.extend(self.timing_files().into_iter().map(|(stage, path)| (format!("{TIMING}{stage}"), path)));
        // Some files never exist, for example those of a model without training or of a dataset from another program.
        inputs.retain(|(_, path)| path.exists());
        inputs.extend(self.images()?);
        Ok(inputs)
    }

    /// The file with the words of images from which the run's features were computed.
    fn words_file(&self) -> Option<PathBuf> {
        let (config, layout) = (&self.context.config, &self.context.layout);
        let files = config.model.modalities.iter().map(|m| layout.words_file(&m.name, &config.feature_name(m)));
        files.into_iter().find(|path| path.exists())
    }

    /// The paths at which the earlier stages leave their timings, in the order of the stages.
    fn timing_files(&self) -> Vec<(&'static str, PathBuf)> {
        let (config, layout) = (&self.context.config, &self.context.layout);
        let stages = STAGES.iter().filter(|row| row.stage != StageName::Report);
        // A run of this name may have been pre-trained before pre-training was disabled.
        let stages = stages.filter(|row| row.name != PRETRAIN || self.context.models.trains(config, PRETRAIN));
        stages.map(|row| (row.name, Timing::path(&row.stage.folder(layout), row.name))).collect()
    }

    /// The items; the URLs of downloaded images are replaced by the paths of their files.
    fn items(&self) -> Result<Items> {
        let mut items = Items::read_in(&self.context.layout.items(), Path::new(&self.context.config.dataset.data))?;
        let downloads = self.downloads();
        items.images.iter_mut().flatten().for_each(|name| to_fetched(&downloads, name));
        Ok(items)
    }

    fn downloads(&self) -> Downloads {
        Downloads::new(Path::new(&self.context.config.dataset.data))
    }

    /// The images on the page, by role and path. They are inputs, so an image that is repaired or downloaded makes the report stale.
    fn images(&self) -> Result<Vec<(String, PathBuf)>> {
        let items = self.items()?;
        let (users, _) = self.users(&items)?;
        let names = shown_items(&users).into_iter().flat_map(|item| &items.images[item]);
        let there = names.filter(|name| Path::new(name).is_file() && files::open(Path::new(name)).is_ok());
        Ok(there.map(|name| (format!("{IMAGE}{name}"), PathBuf::from(name))).collect())
    }

    /// The users on the page.
    fn users(&self, items: &Items) -> Result<(Vec<ShownUser>, UserCounts)> {
        let (count, layout) = (self.context.config.report.users, &self.context.layout);
        if count == 0 {
            return Ok((Vec::new(), UserCounts::default()));
        }
        let path = layout.recommendations();
        let lists = UserLists::read(&path)?;
        lists.expect_inputs(layout, &path)?;
        let (rows, counts) = lists.choose(count);
        let sequences = Sequences::read(&layout.sequences())?;
        let stored = StoredRanks::read(layout, &sequences, SETS[0], None)?;
        Ok((lists.show(&rows, items, &stored.ranks, &path)?, counts))
    }

    /// The statistics of the lists of all runs, at each K of the tables that all non-empty lists reach. Another run is left out if its lists
    /// do not exist, or were computed with weights other than those that it has now.
    fn lists_table(&self, items: &Items, sequences: &Sequences) -> Result<ListsTable> {
        let mut models = Vec::new();
        for layout in &self.runs {
            let is_own = layout.run_name() == self.context.layout.run_name();
            if !is_own && !layout.recommendations().exists() {
                continue;
            }
            match SeedLists::read(layout.run_name(), slice::from_ref(layout), items, sequences.user_count()) {
                Err(error) if !is_own => {
                    self.context.progress.warn("report", format!("{error}; its lists are left out"));
                }
                lists => models.push(lists?),
            }
        }
        let ks = &self.context.config.evaluate.k;
        let compared = ListComparison::all(&models, ks, &self.item_facts(sequences));
        Ok(ListsTable::new(&models, &compared, ks))
    }

    /// What the statistics of lists need to know about the items.
    fn item_facts(&self, sequences: &Sequences) -> ItemFacts {
        let features = self.context.config.feature_files(&self.context.layout);
        let (facts, error) = ItemFacts::read(sequences, &features);
        if let Some(error) = error {
            self.context.progress.warn("report", format!("{error}; the diversity of the lists is left out"));
        }
        facts
    }

    fn required(&self, layout: &Layout, what: &'static str, path: PathBuf, target: &str) -> Result<PathBuf> {
        if path.exists() {
            return Ok(path);
        }
        let run = layout.run_name();
        let mut remedy = format!("`mp4sr run --until {target} --pipeline {} --run {run}`", self.pipeline.display());
        if run != self.context.layout.run_name() {
            remedy.push_str(" and that run's own settings in `--set`, or remove it from `report.beside`");
        }
        Err(Error::Missing { run: run.to_owned(), what, path, remedy })
    }

    /// The ranks of all runs.
    fn ranked(&self, split: Split, sequences: &Sequences) -> Result<Vec<RunRanks>> {
        let read = |layout: &Layout| -> Result<RunRanks> {
            let StoredRanks { ranks, info } = StoredRanks::read(layout, sequences, split, None)?;
            Ok(RunRanks { run: layout.run_name().to_owned(), ranks, removes_seen: info.removes_seen })
        };
        self.runs.iter().map(read).collect()
    }

    fn table(&self, split: Split, ranked: &[RunRanks]) -> Result<MetricsTable> {
        let evaluate = &self.context.config.evaluate;
        let metrics = Metric::table(&evaluate.k, &evaluate.metrics);
        let mut rows: Vec<RunMetrics> = Vec::new();
        for RunRanks { run, ranks, .. } in ranked {
            let means = MetricMeans::of(ranks, &metrics);
            if let Some(first) = rows.first().filter(|first| first.means.users != means.users) {
                let (a, a_users) = (first.run.clone(), first.means.users);
                return Err(Error::OtherUsers {
                    a,
                    a_users,
                    b: run.clone(),
                    b_users: means.users,
                    split: split.name(),
                });
            }
            rows.push(RunMetrics { run: run.clone(), means });
        }
        Ok(MetricsTable { split, metrics, rows })
    }

    /// The training logs, the run's own first.
    fn logs(&self) -> Result<Vec<TrainingLog>> {
        let own_first = self.runs.iter().rev().take(1).chain(self.runs.iter().take(self.runs.len() - 1));
        let read = |layout: &Layout| {
            let path = layout.metrics_log();
            let mut log = TrainingLog::read(layout.run_name(), &path)?;
            self.keep_phases(&mut log, layout);
            let weights = layout.checkpoint(FINETUNE);
            log.expect_weights(&path, &weights)?;
            let epochs = || recorded_settings(&weights)?["epoch"].as_u64();
            if log.lines.is_empty() && epochs().is_some_and(|epochs| epochs > 0) {
                self.context.progress.warn(
                    "report",
                    format!("`{}` is missing, so the run has no training curves; {RESTORE_LOG}", path.display()),
                );
            }
            Ok(log)
        };
        own_first.map(read).collect()
    }

    /// Leaves out the phases that a run no longer has: it may have been pre-trained before pre-training was disabled.
    fn keep_phases(&self, log: &mut TrainingLog, layout: &Layout) {
        let models = &self.context.models;
        let is_own = layout.run_name() == self.context.layout.run_name();
        let other = || Config::load(&layout.run_config(), &[], models).ok().map(|(config, _)| config);
        let config = if is_own { Some(self.context.config.clone()) } else { other() };
        // A model of another program has the phases that its log names.
        if let Some(config) = config.filter(|config| models.model(&config.model.name).is_some()) {
            log.lines.retain(|line| models.trains(&config, &line.phase));
        }
    }

    fn write(&self, stage: &Stage, folder: &Path) -> Result<Vec<PathBuf>> {
        let (config, layout) = (&self.context.config, &self.context.layout);
        let items = self.items()?;
        let sequences = Sequences::read(&layout.sequences())?;
        let ranked = self.ranked(Split::Test, &sequences)?;
        let tables = [
            self.table(Split::Test, &ranked)?,
            self.table(Split::Validation, &self.ranked(Split::Validation, &sequences)?)?,
        ];
        let lists = self.lists_table(&items, &sequences)?;
        let metrics = headline(&config.evaluate.k);
        let breakdowns = breakdown_tables(&UserFacts::of(&sequences, Split::Test), &ranked, &metrics);
        let comparison = self.comparison(&ranked);
        let logs = self.logs()?;
        let panels = panels(&logs)?;
        let untrained: Vec<String> =
            logs.iter().filter(|log| log.lines.is_empty()).map(|log| log.run.clone()).collect();
        let counts = read_counts(layout, &sequences)?;
        let image_counts = ExtractReport::read(&layout.extract_report())?;

        let (users, user_counts) = self.users(&items)?;
        self.warn_of_missing_images(&users, &items);
        let words = self.words(&users, &items)?;
        let page = Page {
            dataset: &config.dataset.name,
            run: layout.run_name(),
            tables: &tables,
            comparison: &comparison,
            lists: &lists,
            breakdowns: &breakdowns,
            panels: &panels,
            untrained: &untrained,
            counts: counts.as_ref(),
            image_counts: image_counts.as_ref(),
            users: &users,
            user_counts,
            items: &items,
            words: words.as_ref(),
            timings: &self.timings()?,
            config: &self.settings_of_run()?,
            made_from: &self.made_from(stage),
        };

        let page_path = folder.join("index.html");
        files::write_bytes(&page_path, page.render().as_bytes())?;
        let markdown = folder.join("metrics.md");
        files::write_bytes(&markdown, self.markdown(&tables, &comparison, &lists, &breakdowns).as_bytes())?;
        let mut outputs = vec![page_path, markdown];
        let list_values = list_table(&lists.rows, |value, _| value.to_string());
        let tables = [
            ("metrics", metric_values(&tables)),
            ("lists", list_values),
            ("breakdowns", breakdown_values(&breakdowns)),
        ];
        for (name, table) in tables {
            let path = folder.join(format!("{name}.csv"));
            table.write_csv(&path)?;
            outputs.push(path);
        }
        let curves = folder.join("curves.svg");
        if panels.is_empty() {
            files::remove_if_present(&curves)?;
        } else {
            files::write_bytes(&curves, sheet(&panels).as_bytes())?;
            outputs.push(curves);
        }
        Ok(outputs)
    }

    /// The runs, compared with the last one.
    fn comparison(&self, ranked: &[RunRanks]) -> Comparison {
        let of_seed = |RunRanks { run, ranks, removes_seen }: &RunRanks| SeedRuns {
            name: run.clone(),
            ranks: vec![ranks.clone()],
            removes_seen: *removes_seen,
        };
        let groups: Vec<SeedRuns> = ranked.iter().map(of_seed).collect();
        let evaluate = &self.context.config.evaluate;
        Comparison::new(&groups, &Metric::table(&evaluate.k, &evaluate.metrics), Reference::Last)
    }

    /// The times that stages have recorded.
    fn timings(&self) -> Result<Vec<Timing>> {
        let timings = self.timing_files().into_iter().map(|(_, path)| Ok(Timing::read(&path)?));
        timings.filter_map(Result::transpose).collect()
    }

    /// The configuration of the run, as TOML. Another program may not write one for its runs; then it is that of this report.
    fn settings_of_run(&self) -> Result<String> {
        let path = self.context.layout.run_config();
        if path.exists() {
            Ok(files::read_to_string(&path)?)
        } else {
            Ok(self.context.config.to_toml().unwrap_or_default())
        }
    }

    /// The words that CLIP chose for images of items on the page, and the most frequent ones; `None` if the run's features do not use
    /// words.
    fn words(&self, users: &[ShownUser], items: &Items) -> Result<Option<Words>> {
        let Some(path) = self.words_file() else { return Ok(None) };
        let downloads = self.downloads();
        // The words may name an image by its URL, which is replaced by a path in `items` if the image was downloaded.
        let is_of = |item: usize, image: &str| {
            let mut fetched = image.to_owned();
            to_fetched(&downloads, &mut fetched);
            items.images[item].iter().any(|own| *own == image || *own == fetched)
        };
        let described = read_words(&path, Path::new(&self.context.config.dataset.data), items.len(), is_of)?;
        let mut words = Words::of(&described, &shown_items(users), DESCRIBED, FREQUENT);
        words.samples.iter_mut().for_each(|sample| to_fetched(&downloads, &mut sample.image));
        Ok(Some(words))
    }

    /// Warns about missing images. Otherwise, with a wrong data folder, the page would show placeholders without a reason.
    fn warn_of_missing_images(&self, users: &[ShownUser], items: &Items) {
        let shown = shown_items(users);
        let is_missing = |&&item: &&usize| is_missing(&items.images[item]);
        let missing = shown.iter().filter(is_missing).count();
        if missing > 0 {
            self.context.progress.log(format!(
                "report: the images of {missing} of {} shown items are not at the paths that `{}` names; \
                 paths within the data folder are relative to it (`--data`, `dataset.data`)",
                shown.len(),
                self.context.layout.items().display()
            ));
        }
    }

    fn markdown(
        &self,
        tables: &[MetricsTable],
        comparison: &Comparison,
        lists: &ListsTable,
        breakdowns: &[BreakdownTable],
    ) -> String {
        let mut text = format!("# {} on {}\n", self.context.layout.run_name(), self.context.config.dataset.name);
        for table in tables {
            let title = if table.split == Split::Test { "Test" } else { "Validation" };
            text.push_str(&format!("\n## {title}\n\n{}", table.markdown(true)));
            if table.split == Split::Test {
                text.push_str(&format!("\n{}", comparison::markdown(comparison)));
            }
        }
        if !lists.is_empty() {
            let table =
                list_table(&lists.rows, |value, differs| format!("{value:.4}{}", if differs { "\\*" } else { "" }));
            text.push_str(&format!("\n## The lists\n\n{}", table.markdown()));
            lists.notes.iter().for_each(|note| text.push_str(&format!("\n{note}\n")));
        }
        if !breakdowns.is_empty() {
            text.push_str("\n## Test, by groups of users\n");
            breakdowns.iter().for_each(|table| text.push_str(&format!("\n{}", table.markdown())));
        }
        text
    }

    fn made_from(&self, stage: &Stage) -> Vec<(String, String)> {
        let config = &self.context.config;
        let mut rows = vec![
            ("program".to_owned(), format!("mp4sr {}", env!("CARGO_PKG_VERSION"))),
            ("dataset".to_owned(), config.dataset.name.clone()),
            ("run".to_owned(), self.context.layout.run_name().to_owned()),
            ("seed".to_owned(), config.run.seed.to_string()),
        ];
        let is_listed = |role: &str| !role.starts_with(IMAGE) && !role.starts_with(TIMING);
        for (role, fingerprint) in stage.input_fingerprints().into_iter().filter(|(role, _)| is_listed(role)) {
            let start: String = fingerprint.as_str().chars().take(16).collect();
            rows.push((role, format!("BLAKE3 {start}")));
        }
        rows
    }
}
