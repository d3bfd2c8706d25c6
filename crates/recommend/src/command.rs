//! The command line of `mp4sr recommend`: top-K lists for every user, or for histories that are given.

use std::path::PathBuf;
use std::sync::Arc;

use mp4sr_artifact::{Column, Items, Stage, Table, Users};
use mp4sr_models::Query;
use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{Config, Context, StageArgs, run_stage};
use mp4sr_protocol::{EvalCase, Split};
use mp4sr_run::{TrainedModel, removes_seen};
use serde_json::json;

use crate::Recommender;
use crate::for_histories::{GivenArgs, for_histories};

/// The version of what recommendation writes.
const VERSION: u32 = 1;

/// Lists the best items for every user: dataset, features and checkpoint to `recommendations.parquet`.
///
/// With `--histories` or `--history`, lists the best items for these instead, whoever they are of; the run stays as it is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Lists for given histories.
    #[command(flatten)]
    pub given: GivenArgs,
}

/// Runs the command.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    mp4sr_ops::start_threads();
    let context = args.stage.context(models)?;
    if args.given.is_empty() { recommend(&context) } else { for_histories(&context, &args.given) }
}

#[derive(Default)]
struct Columns {
    user: Vec<u32>,
    user_id: Vec<String>,
    history: Vec<Vec<String>>,
    target: Vec<String>,
    items: Vec<Vec<String>>,
    scores: Vec<Vec<f32>>,
}

/// The files that the lists are made from, by role.
pub fn inputs(context: &Context) -> Vec<(String, PathBuf)> {
    let (config, layout) = (&context.config, &context.layout);
    let mut inputs = TrainedModel::files(layout, config);
    inputs.push(("items".to_owned(), layout.items()));
    inputs.push(("users".to_owned(), layout.users()));
    inputs
}

/// The stage: what it reads and which settings decide the lists.
pub fn stage(context: &Context) -> anyhow::Result<Stage> {
    let sections = |config: &Config| {
        let seen_items = config.evaluate.seen_items;
        json!({ "recommend": config.recommend, "evaluate": { "seen_items": seen_items } })
    };
    let settings = context.models.ranking_settings(&context.config, sections);
    Ok(Stage::new("recommend", VERSION, &context.layout.run(), settings, &inputs(context))?)
}

fn recommend(context: &Context) -> anyhow::Result<()> {
    let (config, layout) = (&context.config, &context.layout);
    run_stage(
        context,
        "recommend",
        &layout.run(),
        || stage(context),
        |stage| {
            let trained = TrainedModel::load(layout, config)?;
            let (items, users) = (Items::read(&layout.items())?, Users::read(&layout.users())?);
            let sequences = &trained.inputs.sequences;
            sequences.expect_tables((&layout.items(), &items), (&layout.users(), &users))?;
            for warning in trained.warnings(config, &stage.input_fingerprints()) {
                context.progress.log(format!("recommend: warning: {warning}"));
            }
            let scorer = trained.scorer()?;
            let remove_seen = removes_seen(config, trained.model.as_ref());
            let id = |item: u32| items.ids[item as usize - 1].clone();
            let mut columns = Columns::default();
            let bar = context.progress.bar("recommend", "users", sequences.user_count() as u64);
            let asked: Vec<(usize, &[u32], Option<u32>)> = (0..sequences.user_count())
                .filter_map(|user| {
                    if config.recommend.before_test_item {
                        EvalCase::of(sequences, user, Split::Test).map(|case| (user, case.history, Some(case.target)))
                    } else {
                        Some((user, sequences.of(user), None)).filter(|(_, history, _)| !history.is_empty())
                    }
                })
                .collect();
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
            // The tables only give names; what decides the lists is recorded.
            let mut inputs = stage.input_fingerprints();
            inputs.retain(|role, _| !["items", "users"].contains(&role.as_str()));
            let path = layout.recommendations();
            Table::new(vec![
                ("user", Column::U32(columns.user)),
                ("user_id", Column::Text(columns.user_id)),
                ("history", Column::Texts(columns.history)),
                ("target", Column::Text(columns.target)),
                ("items", Column::Texts(columns.items)),
                ("scores", Column::F32s(columns.scores)),
            ])
            .with_source(&json!({
                "config": trained.checkpoint.info.settings_of_results(config),
                "inputs": inputs,
            }))
            .write(&path)?;
            Ok(vec![path])
        },
    )
}
