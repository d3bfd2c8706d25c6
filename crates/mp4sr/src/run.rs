//! `mp4sr run`: runs a stage of a pipeline and those that it needs.

use std::sync::Arc;

use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{Context, StageArgs, StageName};

use crate::sample;

/// Runs a stage of a pipeline and the stages that it needs, in order and in one process.
///
/// Lists do not need ranks, so `--until recommend` does not run `evaluate`. Features are extracted only if the model or the report reads
/// them. A stage whose inputs and settings have not changed since its last run is skipped. The sample pipeline's raw files are generated.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The last stage to run.
    #[arg(long, value_enum, value_name = "STAGE", default_value_t = StageName::Report)]
    pub until: StageName,
    /// Trains from the start if an unfinished run of this name has other settings or inputs; without this flag, that is an error.
    #[arg(long)]
    pub restart: bool,
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
}

/// Runs `mp4sr run`.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    run_until(&args.stage, args.until, args.restart, models)
}

/// Runs the stages up to `until`. With `restart`, the state of an unfinished training with other settings is removed.
pub fn run_until(args: &StageArgs, until: StageName, restart: bool, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    // The thread pool must be set up before any stage starts its own threads.
    mp4sr_ops::start_threads();
    let context = args.context(models)?;
    if args.reads_sample_world(&context) {
        let out = context.config.dataset.data.clone().into();
        sample::run(&sample::Args {
            out,
            seed: mp4sr_sample::SEED,
            format: mp4sr_sample::SampleFormat::Amazon,
            quiet: args.quiet,
        })?;
    }
    let stages = until.path_for(&context.config, models);
    mp4sr_doctor::expect_devices(&context, &stages)?;
    mp4sr_doctor::check_inputs(&context, &stages)?;
    if !restart {
        mp4sr_doctor::check_states(&context, &stages)?;
    }
    stages.into_iter().try_for_each(|stage| run_stage(args.clone(), stage, restart, models))?;
    if let Some(warning) = mp4sr_run::other_added_items(&context.layout, &context.config) {
        context.progress.warn("run", warning);
    }
    Ok(())
}

fn run_stage(stage: StageArgs, name: StageName, restart: bool, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    use mp4sr_train::command::{PhaseArgument, TrainArgs};
    let train = |phase| mp4sr_train::command::run(&mp4sr_train::command::Args { phase }, models);
    let phase_args = |stage| TrainArgs { stage, restart };
    match name {
        StageName::Preprocess => mp4sr_preprocess::command::run(&mp4sr_preprocess::command::Args { stage }, models),
        StageName::Extract => mp4sr_extract::command::run(&mp4sr_extract::command::Args { stage, shard: None }, models),
        StageName::Pretrain => train(PhaseArgument::Pretrain(phase_args(stage))),
        StageName::Finetune => train(PhaseArgument::Finetune(phase_args(stage))),
        StageName::Evaluate => {
            mp4sr_evaluate::command::run(&mp4sr_evaluate::command::Args { stage, shard: None }, models)
        }
        StageName::Recommend => {
            let given = mp4sr_recommend::for_histories::GivenArgs::default();
            mp4sr_recommend::command::run(&mp4sr_recommend::command::Args { stage, given, shard: None }, models)
        }
        StageName::Report => mp4sr_report::command::run(&mp4sr_report::command::Args { stage }, models, other_settings),
    }
}

/// The settings of the pipeline with which the run was not made, as warnings.
pub fn other_settings(context: &Context) -> Vec<String> {
    mp4sr_run::other_settings(&context.layout, &context.config)
}
