//! `mp4sr-extract`: items' sentences and images to features.

use std::process::ExitCode;

use clap::Parser;
use mp4sr_pipeline::{StageArgs, run_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Encodes items' sentences and images and writes artifacts/DATASET/features.
///
/// Sentences go through the sentence encoder; for each image, CLIP chooses the nearest words of a dictionary, and these go
/// through the same sentence encoder, or the image stays its encoder's own vector. What was computed once, for whatever
/// dataset, is not computed again (`mp4sr-cache`). Where dataset, images, encoders and settings are those of the last run, it says so and
/// does nothing.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    stage: StageArgs,
}

fn main() -> ExitCode {
    mp4sr_ops::start_threads();
    let args = Args::parse();
    run_main(move || mp4sr_extract::run(&args.stage.context()?))
}
