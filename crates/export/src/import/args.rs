//! The flags of `mp4sr import`.

use std::path::PathBuf;

use mp4sr_pipeline::{ARTIFACTS_VARIABLE, DEFAULT_ARTIFACTS, artifacts_folder, switch};

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
    /// The folder to which the paths of images and sounds are relative, for a dataset that this program exported. Without this flag,
    /// images and sounds are left out.
    #[arg(long, value_name = "FOLDER")]
    pub images: Option<PathBuf>,
    /// The folder of all artifacts.
    #[arg(long, env = ARTIFACTS_VARIABLE, value_name = "FOLDER", default_value = DEFAULT_ARTIFACTS, value_parser = artifacts_folder)]
    pub artifacts: PathBuf,
    /// Prints only results and errors.
    #[arg(long, short, env = "MP4SR_QUIET", value_parser = switch)]
    pub quiet: bool,
}
