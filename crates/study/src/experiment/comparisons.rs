//! Compares rows on the test set.

use std::fmt::Write as _;

use mp4sr_artifact::{DatasetStatistics, EpochLine, Error, Items, Layout, PreprocessReport, Sequences, files};
use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::{
    Comparison, EvalCase, ItemFacts, ListComparison, Reference, SeedLists, SeedRuns, Split, left_out, lists_note,
    mean_and_deviation,
};

use super::rows::{StudyRow, full};
use super::write::PaperTable;
use super::{FinishedRows, Study, common};
use crate::comparison_text::{details, list_details, lists_markdown, markdown};
use crate::runner::{ResolvedRun, Until};

impl Study<'_> {
    /// Compares rows on the test set and presents them as a table.
    pub(super) fn table(
        &mut self,
        title: &str,
        rows: &[StudyRow],
        paper: Option<PaperTable>,
    ) -> anyhow::Result<String> {
        let made = self.make(rows, if self.options.lists { Until::Listed } else { Until::Evaluated })?;
        let sequences = self.sequences()?;
        let groups = groups(&made, &sequences, None)?;
        let comparison = Comparison::new(&groups, &self.metrics(), Reference::Best);
        let mut text = self.head(title, comparison.users);
        text += &markdown(&comparison, "model");
        text += &times(&made, self.runner.models())?;
        let mut lists = None;
        if self.options.lists {
            let (compared, note) = self.compared_lists(&made, &sequences)?;
            if !compared.is_empty() {
                let note = note.map_or_else(String::new, |note| format!("\n{note}\n"));
                let _ = write!(text, "\n## The lists\n\n{}{note}", lists_markdown(&compared, "model"));
                lists = Some(list_details(&compared));
            }
        }
        let text = self.finish(text, paper, &details(&comparison), None)?;
        let path = self.folder().join("lists.csv");
        match lists {
            Some(lists) => {
                lists.write_csv(&path)?;
                self.runner.progress().log(format!("{}: wrote `{}`", self.slug(), path.display()));
            }
            None => files::remove_if_present(&path)?,
        }
        Ok(text)
    }

    /// The statistics of the lists of all rows, and a note if their candidates or histories differ. What could not be compared is noted.
    fn compared_lists(
        &mut self,
        made: &FinishedRows,
        sequences: &Sequences,
    ) -> anyhow::Result<(Vec<ListComparison>, Option<String>)> {
        let items = Items::read(&self.layout.items())?;
        let read = |(row, runs): &(StudyRow, Vec<ResolvedRun>)| {
            let layouts: Vec<Layout> = runs.iter().map(|run| run.layout.clone()).collect();
            SeedLists::read(&row.label, &layouts, &items, sequences.user_count())
        };
        let models = made.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let (facts, error) = ItemFacts::read(sequences, &self.config.feature_files(&self.layout));
        self.notes.extend(error.map(|error| format!("{error}; the diversity of the lists is left out")));
        let compared = ListComparison::all(&models, &self.config.evaluate.k, &facts);
        self.notes.extend(left_out(&models, &self.config.evaluate.k));
        Ok((compared, lists_note(&models)))
    }

    /// Table 1: the statistics of the datasets.
    pub(super) fn statistics(&mut self) -> anyhow::Result<String> {
        let mut table = TextTable::new(["dataset", "users", "items", "events", "average length"]);
        let own = self.runner.args().pipeline.clone();
        for pipeline in [own].iter().chain(&self.options.with.clone()) {
            let common = common(self.runner, pipeline, self.options)?;
            let run = self.study_run(pipeline, &common, &full(), 0)?;
            if let Some(error) = self.runner.run(std::slice::from_ref(&run), Until::Dataset).swap_remove(0) {
                return Err(error.into_error());
            }
            let path = run.layout.statistics();
            let report = PreprocessReport::read(&path)?
                .ok_or_else(|| Error::unusable(&path, "it does not exist", "run `mp4sr preprocess` again"))?;
            let DatasetStatistics { users, items, events, average_length, .. } = report.statistics;
            let mut row = vec![run.config.dataset.name.clone()];
            row.extend([users, items, events].map(|n| n.to_string()));
            row.push(format!("{average_length:.2}"));
            table.rows.push(row);
        }
        let text = format!("# Table 1: statistics of the datasets\n\n{}", table.markdown());
        self.finish(text, Some(PaperTable::whole(1)), &table, None)
    }
}

/// The training times of the rows.
pub(super) fn times(made: &FinishedRows, models: &ModelCatalog) -> mp4sr_artifact::Result<String> {
    let mut table = TextTable::new(["model", "epochs", "seconds of training"]);
    for (row, runs) in made {
        let (epochs, seconds): (Vec<f64>, Vec<f64>) = {
            let all: Vec<(f64, f64)> =
                runs.iter().map(|run| training_time(run, models)).collect::<mp4sr_artifact::Result<_>>()?;
            all.into_iter().unzip()
        };
        if epochs.iter().sum::<f64>() > 0.0 {
            let values = [epochs, seconds].map(|v| format!("{:.0}", mean_and_deviation(&v).0));
            table.rows.push([row.label.clone()].into_iter().chain(values).collect());
        }
    }
    Ok(if table.rows.is_empty() { String::new() } else { format!("\nMeans over seeds:\n\n{}", table.markdown()) })
}

pub(super) fn groups(
    made: &FinishedRows,
    sequences: &Sequences,
    history: Option<usize>,
) -> anyhow::Result<Vec<SeedRuns>> {
    anyhow::ensure!(
        (0..sequences.user_count()).any(|user| EvalCase::of(sequences, user, Split::Test).is_some()),
        "no user has both a test event and an event before it; use a dataset with longer sequences"
    );
    made.iter()
        .map(|(row, runs)| {
            let layouts: Vec<Layout> = runs.iter().map(|run| run.layout.clone()).collect();
            Ok(SeedRuns::read(&row.label, &layouts, sequences, Split::Test, history)?)
        })
        .collect()
}

/// Appends the details of a comparison to those of others, with a first column that names the table.
pub(super) fn add_details(all: &mut TextTable, table: &str, comparison: &Comparison) {
    let own = details(comparison);
    if all.header.is_empty() {
        all.header = ["table".to_owned()].into_iter().chain(own.header).collect();
    }
    all.rows.extend(own.rows.into_iter().map(|row| [table.to_owned()].into_iter().chain(row).collect()));
}

/// Reads the log of a run; it is empty if the model is not trained in epochs.
pub(super) fn log(layout: &Layout) -> mp4sr_artifact::Result<Vec<EpochLine>> {
    EpochLine::read(&layout.metrics_log(), "delete the run's folder and run the study again")
}

/// The number of epochs and the seconds of all phases of the run. Its log may have those of a phase that it no longer has.
fn training_time(run: &ResolvedRun, models: &ModelCatalog) -> mp4sr_artifact::Result<(f64, f64)> {
    let mut lines = log(&run.layout)?;
    lines.retain(|line| models.trains(&run.config, &line.phase));
    Ok((lines.len() as f64, lines.iter().map(|line| line.seconds.0 + line.seconds.1).sum()))
}
