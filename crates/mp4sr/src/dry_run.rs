//! `--dry-run` of every command that reads a pipeline: prints the plan that `mp4sr_doctor` makes.

use std::sync::Arc;

use mp4sr_doctor::Scope;
use mp4sr_doctor::command::{TrainedWork, dry_run, dry_run_of_download, dry_run_of_trained};
use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{StageArgs, StageName, print};
use mp4sr_study::RunPlan;
use mp4sr_study::command::{search, study};
use mp4sr_train::command::PhaseArgument;

use crate::command::Command;

/// Prints the plan if the command has `--dry-run`, and returns whether it did.
pub fn run(command: &Command, models: &Arc<ModelCatalog>) -> anyhow::Result<bool> {
    let Some(stage) = stage_args(command).filter(|stage| stage.dry_run) else { return Ok(false) };
    let only = |name| dry_run(stage, models, Scope::Only(name));
    match command {
        Command::Run(args) => dry_run(stage, models, Scope::Until(args.until)),
        Command::Preprocess(_) => only(StageName::Preprocess),
        Command::Extract(_) => only(StageName::Extract),
        Command::Train(args) => only(match args.phase {
            PhaseArgument::Pretrain(_) => StageName::Pretrain,
            PhaseArgument::Finetune(_) => StageName::Finetune,
        }),
        Command::Evaluate(_) => only(StageName::Evaluate),
        Command::Recommend(args) if args.given.is_empty() => only(StageName::Recommend),
        Command::Recommend(args) => dry_run_of_trained(stage, models, &[], |context| {
            let (histories, sentence) = mp4sr_recommend::for_histories::check(context, &args.given)?;
            Ok(TrainedWork { sentences: vec![sentence], histories: Some(histories), new_items: None })
        }),
        Command::Report(_) => only(StageName::Report),
        Command::Export(args) => dry_run_of_trained(stage, models, &[], |context| {
            let sentences = vec![mp4sr_export::command::check(args, context)?];
            Ok(TrainedWork { sentences, ..TrainedWork::default() })
        }),
        // A service takes as long to start as one list, and as much memory.
        Command::Serve(args) => dry_run_of_trained(stage, models, &[], |context| {
            let sentences = vec![mp4sr_serve::check(args, context)?];
            Ok(TrainedWork { sentences, histories: Some(1), new_items: None })
        }),
        Command::Items(args) => dry_run_of_trained(stage, models, args.new_files(), |context| {
            let (count, sentences) = mp4sr_items::command::check(args, context)?;
            Ok(TrainedWork { sentences, histories: None, new_items: Some(count) })
        }),
        Command::Download(_) => dry_run_of_download(stage, models),
        Command::Compare(_) => print(
            "`mp4sr compare` trains and writes nothing: it reads the stored ranks of the runs, or their lists with `--lists`.\n",
        ),
        Command::Search(args) => planned(&search::plan(args, models)?, models),
        Command::Study(args) => planned(&study::plan(args, models)?, models),
        _ => Ok(()),
    }?;
    Ok(true)
}

/// Prints which runs are missing, and what the first of them would do.
fn planned(plan: &RunPlan, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    print(&plan.text)?;
    let Some((next, last)) = &plan.next else { return Ok(()) };
    print(
        "The first missing run goes through these stages, and so do the others; results that runs share are computed once.\n\n",
    )?;
    dry_run(next, models, Scope::Until(*last))
}

/// The flags of every stage, if the command has them.
fn stage_args(command: &Command) -> Option<&StageArgs> {
    match command {
        Command::Run(args) => Some(&args.stage),
        Command::Download(args) => Some(&args.stage),
        Command::Preprocess(args) => Some(&args.stage),
        Command::Extract(args) => Some(&args.stage),
        Command::Train(args) => match &args.phase {
            PhaseArgument::Pretrain(args) | PhaseArgument::Finetune(args) => Some(&args.stage),
        },
        Command::Evaluate(args) => Some(&args.stage),
        Command::Recommend(args) => Some(&args.stage),
        Command::Items(args) => Some(args.stage()),
        Command::Serve(args) => Some(&args.stage),
        Command::Export(args) => Some(&args.stage),
        Command::Report(args) => Some(&args.stage),
        Command::Compare(args) => Some(&args.stage),
        Command::Search(args) => Some(&args.stage),
        Command::Study(args) => Some(&args.stage),
        _ => None,
    }
}
