//! Adds items to a trained run, which can then list them and read them in histories without further training.
//!
//! The crate takes raw items, in the format of the pipeline or as records. It writes an item table and features, computed as for the
//! dataset with its encoders, dictionary and cache, to the store that `serve.store` names: a generation in the run's folder
//! `new-items/`, which is immutable and is replaced as a whole, or rows of PostgreSQL. It must not know scores, lists or HTTP.

pub mod command;

use std::collections::HashSet;
use std::path::{Path, PathBuf, absolute};

use anyhow::{Context as _, bail, ensure};
use mp4sr_artifact::{Downloads, ExtractReport, Items, Layout, Lock, Rejects, files};
use mp4sr_extract::Encoders;
use mp4sr_pipeline::config::{Columns, Format, Source};
use mp4sr_pipeline::{Config, Context, Progress};
use mp4sr_preprocess::read_items;
use mp4sr_run::{CurrentItems, NewItems, item_tables};
use mp4sr_store::{Change, ItemStore, PostgresStore, StoredItem};
use serde_json::json;

/// The name of the lock on a run's added items.
const LOCK: &str = "items";
/// The maximum number of ids that a message names.
const NAMED: usize = 5;

/// An item that a program adds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ItemRecord {
    /// The item's id.
    pub id: String,
    /// The item's title.
    pub title: String,
    /// Further texts.
    pub texts: Vec<String>,
    /// The names of the item's categories.
    pub categories: Vec<String>,
    /// The bytes of the item's image files.
    pub images: Vec<Vec<u8>>,
}

/// The result of adding items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// The ids that the run did not have.
    pub new: Vec<String>,
    /// The ids of items that were added earlier and are now replaced.
    pub replaced: Vec<String>,
    /// Problems that the caller should know about, one sentence each.
    pub notes: Vec<String>,
    /// The total number of added items of the run.
    pub total: usize,
}

/// Adds items to a run, and removes them.
///
/// ```
/// use mp4sr_extract::Encoders;
/// use mp4sr_items::{Editor, ItemRecord};
/// use mp4sr_store::ItemStore;
/// # use mp4sr_artifact::{Items, Layout};
/// # use mp4sr_pipeline::{Config, Context, Progress};
///
/// # let folder = tempfile::tempdir()?;
/// # let models = mp4sr_run::model_catalog();
/// # let text = "dataset.name = \"shop\"\nextract.text.model = \"builtin:tiny-sentence\"\n\
/// #             model = { name = \"mp4sr\", modalities = [{ name = \"text\" }] }";
/// # let (config, _) = Config::parse(text, "shop.toml", &[], models)?;
/// # let layout = Layout::new(folder.path(), "shop", "mp4sr");
/// # let known = Items {
/// #     ids: vec!["cup-1".to_owned()],
/// #     titles: vec!["A red cup".to_owned()],
/// #     sentences: vec![vec!["A red cup.".to_owned()]],
/// #     images: vec![Vec::new()],
/// #     categories: vec![Vec::new()],
/// #     sounds: vec![Vec::new()],
/// # };
/// # known.write(&layout.items())?;
/// # let context = Context { config, layout, progress: Progress::new(true), models: models.clone() };
/// // `context` is the context of a trained run whose model reads texts.
/// let store = ItemStore::open(&context)?;
/// let mut encoders = Encoders::of(&context)?;
/// let mut editor = Editor { context: &context, store: &store, encoders: &mut encoders };
/// let cup = ItemRecord {
///     id: "cup-2".to_owned(),
///     title: "A blue cup".to_owned(),
///     texts: vec!["It is made of blue glass.".to_owned()],
///     ..ItemRecord::default()
/// };
/// let added = editor.add_records(&[cup])?;
/// assert_eq!(added.new, ["cup-2"]);
/// assert_eq!(store.items(&context.layout)?.titles, ["A blue cup"]);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Editor<'a> {
    /// The context of the run.
    pub context: &'a Context,
    /// The store of its added items.
    pub store: &'a ItemStore,
    /// The encoders of the run.
    pub encoders: &'a mut Encoders,
}

/// The records without images that are not image files, and a note on each of these.
fn with_usable_images(records: &[ItemRecord]) -> (Vec<ItemRecord>, Vec<String>) {
    let (mut usable, mut notes) = (records.to_vec(), Vec::new());
    for record in &mut usable {
        let mut number = 0;
        record.images.retain(|bytes| {
            number += 1;
            let read = mp4sr_image::dimensions(bytes);
            notes.extend(read.as_ref().err().map(|e| format!("image {number} of `{}` cannot be used: {e}", record.id)));
            read.is_ok()
        });
    }
    (usable, notes)
}

/// The note on lines or images that were not read, with the first of each reason; `None` if all were read.
fn unread(rejected: &Rejects, what: &str) -> Option<String> {
    let reasons = rejected.0.iter().map(|(reason, rejected)| {
        let first = rejected.examples.first();
        let place = first
            .map_or(String::new(), |first| format!(", first in line {} of `{}`", first.line, first.file.display()));
        format!("{} for: {reason}{place}", rejected.count)
    });
    (!rejected.is_empty()).then(|| format!("{} {what}: {}", rejected.total(), reasons.collect::<Vec<_>>().join("; ")))
}

impl Editor<'_> {
    /// Adds the items of files in the format of the pipeline's `[source]`. The files may hold a whole catalogue: items of the dataset are
    /// skipped.
    pub fn add_files(&mut self, paths: &[PathBuf]) -> anyhow::Result<Added> {
        let context = self.context;
        expect_addable(&context.config)?;
        let (mut items, read) = read_items(&context.config, paths, &context.progress)?;
        name_outside_files(&mut items, Path::new(&context.config.dataset.data))?;
        let mut notes = Vec::new();
        if read.repeated > 0 {
            notes.push(format!("{} lines repeat the id of an earlier line and are ignored", read.repeated));
        }
        notes.extend(unread(&read.rejected, "lines could not be read and are not added"));
        notes.extend(unread(&read.refused_images, "images cannot be used"));
        let in_dataset: HashSet<String> = Items::read(&context.layout.items())?.ids.into_iter().collect();
        let new: Vec<usize> = (0..items.len()).filter(|&row| !in_dataset.contains(&items.ids[row])).collect();
        let known = items.len() - new.len();
        ensure!(!new.is_empty(), "all {known} items are already in the dataset; new items need other ids");
        if known > 0 {
            notes.push(format!("{known} items are already in the dataset and are not changed"));
        }
        let added = self.add(&items.select(&new))?;
        Ok(Added { notes: [notes, added.notes].concat(), ..added })
    }

    /// Adds records. Their images are stored with them.
    pub fn add_records(&mut self, records: &[ItemRecord]) -> anyhow::Result<Added> {
        expect_addable(&self.context.config)?;
        let (records, notes) = with_usable_images(records);
        let added = match self.store {
            ItemStore::Folder => {
                let folder = self.context.layout.new_items().join("images");
                self.add(&of_records(self.context, &records, &folder)?)
            }
            ItemStore::Postgres(_) => {
                let folder = tempfile::tempdir()?;
                self.add(&of_records(self.context, &records, folder.path())?)
            }
        }?;
        Ok(Added { notes: [notes, added.notes].concat(), ..added })
    }

    /// Removes items that were added earlier.
    pub fn remove(&mut self, ids: &[String]) -> anyhow::Result<usize> {
        match self.store {
            ItemStore::Folder => self.remove_from_folder(ids),
            ItemStore::Postgres(store) => Ok(store.remove(ids)?),
        }
    }

    fn add(&mut self, items: &Items) -> anyhow::Result<Added> {
        ensure!(!items.is_empty(), "no items were given; give at least one");
        let known = Items::read(&self.context.layout.items())?;
        let in_dataset: HashSet<&str> = known.ids.iter().map(String::as_str).collect();
        let both: Vec<&String> = items.ids.iter().filter(|id| in_dataset.contains(id.as_str())).collect();
        ensure!(both.is_empty(), "already items of the dataset: {}; new items need other ids", some_of(&both));
        match self.store {
            ItemStore::Folder => self.add_to_folder(items),
            ItemStore::Postgres(store) => self.add_to_postgres(store, items),
        }
    }

    fn add_to_folder(&mut self, items: &Items) -> anyhow::Result<Added> {
        let _lock = lock(self.context)?;
        let earlier = self.store.items(&self.context.layout)?;
        let given: HashSet<&str> = items.ids.iter().map(String::as_str).collect();
        let kept: Vec<usize> = (0..earlier.len()).filter(|&row| !given.contains(earlier.ids[row].as_str())).collect();
        let before: HashSet<&str> = earlier.ids.iter().map(String::as_str).collect();
        let (replaced, new) = items.ids.iter().cloned().partition(|id| before.contains(id.as_str()));
        let mut all = earlier.select(&kept);
        all.append(items.clone());
        let report = self.publish(&all)?;
        Ok(Added { new, replaced, notes: notes(&report), total: all.len() })
    }

    fn add_to_postgres(&mut self, store: &PostgresStore, items: &Items) -> anyhow::Result<Added> {
        let folder = tempfile::tempdir()?;
        let own = self.context.layout.at(folder.path());
        let report = self.encode(own.clone(), items)?;
        let (config, layout) = (&self.context.config, &own);
        let downloads = Downloads::new(Path::new(&config.dataset.data));
        let image = |name: &str| files::read(&downloads.file(name)).ok();
        let stored = StoredItem::of_generation(layout, config, items, image)?;
        let Change { new, replaced, total } = store.put(self.context, &stored)?;
        Ok(Added { new, replaced, notes: notes(&report), total })
    }

    fn remove_from_folder(&mut self, ids: &[String]) -> anyhow::Result<usize> {
        let _lock = lock(self.context)?;
        let earlier = self.store.items(&self.context.layout)?;
        let known: HashSet<&str> = earlier.ids.iter().map(String::as_str).collect();
        let unknown: Vec<&String> = ids.iter().filter(|id| !known.contains(id.as_str())).collect();
        ensure!(
            unknown.is_empty(),
            "not added to the run: {}; only items that were added can be removed",
            some_of(&unknown)
        );
        let removed: HashSet<&String> = ids.iter().collect();
        let kept: Vec<usize> = (0..earlier.len()).filter(|&row| !removed.contains(&earlier.ids[row])).collect();
        self.publish(&earlier.select(&kept))?;
        Ok(removed.len())
    }

    /// Writes a new generation, and lets it replace the previous one once it is complete.
    fn publish(&mut self, items: &Items) -> anyhow::Result<ExtractReport> {
        let layout = &self.context.layout;
        let before = CurrentItems::read(layout)?;
        remove_stale(layout, &before)?;
        let number = before.generation.as_ref().and_then(|name| name.parse::<u64>().ok()).unwrap_or(0) + 1;
        let generation = (!items.is_empty()).then(|| format!("{number:06}"));
        let mut report = ExtractReport::default();
        if let Some(name) = &generation {
            let own = layout.new_items_generation(name);
            files::remove_dir_if_present(own.root())?;
            let made = self.encode(own.clone(), items);
            if made.is_err() {
                files::remove_dir_if_present(own.root())?;
            }
            report = made?;
        }
        files::write_json(&layout.new_items_pointer(), &CurrentItems { generation })?;
        if let Some(name) = before.generation {
            files::remove_dir_if_present(layout.new_items_generation(&name).root())?;
        }
        Ok(report)
    }

    /// Writes the item table and the features to the folder `own`. Items without any features are an error.
    fn encode(&mut self, own: Layout, items: &Items) -> anyhow::Result<ExtractReport> {
        let inner = Context {
            config: self.context.config.clone(),
            layout: own,
            progress: Progress::new(true),
            models: self.context.models.clone(),
        };
        items.write_relative(&inner.layout.items(), Path::new(&inner.config.dataset.data))?;
        let report = self.encoders.extract_new_items(self.context, &inner)?;
        expect_something(&NewItems::read_from(&inner.layout, &inner.config)?)?;
        Ok(report)
    }
}

/// Gives files that are outside of the data folder their absolute paths, because tables name all other files relative to that folder.
fn name_outside_files(items: &mut Items, data: &Path) -> anyhow::Result<()> {
    for name in items.images.iter_mut().chain(&mut items.sounds).flatten() {
        if !Downloads::is_url(name) && !Path::new(name).starts_with(data) {
            *name = absolute(&*name)?.to_string_lossy().into_owned();
        }
    }
    Ok(())
}

/// Converts records to items of a dataset; their images are written to `folder`.
fn of_records(context: &Context, records: &[ItemRecord], folder: &Path) -> anyhow::Result<Items> {
    let folder = &absolute(folder)?;
    let mut lines = String::new();
    for record in records {
        let mut images = Vec::new();
        for bytes in &record.images {
            let name = format!("{}.{}", &blake3::hash(bytes).to_hex()[..32], ending(bytes));
            let path = folder.join(&name);
            if !path.exists() {
                files::write_bytes(&path, bytes)?;
            }
            images.push(name);
        }
        let ItemRecord { id, title, texts, categories, .. } = record;
        let line = json!({"item_id": id, "title": title, "texts": texts, "categories": categories, "images": images});
        lines.push_str(&format!("{line}\n"));
    }
    let mut config = context.config.clone();
    config.dataset.data = folder.to_string_lossy().into_owned();
    config.source = Source {
        format: Format::Tabular,
        columns: Columns {
            texts: vec!["texts".to_owned()],
            images: "images".to_owned(),
            categories: vec!["categories".to_owned()],
            ..Columns::default()
        },
        ..Source::default()
    };
    let path = folder.join(format!("records-{}.jsonl", std::process::id()));
    files::write_bytes(&path, lines.as_bytes())?;
    // Warnings about a file that the user has not written would only confuse.
    let read = read_items(&config, std::slice::from_ref(&path), &Progress::new(true));
    files::remove_if_present(&path)?;
    let (items, read) = read?;
    ensure!(read.rejected.total() == 0, "an item has no id; give every item one");
    if read.repeated > 0 {
        let mut seen = HashSet::new();
        let twice = records.iter().map(|record| record.id.as_str()).find(|id| !seen.insert(*id));
        let item = twice.map_or("an item".to_owned(), |id| format!("the item `{id}`"));
        bail!("{item} is given twice; give each id once");
    }
    Ok(items)
}

/// The extension of an image file, by its first bytes.
fn ending(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => "png",
        [b'G', b'I', b'F', ..] => "gif",
        [b'R', b'I', b'F', b'F', ..] => "webp",
        _ => "jpg",
    }
}

/// Removes what a killed process left: temporary files, and generations that are not in use.
fn remove_stale(layout: &Layout, current: &CurrentItems) -> anyhow::Result<()> {
    let folder = layout.new_items();
    if !folder.exists() {
        return Ok(());
    }
    files::remove_leftovers(&folder)?;
    for path in files::list(&folder)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_generation = name.len() >= 6 && name.bytes().all(|byte| byte.is_ascii_digit());
        if is_generation && current.generation.as_deref() != Some(name) {
            files::remove_dir_if_present(&path)?;
        }
    }
    Ok(())
}

/// Rejects models that need id embeddings, and features that do not come from `[extract]`.
fn expect_addable(config: &Config) -> anyhow::Result<()> {
    item_tables(config)?;
    let extracted = config.extracted();
    for modality in &config.model.modalities {
        let is_ours = match modality.name.as_str() {
            "text" => extracted.text,
            "image" => extracted.image,
            "audio" => extracted.audio,
            _ => false,
        };
        ensure!(
            is_ours && config.feature_name(modality) != modality.features,
            "the features of the modality `{}` come from elsewhere (`{}`) and cannot be computed for new items; use a run whose features come from `[extract]`",
            modality.name,
            modality.features
        );
    }
    Ok(())
}

fn lock(context: &Context) -> anyhow::Result<Lock> {
    files::create_dir_all(&context.layout.new_items())?;
    Ok(Lock::acquire(&context.layout.new_items(), LOCK)?)
}

/// Rejects items for which the model has no features.
fn expect_something(new: &NewItems) -> anyhow::Result<()> {
    let is_empty = |row: usize| new.modalities.iter().all(|modality| modality.features.rows_of(row) == 0);
    let empty: Vec<&String> =
        (0..new.items.len()).filter(|&row| is_empty(row)).map(|row| &new.items.ids[row]).collect();
    let names: Vec<&str> = new.modalities.iter().map(|modality| modality.name.as_str()).collect();
    ensure!(
        empty.is_empty(),
        "{} items have no usable {}, so the model cannot represent them: {}; complete them or leave them out",
        empty.len(),
        names.join(" or "),
        some_of(&empty)
    );
    Ok(())
}

fn notes(report: &ExtractReport) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(first) = report.unusable.first() {
        let count = report.unusable.len();
        notes.push(format!(
            "{count} images cannot be used; the first is `{}` of `{}`: {}",
            first.image, first.item_id, first.reason
        ));
    }
    if let Some(first) = report.unusable_sounds.first() {
        let count = report.unusable_sounds.len();
        notes.push(format!(
            "{count} sounds cannot be used; the first is `{}` of `{}`: {}",
            first.sound, first.item_id, first.reason
        ));
    }
    notes
}

/// The first few of the ids, for a message.
fn some_of(ids: &[&String]) -> String {
    let mut named: Vec<String> = ids.iter().take(NAMED).map(|id| format!("`{id}`")).collect();
    if ids.len() > NAMED {
        named.push(format!("and {} more", ids.len() - NAMED));
    }
    named.join(", ")
}

/// Refuses an item whose image does not contribute to its features.
fn expect_image(new: &NewItems) -> anyhow::Result<()> {
    let image = new.modalities.iter().find(|modality| modality.name == "image");
    let image = image.context("the model reads no images; give only a text")?;
    ensure!(
        image.features.rows_of(0) > 0,
        "the image cannot be used; give a complete image file, such as a JPEG or PNG file"
    );
    Ok(())
}

/// Encodes one item without adding it, and without leaving anything in the cache. Its features are written to `folder`, which the caller
/// removes.
pub fn encode_alone(
    context: &Context,
    encoders: &mut Encoders,
    item: &ItemRecord,
    folder: &Path,
) -> anyhow::Result<NewItems> {
    expect_addable(&context.config)?;
    if !item.images.is_empty() {
        ensure!(context.config.extracted().image, "the model reads no images; give only a text");
    }
    let items = of_records(context, std::slice::from_ref(item), folder)?;
    let own = Context {
        config: context.config.clone(),
        layout: context.layout.at(folder),
        progress: Progress::new(true),
        models: context.models.clone(),
    };
    items.write_relative(&own.layout.items(), Path::new(&context.config.dataset.data))?;
    encoders.extract_once(context, &own)?;
    let new = NewItems::read_from(&own.layout, &context.config)?;
    expect_something(&new)?;
    if !item.images.is_empty() {
        expect_image(&new)?;
    }
    Ok(new)
}
