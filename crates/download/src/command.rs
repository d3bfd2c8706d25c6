//! The command line of `mp4sr download`.

use std::sync::Arc;

use mp4sr_pipeline::StageArgs;
use mp4sr_pipeline::config::ModelCatalog;

/// Downloads the raw files of `download.files` into the data folder, and the images whose URLs are in
/// artifacts/DATASET/dataset/items.parquet, if that file exists, into downloads/images of the data folder.
///
/// Resumes an earlier run: complete files are not downloaded again, partial ones are continued, and failed ones are retried. Prints
/// how many URLs had each outcome. An image that cannot be downloaded is counted; a raw file that cannot be downloaded is an error.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
}

/// Runs `mp4sr download`.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    crate::run(&args.stage.context(models)?)
}
