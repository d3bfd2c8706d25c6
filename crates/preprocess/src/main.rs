//! `mp4sr-preprocess`: raw interactions and items to a dataset.

use std::process::ExitCode;

use clap::Parser;
use mp4sr_pipeline::{StageArgs, run_main};

/// Reads raw interactions and items, filters them, cleans their texts, and writes artifacts/DATASET/dataset: sequences.safetensors,
/// items.parquet, users.parquet and report.json.
///
/// Prints what every filter dropped and the statistics of the dataset, beside the paper's where the pipeline names them.
/// Where raw files, settings and the names of images are those of the last run, it says so and does nothing.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    stage: StageArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    run_main(move || mp4sr_preprocess::run(&args.stage.context()?))
}
