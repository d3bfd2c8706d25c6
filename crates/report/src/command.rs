//! The command line of `mp4sr report`.

use std::sync::Arc;

use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{Context, StageArgs};

/// Writes artifacts/DATASET/runs/RUN/report: index.html, a self-contained page (tables with intervals and tests, user groups,
/// training curves, statistics, the words that CLIP chose, recommended items as images, times of stages), and the same tables and
/// curves as metrics.md, metrics.csv, lists.csv, breakdowns.csv and curves.svg.
///
/// Prints the metrics of this run and of those in `report.beside`. Needs ranks (`mp4sr evaluate`) and lists
/// (`mp4sr recommend`).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
}

/// Runs `mp4sr report`, after it has printed the warnings that `warnings` returns about the run.
pub fn run(
    args: &Args,
    models: &Arc<ModelCatalog>,
    warnings: impl FnOnce(&Context) -> Vec<String>,
) -> anyhow::Result<()> {
    let context = args.stage.context(models)?;
    for warning in warnings(&context) {
        context.progress.warn("report", warning);
    }
    crate::run(&context, &args.stage.pipeline)
}
