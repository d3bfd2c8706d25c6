//! Notes on finished runs that a reader of their table should know.

use mp4sr_artifact::{EpochLine, Sequences};
use mp4sr_pipeline::config::{FINETUNE, PRETRAIN};
use mp4sr_pipeline::text::some_of;
use mp4sr_protocol::{EvalCase, Metric, Split, StoredRanks, popularity_value, training_items};

use super::comparisons::log;
use super::{FinishedRows, Study};
use crate::runner::ResolvedRun;

impl Study<'_> {
    /// Adds notes on phases that ended no better than popularity, and on users that a model knows nothing about.
    pub(super) fn note_finished(&mut self, made: &FinishedRows, sequences: &Sequences) -> anyhow::Result<()> {
        for (phase, what) in [(PRETRAIN, "pre-training"), (FINETUNE, "training")] {
            let mut names = Vec::new();
            for run in made.iter().flat_map(|(_, runs)| runs) {
                if is_no_better_than_popularity(run, phase, sequences)? {
                    names.push(run.spec().name.as_str());
                }
            }
            if !names.is_empty() {
                self.notes.push(format!(
                    "on the validation set, no epoch of {what} ranks better than popularity in {} runs: {}",
                    names.len(),
                    some_of(&names)
                ));
            }
        }
        let cases = (0..sequences.user_count()).filter(|&user| EvalCase::of(sequences, user, Split::Test).is_some());
        let (unseen, seen): (Vec<usize>, Vec<usize>) =
            cases.partition(|&user| training_items(sequences, user).is_empty());
        // Only models that need known users have no ranks of short histories.
        let needs_known_users = |runs: &[ResolvedRun]| {
            runs.iter().any(|run| !run.layout.ranks(&StoredRanks::name(Split::Test, Some(1))).exists())
        };
        let labels: Vec<&str> =
            made.iter().filter(|(_, runs)| needs_known_users(runs)).map(|(row, _)| row.label.as_str()).collect();
        if !unseen.is_empty() && !labels.is_empty() {
            self.notes.push(format!(
            "{} of the {} users of the test set have no training event; {} rank for them by vectors that were not trained",
            unseen.len(),
            unseen.len() + seen.len(),
            labels.join(", ")
        ));
        }
        Ok(())
    }
}

/// Whether the best epoch of a phase has at most the value that ranking the items by popularity has, in the metric that selects epochs.
fn is_no_better_than_popularity(run: &ResolvedRun, phase: &str, sequences: &Sequences) -> anyhow::Result<bool> {
    let metric = run.config.train.metric.parse::<Metric>()?.selecting(sequences.item_count);
    let name = metric.to_string();
    let value = |line: &EpochLine| line.validation.get(&name).copied();
    let lines = log(&run.layout)?;
    let best = lines.iter().filter(|line| line.phase == phase).filter_map(value).max_by(f64::total_cmp);
    let Some(best) = best else { return Ok(false) };
    let ranks = StoredRanks::read(&run.layout, sequences, Split::Validation, None)?;
    let popularity = popularity_value(sequences, metric, ranks.info.removes_seen.unwrap_or(false));
    Ok(popularity.is_some_and(|popularity| best <= popularity))
}
