//! The command line of `mp4sr preprocess`.

use std::sync::Arc;

use mp4sr_pipeline::StageArgs;
use mp4sr_pipeline::config::ModelCatalog;

/// Reads raw interactions and items, filters them, cleans their texts, and writes artifacts/DATASET/dataset: sequences.safetensors,
/// items.parquet, users.parquet and report.json.
///
/// Prints what every filter dropped and the statistics of the dataset, beside the paper's if the pipeline names them. If the raw files, the
/// settings and the names of image and sound files have not changed since the last run, the stage reports that and does nothing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
}

/// Runs `mp4sr preprocess`.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    crate::run(&args.stage.context(models)?)
}
