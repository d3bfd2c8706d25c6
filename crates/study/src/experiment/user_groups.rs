//! Compares rows on groups of users.

use std::fmt::Write as _;

use mp4sr_artifact::Sequences;
use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::{
    COLD_EVENTS, Comparison, Reference, SeedRuns, Split, StoredRanks, UserFacts, by_sequence_length, has_clock,
    training_events,
};

use super::comparisons::{add_details, groups, times};
use super::figure::{StudyCurve, values};
use super::rows::{StudyRow, full, own_key, row};
use super::write::PaperTable;
use super::{FinishedRows, Study};
use crate::comparison_text::markdown;
use crate::runner::{ResolvedRun, Until};

/// The baselines of the paper's Table 3.
const MODELS_FOR_COLD_ITEMS: [&str; 2] = ["masr", "clcrec"];

/// Popularity, which is the fallback for users without events, over the latest training events only.
fn popularity_of_the_latest_events() -> [StudyRow; 2] {
    [("10 %", "popularity-latest-10", 0.1), ("1 %", "popularity-latest-1", 0.01)].map(|(share, slug, value)| {
        let key = format!("model.popularity.latest_share={value}");
        row(&format!("popularity, latest {share}"), slug, &["model.name=\"popularity\"", &key])
    })
}

/// The rows whose runs were ranked by histories of this length, and the labels of the others.
fn by_ability(made: &FinishedRows, history: Option<usize>) -> (FinishedRows, Vec<String>) {
    let is_able = |runs: &[ResolvedRun]| {
        history.is_none() || runs.iter().all(|run| run.layout.ranks(&StoredRanks::name(Split::Test, history)).exists())
    };
    let (able, unable): (FinishedRows, FinishedRows) = made.iter().cloned().partition(|(_, runs)| is_able(runs));
    (able, unable.into_iter().map(|(row, _)| row.label).collect())
}

impl Study<'_> {
    /// Builds Figure 8: users grouped by the length of their sequence.
    pub(super) fn user_groups(&mut self) -> anyhow::Result<String> {
        let title = "Figure 8: users by the length of their sequences";
        let made = self.make(&self.all_models(), Until::Evaluated)?;
        let sequences = self.sequences()?;
        let groups = groups(&made, &sequences, None)?;
        let user_groups = by_sequence_length(&UserFacts::of(&sequences, Split::Test));
        let mut text = self.head(title, user_groups.iter().map(|s| s.users.len()).sum());
        let mut details = TextTable::default();
        let mut lines: Vec<StudyCurve> =
            made.iter().map(|(row, _)| StudyCurve { name: row.label.clone(), entries: Vec::new() }).collect();
        for (index, user_group) in user_groups.iter().enumerate() {
            let own: Vec<SeedRuns> = groups.iter().map(|group| group.of_users(&user_group.users)).collect();
            let comparison = Comparison::new(&own, &self.metrics(), Reference::Best);
            let _ = write!(text, "\n{} events, {} users\n\n", user_group.name, comparison.users);
            text += &markdown(&comparison, "model");
            add_details(&mut details, &user_group.name, &comparison);
            for (line, row) in lines.iter_mut().zip(&comparison.rows) {
                line.entries.push((index, values(row)));
            }
        }
        if user_groups.len() < 5 {
            self.notes.push(format!("the lengths of the sequences have only {} different values", user_groups.len()));
        }
        let categories: Vec<String> = user_groups.iter().map(|s| format!("{} ({})", s.name, s.users.len())).collect();
        let figure = self.figure(title, "events (users)", &categories, &lines);
        self.finish(text, None, &details, Some(figure))
    }

    /// Builds Table 3; with `beyond`, also compares items without training events and short histories.
    pub(super) fn cold(&mut self, beyond: bool) -> anyhow::Result<String> {
        let title = if beyond { "Cold start" } else { "Table 3: cold items" };
        let mut rows = self.cold_rows(beyond);
        let sequences = self.preprocessed()?;
        if !beyond {
            expect_cold_targets(&sequences)?;
        } else if has_clock(&sequences) {
            rows.extend(popularity_of_the_latest_events());
        }
        let made = self.make(&rows, Until::Evaluated)?;
        let facts = UserFacts::of(&sequences, Split::Test);
        let mut text = self.head(title, facts.len());
        text += "MP4SR is pre-trained on sequences of warm items and fine-tuned without item ids; MP4SR w/o Pre-train is only \
             fine-tuned, also without item ids. The other models are trained on all items.\n";
        let mut details = TextTable::default();
        for ColdPart { what, users, history } in cold_parts(&sequences, &facts, beyond) {
            if users.is_empty() {
                self.notes.push(format!("no user has {what}"));
                continue;
            }
            let (able, unable) = by_ability(&made, history);
            self.note_unable(&unable);
            let groups = groups(&able, &sequences, history)?;
            let own: Vec<SeedRuns> = groups.iter().map(|group| group.of_users(&users)).collect();
            let comparison = Comparison::new(&own, &self.metrics(), Reference::Best);
            let _ = write!(text, "\n{} users: {what}\n\n", comparison.users);
            text += &markdown(&comparison, "model");
            add_details(&mut details, &what, &comparison);
        }
        text += &times(&made, self.runner.models())?;
        self.finish(text, Some(PaperTable::whole(3)), &details, None)
    }

    /// The rows of Table 3; with `beyond`, all other models and MP4SR with ids, too.
    fn cold_rows(&self, beyond: bool) -> Vec<StudyRow> {
        let mut rows = self.baselines();
        if beyond {
            let slug = if own_key(&self.config, "id_embedding") == true { "mp4sr" } else { "with-ids" };
            rows.push(row("MP4SR with ids", slug, &["model.mp4sr.id_embedding=true"]));
        } else {
            rows.retain(|other| MODELS_FOR_COLD_ITEMS.contains(&other.slug.as_str()));
        }
        rows.push(row(
            "MP4SR w/o Pre-train",
            "no-id.no-pretrain",
            &["model.mp4sr.id_embedding=false", "pretrain.enabled=false"],
        ));
        rows.push(row("MP4SR", "no-id.warm", &["model.mp4sr.id_embedding=false", "pretrain.items=\"warm\""]));
        rows
    }

    /// Notes, once, which models have no rows in the tables of short histories.
    fn note_unable(&mut self, labels: &[String]) {
        if labels.is_empty() {
            return;
        }
        let note = format!(
            "the tables of short histories have no rows of {}, because these models rank only for users of the training set",
            labels.join(", ")
        );
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The sequences of the dataset, which is preprocessed first if necessary.
    fn preprocessed(&self) -> anyhow::Result<Sequences> {
        let run = self.study_run(&self.runner.args().pipeline.clone(), &self.common, &full(), 0)?;
        if let Some(error) = self.runner.run(std::slice::from_ref(&run), Until::Dataset).swap_remove(0) {
            return Err(error.into_error());
        }
        Ok(self.sequences()?)
    }
}

/// Users whose rows are compared in a table of their own, from the last `history` events of their histories, or from all.
struct ColdPart {
    what: String,
    users: Vec<usize>,
    history: Option<usize>,
}

fn cold_parts(sequences: &Sequences, facts: &[UserFacts], beyond: bool) -> Vec<ColdPart> {
    let part = |what: String, history: Option<usize>, belongs: &dyn Fn(&UserFacts) -> bool| {
        let users = facts.iter().filter(|facts| belongs(facts)).map(|facts| facts.user).collect();
        ColdPart { what, users, history }
    };
    let cold_items = training_events(sequences).iter().filter(|&&events| events < COLD_EVENTS).count();
    let of_all = format!("{cold_items} of {} items", sequences.item_count);
    let few = format!("targets with fewer than {COLD_EVENTS} training events ({of_all})");
    let mut parts = vec![part(few, None, &|user| user.target_events < COLD_EVENTS)];
    if beyond {
        parts.push(part("targets without a training event".to_owned(), None, &|user| user.target_events == 0));
        parts.push(part("all targets".to_owned(), None, &|_| true));
        for (events, last) in [(1, "event"), (2, "two events"), (3, "three events")] {
            let what = format!("all targets, from the last {last} of each history");
            parts.push(part(what, Some(events), &|_| true));
        }
    }
    parts
}

/// Rejects a dataset on which Table 3 would be empty, before anything is trained.
fn expect_cold_targets(sequences: &Sequences) -> anyhow::Result<()> {
    anyhow::ensure!(
        UserFacts::of(sequences, Split::Test).iter().any(|user| user.target_events < COLD_EVENTS),
        "no user's target is an item with fewer than {COLD_EVENTS} training events, so the table would be empty; keep rare items \
         (`preprocess.item_core`)"
    );
    Ok(())
}
