//! The paper's tables and figures, and further studies. Each is a list of runs and a way to present them.

mod comparisons;
mod encoders;
mod figure;
mod larger;
mod losses;
mod notes;
mod rows;
mod smoke;
mod study;
mod sweeps;
mod user_groups;
mod write;

use std::path::{Path, PathBuf};

use mp4sr_artifact::Sequences;
use mp4sr_pipeline::{Assignments, Config};
use mp4sr_protocol::Metric;

use crate::runner::{OnlyPlanned, ResolvedRun, RunFailure, Runner, StudyRun, Until};
use rows::{ALL, StudyRow};
pub use study::{Experiment, StudyOptions};
use study::{RECENT, SHORT, SMOKE, SMOKE_CORE, Study};
use write::{IMAGES, PaperTable};

/// Executes the runs of an experiment and writes `studies/<experiment>/` beside the dataset's runs. Returns the Markdown, and the number of
/// failed runs.
pub fn run_experiment(
    runner: &Runner,
    experiment: Experiment,
    options: &StudyOptions,
) -> anyhow::Result<(String, usize)> {
    for key in ALL.iter().map(|assignment| Assignments::key_of(assignment)) {
        anyhow::ensure!(
            !runner.args().overrides.iter().any(|own| Assignments::key_of(own) == key),
            "the rows of a study differ in `{key}`; leave it out of `--set`"
        );
    }
    let has_lists = [Experiment::Table2, Experiment::Table4, Experiment::Table6, Experiment::StudyImageFeatures];
    anyhow::ensure!(
        !options.lists || has_lists.contains(&experiment),
        "this study does not compare lists; use `--lists` with table2, table4, table6 or study-image-features"
    );
    let common = common(runner, &runner.args().pipeline, options)?;
    let base = runner.resolve(&runner.study_run("study".to_owned(), common.clone()))?;
    if options.lists {
        expect_long_lists(&base.config)?;
    }
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

/// Refuses lists that are too short for every K, before any run is trained.
fn expect_long_lists(config: &Config) -> anyhow::Result<()> {
    let (top, smallest) = (config.recommend.top, config.evaluate.k.iter().min().copied().unwrap_or(0));
    anyhow::ensure!(
        top >= smallest,
        "`recommend.top` = {top} makes lists that are shorter than {smallest}, the smallest K of `evaluate.k`, at which `--lists` compares \
         them; set it to {smallest} or more"
    );
    Ok(())
}

/// The settings that a study changes in a pipeline. A smoke run has its own dataset.
fn common(runner: &Runner, pipeline: &Path, options: &StudyOptions) -> anyhow::Result<Vec<String>> {
    let mut common = vec![SHORT.to_owned()];
    if options.quick {
        let run = StudyRun { pipeline: pipeline.to_owned(), name: "study".to_owned(), overrides: Vec::new() };
        let config = runner.resolve(&run)?.config;
        common.push(format!("dataset.name=\"{}-quick\"", config.dataset.name));
        // What the user sets takes effect in a smoke run, too.
        let given = &runner.args().overrides;
        let is_given = |key: &str| given.iter().any(|given| Assignments::key_of(given) == key);
        common.extend(SMOKE.iter().filter(|set| !is_given(Assignments::key_of(set))).map(|&set| set.to_owned()));
        // Users with fewer events would be left out, and a smoke run keeps only the most recent ones.
        let cuts = !is_given("preprocess.recent") && !is_given("preprocess.user_core");
        if cuts && config.preprocess.user_core.unwrap_or(0) > RECENT {
            common.push(format!("preprocess.user_core={SMOKE_CORE}"));
        }
    }
    Ok(common)
}

/// Rows, each with its runs, one per seed.
type FinishedRows = Vec<(StudyRow, Vec<ResolvedRun>)>;

impl Study<'_> {
    fn run(&mut self) -> anyhow::Result<String> {
        use Experiment as E;
        let lambda = ["0.001", "0.01", "0.1", "1.0"];
        let experts = ["1", "2", "4", "8", "16"];
        let rho = ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"];
        let words = ["5", "10", "15", "30", "50"];
        match self.experiment {
            E::Table1 => self.statistics(),
            E::Table2 => {
                self.table("Table 2: comparison of the models", &self.all_models(), Some(PaperTable::whole(2)))
            }
            E::Table3 => self.cold(false),
            E::ColdStart => self.cold(true),
            E::Table4 => {
                let rows = self.variants()?;
                let rows = self.without_repeats(rows)?;
                self.table("Table 4: ablations of MP4SR", &rows, Some(PaperTable::whole(4)))
            }
            E::Table5 => self.larger(),
            E::Table6 => {
                let rows = self.modalities();
                self.table("Table 6: one modality alone, and all of them", &rows, Some(PaperTable::whole(6)))
            }
            E::Fig3 => self.losses(),
            E::Fig4 => {
                anyhow::ensure!(
                    self.config.model.modalities.len() > 1,
                    "lambda weighs CMCL, which needs two modalities; use a pipeline with two"
                );
                self.sweep("Figure 4: impact of lambda", "lambda", "model.mp4sr.lambda", &lambda)
            }
            E::Fig5 => {
                self.expect_words()?;
                self.sweep("Figure 5: impact of N, the number of words per image", "N", "extract.image.words", &words)
            }
            E::Fig6 => self.sweep("Figure 6: impact of O, the number of experts", "O", "model.mp4sr.experts", &experts),
            E::Fig7 => self.sweep(
                "Figure 7: impact of rho, the probability of sequence dropout",
                "rho",
                "model.mp4sr.rho",
                &rho,
            ),
            E::Fig8 => self.user_groups(),
            E::StudyMixup => self.mixup(),
            E::StudyImageFeatures => {
                let rows = self.image_features()?;
                self.table("Image features", &rows, Some(IMAGES))
            }
            E::StudyNoise => self.noise(),
            E::StudyEncoders => self.encoders(),
        }
    }

    /// The name of the study in file names.
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

    /// Executes the runs of all rows. A row with a failed run is left out, with a note.
    fn make(&mut self, rows: &[StudyRow], until: Until) -> anyhow::Result<FinishedRows> {
        let common = self.common.clone();
        let pipeline = self.runner.args().pipeline.clone();
        self.copy_features(&pipeline, &common)?;
        let mut runs = Vec::new();
        for row in rows {
            for seed in 0..self.options.seeds {
                runs.push(self.study_run(&pipeline, &common, row, seed)?);
            }
        }
        let failed = self.runner.run(&runs, until);
        if failed.iter().flatten().any(|failure| matches!(failure, RunFailure::OnlyPlanned(_))) {
            return Err(OnlyPlanned.into());
        }
        let mut made = Vec::new();
        // By cause: the rows that failed for it.
        let mut causes: Vec<(RunFailure, Vec<String>)> = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let range = at * self.options.seeds..(at + 1) * self.options.seeds;
            match failed[range.clone()].iter().flatten().next() {
                None => made.push((row.clone(), runs[range].to_vec())),
                Some(error) => match causes.iter_mut().find(|(cause, _)| cause == error) {
                    Some((_, labels)) => labels.push(row.label.clone()),
                    None => causes.push((error.clone(), vec![row.label.clone()])),
                },
            }
        }
        self.failures += rows.len() - made.len();
        let not_run = |(error, labels): &(RunFailure, Vec<String>)| format!("not run: {} ({error})", labels.join(", "));
        let not_run: Vec<String> = causes.iter().map(not_run).collect();
        anyhow::ensure!(!made.is_empty(), "no run could be trained: {}", not_run.join("; "));
        self.notes.extend(not_run);
        if [Until::Evaluated, Until::Listed].contains(&until) {
            self.note_finished(&made, &self.sequences()?)?;
        }
        Ok(made)
    }

    fn sequences(&self) -> mp4sr_artifact::Result<Sequences> {
        Sequences::read(&self.layout.sequences())
    }

    fn metrics(&self) -> Vec<Metric> {
        Metric::table(&self.config.evaluate.k, &self.config.evaluate.metrics)
    }
}
