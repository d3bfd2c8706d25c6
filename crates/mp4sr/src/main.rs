//! `mp4sr`: the program. Each subcommand is the command line of the crate that does the work.
//!
//! In: arguments. Out: what the stages write, an exit code. Must not know: what any stage does.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mp4sr_pipeline::run_main;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A multimodal sequential recommender, from raw files to a report.
#[derive(Parser)]
#[command(name = "mp4sr", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Download(mp4sr_download::command::Args),
    Preprocess(mp4sr_preprocess::command::Args),
    Extract(mp4sr_extract::command::Args),
    Train(mp4sr_train::command::Args),
    Evaluate(mp4sr_evaluate::command::Args),
    Recommend(mp4sr_recommend::command::Args),
    Report(mp4sr_report::command::Args),
    Compare(mp4sr_study::command::compare::Args),
    Search(mp4sr_study::command::search::Args),
    Study(mp4sr_study::command::study::Args),
    Sample(mp4sr_sample::command::Args),
    Cache(mp4sr_extract::command::cache::Args),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    run_main(move || run(arguments.command))
}

fn run(command: Command) -> anyhow::Result<()> {
    let models = mp4sr_run::model_catalog();
    match command {
        Command::Download(args) => mp4sr_download::command::run(&args, models),
        Command::Preprocess(args) => mp4sr_preprocess::command::run(&args, models),
        Command::Extract(args) => mp4sr_extract::command::run(&args, models),
        Command::Train(args) => mp4sr_train::command::run(&args, models),
        Command::Evaluate(args) => mp4sr_evaluate::command::run(&args, models),
        Command::Recommend(args) => mp4sr_recommend::command::run(&args, models),
        Command::Report(args) => mp4sr_report::command::run(&args, models),
        Command::Compare(args) => mp4sr_study::command::compare::run(args, models),
        Command::Search(args) => mp4sr_study::command::search::run(args, models),
        Command::Study(args) => mp4sr_study::command::study::run(args, models),
        Command::Sample(args) => mp4sr_sample::command::run(&args),
        Command::Cache(args) => mp4sr_extract::command::cache::run(&args),
    }
}
