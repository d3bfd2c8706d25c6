//! The command line of `mp4sr recommend`: top-K lists for every user.

use mp4sr_artifact::{Column, Items, Stage, Table, Users};
use mp4sr_models::Phase;
use mp4sr_pipeline::{Context, StageArgs, run_stage};
use mp4sr_protocol::{EvalCase, Split, WEIGHTS};
use mp4sr_run::{Checkpoint, Inputs, build_model, removes_seen};
use serde_json::json;

use crate::Recommender;

/// The version of what recommendation writes.
const VERSION: u32 = 1;

/// Lists the best items for every user: dataset, features and checkpoint to `recommendations.parquet`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    mp4sr_ops::start_threads();
    recommend(&args.stage.context()?)
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

fn recommend(context: &Context) -> anyhow::Result<()> {
    let (config, layout) = (&context.config, &context.layout);
    let checkpoint_path = layout.checkpoint(Phase::Finetune.name());
    let recorded = json!({ "recommend": config.recommend, "evaluate": config.evaluate, "model": config.model });
    let make_stage = || {
        let mut inputs = Inputs::files(layout, config);
        inputs.push(("items".to_owned(), layout.items()));
        inputs.push(("users".to_owned(), layout.users()));
        inputs.push((WEIGHTS.to_owned(), checkpoint_path.clone()));
        Ok(Stage::new("recommend", VERSION, &layout.run(), &recorded, &inputs)?)
    };
    run_stage(context, "recommend", &layout.run(), make_stage, |stage| {
        let inputs = Inputs::load(layout, config)?;
        let (items, users) = (Items::read(&layout.items())?, Users::read(&layout.users())?);
        let sequences = &inputs.sequences;
        sequences.expect_tables((&layout.items(), &items), (&layout.users(), &users))?;
        let model = build_model(config, &inputs)?;
        let checkpoint = Checkpoint::read(&checkpoint_path, Phase::Finetune, &sequences.item_hash)?;
        checkpoint.load_into(model.as_ref(), Phase::Finetune, &checkpoint_path)?;
        if let Some(note) = checkpoint.trained_on_others(&stage.input_fingerprints()) {
            context.progress.say(format!("recommend: {note}"));
        }
        let scorer = model.scorer(Phase::Finetune)?;
        let remove_seen = removes_seen(config, model.as_ref());
        let id = |item: u32| items.ids[item as usize - 1].clone();
        let mut columns = Columns::default();
        let bar = context.progress.bar("recommend", "users", sequences.user_count() as u64);
        let asked: Vec<(usize, &[u32], Option<u32>)> = (0..sequences.user_count())
            .filter_map(|user| {
                if config.recommend.before_test_item {
                    EvalCase::of(sequences.of(user), Split::Test).map(|case| (user, case.history, Some(case.target)))
                } else {
                    Some((user, sequences.of(user), None)).filter(|(_, history, _)| !history.is_empty())
                }
            })
            .collect();
        let recommender = Recommender::new(scorer.as_ref())?;
        for block in asked.chunks(config.evaluate.batch) {
            let histories: Vec<&[u32]> = block.iter().map(|(_, history, _)| *history).collect();
            let lists = recommender.top_k(&histories, config.recommend.top, remove_seen)?;
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
        let path = layout.recommendations();
        Table::new(vec![
            ("user", Column::U32(columns.user)),
            ("user_id", Column::Text(columns.user_id)),
            ("history", Column::Texts(columns.history)),
            ("target", Column::Text(columns.target)),
            ("items", Column::Texts(columns.items)),
            ("scores", Column::F32s(columns.scores)),
        ])
        .write(&path)?;
        Ok(vec![path])
    })
}
