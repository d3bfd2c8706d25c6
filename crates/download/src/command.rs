//! The command line of `mp4sr download`.

use std::sync::Arc;

use mp4sr_pipeline::StageArgs;
use mp4sr_pipeline::config::ModelCatalog;

/// Fetches the raw files of `download.files` into the data folder, and the picture of every address in
/// artifacts/DATASET/dataset/items.parquet, where it is there, into the data folder's downloads/images.
///
/// Goes on where an earlier run ended, however it ended: what is there is not fetched again, what was cut off is continued,
/// what failed is tried again. Prints what became of the addresses; a picture that can't be had is counted, a raw file that
/// can't be had is an error.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
}

/// Runs the command.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    crate::run(&args.stage.context(models)?)
}
