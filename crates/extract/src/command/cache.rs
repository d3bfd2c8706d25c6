//! The command line of `mp4sr cache`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use comfy_table::{CellAlignment, Table};
use mp4sr_artifact::Layout;
use mp4sr_pipeline::{ARTIFACTS_VARIABLE, DEFAULT_ARTIFACTS, artifacts_folder, print, text};

use crate::cache::{EncoderShare, merge, prune, shares};

const DAY: u64 = 24 * 60 * 60;
/// Lists, merges or prunes the cached vectors of encoders, which all datasets in one artifacts folder share.
///
/// An encoder's vectors are reused as long as its files (weights, settings, preprocessing) stay the same; those of a changed or
/// unused encoder only take up space.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// The folder of all artifacts.
    #[arg(long, env = ARTIFACTS_VARIABLE, value_name = "FOLDER", default_value = DEFAULT_ARTIFACTS, value_parser = artifacts_folder, global = true)]
    artifacts: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the encoders with their vectors' size and last use.
    Stats,
    /// Adds to the cache vectors that were computed elsewhere, such as those of shards (`mp4sr extract --shard`) on machines without a
    /// shared file system.
    Merge {
        /// Folders of artifacts, or copies of their `.cache/vectors`.
        #[arg(value_name = "FOLDER", required = true)]
        folders: Vec<PathBuf>,
    },
    /// Removes the vectors of encoders that no run has used for a number of days, and damaged vector files that were set aside.
    Prune {
        /// The number of days without use; 0 removes everything.
        #[arg(long, value_name = "DAYS", default_value_t = 30)]
        unused_days: u64,
    },
}

/// Runs `mp4sr cache`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.artifacts.is_dir() || matches!(args.command, Command::Merge { .. }),
        "`{}` is not a folder; name the folder of all artifacts with `--artifacts`",
        args.artifacts.display()
    );
    let root = Layout::new(&args.artifacts, "any", "any").vectors();
    match &args.command {
        Command::Stats => print(&format!("{}\n", table(&shares(&root)?))),
        Command::Merge { folders } => {
            let merged = merge(&root, folders)?;
            for (share, shards) in &merged {
                print(&format!(
                    "{}: {} shards were added, {} were already present\n",
                    title(share),
                    shards.new,
                    shards.known
                ))?;
                for damage in &shards.set_aside {
                    print(&format!(
                        "{}: the cache itself had a damaged file: {damage}, unless the merge has just added them\n",
                        title(share)
                    ))?;
                }
                if let Some(path) = &shards.first_differing {
                    print(&format!(
                        "{}: {} vectors differ from the cache's vector of the same content, by at most {}, the first in `{}`; small \
                         differences come from different processors or GPUs, large ones from damaged files\n",
                        title(share),
                        shards.differing,
                        shards.largest_difference,
                        path.display()
                    ))?;
                }
            }
            let damaged: Vec<&str> =
                merged.iter().flat_map(|(_, shards)| &shards.damaged).map(String::as_str).collect();
            anyhow::ensure!(
                damaged.is_empty(),
                "{} damaged or foreign vector files were left out ({}); copy them again, or `extract` will recompute their vectors",
                damaged.len(),
                damaged.join("; ")
            );
            Ok(())
        }
        Command::Prune { unused_days } => {
            let (removed, freed) = prune(&root, Duration::from_secs(unused_days.saturating_mul(DAY)))?;
            let names: Vec<String> = removed.iter().map(|share| format!("removed {}\n", title(share))).collect();
            print(&format!("{}{} freed\n", names.concat(), text::bytes(freed)))
        }
    }
}

fn table(shares: &[EncoderShare]) -> Table {
    let mut table = text::terminal_table(["encoder", "width", "shards", "size", "last use"]);
    for share in shares {
        let width = share.about.as_ref().map_or(String::new(), |about| about.width.to_string());
        let idle = format!("{} days ago", share.idle.as_secs() / DAY);
        table.add_row([title(share), width, share.shards.to_string(), text::bytes(share.bytes), idle]);
    }
    let total = shares.iter().map(|share| share.bytes).sum();
    table.add_row(["all".to_owned(), String::new(), String::new(), text::bytes(total), String::new()]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

fn title(share: &EncoderShare) -> String {
    match &share.about {
        Some(about) => format!("{} ({})", about.model, about.content),
        None => share.folder.display().to_string(),
    }
}
