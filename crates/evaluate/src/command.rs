//! The command line of `mp4sr evaluate`: ranks every user's next item and prints R@K, N@K and MRR.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use mp4sr_artifact::{Sequences, Stage, files};
use mp4sr_models::{FINETUNE, Scorer};
use mp4sr_pipeline::config::{Evaluate, ModelCatalog};
use mp4sr_pipeline::text::TextTable;
use mp4sr_pipeline::{Config, Context, Shard, StageArgs, print, run_stage_in_shards};
use mp4sr_protocol::{EvalCase, Metric, MetricMeans, RanksInfo, Split, StoredRanks};
use mp4sr_run::{TrainedModel, other_settings, removes_seen};
use serde_json::json;

use crate::{RankOptions, rank_users};

const NAME: &str = "evaluate";
/// The version of the stage's output.
const VERSION: u32 = 3;

/// Ranks the target of every user among all candidates, using the dataset, the features and the checkpoint, and writes
/// `ranks.<set>.safetensors`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Ranks only one shard of the users, such as `2/4`, the second of four. When all shards are done, on any machines that share the
    /// artifacts, the same command without this flag merges them.
    #[arg(long, value_name = "INDEX/COUNT")]
    pub shard: Option<Shard>,
}

/// Runs `mp4sr evaluate`.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    mp4sr_ops::start_threads();
    let context = args.stage.context(models)?;
    for warning in other_settings(&context.layout, &context.config) {
        context.progress.warn("evaluate", warning);
    }
    evaluate(&context, args.shard)?;
    if args.shard.is_some() { Ok(()) } else { print(&table(&context)?) }
}

/// The stage, with its inputs and the settings that determine the ranks.
pub fn stage(context: &Context) -> anyhow::Result<Stage> {
    stage_named(context, NAME)
}

/// The stage of all users, or of one shard of them.
fn stage_named(context: &Context, name: &str) -> anyhow::Result<Stage> {
    let (config, layout) = (&context.config, &context.layout);
    let sections = |config: &Config| {
        let Evaluate { seen_items, short_histories, .. } = &config.evaluate;
        json!({ "evaluate": { "seen_items": seen_items, "short_histories": short_histories } })
    };
    let settings = context.models.ranking_settings(config, sections);
    Ok(Stage::new(name, VERSION, &layout.run(), settings, &TrainedModel::files(layout, config))?)
}

fn evaluate(context: &Context, shard: Option<Shard>) -> anyhow::Result<()> {
    let make_stage = |name: &str| stage_named(context, name);
    let whole = |stage: &Stage| rank(context, stage, shard);
    let of_shards = |stage: &Stage, shards| put_together(context, stage, shards);
    run_stage_in_shards(context, NAME, &context.layout.run(), shard, make_stage, whole, of_shards)
}

/// Ranks all users, or one shard of them, and writes one file per table.
fn rank(context: &Context, stage: &Stage, shard: Option<Shard>) -> anyhow::Result<Vec<PathBuf>> {
    let (config, layout) = (&context.config, &context.layout);
    let trained = TrainedModel::load(layout, config)?;
    stage.expect_unchanged_inputs()?;
    let sequences = &trained.inputs.sequences;
    if let Some(warning) = trained.checkpoint.trained_on_others(&stage.input_fingerprints(), FINETUNE) {
        context.progress.warn("evaluate", warning);
    }
    let scorer = trained.scorer()?;
    let remove_seen = removes_seen(config, trained.model.as_ref());
    let users = sequences.user_count();
    let own = shard.map_or(0..users, |shard| shard.range(users));
    if scorer.needs_known_user() {
        let ranked = own.clone().filter(|&user| EvalCase::of(sequences, user, Split::Test).is_some());
        let unseen = ranked.filter(|&user| !scorer.has_seen(user as u32)).count();
        if unseen > 0 {
            context.progress.warn("evaluate", format!(
                "{unseen} users of the test set have no training event; `{}` ranks for them by vectors that were not \
                 trained",
                config.model.name
            ));
        }
    }
    let path = |name: &str| layout.ranks(&shard.map_or_else(|| name.to_owned(), |shard| shard.stage_name(name)));
    let tables = tables_of(scorer.as_ref(), context, path)?;
    let bar = context.progress.bar("evaluate", "users", (tables.len() * own.len()) as u64);
    let mut outputs = Vec::new();
    for (split, history) in tables {
        let case = |user| own.contains(&user).then(|| EvalCase::of(sequences, user, split)).flatten();
        let options = RankOptions { batch: config.evaluate.batch, remove_seen, history };
        let ranks = rank_users(scorer.as_ref(), users, case, options, |users| bar.add(users))?;
        let info = RanksInfo {
            split: split.name().to_owned(),
            history,
            removes_seen: Some(remove_seen),
            config: trained.checkpoint.info.settings_of_results(layout, config),
        };
        let path = path(&info.name());
        StoredRanks { ranks, info }.write(&path, &sequences.item_hash, stage.input_fingerprints())?;
        outputs.push(path);
    }
    Ok(outputs)
}

/// Merges the ranks of `shards` shards, which are up to date, into one file per table.
fn put_together(context: &Context, stage: &Stage, shards: usize) -> anyhow::Result<Vec<PathBuf>> {
    let (config, layout) = (&context.config, &context.layout);
    let sequences = Sequences::read(&layout.sequences())?;
    let users = sequences.user_count();
    let mut outputs = Vec::new();
    let first = Shard::all(shards).next().context("a stage without shards")?;
    let stored = stored(config, |name| layout.ranks(&first.stage_name(name)));
    for (split, history) in tables(config).into_iter().filter(|table| !stored.contains(table)) {
        files::remove_if_present(&layout.ranks(&StoredRanks::name(split, history)))?;
    }
    for (split, history) in stored {
        let mut all: Option<StoredRanks> = None;
        for shard in Shard::all(shards) {
            let stored = StoredRanks::read_shard(layout, &sequences, split, history, &shard.file_name())?;
            let own = shard.range(users);
            match &mut all {
                None => all = Some(stored),
                Some(all) => all.ranks[own.clone()].copy_from_slice(&stored.ranks[own]),
            }
        }
        let all = all.context("a stage without shards")?;
        let path = layout.ranks(&all.info.name());
        all.write(&path, &sequences.item_hash, stage.input_fingerprints())?;
        outputs.push(path);
    }
    Ok(outputs)
}

/// The tables that are ranked: both sets with whole histories, and the test set with each of the short histories.
fn tables(config: &Config) -> Vec<(Split, Option<usize>)> {
    let short = config.evaluate.short_histories.iter().map(|&history| (Split::Test, Some(history)));
    [(Split::Validation, None), (Split::Test, None)].into_iter().chain(short).collect()
}

/// The tables that a model can rank. One that ranks only for users of the training set cannot rank by short histories; the log says so, and
/// ranks of an earlier version, which are at `path`, are removed.
fn tables_of(
    scorer: &dyn Scorer,
    context: &Context,
    path: impl Fn(&str) -> PathBuf,
) -> anyhow::Result<Vec<(Split, Option<usize>)>> {
    let config = &context.config;
    let (whole, short): (Vec<_>, Vec<_>) = tables(config).into_iter().partition(|(_, history)| history.is_none());
    if !scorer.needs_known_user() || short.is_empty() {
        return Ok(whole.into_iter().chain(short).collect());
    }
    context.progress.log(format!(
        "evaluate: no ranks from short histories (`evaluate.short_histories`), because `{}` ranks only for users of the training set",
        config.model.name
    ));
    for (split, history) in short {
        files::remove_if_present(&path(&StoredRanks::name(split, history)))?;
    }
    Ok(whole)
}

/// The tables whose ranks were stored at `path`.
fn stored(config: &Config, path: impl Fn(&str) -> PathBuf) -> Vec<(Split, Option<usize>)> {
    let is_stored = |(split, history): &(Split, Option<usize>)| {
        history.is_none() || path(&StoredRanks::name(*split, *history)).exists()
    };
    tables(config).into_iter().filter(is_stored).collect()
}

/// The metrics of all tables as Markdown, computed from the stored ranks.
fn table(context: &Context) -> anyhow::Result<String> {
    let (config, layout) = (&context.config, &context.layout);
    let sequences = Sequences::read(&layout.sequences())?;
    let metrics = Metric::table(&config.evaluate.k, &config.evaluate.metrics);
    for k in config.evaluate.k.iter().filter(|&&k| k >= sequences.item_count) {
        let count = sequences.item_count;
        context.progress.warn("evaluate", format!("R@{k} is 1 for every ranking of {count} items (`evaluate.k`)"));
    }
    let header = ["run", "split", "users"].map(str::to_owned);
    let mut table = TextTable::new(header.into_iter().chain(metrics.iter().map(ToString::to_string)));
    for (split, history) in stored(config, |name| layout.ranks(name)) {
        let stored = StoredRanks::read(layout, &sequences, split, history)?;
        let means = MetricMeans::of(&stored.ranks, &metrics);
        let mut row = vec![layout.run_name().to_owned(), stored.info.name(), means.users.to_string()];
        let shown = |value: f64| if means.users == 0 { "-".to_owned() } else { format!("{value:.4}") };
        row.extend(means.values.iter().map(|(_, value)| shown(*value)));
        table.rows.push(row);
    }
    Ok(table.markdown())
}
