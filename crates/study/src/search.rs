//! Searches a grid of configuration values. Every combination is a separate run: finished runs are skipped, and an interrupted search
//! resumes. Of the held-out sets, only the validation set is read.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use mp4sr_artifact::{EpochLine, Error, FINETUNE, Sequences, files};
use mp4sr_pipeline::config::{Config, SeenItems};
use mp4sr_pipeline::text::TextTable;
use mp4sr_pipeline::{Assignments, split_outside};
use mp4sr_protocol::Metric;

use crate::runner::{ResolvedRun, RunFailure, Runner, Until};

/// The sections whose keys determine the dataset and the features.
const DATA: [&str; 4] = ["dataset.", "source.", "preprocess.", "extract."];
/// The sections whose keys determine the users, items and events.
const EVENTS: [&str; 2] = ["source.", "preprocess."];
const REMEDY: &str = "delete the run's folder and run the search again";

/// One key with the values to try.
///
/// ```
/// use mp4sr_study::SearchGrid;
///
/// let grid: SearchGrid = "finetune.batch=256,1024".parse()?;
/// assert_eq!((grid.key.as_str(), grid.values.len()), ("finetune.batch", 2));
/// assert!("finetune.batch".parse::<SearchGrid>().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SearchGrid {
    /// The key, `section.key`.
    pub key: String,
    /// The values, as in a pipeline file.
    pub values: Vec<String>,
}

/// The text is not of the form `section.key=value,value,...`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("invalid grid `{0}`; write section.key=value,value,...")]
pub struct BadGrid(String);

impl std::str::FromStr for SearchGrid {
    type Err = BadGrid;

    fn from_str(text: &str) -> Result<Self, BadGrid> {
        let bad = || BadGrid(text.to_owned());
        let (key, values) = text.split_once('=').ok_or_else(bad)?;
        let values = split_outside(values, |c| c == ',').map_err(|_| bad())?;
        if key.is_empty() || values.iter().any(String::is_empty) {
            return Err(bad());
        }
        Ok(Self { key: key.to_owned(), values })
    }
}

/// All combinations of the grids' values, one value per grid, with the last key varying fastest.
fn combinations(grids: &[SearchGrid]) -> Vec<Vec<&str>> {
    let mut all = vec![Vec::new()];
    for grid in grids {
        let longer = |start: &Vec<_>| {
            let start = start.clone();
            grid.values.iter().map(move |value| start.iter().copied().chain([value.as_str()]).collect::<Vec<_>>())
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// The name of a run: `<search>.<key>-<value>...`, with characters that a name cannot contain replaced.
fn run_name(search: &str, grids: &[SearchGrid], values: &[&str]) -> String {
    let mut name = search.to_owned();
    for (grid, value) in grids.iter().zip(values) {
        let key = grid.key.rsplit('.').next().unwrap_or_default();
        let _ = write!(name, ".{key}-{value}");
    }
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

/// The setting that gives runs with other data settings their own dataset, `<dataset>.<key>-<value>...`, because a dataset folder holds
/// only one.
fn dataset_name(base: &str, grids: &[SearchGrid], values: &[&str]) -> Option<String> {
    let of_data = |grid: &SearchGrid| DATA.iter().any(|section| grid.key.starts_with(section));
    let (own, values): (Vec<SearchGrid>, Vec<&str>) =
        grids.iter().zip(values).filter(|(grid, _)| of_data(grid)).map(|(grid, value)| (grid.clone(), *value)).unzip();
    let is_named = own.iter().any(|grid| grid.key == "dataset.name");
    (!own.is_empty() && !is_named).then(|| format!("dataset.name=\"{}\"", run_name(base, &own, &values)))
}

/// The best epoch of a run on the validation set.
struct BestEpoch {
    at: usize,
    value: f64,
    ndcg: Option<f64>,
    epoch: usize,
    epochs: usize,
}

/// Executes all runs of a grid and writes `searches/<name>/table.{md,csv}`, ordered by `train.metric` on the validation set, best first.
/// Returns the Markdown, and the number of failed runs.
pub fn search(runner: &Runner, name: &str, grids: &[SearchGrid]) -> anyhow::Result<(String, usize)> {
    expect_keys(runner, grids)?;
    let all = combinations(grids);
    let base = runner.resolve(&runner.study_run(name.to_owned(), Vec::new()))?;
    let runs = runs_of(runner, name, grids, &all, &base)?;
    let mut failed = runner.run(&runs, Until::Trained);
    runner.expect_executing()?;
    let trained = runs.iter().zip(&failed).filter(|(_, error)| error.is_none()).map(|(run, _)| run);
    let metric = &common_metric(&base.config.train.metric, trained)?.to_string();
    let mut outcomes = Vec::new();
    for (at, run) in runs.iter().enumerate() {
        if failed[at].is_none() {
            match best_epoch(at, run, metric) {
                Ok(found) => outcomes.push(found),
                Err(error) => failed[at] = Some(RunFailure::of(&error)),
            }
        }
    }
    outcomes.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.at.cmp(&b.at)));
    let table = table(grids, &all, metric, &outcomes, &runs);
    let folder = base.layout.root().join("searches").join(name);
    let mut text = table.markdown();
    if let Some(best) = outcomes.first() {
        let run = runs[best.at].spec();
        let _ = writeln!(
            text,
            "\nBest on validation: `{}`; to evaluate it on the test set, run `{}`",
            run.name,
            runner.command(run)?
        );
    }
    text += &incomparable(grids, &base.config);
    for (run, error) in runs.iter().zip(&failed) {
        if let Some(error) = error {
            let _ = writeln!(text, "\nNot finished: {} ({error})", run.spec().name);
        }
    }
    files::clean_folder(&folder)?;
    files::write_bytes(&folder.join("table.md"), text.as_bytes())?;
    table.write_csv(&folder.join("table.csv"))?;
    Ok((text, failed.iter().flatten().count()))
}

/// Rejects a grid that has a key twice, or one that is also set otherwise.
fn expect_keys(runner: &Runner, grids: &[SearchGrid]) -> anyhow::Result<()> {
    let set = runner.args().all_overrides();
    for (at, grid) in grids.iter().enumerate() {
        anyhow::ensure!(
            grids[..at].iter().all(|before| before.key != grid.key),
            "`{}` is given twice; write all its values in one `--grid`",
            grid.key
        );
        anyhow::ensure!(
            set.iter().all(|own| Assignments::key_of(own) != grid.key),
            "`{}` is in the grid, which is the model's own if none is given, so setting it by `--set` or `MP4SR_SET` has no effect; leave it \
             out, or give another grid",
            grid.key
        );
    }
    Ok(())
}

/// The runs of a grid, one per combination of values, or why they cannot be made.
fn runs_of(
    runner: &Runner,
    name: &str,
    grids: &[SearchGrid],
    combinations: &[Vec<&str>],
    base: &ResolvedRun,
) -> anyhow::Result<Vec<ResolvedRun>> {
    let mut runs = Vec::new();
    for values in combinations {
        let mut overrides: Vec<String> =
            grids.iter().zip(values).map(|(grid, value)| format!("{}={value}", grid.key)).collect();
        overrides.extend(dataset_name(&base.config.dataset.name, grids, values));
        runs.push(runner.resolve(&runner.study_run(run_name(name, grids, values), overrides))?);
    }
    let without_epochs = |run: &&ResolvedRun| {
        runner.models().model(&run.config.model.name).is_some_and(|model| !model.has_epochs(&run.config))
    };
    if let Some(run) = runs.iter().find(without_epochs) {
        anyhow::bail!(
            "the model `{0}` is not trained in epochs, so a search has no values to compare; leave `{0}` out of the grid, evaluate such a run \
             with `mp4sr evaluate --run RUN`, and compare it with others with `mp4sr compare --validation`",
            run.config.model.name
        );
    }
    let mut folders = HashSet::new();
    for run in &runs {
        anyhow::ensure!(
            folders.insert(run.layout.run()),
            "two runs of the grid have the same name, `{}`; give values that differ in letters or digits",
            run.spec().name
        );
    }
    let mut by_settings: HashMap<String, &ResolvedRun> = HashMap::new();
    for run in &runs {
        let mut config = run.config.clone();
        config.run.name.clear();
        if let Some(same) = by_settings.insert(config.resolved().to_string(), run) {
            anyhow::bail!(
                "the runs `{}` and `{}` of the grid have the same settings; give each value once",
                same.spec().name,
                run.spec().name
            );
        }
    }
    for run in &runs {
        if let Some(key) = runner.trained_otherwise(run).or_else(|| runner.trained_on_other_data(run)) {
            anyhow::bail!(
                "the run `{}` was trained with a different `{key}` from that of this search, by another search or manually; give this \
                 search its own name (`--name`), or delete `{}`",
                run.spec().name,
                run.layout.run().display()
            );
        }
    }
    Ok(runs)
}

/// Says which runs of a grid cannot be compared with each other; empty if all can.
fn incomparable(grids: &[SearchGrid], config: &Config) -> String {
    let varies = |decides: &dyn Fn(&str) -> bool| grids.iter().any(|grid| grid.values.len() > 1 && decides(&grid.key));
    let mut text = String::new();
    if varies(&|key| EVENTS.iter().any(|section| key.starts_with(section))) {
        text += "\nNote: runs on different events rank different users among different items; their values cannot be compared directly.\n";
    }
    let by_model = config.evaluate.seen_items == SeenItems::ByModel;
    if varies(&|key| key == "evaluate.seen_items" || key == "model.name" && by_model) {
        text += "\nNote: items of the history may be candidates in some of these runs and not in others; the values of such runs cannot be \
                 compared directly. `mp4sr compare` says which runs differ.\n";
    }
    text
}

/// The metric by which these runs are compared: `train.metric`, or MRR if `train.metric` is the same for every ranking of the items of a
/// run.
fn common_metric<'r>(configured: &str, runs: impl Iterator<Item = &'r ResolvedRun>) -> anyhow::Result<Metric> {
    let metric: Metric = configured.parse()?;
    let mut fewest = usize::MAX;
    for path in runs.map(|run| run.layout.sequences()).collect::<BTreeSet<PathBuf>>() {
        fewest = fewest.min(Sequences::read(&path)?.item_count);
    }
    Ok(metric.selecting(fewest))
}

/// The best epoch of a run by its own `train.metric`, and its value of `metric`, by which the runs of a search are compared.
fn best_epoch(at: usize, run: &ResolvedRun, metric: &str) -> anyhow::Result<BestEpoch> {
    let path: PathBuf = run.layout.metrics_log();
    let wrong = |reason: &str| Error::unusable(&path, reason, REMEDY);
    let lines = EpochLine::read(&path, REMEDY)?;
    let phase = || lines.iter().filter(|line| line.phase == FINETUNE);
    let best = phase().rfind(|line| line.best).ok_or_else(|| wrong("it has no epoch of fine-tuning"))?;
    let value = |name: &str| best.validation.get(name).copied().filter(|value| value.is_finite());
    let found = value(metric).ok_or_else(|| wrong(&format!("its best epoch has no validation {metric}")))?;
    Ok(BestEpoch { at, value: found, ndcg: value("N@20"), epoch: best.epoch, epochs: phase().count() })
}

fn table(
    grids: &[SearchGrid],
    all: &[Vec<&str>],
    metric: &str,
    outcomes: &[BestEpoch],
    runs: &[ResolvedRun],
) -> TextTable {
    let selected = format!("validation {metric}");
    let fixed = [selected.as_str(), "N@20", "best epoch", "epochs", "ended", "run"];
    let mut table = TextTable::new(grids.iter().map(|grid| grid.key.as_str()).chain(fixed));
    for outcome in outcomes {
        let limit = runs[outcome.at].config.finetune.settings.epochs;
        let mut row: Vec<String> = all[outcome.at].iter().map(|&value| value.to_owned()).collect();
        row.extend([
            format!("{:.4}", outcome.value),
            outcome.ndcg.map_or_else(|| "-".to_owned(), |ndcg| format!("{ndcg:.4}")),
            outcome.epoch.to_string(),
            outcome.epochs.to_string(),
            if outcome.epochs < limit { "stopped early" } else { "at the limit of epochs" }.to_owned(),
            runs[outcome.at].spec().name.clone(),
        ]);
        table.rows.push(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_are_parsed_combined_and_named() {
        let grids: Vec<SearchGrid> =
            ["finetune.learning_rate=1e-4,0.001", r#"model.mp4sr.logit_modalities=["text","image"],["text"]"#]
                .map(|text| text.parse().unwrap())
                .into();
        assert_eq!(grids[1].values, [r#"["text","image"]"#, r#"["text"]"#]);
        let all = combinations(&grids);
        assert_eq!(all.len(), 4);
        assert_eq!(all[1], ["1e-4", r#"["text"]"#]);
        assert_eq!(run_name("s", &grids, &all[1]), "s.learning_rate-1e-4.logit_modalities-__text__");
        for bad in ["", "a", "=1", "a=", "a=1,,2"] {
            assert!(bad.parse::<SearchGrid>().is_err(), "{bad:?}");
        }
        assert_eq!(combinations(&[]), [Vec::<&str>::new()]);
        assert_eq!(dataset_name("d", &grids, &all[1]), None);
        let recent: SearchGrid = "preprocess.recent=10,20".parse().unwrap();
        let named = dataset_name("d", &[grids[0].clone(), recent.clone()], &["1e-4", "20"]);
        assert_eq!(named.unwrap(), "dataset.name=\"d.recent-20\"");
        assert_eq!(dataset_name("d", &["dataset.name=a,b".parse().unwrap(), recent], &["a", "10"]), None);
    }
}
