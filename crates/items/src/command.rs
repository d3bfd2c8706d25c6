//! The command line of `mp4sr items`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use mp4sr_extract::Encoders;
use mp4sr_pipeline::config::{FINETUNE, ModelCatalog};
use mp4sr_pipeline::{Context, StageArgs, print};
use mp4sr_run::{NewItems, TrainedModel};
use mp4sr_store::ItemStore;

use crate::{Editor, check_files, check_removal};

/// The time for which a command waits for another process that changes the added items: a service does so only now and then.
const LOCK_TIME: Duration = Duration::from_secs(30);

/// Adds items to a trained run, which ranks them without further training, or removes such items.
///
/// Texts and images go through the encoders, the dictionary and the cache of the dataset, and then through the trained item encoders.
/// An item without training events has no id embedding, so its scores depend on its text and images alone. Models that need id
/// embeddings reject new items.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Adds the items of one or more files; an item whose id was added before is replaced.
    Add {
        /// The flags of every stage.
        #[command(flatten)]
        stage: StageArgs,
        /// A file of items in the format of the pipeline's `[source]`. May be given several times. Paths of images are relative to it
        /// or to the data folder.
        #[arg(long, value_name = "FILE", required = true)]
        items: Vec<PathBuf>,
    },
    /// Removes items that were added to the run.
    Remove {
        /// The flags of every stage.
        #[command(flatten)]
        stage: StageArgs,
        /// The id of an item. May be given several times.
        #[arg(long, value_name = "ID", required = true)]
        item: Vec<String>,
    },
    /// Lists the ids and titles of the items that were added, as tab-separated values.
    List {
        /// The flags of every stage.
        #[command(flatten)]
        stage: StageArgs,
    },
}

impl Args {
    /// The flags of every stage.
    pub fn stage(&self) -> &StageArgs {
        match &self.command {
            Command::Add { stage, .. } | Command::Remove { stage, .. } | Command::List { stage } => stage,
        }
    }

    /// The item files to add.
    pub fn new_files(&self) -> &[PathBuf] {
        match &self.command {
            Command::Add { items, .. } => items,
            Command::Remove { .. } | Command::List { .. } => &[],
        }
    }
}

/// Checks what the command reads without changing anything, and returns the number of items to encode and sentences on what would be done.
pub fn check(args: &Args, context: &Context) -> anyhow::Result<(usize, Vec<String>)> {
    ItemStore::expect_settings(context)?;
    match &args.command {
        Command::Add { items, .. } => check_files(context, items),
        Command::Remove { item, .. } => Ok((0, vec![check_removal(context, item)?])),
        Command::List { .. } => Ok((0, vec!["list the items that were added".to_owned()])),
    }
}

/// Runs `mp4sr items`.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    mp4sr_ops::start_threads();
    match &args.command {
        Command::Add { stage, items } => {
            let context = &context_of_change(stage, models)?;
            let (store, mut encoders) = (ItemStore::open(context)?, Encoders::of(context)?);
            let mut approve = |new| expect_usable(context, new);
            let mut editor = Editor { context, store: &store, approve: Some(&mut approve), wait: LOCK_TIME };
            let added = editor.add_files(&mut encoders, items)?;
            added.notes.iter().for_each(|note| context.progress.log(format!("items: {note}")));
            let (new, replaced, total) = (added.new.len(), added.replaced.len(), added.total);
            context.progress.log(format!("items: {new} added, {replaced} replaced; the run has {total} added items"));
            Ok(())
        }
        Command::Remove { stage, item } => {
            let context = &context_of_change(stage, models)?;
            let store = ItemStore::open(context)?;
            let removed = Editor { context, store: &store, approve: None, wait: LOCK_TIME }.remove(item)?;
            context.progress.log(format!("items: {removed} removed"));
            Ok(())
        }
        Command::List { stage } => {
            let context = stage.context(models)?;
            let items = ItemStore::open(&context)?.items(&context.layout)?;
            // Ids and titles may contain separators and line breaks, so they are quoted like the fields of other tables.
            let mut table = csv::WriterBuilder::new().delimiter(b'\t').from_writer(Vec::new());
            items.ids.iter().zip(&items.titles).try_for_each(|(id, title)| table.write_record([id, title]))?;
            print(&String::from_utf8(table.into_inner()?)?)
        }
    }
}

/// The context of a run whose added items are changed. A link in its path may be given another target during the change.
fn context_of_change(stage: &StageArgs, models: &Arc<ModelCatalog>) -> anyhow::Result<Context> {
    let context = stage.context(models)?;
    Ok(Context { layout: context.layout.resolved(), ..context })
}

/// Refuses items with which the weights of the run cannot be used. A run that is not trained yet, or has to be trained again, takes any.
fn expect_usable(context: &Context, new: Option<NewItems>) -> anyhow::Result<()> {
    let Context { layout, config, .. } = context;
    if !layout.checkpoint(FINETUNE).exists() {
        return Ok(());
    }
    let load = |new| TrainedModel::load_with_new_items(layout, config, new).and_then(|(run, _)| run.scorer().map(drop));
    match load(new) {
        Err(error) if load(None).is_ok() => Err(error).context("the run cannot use these items, so none was added"),
        _ => Ok(()),
    }
}
