//! `mp4sr completions` and `mp4sr man`: shell completions and manual pages.

use std::path::PathBuf;

use anyhow::Context as _;
use clap_complete::Shell;
use mp4sr_artifact::files;
use mp4sr_pipeline::print;

/// Prints the completion script for a shell; store it where that shell looks for completions.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell to complete for.
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the manual pages, one per subcommand, into a folder.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The folder to write to; if it is called `man1`, `man -M` accepts its parent folder.
    #[arg(value_name = "FOLDER")]
    out: PathBuf,
}

/// Prints the completion script for `command`.
pub fn completions(args: &CompletionsArgs, mut command: clap::Command) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut text);
    print(&String::from_utf8(text).context("completions that are not UTF-8")?)
}

/// Writes the manual pages of `command` and all of its subcommands.
pub fn man(args: &ManArgs, mut command: clap::Command) -> anyhow::Result<()> {
    command.build();
    write_pages(args, &command)
}

fn write_pages(args: &ManArgs, command: &clap::Command) -> anyhow::Result<()> {
    let page = clap_mangen::Man::new(command.clone());
    let mut text = Vec::new();
    page.render(&mut text).context("failed to write a manual page")?;
    files::write_bytes(&args.out.join(page.get_filename()), &text)?;
    let below = command.get_subcommands().filter(|command| command.get_name() != "help" && !command.is_hide_set());
    below.into_iter().try_for_each(|command| write_pages(args, command))
}
