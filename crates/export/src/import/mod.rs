//! `mp4sr import`: converts datasets of RecBole and MMRec to raw files with a pipeline, preprocesses them, and writes their features
//! beside the resulting dataset.

mod args;
mod events;
mod items;
mod mmrec;
mod recbole;
mod sequences;
mod split;
mod table;
mod write;

use std::sync::Arc;

use clap::Subcommand;
use mp4sr_pipeline::Progress;
use mp4sr_pipeline::config::ModelCatalog;

pub use self::args::ImportArgs;

/// Imports a dataset of RecBole or MMRec: its interactions, split, items and features.
///
/// Writes raw files and a pipeline to `--out`, preprocesses them, and writes the features beside the dataset, so that `mp4sr run
/// --pipeline OUT/pipeline.toml` can train on them.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Imports a folder of RecBole's atomic files: `NAME.inter`, `NAME.item`, sets such as `NAME.train.inter`, and features in
    /// `NAME.textemb`.
    Recbole(ImportArgs),
    /// Imports a folder of MMRec with `NAME.inter`, `text_feat.npy`, `image_feat.npy`, and the ids in `u_id_mapping.csv` and
    /// `i_id_mapping.csv`.
    Mmrec(ImportArgs),
}

/// Runs `mp4sr import`.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    mp4sr_ops::start_threads();
    let (Command::Recbole(flags) | Command::Mmrec(flags)) = &args.command;
    let progress = Progress::new(flags.quiet);
    let read = match &args.command {
        Command::Recbole(_) => recbole::read(flags)?,
        Command::Mmrec(_) => mmrec::read(flags)?,
    };
    read.notes.iter().for_each(|note| progress.log(format!("import: {note}")));
    write::write(flags, read, models, &progress)
}
