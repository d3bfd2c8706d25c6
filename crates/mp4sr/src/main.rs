//! `mp4sr`: the program. Each subcommand is the command line of the crate that does the work.
//!
//! The program takes arguments, runs stages, which write their files, and returns an exit code. It must not know how a stage does its work.

mod command;
mod demo;
mod dry_run;
mod manual;
mod run;
mod sample;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use mp4sr_pipeline::run_main;

use command::Command;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A multimodal sequential recommender, from raw files to a report.
#[derive(Parser)]
#[command(name = "mp4sr", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    mp4sr_ops::report_file_limit();
    run_main(move || dispatch(arguments.command))
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    let models = mp4sr_run::model_catalog();
    if dry_run::run(&command, models)? {
        return Ok(());
    }
    match command {
        Command::Demo(args) => demo::run(&args, models),
        Command::Doctor(args) => mp4sr_doctor::command::run(&args, models),
        Command::Init(args) => mp4sr_init::command::run(&args, models),
        Command::Run(args) => run::run(&args, models),
        Command::Download(args) => mp4sr_download::command::run(&args, models),
        Command::Preprocess(args) => mp4sr_preprocess::command::run(&args, models),
        Command::Extract(args) => mp4sr_extract::command::run(&args, models),
        Command::Train(args) => mp4sr_train::command::run(&args, models),
        Command::Evaluate(args) => mp4sr_evaluate::command::run(&args, models),
        Command::Recommend(args) => mp4sr_recommend::command::run(&args, models),
        Command::Items(args) => mp4sr_items::command::run(&args, models),
        Command::Serve(args) => mp4sr_serve::run(&args, models),
        Command::Export(args) => mp4sr_export::command::run(&args, models),
        Command::Import(args) => mp4sr_export::import::run(&args, models),
        Command::Report(args) => mp4sr_report::command::run(&args, models, run::other_settings),
        Command::Compare(args) => mp4sr_study::command::compare::run(args, models),
        Command::Search(args) => mp4sr_study::command::search::run(&args, models),
        Command::Study(args) => mp4sr_study::command::study::run(&args, models),
        Command::Sample(args) => sample::run(&args),
        Command::Cache(args) => mp4sr_extract::command::cache::run(&args),
        Command::Completions(args) => manual::completions(&args, Arguments::command()),
        Command::Man(args) => manual::man(&args, Arguments::command()),
    }
}
