//! `mp4sr-download`: raw files and items' pictures to the data folder.

use std::process::ExitCode;

use clap::Parser;
use mp4sr_pipeline::{StageArgs, run_main};

/// Fetches the raw files of `download.files` into the data folder, and the picture of every address in
/// artifacts/DATASET/dataset/items.parquet, where it is there, into the data folder's downloads/images.
///
/// Goes on where an earlier run ended, however it ended: what is there is not fetched again, what was cut off is continued,
/// what failed is tried again. Prints what became of the addresses; a picture that can't be had is counted, a raw file that
/// can't be had is an error.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    stage: StageArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    run_main(move || mp4sr_download::run(&args.stage.context()?))
}
