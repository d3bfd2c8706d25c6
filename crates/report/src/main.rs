//! `mp4sr-report`: metrics, curves and recommendations to one page.

use std::process::ExitCode;

use clap::Parser;
use mp4sr_pipeline::{StageArgs, run_main};

/// Writes artifacts/DATASET/runs/RUN/report: index.html, one page that needs nothing beside it (tables with intervals and
/// tests, groups of users, curves, statistics, the words that CLIP saw, recommended items as pictures, times of stages), and
/// the same tables and curves as metrics.md, metrics.csv, breakdowns.csv and curves.svg.
///
/// Prints the metrics of this run and of those in `report.beside`. Needs ranks (`make evaluate`) and lists
/// (`make recommend`).
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    stage: StageArgs,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    run_main(move || mp4sr_report::run(&arguments.stage.context()?, &arguments.stage.pipeline))
}
