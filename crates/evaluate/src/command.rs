//! The command line of `mp4sr evaluate`: ranks every user's next item and prints R@K, N@K and MRR.

use std::sync::Arc;

use mp4sr_artifact::Stage;
use mp4sr_pipeline::config::{Evaluate, ModelCatalog};
use mp4sr_pipeline::text::TextTable;
use mp4sr_pipeline::{Config, Context, StageArgs, print, run_stage};
use mp4sr_protocol::{EvalCase, Measure, Metrics, RanksInfo, Split, StoredRanks};
use mp4sr_run::{TrainedModel, removes_seen};
use serde_json::json;

use crate::{RankOptions, rank_users};

/// The version of what evaluation writes.
const VERSION: u32 = 2;

/// Ranks the target of every user among all items: dataset, features and checkpoint to `ranks.<split>.safetensors`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
}

/// Runs the command.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    mp4sr_ops::start_threads();
    let context = args.stage.context(models)?;
    evaluate(&context)?;
    print(&table(&context)?)
}

/// The stage: what it reads and which settings decide the ranks.
pub fn stage(context: &Context) -> anyhow::Result<Stage> {
    let (config, layout) = (&context.config, &context.layout);
    let sections = |config: &Config| {
        let Evaluate { seen_items, short_histories, .. } = &config.evaluate;
        json!({ "evaluate": { "seen_items": seen_items, "short_histories": short_histories } })
    };
    let settings = context.models.ranking_settings(config, sections);
    Ok(Stage::new("evaluate", VERSION, &layout.run(), settings, &TrainedModel::files(layout, config))?)
}

fn evaluate(context: &Context) -> anyhow::Result<()> {
    let (config, layout) = (&context.config, &context.layout);
    run_stage(
        context,
        "evaluate",
        &layout.run(),
        || stage(context),
        |stage| {
            let trained = TrainedModel::load(layout, config)?;
            let sequences = &trained.inputs.sequences;
            for warning in trained.warnings(config, &stage.input_fingerprints()) {
                context.progress.log(format!("evaluate: warning: {warning}"));
            }
            let scorer = trained.scorer()?;
            let remove_seen = removes_seen(config, trained.model.as_ref());
            let users = sequences.user_count();
            let tables = tables(config);
            let bar = context.progress.bar("evaluate", "users", (tables.len() * users) as u64);
            let mut outputs = Vec::new();
            for (split, history) in tables {
                let case = |user| EvalCase::of(sequences, user, split);
                let options = RankOptions { batch: config.evaluate.batch, remove_seen, history };
                let ranks = rank_users(scorer.as_ref(), users, case, options, |users| bar.add(users))?;
                let info = RanksInfo {
                    split: split.name().to_owned(),
                    history,
                    removes_seen: Some(remove_seen),
                    config: trained.checkpoint.info.settings_of_results(config),
                };
                let path = layout.ranks(&info.name());
                StoredRanks { ranks, info }.write(&path, &sequences.item_hash, stage.input_fingerprints())?;
                outputs.push(path);
            }
            Ok(outputs)
        },
    )
}

/// What is ranked: both splits, and the test split from short histories.
fn tables(config: &Config) -> Vec<(Split, Option<usize>)> {
    let short = config.evaluate.short_histories.iter().map(|&history| (Split::Test, Some(history)));
    [(Split::Validation, None), (Split::Test, None)].into_iter().chain(short).collect()
}

/// The metrics of everything ranked as Markdown, from the stored ranks.
fn table(context: &Context) -> anyhow::Result<String> {
    let (config, layout) = (&context.config, &context.layout);
    let sequences = mp4sr_artifact::Sequences::read(&layout.sequences())?;
    let measures = Measure::columns(&config.evaluate.k);
    for k in config.evaluate.k.iter().filter(|&&k| k >= sequences.item_count) {
        let count = sequences.item_count;
        context
            .progress
            .log(format!("evaluate: warning: R@{k} is 1 for every ranking of {count} items (`evaluate.k`)"));
    }
    let header = ["run", "split", "users"].map(str::to_owned);
    let mut table = TextTable::new(header.into_iter().chain(measures.iter().map(ToString::to_string)));
    for (split, history) in tables(config) {
        let stored = StoredRanks::read(layout, &sequences, split, history)?;
        let metrics = Metrics::of(&stored.ranks, &measures);
        let mut row = vec![layout.run_name().to_owned(), stored.info.name(), metrics.users.to_string()];
        row.extend(metrics.values.iter().map(|(_, value)| format!("{value:.4}")));
        table.rows.push(row);
    }
    Ok(table.markdown())
}
