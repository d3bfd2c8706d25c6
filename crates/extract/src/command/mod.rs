//! The command lines of `mp4sr extract` and `mp4sr cache`.

pub mod cache;

use std::sync::Arc;

use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{Shard, StageArgs};

/// Encodes the sentences, images and sounds of items, and writes artifacts/DATASET/features.
///
/// Sentences go through the sentence encoder; for each image, CLIP chooses the nearest words of a dictionary, which go through the same
/// sentence encoder, or the image encoder computes a vector; sounds go through the audio encoder. Vectors are computed once for all
/// datasets (`mp4sr cache`). If the dataset, its image and sound files, the encoders and the settings have not changed since the last run,
/// the stage reports that and does nothing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Computes only the vectors of one shard of the items, such as `2/4`, the second of four. The vectors go to the cache, and no features
    /// are written: when all shards are done, on any machines that share the cache, the same command without this flag writes the features.
    #[arg(long, value_name = "INDEX/COUNT")]
    pub shard: Option<Shard>,
}

/// Runs `mp4sr extract`.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    mp4sr_ops::start_threads();
    let context = args.stage.context(models)?;
    match args.shard {
        Some(shard) => crate::run_shard(context, shard),
        None => crate::run(&context),
    }
}
