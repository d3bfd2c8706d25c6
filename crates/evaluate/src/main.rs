//! `mp4sr-evaluate`: ranks every user's next item and prints R@K and N@K.

use std::process::ExitCode;

use clap::Parser;
use mp4sr_artifact::Stage;
use mp4sr_evaluate::{Metrics, Protocol, RanksInfo, StoredRanks, rank_users};
use mp4sr_models::Phase;
use mp4sr_pipeline::{Context, StageArgs, print, run_main, run_stage};
use mp4sr_run::{Checkpoint, Inputs, Split, build_model, removes_seen};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The version of what evaluation writes.
const VERSION: u32 = 1;

/// Ranks the target of every user among all items: dataset, features and checkpoint to `ranks.<split>.safetensors`.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    stage: StageArgs,
}

fn main() -> ExitCode {
    mp4sr_ops::start_threads();
    let arguments = Arguments::parse();
    run_main(move || {
        let context = arguments.stage.context()?;
        evaluate(&context)?;
        print(&table(&context)?)
    })
}

fn evaluate(context: &Context) -> anyhow::Result<()> {
    let (config, layout) = (&context.config, &context.layout);
    let checkpoint_path = layout.checkpoint(Phase::Finetune.name());
    let recorded = json!({ "evaluate": config.evaluate, "model": config.model });
    let make_stage = || {
        let mut inputs = Inputs::files(layout, config);
        inputs.push(("fine-tuned weights".to_owned(), checkpoint_path.clone()));
        Ok(Stage::new("evaluate", VERSION, &layout.run(), &recorded, &inputs)?)
    };
    run_stage(context, "evaluate", &layout.run(), make_stage, |stage| {
        let inputs = Inputs::load(layout, config)?;
        let sequences = &inputs.sequences;
        let model = build_model(config, &inputs)?;
        let checkpoint = Checkpoint::read(&checkpoint_path, &sequences.item_hash)?;
        checkpoint.load_into(model.as_ref(), Phase::Finetune, &checkpoint_path)?;
        let scorer = model.scorer(Phase::Finetune)?;
        let remove_seen = removes_seen(config, model.as_ref());
        let protocol = Protocol { batch: config.evaluate.batch, remove_seen };
        let bar = context.progress.bar("evaluate", "users", 2 * sequences.user_count() as u64);
        let mut outputs = Vec::new();
        for split in [Split::Validation, Split::Test] {
            let of = |user| sequences.of(user);
            let ranks =
                rank_users(scorer.as_ref(), sequences.user_count(), of, split, protocol, |users| bar.add(users))?;
            let info = RanksInfo {
                split: split.name().to_owned(),
                model: serde_json::to_value(&config.model)?,
                evaluate: serde_json::to_value(&config.evaluate)?,
            };
            let path = layout.ranks(split.name());
            StoredRanks { ranks, info }.write(&path, &sequences.item_hash, stage.input_fingerprints())?;
            outputs.push(path);
        }
        Ok(outputs)
    })
}

/// The metrics of both splits as Markdown, from the stored ranks.
fn table(context: &Context) -> anyhow::Result<String> {
    let (config, layout) = (&context.config, &context.layout);
    let sequences = mp4sr_artifact::Sequences::read(&layout.sequences())?;
    let ks = &config.evaluate.k;
    let mut text = String::from("| run | split | users |");
    for letter in ["R", "N"] {
        ks.iter().for_each(|k| text += &format!(" {letter}@{k} |"));
    }
    text += &format!("\n|---|---|---|{}\n", "---|".repeat(2 * ks.len()));
    for split in [Split::Validation, Split::Test] {
        let path = layout.ranks(split.name());
        let stored = StoredRanks::read(&path, &sequences.item_hash, sequences.user_count(), split)?;
        let metrics = Metrics::of(&stored.ranked(), ks);
        text += &format!("| {} | {} | {} |", layout.run_name(), split.name(), metrics.users);
        let columns = metrics.at.iter().map(|m| m.1).chain(metrics.at.iter().map(|m| m.2));
        columns.for_each(|value| text += &format!(" {value:.4} |"));
        text.push('\n');
    }
    Ok(text)
}
