//! Rows side by side on the test split.

use mp4sr_artifact::{DatasetStatistics, EpochLine, Error, Layout, PreprocessReport, Sequences};
use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::{Comparison, Reference, SeedRuns, Split, mean_and_deviation};

use super::rows::{StudyRow, full};
use super::write::PaperTable;
use super::{FinishedRows, Study, common};
use crate::comparison_text::{details, markdown};
use crate::runner::Until;

impl Study<'_> {
    /// A comparison of rows on the test split, as a table.
    pub(super) fn table(
        &mut self,
        title: &str,
        rows: &[StudyRow],
        paper: Option<PaperTable>,
    ) -> anyhow::Result<String> {
        let made = self.make(rows, Until::Evaluated)?;
        let groups = groups(&made, &self.sequences()?, None)?;
        let comparison = Comparison::new(&groups, &self.measures(), Reference::Best);
        let mut text = self.head(title, comparison.users);
        text += &markdown(&comparison, "model");
        text += &times(&made)?;
        self.finish(text, paper, &details(&comparison), None)
    }

    /// Table 1: the statistics of the datasets.
    pub(super) fn statistics(&mut self) -> anyhow::Result<String> {
        let mut table = TextTable::new(["dataset", "users", "items", "events", "average length"]);
        let own = self.runner.args().pipeline.clone();
        for pipeline in [own].iter().chain(&self.options.with.clone()) {
            let common = common(self.runner, pipeline, self.options)?;
            let run = self.study_run(pipeline, &common, &full(), 0)?;
            if let Some(error) = self.runner.run(std::slice::from_ref(&run), Until::Dataset).swap_remove(0) {
                anyhow::bail!("{error}");
            }
            let path = run.layout.statistics();
            let report = PreprocessReport::read(&path)?
                .ok_or_else(|| Error::unusable(&path, "it does not exist", "run `make preprocess` again"))?;
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

/// How long training took, by row.
pub(super) fn times(made: &FinishedRows) -> mp4sr_artifact::Result<String> {
    let mut table = TextTable::new(["model", "epochs", "seconds of training"]);
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

pub(super) fn groups(
    made: &FinishedRows,
    sequences: &Sequences,
    history: Option<usize>,
) -> anyhow::Result<Vec<SeedRuns>> {
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
pub(super) fn add_details(all: &mut TextTable, of: &str, comparison: &Comparison) {
    let own = details(comparison);
    if all.header.is_empty() {
        all.header = ["of".to_owned()].into_iter().chain(own.header).collect();
    }
    all.rows.extend(own.rows.into_iter().map(|row| [of.to_owned()].into_iter().chain(row).collect()));
}

/// Reads the log of a run; it is empty where the model is not trained by epochs.
pub(super) fn log(layout: &Layout) -> mp4sr_artifact::Result<Vec<EpochLine>> {
    EpochLine::read(&layout.metrics_log(), "delete the run's folder and study again")
}

/// Epochs and seconds of all phases.
fn training_time(layout: &Layout) -> mp4sr_artifact::Result<(f64, f64)> {
    let lines = log(layout)?;
    Ok((lines.len() as f64, lines.iter().map(|line| line.seconds.0 + line.seconds.1).sum()))
}
