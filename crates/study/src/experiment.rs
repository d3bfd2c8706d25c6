//! The paper's tables and figures and further studies, each a list of runs and a way to show them.

mod larger;
mod losses;
mod quick;
mod rows;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use mp4sr_artifact::{Layout, Sequences, files, read_log};
use mp4sr_figure::{Chart, Figure, Point, Series};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::config::Modality;
use mp4sr_protocol::{
    COLD_EVENTS, Measure, Split, UserFacts, UserGroup, breakdowns, mean_and_deviation, training_events,
};
use serde::Deserialize;

use crate::compare::{Comparison, SeedRuns};
use crate::paper::printed;
use crate::runner::{ResolvedRun, Runner, StudyRun, Until};
use crate::text::Rows;
use rows::{ALL, StudyRow, full, modality, own_key, row};

/// What is studied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Experiment {
    /// Statistics of the dataset.
    Table1,
    /// Models side by side.
    Table2,
    /// Cold items, as in the paper.
    Table3,
    /// MP4SR without its parts.
    Table4,
    /// Pre-training on several datasets.
    Table5,
    /// One modality and both.
    Table6,
    /// Test loss against training loss, with and without pre-training.
    Fig3,
    /// lambda.
    Fig4,
    /// N, words an image.
    Fig5,
    /// O, experts.
    Fig6,
    /// rho.
    Fig7,
    /// Groups of users by length.
    Fig8,
    /// Cold items, items without a training event, users with one to three events.
    ColdStart,
    /// The swap probability of mixup, fixed.
    StudyMixup,
    /// CLIP's words, CLIP's vectors, ResNet, none.
    StudyImageFeatures,
    /// Items that lose features or get those of others.
    StudyNoise,
}

/// How it is studied.
#[derive(Clone, Debug)]
pub struct Options {
    /// Runs of every row, each with the next seed.
    pub seeds: usize,
    /// Few events and epochs: a look in minutes.
    pub quick: bool,
    /// Pipelines to pre-train on beside the own one (Table 5).
    pub with: Vec<PathBuf>,
    /// Pipelines to fine-tune on that pre-training has not seen (Table 5).
    pub unseen: Vec<PathBuf>,
    /// A ResNet: a folder or a name on the hub. Empty: left out.
    pub resnet: String,
    /// A folder with the paper's numbers, in place of those that the program carries.
    pub paper: Option<PathBuf>,
}

/// Every run of a study is asked for short histories too, so that studies share runs.
const SHORT: &str = "evaluate.short_histories=[1,2,3]";
/// Events a user, and epochs, of `quick`.
const QUICK: [&str; 5] =
    ["preprocess.recent=12", "pretrain.epochs=3", "finetune.epochs=4", "pretrain.patience=3", "finetune.patience=3"];

/// Which of the paper's numbers stand below a study's own.
#[derive(Clone, Copy)]
struct Paper {
    table: u32,
    /// Rows of these models; empty: all.
    models: &'static [&'static str],
    /// Below the heading.
    note: &'static str,
}

impl Paper {
    const fn whole(table: u32) -> Self {
        Self { table, models: &[], note: "" }
    }
}

/// A figure that prints no values: what a table says of its default setting.
const DEFAULTS: Paper = Paper {
    table: 4,
    models: &["MP4SR"],
    note: "The figure prints no values; these are of its default setting (lambda 0.01, N 15, O 8, rho 0.2).",
};
const IMAGES: Paper =
    Paper { table: 4, models: &["MP4SR[ResNet]", "MP4SR"], note: "Vectors of ResNet, and words of CLIP." };

struct Study<'a> {
    runner: &'a Runner,
    experiment: Experiment,
    options: &'a Options,
    /// The pipeline as the study changes it.
    config: Config,
    layout: Layout,
    /// What the study changes everywhere.
    common: Vec<String>,
    notes: Vec<String>,
    failures: usize,
}

/// Makes the runs of an experiment and writes `studies/<experiment>/` beside the dataset's runs. Gives the Markdown, and how
/// many runs failed.
pub fn run_experiment(runner: &Runner, experiment: Experiment, options: &Options) -> anyhow::Result<(String, usize)> {
    for key in ALL.iter().filter_map(|assignment| assignment.split('=').next()) {
        anyhow::ensure!(
            !runner.args().overrides.iter().any(|own| own.split('=').next().map(str::trim) == Some(key)),
            "the rows of a study differ in `{key}`; leave it out of `--set`"
        );
    }
    let common = common(runner, &runner.args().pipeline, options)?;
    let base = runner.resolve(&runner.study_run("study".to_owned(), common.clone()))?;
    let mut study = Study {
        runner,
        experiment,
        options,
        config: base.config,
        layout: base.layout,
        common,
        notes: Vec::new(),
        failures: 0,
    };
    let text = study.run()?;
    Ok((text, study.failures))
}

/// What a study changes in a pipeline: the quick look has a dataset of its own.
fn common(runner: &Runner, pipeline: &Path, options: &Options) -> anyhow::Result<Vec<String>> {
    let mut common = vec![SHORT.to_owned()];
    if options.quick {
        let run = StudyRun { pipeline: pipeline.to_owned(), name: "study".to_owned(), overrides: Vec::new() };
        let name = runner.resolve(&run)?.config.dataset.name;
        common.push(format!("dataset.name=\"{name}-quick\""));
        common.extend(QUICK.map(str::to_owned));
    }
    Ok(common)
}

/// Rows with the runs of their seeds.
type Made = Vec<(StudyRow, Vec<ResolvedRun>)>;

impl Study<'_> {
    fn run(&mut self) -> anyhow::Result<String> {
        use Experiment as E;
        let lambda = ["0.001", "0.01", "0.1", "1.0"];
        let experts = ["1", "2", "4", "8", "16"];
        let rho = ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"];
        let words = ["5", "10", "15", "30", "50"];
        match self.experiment {
            E::Table1 => self.statistics(),
            E::Table2 => self.table("Table 2: models side by side", &self.all_models(), Some(Paper::whole(2))),
            E::Table3 => self.cold(false),
            E::ColdStart => self.cold(true),
            E::Table4 => {
                let rows = self.variants()?;
                let rows = self.without_repeats(rows)?;
                self.table("Table 4: MP4SR without its parts", &rows, Some(Paper::whole(4)))
            }
            E::Table5 => self.larger(),
            E::Table6 => {
                let rows = self.modalities();
                self.table("Table 6: one modality and all", &rows, Some(Paper::whole(6)))
            }
            E::Fig3 => self.losses(),
            E::Fig4 => {
                anyhow::ensure!(
                    self.config.model.modalities.len() > 1,
                    "lambda weighs CMCL, which needs two modalities; use a pipeline that has"
                );
                self.sweep("Figure 4: impact of lambda", "lambda", "model.mp4sr.lambda", &lambda)
            }
            E::Fig5 => {
                self.expect_words()?;
                self.sweep("Figure 5: impact of N, the words an image", "N", "extract.image.words", &words)
            }
            E::Fig6 => self.sweep("Figure 6: impact of O, the experts", "O", "model.mp4sr.experts", &experts),
            E::Fig7 => self.sweep("Figure 7: impact of rho, sequence dropout", "rho", "model.mp4sr.rho", &rho),
            E::Fig8 => self.user_groups(),
            E::StudyMixup => self.mixup(),
            E::StudyImageFeatures => {
                let rows = self.image_features()?;
                self.table("Image features", &rows, Some(IMAGES))
            }
            E::StudyNoise => self.noise(),
        }
    }

    /// The name of the study in files.
    fn slug(&self) -> String {
        use clap::ValueEnum as _;
        self.experiment.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }

    fn folder(&self) -> PathBuf {
        self.layout.root().join("studies").join(self.slug())
    }

    fn study_run(
        &self,
        pipeline: &Path,
        common: &[String],
        row: &StudyRow,
        seed: usize,
    ) -> anyhow::Result<ResolvedRun> {
        let mut overrides = common.to_vec();
        overrides.extend(ALL.map(str::to_owned));
        overrides.extend(row.overrides.iter().cloned());
        let seed = self.config.run.seed + seed as u64;
        overrides.push(format!("run.seed={seed}"));
        self.runner.resolve(&StudyRun {
            pipeline: pipeline.to_owned(),
            name: format!("{}.s{seed}", row.slug),
            overrides,
        })
    }

    /// Makes the runs of all rows; a row with a run that failed is left out, with a note.
    fn make(&mut self, rows: &[StudyRow], until: Until) -> anyhow::Result<Made> {
        let common = self.common.clone();
        let pipeline = self.runner.args().pipeline.clone();
        self.take_features(&pipeline, &common)?;
        let mut runs = Vec::new();
        for row in rows {
            for seed in 0..self.options.seeds {
                runs.push(self.study_run(&pipeline, &common, row, seed)?);
            }
        }
        let failed = self.runner.run(&runs, until);
        let told = self.notes.len();
        let mut made = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let range = at * self.options.seeds..(at + 1) * self.options.seeds;
            match failed[range.clone()].iter().flatten().next() {
                None => made.push((row.clone(), runs[range].to_vec())),
                Some(error) => {
                    self.failures += 1;
                    self.notes.push(format!("not run: {} ({error})", row.label));
                }
            }
        }
        anyhow::ensure!(!made.is_empty(), "no run could be made: {}", self.notes[told..].join("; "));
        Ok(made)
    }

    fn sequences(&self) -> mp4sr_artifact::Result<Sequences> {
        Sequences::read(&self.layout.sequences())
    }

    fn measures(&self) -> Vec<Measure> {
        Measure::columns(&self.config.evaluate.k)
    }

    /// A comparison of rows on the test split, as a table.
    fn table(&mut self, title: &str, rows: &[StudyRow], paper: Option<Paper>) -> anyhow::Result<String> {
        let made = self.make(rows, Until::Evaluated)?;
        let groups = groups(&made, &self.sequences()?, None)?;
        let comparison = Comparison::new(&groups, &self.measures());
        let mut text = self.head(title, comparison.users);
        text += &comparison.table("model").markdown();
        text += &times(&made)?;
        self.finish(text, paper, &comparison.details(), None)
    }

    /// R@20 and N@20 over the values of one key.
    fn sweep(&mut self, title: &str, name: &str, key: &str, values: &[&str]) -> anyhow::Result<String> {
        let rows: Vec<StudyRow> = values
            .iter()
            .map(|value| row(&format!("{name} = {value}"), &format!("{name}-{value}"), &[&format!("{key}={value}")]))
            .collect();
        let made = self.make(&rows, Until::Evaluated)?;
        let groups = groups(&made, &self.sequences()?, None)?;
        let places: Vec<String> =
            made.iter().map(|(row, _)| row.label.rsplit(' ').next().unwrap_or("").to_owned()).collect();
        let comparison = Comparison::new(&groups, &self.measures());
        let line = line("MP4SR", comparison.rows.iter().enumerate());
        let figure = self.figure(title, name, &places, &[line]);
        self.finish_sweep(title, &comparison, Some(DEFAULTS), figure)
    }

    fn finish_sweep(
        &mut self,
        title: &str,
        comparison: &Comparison,
        paper: Option<Paper>,
        figure: Figure,
    ) -> anyhow::Result<String> {
        let text = self.head(title, comparison.users) + &comparison.table("setting").markdown();
        self.finish(text, paper, &comparison.details(), Some(figure))
    }

    fn mixup(&mut self) -> anyhow::Result<String> {
        anyhow::ensure!(self.config.model.modalities.len() > 1, "mixup needs two modalities; use a pipeline that has");
        let title = "Mixup with a fixed swap probability";
        let mut rows: Vec<StudyRow> = (0..10)
            .map(|tenth| {
                let p = format!("0.{tenth}");
                let keys = [format!("model.mp4sr.mixup_min={p}"), format!("model.mp4sr.mixup_max={p}")];
                row(&format!("p = {p}"), &format!("mixup-{p}"), &[&keys[0], &keys[1]])
            })
            .collect();
        let [least, most] = ["mixup_min", "mixup_max"].map(|key| own_key(&self.config, key));
        let drawn = format!("U({}, {})", number(least), number(most));
        rows.push(row(&format!("p from {drawn}"), "mp4sr", &[]));
        let made = self.make(&rows, Until::Evaluated)?;
        let comparison = Comparison::new(&groups(&made, &self.sequences()?, None)?, &self.measures());
        let (references, fixed): (Vec<_>, Vec<_>) =
            comparison.rows.iter().partition(|(name, _)| name.starts_with("p from"));
        let places: Vec<String> = fixed.iter().map(|(name, _)| name.trim_start_matches("p = ").to_owned()).collect();
        let mut lines = vec![line("fixed", fixed.iter().copied().enumerate())];
        if let Some(reference) = references.first() {
            lines.push(line(&format!("drawn from {drawn}"), (0..places.len()).map(|place| (place, *reference))));
        }
        let figure = self.figure(title, "p", &places, &lines);
        self.finish_sweep(title, &comparison, None, figure)
    }

    fn noise(&mut self) -> anyhow::Result<String> {
        let title = "Noise: items that lose features, or get those of others";
        const SHARES: [f64; 4] = [0.1, 0.2, 0.4, 0.8];
        let names: Vec<String> = self.config.model.modalities.iter().map(|m| m.name.clone()).collect();
        let (mut rows, mut kinds) = (vec![row("no noise", "mp4sr", &[])], Vec::new());
        for name in &names {
            for (kind, word) in [("lost", "lost"), ("swapped", "of another item")] {
                kinds.push(format!("{name} {word}"));
                for share in SHARES {
                    let share_of = |m: &Modality, noise: &str, own: f64| {
                        if m.name == *name && kind == noise { share } else { own }
                    };
                    let noisy =
                        |m: &Modality| modality(m, share_of(m, "lost", m.lost), share_of(m, "swapped", m.swapped));
                    let modalities: Vec<String> = self.config.model.modalities.iter().map(noisy).collect();
                    let key = format!("model.modalities=[{}]", modalities.join(","));
                    rows.push(row(&format!("{name} {word}: {share}"), &format!("{kind}-{name}-{share}"), &[&key]));
                }
            }
        }
        let made = self.make(&rows, Until::Evaluated)?;
        let comparison = Comparison::new(&groups(&made, &self.sequences()?, None)?, &self.measures());
        let clean = comparison.rows.iter().find(|(name, _)| name == "no noise");
        let lines: Vec<Line> = kinds
            .iter()
            .map(|kind| {
                let of = |share: f64| comparison.rows.iter().find(|(name, _)| *name == format!("{kind}: {share}"));
                let noisy = (1..).zip(SHARES).filter_map(|(place, share)| Some((place, of(share)?)));
                line(kind, clean.map(|row| (0, row)).into_iter().chain(noisy))
            })
            .collect();
        let places: Vec<String> = [0.0].iter().chain(&SHARES).map(f64::to_string).collect();
        let figure = self.figure(title, "share of items", &places, &lines);
        self.finish_sweep(title, &comparison, None, figure)
    }

    /// R@20 and N@20; where nobody asked for these, of the largest K.
    fn shown(&self) -> [Measure; 2] {
        let ks = &self.config.evaluate.k;
        let k = if ks.contains(&20) { 20 } else { ks.iter().copied().max().unwrap_or(20) };
        [Measure::Recall(k), Measure::Ndcg(k)]
    }

    /// A chart of R@20 and one of N@20. Ranges are one deviation over seeds, or of a single seed the bootstrap's 95 %.
    fn figure(&self, title: &str, x: &str, places: &[String], lines: &[Line]) -> Figure {
        let range = self.range();
        let measures = self.measures();
        let charts = self.shown();
        let charts = charts.iter().filter_map(|measure| {
            let column = measures.iter().position(|m| m == measure)?;
            let series = lines.iter().map(|line| {
                let point = |(place, values): &(usize, Values)| {
                    let (y, range) = values[column];
                    Point { x: *place as f64, y, range }
                };
                Series { name: line.name.clone(), points: line.entries.iter().map(point).collect() }
            });
            Some(Chart {
                title: measure.to_string(),
                x: x.to_owned(),
                y: format!("{measure}, {range}"),
                places: places.to_vec(),
                series: series.collect(),
            })
        });
        Figure { title: format!("{title} ({})", self.config.dataset.name), charts: charts.collect() }
    }

    fn range(&self) -> String {
        match self.options.seeds {
            1 => "with 95 % interval".to_owned(),
            seeds => format!("± 1 deviation of {seeds} seeds"),
        }
    }

    /// Figure 8: the groups by sequence length.
    fn user_groups(&mut self) -> anyhow::Result<String> {
        let title = "Figure 8: users by the length of their sequence";
        let made = self.make(&self.all_models(), Until::Evaluated)?;
        let sequences = self.sequences()?;
        let groups = groups(&made, &sequences, None)?;
        let all = breakdowns(&UserFacts::of(&sequences, Split::Test));
        let user_groups: &[UserGroup] = all.iter().find(|s| s.name == "sequence length").map_or(&[], |s| &s.groups);
        let mut text = self.head(title, user_groups.iter().map(|s| s.users.len()).sum());
        let mut details = Rows::default();
        let mut lines: Vec<Line> =
            made.iter().map(|(row, _)| Line { name: row.label.clone(), entries: Vec::new() }).collect();
        for (place, user_group) in user_groups.iter().enumerate() {
            let own: Vec<SeedRuns> = groups.iter().map(|group| group.of_users(&user_group.users)).collect();
            let comparison = Comparison::new(&own, &self.measures());
            let _ = write!(text, "\n{} events, {} users\n\n", user_group.name, comparison.users);
            text += &comparison.table("model").markdown();
            add_details(&mut details, &user_group.name, &comparison);
            for (line, row) in lines.iter_mut().zip(&comparison.rows) {
                line.entries.push((place, values(row)));
            }
        }
        if user_groups.len() < 5 {
            self.notes.push(format!("there are no more than {} lengths", user_groups.len()));
        }
        let places: Vec<String> = user_groups.iter().map(|s| format!("{} ({})", s.name, s.users.len())).collect();
        let figure = self.figure(title, "events (users)", &places, &lines);
        self.finish(text, None, &details, Some(figure))
    }

    /// Table 3, and beyond it: items without a training event, short histories.
    fn cold(&mut self, beyond: bool) -> anyhow::Result<String> {
        let title = if beyond { "Cold start" } else { "Table 3: cold items" };
        let mut rows = vec![
            row(
                "MP4SR w/o Pre-train",
                "no-id.no-pretrain",
                &["model.mp4sr.id_embedding=false", "pretrain.enabled=false"],
            ),
            row("MP4SR", "no-id.warm", &["model.mp4sr.id_embedding=false", "pretrain.items=\"warm\""]),
        ];
        if beyond {
            let slug = if own_key(&self.config, "id_embedding") == true { "mp4sr" } else { "with-ids" };
            let with_ids = row("MP4SR with ids", slug, &["model.mp4sr.id_embedding=true"]);
            rows.splice(0..0, self.baselines().into_iter().chain([with_ids]));
        }
        let made = self.make(&rows, Until::Evaluated)?;
        let sequences = self.sequences()?;
        let facts = UserFacts::of(&sequences, Split::Test);
        let users = |belongs: &dyn Fn(&UserFacts) -> bool| -> Vec<usize> {
            facts.iter().filter(|f| belongs(f)).map(|f| f.user).collect()
        };
        let cold_items = training_events(&sequences).iter().filter(|&&events| events < COLD_EVENTS).count();
        let mut parts: Vec<(String, Vec<usize>, Option<usize>)> = vec![(
            format!(
                "targets with fewer than {COLD_EVENTS} training events ({cold_items} of {} items)",
                sequences.item_count
            ),
            users(&|f| f.target_events < COLD_EVENTS),
            None,
        )];
        if beyond {
            parts.push(("targets without a training event".to_owned(), users(&|f| f.target_events == 0), None));
            parts.push(("all targets".to_owned(), users(&|_| true), None));
            for (events, last) in [(1, "event"), (2, "two events"), (3, "three events")] {
                let what = format!("all targets, from the last {last} of each history");
                parts.push((what, users(&|_| true), Some(events)));
            }
        }
        let mut text = self.head(title, facts.len());
        text += "MP4SR is pre-trained on sequences of warm items and fine-tuned without item ids, MP4SR w/o Pre-train the same \
                 without the first.\n";
        let mut details = Rows::default();
        for (what, users, history) in parts {
            if users.is_empty() {
                self.notes.push(format!("no user has {what}"));
                continue;
            }
            let groups = groups(&made, &sequences, history)?;
            let own: Vec<SeedRuns> = groups.iter().map(|group| group.of_users(&users)).collect();
            let comparison = Comparison::new(&own, &self.measures());
            let _ = write!(text, "\n{} users: {what}\n\n", comparison.users);
            text += &comparison.table("model").markdown();
            add_details(&mut details, &what, &comparison);
        }
        text += &times(&made)?;
        self.finish(text, Some(Paper::whole(3)), &details, None)
    }

    fn statistics(&mut self) -> anyhow::Result<String> {
        #[derive(Deserialize)]
        struct Report {
            statistics: Counts,
        }
        #[derive(Deserialize)]
        struct Counts {
            users: u64,
            items: u64,
            events: u64,
            average_length: f64,
        }
        let mut table = Rows::new(["dataset", "users", "items", "events", "average length"]);
        let own = self.runner.args().pipeline.clone();
        for pipeline in [own].iter().chain(&self.options.with.clone()) {
            let common = common(self.runner, pipeline, self.options)?;
            let run = self.study_run(pipeline, &common, &full(), 0)?;
            if let Some(error) = self.runner.run(std::slice::from_ref(&run), Until::Dataset).swap_remove(0) {
                anyhow::bail!("{error}");
            }
            let path = run.layout.statistics();
            let report: Report = serde_json::from_str(&files::read_to_string(&path)?)
                .map_err(|e| mp4sr_artifact::Error::unreadable(&path, "it", &e, "run `make preprocess` again"))?;
            let Counts { users, items, events, average_length } = report.statistics;
            let mut row = vec![run.config.dataset.name.clone()];
            row.extend([users, items, events].map(|n| n.to_string()));
            row.push(format!("{average_length:.2}"));
            table.rows.push(row);
        }
        let text = format!("# Table 1: statistics of the datasets\n\n{}", table.markdown());
        self.finish(text, Some(Paper::whole(1)), &table, None)
    }

    fn head(&self, title: &str, users: usize) -> String {
        let mut text = format!("# {title}\n\n{} Test split", self.settings());
        if users > 0 {
            let _ = write!(text, ", {users} users");
        }
        let _ = write!(
            text,
            ". Best bold, second underlined; \\* where the best is better than the best other with p < {} (paired t-test over \
             users, Holm-corrected over the others)",
            crate::compare::SIGNIFICANT
        );
        text + if self.options.seeds > 1 { "; ± is the deviation over seeds.\n\n" } else { ".\n\n" }
    }

    fn settings(&self) -> String {
        let (name, seeds) = (&self.config.dataset.name, self.options.seeds);
        let first = self.config.run.seed;
        let seeds =
            if seeds == 1 { format!("seed {first}") } else { format!("seeds {first} to {}", first + seeds as u64 - 1) };
        let quick = if self.options.quick { " A quick look: 12 events a user, a few epochs; no result." } else { "" };
        let set = &self.runner.args().overrides;
        let set = if set.is_empty() { String::new() } else { format!(" Set for all: `{}`.", set.join("`, `")) };
        format!("Dataset `{name}`, {seeds}.{quick}{set}")
    }

    /// Adds the paper's block and notes, writes all files, gives the Markdown.
    fn finish(
        &mut self,
        mut text: String,
        paper: Option<Paper>,
        details: &Rows,
        figure: Option<Figure>,
    ) -> anyhow::Result<String> {
        let folder = self.folder();
        files::clean_folder(&folder)?;
        let mut written = vec!["table.md", "table.csv"];
        if let Some(figure) = figure {
            let drawn = figure.draw()?;
            files::write_bytes(&folder.join("figure.svg"), drawn.svg.as_bytes())?;
            files::write_bytes(&folder.join("figure.png"), &drawn.png)?;
            written.extend(["figure.svg", "figure.png"]);
            text += "\n![figure](figure.svg)\n";
        }
        for note in &self.notes {
            let _ = write!(text, "\nNote: {note}.\n");
        }
        if let Some(Paper { table, models, note }) = paper {
            let mut printed = printed(self.options.paper.as_deref(), table)?;
            printed.rows.retain(|row| models.is_empty() || models.contains(&row[1].as_str()));
            let note = if note.is_empty() { String::new() } else { format!("{note}\n\n") };
            let _ = write!(text, "\n## The paper's Table {table}\n\n{note}{}", printed.markdown());
            printed.write_csv(&folder.join("paper.csv"))?;
            written.push("paper.csv");
        }
        files::write_bytes(&folder.join("table.md"), text.as_bytes())?;
        details.write_csv(&folder.join("table.csv"))?;
        self.runner.progress().say(format!("{}: wrote {} to {}", self.slug(), written.join(", "), folder.display()));
        Ok(text)
    }
}

/// A number as it is written by hand: without a fraction where it has none.
fn number(value: &serde_json::Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

/// How long training took, by row.
fn times(made: &Made) -> mp4sr_artifact::Result<String> {
    let mut table = Rows::new(["model", "epochs", "seconds of training"]);
    for (row, runs) in made {
        let (epochs, seconds): (Vec<f64>, Vec<f64>) = {
            let all: Vec<(f64, f64)> =
                runs.iter().map(|run| training_time(&run.layout)).collect::<mp4sr_artifact::Result<_>>()?;
            all.into_iter().unzip()
        };
        if epochs.iter().sum::<f64>() > 0.0 {
            let values = [epochs, seconds].map(|v| format!("{:.0}", mean_and_deviation(&v).0));
            table.rows.push([row.label.clone()].into_iter().chain(values).collect());
        }
    }
    Ok(if table.rows.is_empty() { String::new() } else { format!("\nMeans over seeds:\n\n{}", table.markdown()) })
}

/// A value with its range for every measure.
type Values = Vec<(f64, (f64, f64))>;

/// One line of a figure, by place.
struct Line {
    name: String,
    entries: Vec<(usize, Values)>,
}

/// A model's name and its entries, a measure each.
type Compared = (String, Vec<crate::compare::Entry>);

/// Each row stands at a place of the horizontal axis.
fn line<'r>(name: &str, rows: impl Iterator<Item = (usize, &'r Compared)>) -> Line {
    Line { name: name.to_owned(), entries: rows.map(|(place, row)| (place, values(row))).collect() }
}

fn values((_, entries): &Compared) -> Values {
    let value = |entry: &crate::compare::Entry| {
        let mean = entry.interval.mean;
        (mean, entry.deviation.map_or((entry.interval.low, entry.interval.high), |d| (mean - d, mean + d)))
    };
    entries.iter().map(value).collect()
}

fn groups(made: &Made, sequences: &Sequences, history: Option<usize>) -> anyhow::Result<Vec<SeedRuns>> {
    anyhow::ensure!(
        (0..sequences.user_count()).any(|user| sequences.of(user).len() > 1),
        "no user has an event to be tested on and one before it; use a dataset with longer sequences"
    );
    made.iter()
        .map(|(row, runs)| {
            let layouts: Vec<Layout> = runs.iter().map(|run| run.layout.clone()).collect();
            Ok(SeedRuns::read(&row.label, &layouts, sequences, Split::Test, history)?)
        })
        .collect()
}

/// Adds a comparison's details to those of others, with what it is of in front.
fn add_details(all: &mut Rows, of: &str, comparison: &Comparison) {
    let own = comparison.details();
    if all.header.is_empty() {
        all.header = ["of".to_owned()].into_iter().chain(own.header).collect();
    }
    all.rows.extend(own.rows.into_iter().map(|row| [of.to_owned()].into_iter().chain(row).collect()));
}

#[derive(Deserialize)]
struct LogLine {
    phase: String,
    epoch: usize,
    loss: f64,
    test_loss: Option<f64>,
    seconds: (f64, f64),
}

/// The log of a run; none where the model is not trained.
fn log(layout: &Layout) -> mp4sr_artifact::Result<Vec<LogLine>> {
    let path = layout.metrics_log();
    if !path.exists() {
        return Ok(Vec::new());
    }
    read_log(&path, "delete the run's folder and study again")
}

/// Epochs and seconds of all phases.
fn training_time(layout: &Layout) -> mp4sr_artifact::Result<(f64, f64)> {
    let lines = log(layout)?;
    Ok((lines.len() as f64, lines.iter().map(|line| line.seconds.0 + line.seconds.1).sum()))
}
