//! The command line of `mp4sr compare`: evaluated runs side by side, with tests of their differences.

use mp4sr_artifact::{Items, Layout, Sequences};
use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{Context, StageArgs, print};
use mp4sr_protocol::{
    Comparison, ItemFacts, ListComparison, Metric, Reference, SeedLists, SeedRuns, Split, left_out, lists_note,
};
use std::sync::Arc;

use crate::comparison_text::{details, list_details, lists_markdown, markdown};

/// Prints evaluated runs of one dataset side by side: the best value is bold, the second best is underlined, and a star marks a best
/// value that is significantly above the second best (p < 0.01).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run, or several runs that differ only by their seed: `NAME=RUN,RUN,...`.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<String>,
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// The metrics to print instead of those of `evaluate.k` and `evaluate.metrics`: R@K, N@K, Hit@K, P@K, MAP@K, MRR@K, MRR.
    #[arg(long, alias = "measures", value_delimiter = ',', value_name = "METRIC")]
    metrics: Vec<Metric>,
    /// Uses the validation set instead of the test set.
    #[arg(long)]
    validation: bool,
    /// Compares the lists of the runs (`mp4sr recommend`) instead of their metrics: coverage, Gini index, entropy, popularity, tail share,
    /// novelty and diversity, at each K of `evaluate.k` that all non-empty lists reach.
    #[arg(long, conflicts_with_all = ["metrics", "validation"])]
    lists: bool,
    /// Prints CSV, with one row per model and metric and with intervals and tests.
    #[arg(long)]
    csv: bool,
}

/// Runs `mp4sr compare`.
pub fn run(args: Args, catalog: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    let Args { runs, stage, metrics, validation, lists, csv } = args;
    let context = stage.context(catalog)?;
    let (config, layout) = (&context.config, &context.layout);
    let split = if validation { Split::Validation } else { Split::Test };
    let own = || Metric::table(&config.evaluate.k, &config.evaluate.metrics);
    let metrics = if metrics.is_empty() { own() } else { once(metrics) };
    let sequences = Sequences::read(&layout.sequences())?;
    let mut models: Vec<(String, Vec<Layout>)> = Vec::new();
    for text in &runs {
        let (name, members) = text.split_once('=').unwrap_or((text, text));
        let members: Vec<&str> = members.split(',').collect();
        anyhow::ensure!(
            !name.is_empty() && !members.contains(&""),
            "`{text}` lacks a name; expected a run, or `NAME=RUN,RUN,...`"
        );
        for (at, run) in members.iter().enumerate() {
            anyhow::ensure!(!members[..at].contains(run), "`{text}` names the run `{run}` twice; name each run once");
        }
        anyhow::ensure!(
            models.iter().all(|(other, _)| other != name),
            "two rows are called `{name}`; give one another name: `NAME=RUN,RUN,...`"
        );
        let layouts: Vec<Layout> = members.iter().map(|run| layout.with_run(run)).collect();
        models.push((name.to_owned(), layouts));
    }
    if lists {
        return compare_lists(&context, &models, &sequences, csv);
    }
    let read = |(name, runs): &(String, Vec<Layout>)| SeedRuns::read(name, runs, &sequences, split, None);
    let groups = models.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let comparison = Comparison::new(&groups, &metrics, Reference::Best);
    anyhow::ensure!(
        comparison.users > 0,
        "no user has a rank in all of these runs, so they cannot be compared; run `mp4sr evaluate` for each of them"
    );
    let has_rank = |user: &usize| groups.iter().flat_map(|group| &group.ranks).any(|ranks| ranks[*user] > 0);
    let ranked = (0..sequences.user_count()).filter(has_rank).count();
    let others = (ranked > comparison.users)
        .then(|| format!("{} users that only some of the runs rank are left out", ranked - comparison.users));
    if csv {
        for note in comparison.candidates_note().into_iter().chain(others) {
            context.progress.warn("compare", note);
        }
        return print(&details(&comparison).csv()?);
    }
    let set = if validation { "Validation" } else { "Test" };
    let others = others.map_or_else(String::new, |others| format!("; {others}"));
    print(&format!("{set} set, {} users{others}\n\n{}", comparison.users, markdown(&comparison, "run")))
}

/// The metrics in their order, each once.
fn once(metrics: Vec<Metric>) -> Vec<Metric> {
    let mut found = Vec::new();
    for metric in metrics {
        if !found.contains(&metric) {
            found.push(metric);
        }
    }
    found
}

/// Compares the lists of runs. `models` has the name of every row and its runs.
fn compare_lists(
    context: &Context,
    models: &[(String, Vec<Layout>)],
    sequences: &Sequences,
    csv: bool,
) -> anyhow::Result<()> {
    let (config, layout) = (&context.config, &context.layout);
    let items = Items::read(&layout.items())?;
    let read = |(name, runs): &(String, Vec<Layout>)| SeedLists::read(name, runs, &items, sequences.user_count());
    let models = models.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let (facts, error) = ItemFacts::read(sequences, &config.feature_files(layout));
    if let Some(error) = error {
        context.progress.warn("compare", format!("{error}; the diversity of the lists is left out"));
    }
    let compared = ListComparison::all(&models, &config.evaluate.k, &facts);
    let left_out = left_out(&models, &config.evaluate.k);
    if let Some(note) = left_out.as_ref().filter(|_| compared.is_empty()) {
        return Err(anyhow::Error::msg(note.clone()));
    }
    for note in left_out.into_iter().chain(lists_note(&models)) {
        context.progress.warn("compare", note);
    }
    print(&if csv { list_details(&compared).csv()? } else { lists_markdown(&compared, "run") })
}
