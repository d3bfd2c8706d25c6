//! The command line of `mp4sr recommend`: top-K lists for every user, or for given histories.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mp4sr_artifact::{Column, Items, Layout, Stage, Table, Users, role};
use mp4sr_models::{Query, Scorer};
use mp4sr_pipeline::config::{FINETUNE, ModelCatalog};
use mp4sr_pipeline::{Config, Context, Shard, StageArgs, run_stage_in_shards};
use mp4sr_protocol::{EvalCase, Split};
use mp4sr_run::{TrainedModel, other_settings, removes_seen};
use serde_json::{Value, json};

use crate::Recommender;
use crate::for_histories::{GivenArgs, for_histories};

const NAME: &str = "recommend";
/// The version of the stage's output.
const VERSION: u32 = 1;

/// Lists the best items for every user, using the dataset, the features and the checkpoint, and writes `recommendations.parquet`.
///
/// With `--histories` or `--history`, lists the best items for the given histories instead, and leaves the run unchanged.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Lists for given histories.
    #[command(flatten)]
    pub given: GivenArgs,
    /// Recommends only for one shard of the users, such as `2/4`, the second of four. When all shards are done, on any machines that
    /// share the artifacts, the same command without this flag merges them.
    #[arg(long, value_name = "INDEX/COUNT", conflicts_with_all = ["histories", "history"])]
    pub shard: Option<Shard>,
}

/// Runs `mp4sr recommend`.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    mp4sr_ops::start_threads();
    let context = args.stage.context(models)?;
    if !args.given.is_empty() {
        return for_histories(&context, &args.given);
    }
    for warning in other_settings(&context.layout, &context.config) {
        context.progress.warn("recommend", warning);
    }
    recommend(&context, args.shard)
}

#[derive(Default)]
struct ListColumns {
    user: Vec<u32>,
    user_id: Vec<String>,
    history: Vec<Vec<String>>,
    target: Vec<String>,
    items: Vec<Vec<String>>,
    scores: Vec<Vec<f32>>,
}

impl ListColumns {
    fn write(self, path: &Path, source: &Value) -> Result<(), mp4sr_artifact::Error> {
        Table::new(vec![
            ("user", Column::U32(self.user)),
            ("user_id", Column::Text(self.user_id)),
            ("history", Column::Texts(self.history)),
            ("target", Column::Text(self.target)),
            ("items", Column::Texts(self.items)),
            ("scores", Column::F32s(self.scores)),
        ])
        .with_source(source)
        .write(path)
    }

    fn append(&mut self, table: &mut Table) -> Result<(), mp4sr_artifact::Error> {
        self.user.extend(table.take_u32("user")?);
        self.user_id.extend(table.take_text("user_id")?);
        self.history.extend(table.take_texts("history")?);
        self.target.extend(table.take_text("target")?);
        self.items.extend(table.take_texts("items")?);
        self.scores.extend(table.take_f32s("scores")?);
        Ok(())
    }
}

/// The files from which the lists are computed, by role.
pub fn inputs(context: &Context) -> Vec<(String, PathBuf)> {
    let (config, layout) = (&context.config, &context.layout);
    let mut inputs = TrainedModel::files(layout, config);
    inputs.push((role::ITEMS.to_owned(), layout.items()));
    inputs.push((role::USERS.to_owned(), layout.users()));
    inputs
}

/// The stage, with its inputs and the settings that determine the lists.
pub fn stage(context: &Context) -> anyhow::Result<Stage> {
    stage_named(context, NAME)
}

/// The stage of the whole list file, or of one shard.
fn stage_named(context: &Context, name: &str) -> anyhow::Result<Stage> {
    let sections = |config: &Config| {
        let seen_items = config.evaluate.seen_items;
        json!({ "recommend": config.recommend, "evaluate": { "seen_items": seen_items } })
    };
    let settings = context.models.ranking_settings(&context.config, sections);
    Ok(Stage::new(name, VERSION, &context.layout.run(), settings, &inputs(context))?)
}

fn recommend(context: &Context, shard: Option<Shard>) -> anyhow::Result<()> {
    let make_stage = |name: &str| stage_named(context, name);
    let whole = |stage: &Stage| list(context, stage, shard);
    let of_shards = |_: &Stage, shards| put_together(context, shards);
    run_stage_in_shards(context, NAME, &context.layout.run(), shard, make_stage, whole, of_shards)
}

/// Computes the lists of all users, or of one shard of them.
fn list(context: &Context, stage: &Stage, shard: Option<Shard>) -> anyhow::Result<Vec<PathBuf>> {
    let (config, layout) = (&context.config, &context.layout);
    let trained = TrainedModel::load(layout, config)?;
    let (items, users) = (Items::read(&layout.items())?, Users::read(&layout.users())?);
    let sequences = &trained.inputs.sequences;
    sequences.expect_tables(layout, &items, &users)?;
    stage.expect_unchanged_inputs()?;
    if let Some(warning) = trained.checkpoint.trained_on_others(&stage.input_fingerprints(), FINETUNE) {
        context.progress.warn("recommend", warning);
    }
    let scorer = trained.scorer()?;
    let remove_seen = removes_seen(config, trained.model.as_ref());
    let id = |item: u32| items.ids[item as usize - 1].clone();
    let mut columns = ListColumns::default();
    let own = shard.map_or(0..sequences.user_count(), |shard| shard.range(sequences.user_count()));
    let bar = context.progress.bar("recommend", "users", own.len() as u64);
    let asked: Vec<(usize, &[u32], Option<u32>)> = own
        .filter_map(|user| {
            if config.recommend.before_test_item {
                EvalCase::of(sequences, user, Split::Test).map(|case| (user, case.history, Some(case.target)))
            } else {
                Some((user, sequences.of(user), None)).filter(|(_, history, _)| !history.is_empty())
            }
        })
        .collect();
    let users_of_lists = asked.iter().map(|(user, ..)| *user);
    if let Some(warning) = unseen_users(scorer.as_ref(), users_of_lists, &config.model.name) {
        context.progress.warn("recommend", warning);
    }
    let recommender = Recommender::new(scorer.as_ref())?;
    for block in asked.chunks(config.evaluate.batch) {
        let queries: Vec<Query<'_>> =
            block.iter().map(|&(user, history, _)| Query { user: Some(user as u32), history }).collect();
        let targets: Vec<Option<u32>> = block.iter().map(|&(.., target)| target).collect();
        let lists = recommender.top_k_of_targets(&queries, &targets, config.recommend.top, remove_seen)?;
        for ((user, history, target), list) in block.iter().zip(lists) {
            columns.user.push(*user as u32 + 1);
            columns.user_id.push(users.ids[*user].clone());
            columns.history.push(history.iter().map(|&item| id(item)).collect());
            columns.target.push(target.map(id).unwrap_or_default());
            columns.items.push(list.iter().map(|(item, _)| id(*item)).collect());
            columns.scores.push(list.iter().map(|(_, score)| *score).collect());
        }
        bar.add(block.len() as u64);
    }
    // The tables only supply names, so their fingerprints are not recorded as a source of the lists.
    let mut inputs = stage.input_fingerprints();
    inputs.retain(|role, _| !["items", "users"].contains(&role.as_str()));
    let source = json!({ "config": trained.checkpoint.info.settings_of_results(layout, config), "inputs": inputs });
    let path = shard.map_or_else(|| layout.recommendations(), |shard| shard_path(layout, shard));
    columns.write(&path, &source)?;
    Ok(vec![path])
}

/// The warning that some users, given by row, have no training event, if the model needs a trained vector of each user.
pub fn unseen_users(scorer: &dyn Scorer, users: impl Iterator<Item = usize>, model: &str) -> Option<String> {
    if !scorer.needs_known_user() {
        return None;
    }
    let unseen = users.filter(|&user| !scorer.has_seen(user as u32)).count();
    (unseen > 0).then(|| format!("{unseen} users have no training event; their vectors in `{model}` were not trained"))
}

/// Merges the lists of `shards` shards, which are up to date, into one file.
fn put_together(context: &Context, shards: usize) -> anyhow::Result<Vec<PathBuf>> {
    let layout = &context.layout;
    let (mut columns, mut source) = (ListColumns::default(), json!(null));
    for shard in Shard::all(shards) {
        let mut table = Table::read(&shard_path(layout, shard), "run `mp4sr recommend` with this shard again")?;
        source = table.source().cloned().unwrap_or_default();
        columns.append(&mut table)?;
    }
    let path = layout.recommendations();
    columns.write(&path, &source)?;
    Ok(vec![path])
}

/// The path of the lists of one shard of the users.
fn shard_path(layout: &Layout, shard: Shard) -> PathBuf {
    layout.recommendations().with_extension(format!("{}.parquet", shard.file_name()))
}
