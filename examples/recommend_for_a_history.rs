//! Uses the crates as libraries: reads a dataset, loads a trained model, and lists the items that a user with a given history may want
//! next.
//!
//!     mp4sr run --until finetune --pipeline pipelines/sample.toml
//!     cargo run --release --example recommend_for_a_history -- pipelines/sample.toml artifacts <item id> <item id> ...

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use mp4sr_artifact::{Items, Layout};
use mp4sr_models::Query;
use mp4sr_pipeline::Config;
use mp4sr_recommend::Recommender;
use mp4sr_run::{TrainedModel, model_catalog, removes_seen};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pipeline, artifacts, history @ ..] = arguments.as_slice() else {
        anyhow::bail!("expected a pipeline file, the folder of artifacts and the ids of items, oldest first");
    };
    anyhow::ensure!(!history.is_empty(), "the history is empty; name at least one item");

    // The configuration names the dataset and the run.
    let (config, warnings) = Config::load(Path::new(pipeline), &[], model_catalog())?;
    for warning in warnings {
        writeln!(std::io::stderr(), "{warning}")?;
    }
    let layout = Layout::new(Path::new(artifacts), &config.dataset.name, &config.run.name);

    // Models refer to items by number, from 1, in the order of the item table.
    let items = Items::read(&layout.items())?;
    let number_of = |id: &String| {
        let row = items.ids.iter().position(|known| known == id);
        row.map(|row| row as u32 + 1).with_context(|| format!("item `{id}` is not in the dataset"))
    };
    let history = history.iter().map(number_of).collect::<anyhow::Result<Vec<u32>>>()?;

    let trained = TrainedModel::load(&layout, &config)?;
    let scorer = trained.scorer()?;
    let recommender = Recommender::new(scorer.as_ref())?;
    let remove_seen = removes_seen(&config, trained.model.as_ref());
    let lists = recommender.top_k(&[Query::of_history(&history)], config.recommend.top, remove_seen)?;

    let mut out = std::io::stdout().lock();
    for (item, score) in lists.into_iter().flatten() {
        let row = item as usize - 1;
        writeln!(out, "{score:.4}  {}  {}", items.ids[row], items.titles[row])?;
    }
    Ok(())
}
