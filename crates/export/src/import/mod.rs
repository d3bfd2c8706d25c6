//! `mp4sr import`: converts datasets of RecBole and MMRec to raw files with a pipeline, preprocesses them, and writes their features
//! beside the resulting dataset.

mod events;
mod items;
mod mmrec;
mod recbole;
mod sequences;
mod split;
mod table;
mod write;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Subcommand;
use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{ARTIFACTS_VARIABLE, DEFAULT_ARTIFACTS, Progress, artifacts_folder};

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
    /// A folder of atomic files: `NAME.inter`, `NAME.item`, sets such as `NAME.train.inter`, features in `NAME.textemb`.
    Recbole(ImportArgs),
    /// A folder with `NAME.inter`, `text_feat.npy`, `image_feat.npy`, and the ids in `u_id_mapping.csv` and `i_id_mapping.csv`.
    Mmrec(ImportArgs),
}

/// The flags of an import.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// The folder of the dataset.
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// The folder for the raw files and the pipeline; an earlier import there is replaced.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// The name of the dataset; by default, the name of the folder.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The folder that the paths of images and sounds are relative to, for a dataset that this program exported; without it, they
    /// are left out.
    #[arg(long, value_name = "FOLDER")]
    pub images: Option<PathBuf>,
    /// The folder of all artifacts.
    #[arg(long, env = ARTIFACTS_VARIABLE, value_name = "FOLDER", default_value = DEFAULT_ARTIFACTS, value_parser = artifacts_folder)]
    pub artifacts: PathBuf,
    /// Prints only results and errors.
    #[arg(long, short, env = "MP4SR_QUIET", value_parser = clap::builder::FalseyValueParser::new())]
    pub quiet: bool,
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
