//! The command line of `mp4sr compare`: evaluated runs side by side, with tests of their differences.

use mp4sr_artifact::{Items, Layout, Sequences};
use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{StageArgs, print};
use mp4sr_protocol::{Comparison, ItemFacts, ListComparison, Measure, Reference, SeedLists, SeedRuns, Split};
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
    /// The metrics to print, in place of those of `evaluate.k` and `evaluate.measures`: R@K, N@K, Hit@K, P@K, MAP@K, MRR@K, MRR.
    #[arg(long, value_delimiter = ',', value_name = "MEASURE")]
    measures: Vec<Measure>,
    /// Uses the validation split in place of the test split.
    #[arg(long)]
    validation: bool,
    /// Also compares the lists of the runs (`mp4sr recommend`): coverage, Gini index, entropy, popularity, tail share, novelty and
    /// diversity, at each K of `evaluate.k` that the lists reach.
    #[arg(long)]
    lists: bool,
    /// Prints CSV, with one row per model and metric and with intervals and tests.
    #[arg(long)]
    csv: bool,
}

/// Runs `mp4sr compare`.
pub fn run(args: Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    let Args { runs, stage, measures, validation, lists, csv } = args;
    let context = stage.context(models)?;
    let (config, layout) = (&context.config, &context.layout);
    let split = if validation { Split::Validation } else { Split::Test };
    let own = || Measure::table(&config.evaluate.k, &config.evaluate.measures);
    let measures = if measures.is_empty() { own() } else { measures };
    let sequences = Sequences::read(&layout.sequences())?;
    let (mut groups, mut layouts_of) = (Vec::new(), Vec::new());
    for text in &runs {
        let (name, members) = text.split_once('=').unwrap_or((text, text));
        let members: Vec<&str> = members.split(',').collect();
        for (at, run) in members.iter().enumerate() {
            anyhow::ensure!(
                !members[..at].contains(run),
                "`{text}` names the run `{run}` twice; name each seed's once"
            );
        }
        anyhow::ensure!(
            groups.iter().all(|group: &SeedRuns| group.name != name),
            "two rows are called `{name}`; give one another name: `NAME=RUN,RUN,...`"
        );
        let layouts: Vec<Layout> = members.iter().map(|run| layout.with_run(run)).collect();
        groups.push(SeedRuns::read(name, &layouts, &sequences, split, None)?);
        layouts_of.push((name, layouts));
    }
    let comparison = Comparison::new(&groups, &measures, Reference::Best);
    let of_lists = if lists {
        let items = Items::read(&layout.items())?;
        let read =
            |(name, layouts): &(&str, Vec<Layout>)| SeedLists::read(name, layouts, &items, sequences.user_count());
        let models = layouts_of.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let facts = ItemFacts::read(&sequences, &config.feature_files(layout))?;
        let compared = ListComparison::all(&models, &config.evaluate.k, &facts);
        anyhow::ensure!(
            !compared.is_empty(),
            "the lists do not reach the smallest K of `evaluate.k`; set `recommend.top` and run `make recommend` again"
        );
        compared
    } else {
        Vec::new()
    };
    if csv {
        if let Some(note) = comparison.candidates_note() {
            context.progress.log(format!("compare: warning: {note}"));
        }
        print(&details(&comparison).csv()?)?;
        return if lists { print(&format!("\n{}", list_details(&of_lists).csv()?)) } else { Ok(()) };
    }
    print(&markdown(&comparison, "run"))?;
    if lists { print(&format!("\n{}", lists_markdown(&of_lists, "run"))) } else { Ok(()) }
}
