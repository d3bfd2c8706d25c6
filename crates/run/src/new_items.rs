//! Items that were added to a run after training: how they are read, and which parameters have a row for each of them.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use mp4sr_artifact::{Error, Items, Layout, Sequences, files};
use mp4sr_models::{Modality, recipe};
use mp4sr_pipeline::Config;
use serde::{Deserialize, Serialize};

use crate::Inputs;
use crate::catalog::with_settings;
use crate::inputs::{ModalityRows, read_features};

/// The file that names the generation of new items in use (`new-items/current.json`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CurrentItems {
    /// The name of the generation's folder; `None` if the run has no new items.
    pub generation: Option<String>,
}

/// The features of new items of this modality come from another encoder than those of the dataset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the encoder of `{0}` in `[extract]`, its precision, or the dictionary of words differs from that of the dataset's features; use the \
     settings with which these were computed, or run `mp4sr extract` and train again"
)]
pub struct OtherEncoder(String);

impl CurrentItems {
    /// Reads the file, which does not exist if nothing was added to the run.
    pub fn read(layout: &Layout) -> anyhow::Result<Self> {
        let path = layout.new_items_pointer();
        if !files::is_file(&path)? {
            let Some(latest) = Self::generations(layout)?.pop() else { return Ok(Self::default()) };
            let name = latest.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let reason = "it is missing, but items were added to the run".to_owned();
            let remedy = format!(
                "restore it, as with the content {{\"generation\": \"{name}\"}}, or remove the folder `{}` to give these items up",
                layout.new_items().display()
            );
            return Err(Error::unusable(&path, reason, remedy).into());
        }
        serde_json::from_slice(&files::read(&path)?)
            .map_err(|error| Error::unreadable(&path, "its content", &error, remedy(layout)).into())
    }

    /// The folders of all generations, in their order. Only the file names the one in use.
    pub fn generations(layout: &Layout) -> anyhow::Result<Vec<PathBuf>> {
        let folder = layout.new_items();
        if !files::is_dir(&folder)? {
            return Ok(Vec::new());
        }
        let is_generation = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.len() >= 6 && name.bytes().all(|byte| byte.is_ascii_digit())
        };
        Ok(files::list(&folder)?.into_iter().filter(is_generation).collect())
    }

    /// Writes the file, from which on the run has these items.
    pub fn write(&self, layout: &Layout) -> anyhow::Result<()> {
        Ok(files::write_json(&layout.new_items_pointer(), self)?)
    }

    /// Reads the generation in use with `read`; `None` if the run has no new items. A generation that is replaced meanwhile may be removed
    /// while it is read, and then the next one is read. An error about a file says how to recover.
    pub fn read_with<T>(layout: &Layout, read: impl Fn(&Layout) -> anyhow::Result<T>) -> anyhow::Result<Option<T>> {
        let mut current = Self::read(layout)?;
        loop {
            let Some(own) = current.layout(layout) else { return Ok(None) };
            let error = match read(&own) {
                Ok(found) => return Ok(Some(found)),
                Err(error) => error,
            };
            let now = Self::read(layout)?;
            if now == current {
                return Err(with_remedy(error, layout));
            }
            current = now;
        }
    }

    /// The layout of the new items, if there are any.
    pub fn layout(&self, layout: &Layout) -> Option<Layout> {
        self.generation.as_ref().map(|generation| layout.new_items_generation(generation))
    }
}

/// Adds to an error about a file of new items how to recover, because the files know only of the stages that write those of a dataset.
fn with_remedy(error: anyhow::Error, layout: &Layout) -> anyhow::Error {
    // The features can be computed again from the table of the items.
    let remedy = |path: &Path| {
        let is_of_features = path.parent().and_then(Path::file_name).is_some_and(|folder| folder == "features");
        if is_of_features {
            "delete the file if it is there, and add an item with `mp4sr items add`, which encodes all added items again".to_owned()
        } else {
            remedy(layout)
        }
    };
    match error.downcast::<Error>() {
        Ok(Error::Unusable { path, reason, .. }) => Error::unusable(&path, reason, remedy(&path)).into(),
        Ok(Error::Io { action, path, source }) if source.kind() == ErrorKind::NotFound => {
            Error::unusable(&path, format!("failed to {action} it: {source}"), remedy(&path)).into()
        }
        Ok(other) => other.into(),
        Err(other) => other,
    }
}

/// How to recover from damaged files of new items.
fn remedy(layout: &Layout) -> String {
    let folder = layout.new_items();
    format!("remove the folder `{}` and add the items again with `mp4sr items add`", folder.display())
}

/// Items that training has not seen.
#[derive(Clone, Debug)]
pub struct NewItems {
    /// The table of the new items, which follow the items of the dataset.
    pub items: Items,
    /// The features of the new items by modality, in the order of the configuration.
    pub modalities: Vec<Modality>,
    /// The fingerprints of the encoders of these features, by modality; missing for features that do not name theirs.
    encoders: BTreeMap<String, String>,
}

/// The parameters that have a row per item. It is an error if the model cannot rank items that have no trained id.
pub fn item_tables(config: &Config) -> anyhow::Result<&'static [&'static str]> {
    let name = &config.model.name;
    let recipe = recipe(name).with_context(|| format!("unknown model `{name}`"))?;
    with_settings(config, |settings| (recipe.item_tables)(settings)).with_context(|| {
        format!(
            "`{name}` learns every item from its events in training, so it can neither rank new items nor compare them; use a model that \
             can (docs/serving.md, New items)"
        )
    })
}

impl NewItems {
    /// Reads and verifies the new items of a run; `None` if it has none.
    pub fn read(layout: &Layout, config: &Config) -> anyhow::Result<Option<Self>> {
        CurrentItems::read_with(layout, |own| Self::read_from(own, config))
    }

    /// Reads and verifies the new items of a generation, or of any other layout.
    pub fn read_from(own: &Layout, config: &Config) -> anyhow::Result<Self> {
        let items = Items::read_in(&own.items(), Path::new(&config.dataset.data))?;
        let (mut modalities, mut encoders) = (Vec::new(), BTreeMap::new());
        for modality in &config.model.modalities {
            let file = own.feature_file(&modality.name, &config.feature_name(modality));
            ensure!(
                !file.try_exists().is_ok_and(|exists| !exists),
                "the file `{}` with features of the added items is missing: they were added with other settings of `[extract]`, or it was \
                 deleted; add an item with `mp4sr items add`, which encodes all of them again, restore the settings, or remove all of them \
                 with `mp4sr items remove`",
                file.display()
            );
            let ModalityRows { rows, encoder } = read_features(own, config, modality, &items.hash(), items.len())?;
            encoders.extend(encoder.map(|encoder| (modality.name.clone(), encoder)));
            modalities.push(Modality { name: modality.name.clone(), features: rows });
        }
        Ok(Self { items, modalities, encoders })
    }

    /// Returns an error if features come from another encoder than those of the dataset in `layout`: they could not be used with the run.
    pub fn expect_encoders(&self, layout: &Layout, config: &Config) -> anyhow::Result<()> {
        let items = Items::read(&layout.items())?;
        for modality in &config.model.modalities {
            let Some(own) = self.encoders.get(&modality.name) else { continue };
            let is_there = layout.feature_file(&modality.name, &config.feature_name(modality)).exists();
            let dataset = is_there.then(|| read_features(layout, config, modality, &items.hash(), items.len()));
            if dataset.transpose()?.is_none_or(|dataset| dataset.encoder.is_some_and(|encoder| encoder != *own)) {
                return Err(OtherEncoder(modality.name.clone()).into());
            }
        }
        Ok(())
    }

    /// The items that are not among `known`, if there are any, and the ids of the others.
    pub(crate) fn without(mut self, known: &[String]) -> (Option<Self>, Vec<String>) {
        let known: HashSet<&str> = known.iter().map(String::as_str).collect();
        let (both, new): (Vec<usize>, Vec<usize>) =
            (0..self.items.len()).partition(|&row| known.contains(self.items.ids[row].as_str()));
        let both: Vec<String> = both.iter().map(|&row| self.items.ids[row].clone()).collect();
        if both.is_empty() || new.is_empty() {
            return ((!new.is_empty()).then_some(self), both);
        }
        self.items = self.items.select(&new);
        let rows: Vec<Option<u32>> = new.iter().map(|&row| Some(row as u32)).collect();
        for modality in &mut self.modalities {
            modality.features = modality.features.rearranged(&rows);
        }
        (Some(self), both)
    }
}

/// A warning if the items in the folder of the run that were added to it do not fit the features that the dataset has now; `None` if they do,
/// if there are none, or if they are in PostgreSQL.
pub fn other_added_items(layout: &Layout, config: &Config) -> Option<String> {
    let has_features = config.feature_files(layout).iter().all(|(_, path)| path.exists());
    if !has_features || !config.serve.store.as_written().is_empty() {
        return None;
    }
    match NewItems::read(layout, config) {
        Ok(new) => new?.expect_encoders(layout, config).err().map(|_| {
            "the items that were added to the run were encoded for other features than those of the dataset, so no list can be computed; \
             add one of them with `mp4sr items add`, which encodes all of them again, or remove them with `mp4sr items remove`"
                .to_owned()
        }),
        Err(error) => Some(format!("the items that were added to the run cannot be used: {error:#}")),
    }
}

impl Inputs {
    /// Appends the new items to those of the dataset. They have no events.
    pub(crate) fn append(&mut self, new: &NewItems) -> anyhow::Result<()> {
        let other = |(name, encoder): &(&String, &String)| new.encoders.get(*name).is_some_and(|own| own != *encoder);
        if let Some((name, _)) = self.encoders.iter().find(other) {
            bail!(
                "the new items' features of `{name}` come from a different encoder than the dataset's, or from another dictionary of \
                 words, which is made of the dataset's texts; add the items again with `mp4sr items add`"
            );
        }
        for (own, other) in self.modalities.iter_mut().zip(&new.modalities) {
            own.features = own.features.joined(&other.features).map_err(|_| {
                anyhow::anyhow!(
                    "the new items' features of `{}` have {} numbers per row, and the dataset's have {}; add the items again with \
                     `mp4sr items add`",
                    own.name,
                    other.features.width(),
                    own.features.width()
                )
            })?;
        }
        Ok(())
    }

    /// The inputs of a model that has only the new items, in place of the dataset's. They have no events.
    pub(crate) fn of_new_items(new: &NewItems, like: &Self) -> Self {
        let sequences = Sequences {
            offsets: vec![0; like.sequences.offsets.len()],
            items: Vec::new(),
            times: Vec::new(),
            item_hash: new.items.hash(),
            item_count: new.items.len(),
            user_hash: None,
            time_kind: like.sequences.time_kind,
            parts: None,
        };
        Self { sequences, modalities: new.modalities.clone(), encoders: new.encoders.clone(), categories: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_that_is_replaced_while_it_is_read_gives_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path(), "shop", "run");
        let publish = |name: &str| {
            let current = CurrentItems { generation: Some(name.to_owned()) };
            files::write_json(&layout.new_items_pointer(), &current).unwrap();
        };
        publish("000001");
        let own = |name: &str| layout.new_items_generation(name).items();
        files::write_bytes(&own("000002"), b"next").unwrap();
        // The first generation is removed after its name was read.
        let read = |generation: &Layout| {
            if generation.items() == own("000001") {
                publish("000002");
            }
            Ok(files::read(&generation.items())?)
        };
        assert_eq!(CurrentItems::read_with(&layout, read).unwrap().unwrap(), b"next");
        files::remove_if_present(&own("000002")).unwrap();
        let error = CurrentItems::read_with(&layout, read).unwrap_err().to_string();
        assert!(error.contains("000002") && error.contains("add the items again"), "{error}");
    }

    #[test]
    fn items_whose_pointer_was_lost_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path(), "shop", "run");
        assert_eq!(CurrentItems::read(&layout).unwrap(), CurrentItems::default(), "nothing was added");
        for name in ["images", "000004", "000005"] {
            files::create_dir_all(&layout.new_items().join(name)).unwrap();
        }
        let error = CurrentItems::read(&layout).unwrap_err().to_string();
        assert!(
            error.contains("{\"generation\": \"000005\"}") && error.contains("current.json` cannot be used"),
            "{error}"
        );
        files::write_bytes(&layout.new_items_pointer(), b"{\"generation\": \"000005\"}").unwrap();
        assert_eq!(CurrentItems::read(&layout).unwrap().generation.unwrap(), "000005");
    }
}
