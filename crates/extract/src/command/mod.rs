//! The command lines of `mp4sr extract` and `mp4sr cache`.

pub mod cache;

use std::sync::Arc;

use mp4sr_pipeline::StageArgs;
use mp4sr_pipeline::config::ModelCatalog;

/// Encodes items' sentences and images and writes artifacts/DATASET/features.
///
/// Sentences go through the sentence encoder; for each image, CLIP chooses the nearest words of a dictionary, and these go
/// through the same sentence encoder, or the image stays its encoder's own vector. What was computed once, for whatever
/// dataset, is not computed again (`mp4sr cache`). Where dataset, images, encoders and settings are those of the last run, it says so and
/// does nothing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
}

/// Runs the command.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    mp4sr_ops::start_threads();
    crate::run(&args.stage.context(models)?)
}
