//! Copies features that no stage computes to the dataset of a smoke run.

use std::collections::HashMap;
use std::path::Path;

use mp4sr_artifact::{Error, FeatureType, Features, Items, Layout, Manifest, Stage, StageSettings, Status};
use serde_json::json;

use super::rows::full;
use super::{SHORT, Study};
use crate::runner::Until;

/// The version of the files that are written.
const VERSION: u32 = 1;
/// The name of the record of what was copied, `<name>.manifest.json`.
const NAME: &str = "quick";

impl Study<'_> {
    /// A smoke run has its own dataset, with fewer items. If another program wrote the features of the pipeline's items, the rows of the
    /// remaining items are copied. Files that existed before anything was copied belong to that program and are kept.
    pub(super) fn copy_features(&self, pipeline: &Path, common: &[String]) -> anyhow::Result<()> {
        if self.runner.is_planning() {
            return Ok(());
        }
        let quick = self.study_run(pipeline, common, &full(), 0)?;
        let own = quick.config.model.modalities.iter().filter(|modality| !modality.features.is_empty());
        let names: Vec<(&str, &str)> =
            own.map(|modality| (modality.name.as_str(), modality.features.as_str())).collect();
        let is_theirs = |&(modality, name): &(&str, &str)| {
            quick.layout.feature_file(modality, name).exists() && !record(&quick.layout).exists()
        };
        if !self.options.quick || names.iter().all(is_theirs) {
            return Ok(());
        }
        let whole = self.study_run(pipeline, &[SHORT.to_owned()], &full(), 0)?;
        for run in [&whole, &quick] {
            if let Some(error) = self.runner.run(std::slice::from_ref(run), Until::Dataset).swap_remove(0) {
                return Err(error.into_error());
            }
        }
        let mut inputs =
            vec![("items".to_owned(), quick.layout.items()), ("all items".to_owned(), whole.layout.items())];
        for (modality, name) in &names {
            let path = whole.layout.feature_file(modality, name);
            if !path.exists() {
                let remedy = "no stage creates it: write it with the program that computes these features";
                return Err(Error::unusable(&path, "it is missing", remedy).into());
            }
            inputs.push((format!("features of {modality}"), path));
        }
        let stage = Stage::new(NAME, VERSION, quick.layout.root(), StageSettings::of(json!(names)), &inputs)?;
        if stage.status()? == Status::UpToDate {
            return Ok(());
        }
        let kept: Vec<_> = names.into_iter().filter(|name| !is_theirs(name)).collect();
        stage.begin()?;
        let mut outputs = Vec::new();
        for (modality, name) in kept {
            let to = quick.layout.feature_file(modality, name);
            copy_rows(&whole.layout, &quick.layout, modality, name, &to)?;
            outputs.push(to);
        }
        stage.expect_unchanged_inputs()?;
        Ok(stage.finish(&outputs)?)
    }
}

fn record(layout: &Layout) -> std::path::PathBuf {
    Manifest::path(layout.root(), NAME)
}

/// Writes the feature rows of the items of `some`, in their order.
fn copy_rows(all: &Layout, some: &Layout, modality: &str, name: &str, to: &Path) -> mp4sr_artifact::Result<()> {
    let (items, wanted) = (Items::read(&all.items())?, Items::read(&some.items())?);
    let path = all.feature_file(modality, name);
    let features = Features::read(&path, &items.hash(), items.len())?;
    let index_of_id: HashMap<&str, usize> = items.ids.iter().enumerate().map(|(at, id)| (id.as_str(), at)).collect();
    let (values, width) = (features.to_f32(), features.width());
    let (mut offsets, mut taken) = (vec![0i64], Vec::new());
    for id in &wanted.ids {
        // The full dataset contains every item of the smaller one.
        if let Some(&at) = index_of_id.get(id.as_str()) {
            taken.extend(&values[features.offsets[at] as usize * width..features.offsets[at + 1] as usize * width]);
        }
        offsets.push((taken.len() / width.max(1)) as i64);
    }
    // Converting stored values of any type to f32 loses nothing.
    let written = Features::from_f32(offsets, &taken, width, FeatureType::F32, wanted.hash());
    let Some(features) = written else {
        return Err(Error::unusable(&path, "it contains a value that is not a number", "write it again"));
    };
    features.write(to, "study", json!(null))
}
