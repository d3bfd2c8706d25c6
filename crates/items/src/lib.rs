//! Adds items to a trained run, which can then list them and read them in histories without further training.
//!
//! The crate takes raw items, in the format of the pipeline or as records. It computes features with the dataset's encoders, dictionary
//! and cache, and writes them with an item table to the store that `serve.store` names: to rows of PostgreSQL, or to the run's folder
//! `new-items/`, as an immutable generation that is only replaced as a whole. It must not know scores, lists or HTTP.

pub mod command;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf, absolute};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use mp4sr_artifact::{Downloads, ExtractReport, Items, Layout, Lock, Rejects, files};
use mp4sr_extract::{Encoders, encoder_device};
use mp4sr_pipeline::config::{Columns, Format, Source};
use mp4sr_pipeline::text::{quoted, some_of};
use mp4sr_pipeline::{Config, Context, Progress};
use mp4sr_preprocess::{BLANK_LINE, marks_missing_value, read_items};
use mp4sr_run::{CurrentItems, NewItems, item_tables};
use mp4sr_store::{Change, ItemStore, PostgresStore, StoredItem, write_generation};
use serde_json::json;

/// The name of the lock on a run's added items.
const LOCK: &str = "items";
const LOCK_PAUSE: Duration = Duration::from_millis(20);

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

/// Accepts or rejects a change, given all added items of the run as they would be after it; `None` if there would be none.
pub type Approve<'a> = &'a mut dyn FnMut(Option<NewItems>) -> anyhow::Result<()>;

/// Adds items to a run, and removes them. A change encodes only the items that it names: the features of the others are carried over
/// unchanged, so their texts and image files need not exist any more.
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
/// # encoders.extract_new_items(&context, &context)?;
/// let mut editor = Editor { context: &context, store: &store, approve: None, wait: std::time::Duration::ZERO };
/// let cup = ItemRecord {
///     id: "cup-2".to_owned(),
///     title: "A blue cup".to_owned(),
///     texts: vec!["It is made of blue glass.".to_owned()],
///     ..ItemRecord::default()
/// };
/// let added = editor.add_records(&mut encoders, &[cup])?;
/// assert_eq!(added.new, ["cup-2"]);
/// assert_eq!(store.items(&context.layout)?.titles, ["A blue cup"]);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Editor<'a> {
    /// The context of the run.
    pub context: &'a Context,
    /// The store of its added items.
    pub store: &'a ItemStore,
    /// Called before a change is stored; an error leaves the added items unchanged. Without it, every change is stored.
    pub approve: Option<Approve<'a>>,
    /// How long a change waits for another process to finish its own.
    pub wait: Duration,
}

/// The records with the first `most` images that can be decoded, and a note on each image that cannot, and on each item with more.
fn with_usable_images(records: &[ItemRecord], most: usize) -> (Vec<ItemRecord>, Vec<String>) {
    let (mut usable, mut notes) = (records.to_vec(), Vec::new());
    for record in &mut usable {
        let mut number = 0;
        record.images.retain(|bytes| {
            number += 1;
            let read = mp4sr_image::decode(bytes, mp4sr_image::MAX_PIXELS);
            notes.extend(
                read.as_ref().err().map(|e| format!("image {number} of {} cannot be used: {e}", quoted(&record.id))),
            );
            read.is_ok()
        });
        if record.images.len() > most {
            let (count, id) = (record.images.len(), quoted(&record.id));
            notes.push(format!("only the first {most} of {count} images of {id} are used (`preprocess.max_images`)"));
            record.images.truncate(most);
        }
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
    pub fn add_files(&mut self, encoders: &mut Encoders, paths: &[PathBuf]) -> anyhow::Result<Added> {
        let (items, notes) = read_new(self.context, paths)?;
        if items.is_empty() {
            return Ok(Added { notes, total: self.store.items(&self.context.layout)?.len(), ..Added::default() });
        }
        let _lock = self.lock()?;
        let added = self.add(encoders, &items)?;
        Ok(Added { notes: [notes, added.notes].concat(), ..added })
    }

    /// Adds records. Their images are stored with them.
    pub fn add_records(&mut self, encoders: &mut Encoders, records: &[ItemRecord]) -> anyhow::Result<Added> {
        expect_addable(&self.context.config)?;
        let (records, notes) = with_usable_images(records, self.context.config.preprocess.max_images);
        let _lock = self.lock()?;
        let added = match self.store {
            ItemStore::Folder => {
                remove_unused_images(self.context)?;
                let folder = self.context.layout.new_items_images();
                let added = of_records(self.context, &records, &folder).and_then(|items| self.add(encoders, &items));
                if added.is_err() {
                    // The error of the change is the one to report, and the next change tries again.
                    let _ = remove_unused_images(self.context);
                }
                added
            }
            ItemStore::Postgres(_) => {
                let folder = tempfile::tempdir()?;
                self.add(encoders, &of_records(self.context, &records, folder.path())?)
            }
        }?;
        Ok(Added { notes: [notes, added.notes].concat(), ..added })
    }

    /// The lock under which the items in the folder of the run are changed; PostgreSQL has its own.
    fn lock(&self) -> anyhow::Result<Option<Lock>> {
        match self.store {
            ItemStore::Folder => {
                let folder = self.context.layout.new_items();
                files::create_dir_all(&folder)?;
                let give_up = Instant::now() + self.wait;
                loop {
                    match Lock::acquire(&folder, LOCK) {
                        Err(mp4sr_artifact::Error::Locked { .. }) if Instant::now() < give_up => {
                            std::thread::sleep(LOCK_PAUSE);
                        }
                        lock => return Ok(Some(lock?)),
                    }
                }
            }
            ItemStore::Postgres(_) => Ok(None),
        }
    }

    /// Removes items that were added earlier.
    pub fn remove(&mut self, ids: &[String]) -> anyhow::Result<usize> {
        let ids = &trimmed(ids);
        let _lock = self.lock()?;
        match self.store {
            ItemStore::Folder => {
                remove_unused_images(self.context)?;
                self.remove_from_folder(ids)
            }
            ItemStore::Postgres(store) => {
                if let Some(approve) = self.approve.as_mut() {
                    approve(store.after(self.context, &[], ids)?)?;
                }
                Ok(store.remove(ids)?)
            }
        }
    }

    fn add(&mut self, encoders: &mut Encoders, items: &Items) -> anyhow::Result<Added> {
        ensure!(!items.is_empty(), "no items were given; give at least one");
        let known = Items::read(&self.context.layout.items())?;
        let in_dataset: HashSet<&str> = known.ids.iter().map(String::as_str).collect();
        let both: Vec<&str> = items.ids.iter().map(String::as_str).filter(|id| in_dataset.contains(id)).collect();
        ensure!(
            both.is_empty(),
            "these items are already in the dataset: {}; give new items other ids",
            some_of(&both)
        );
        match self.store {
            ItemStore::Folder => self.add_to_folder(encoders, items),
            ItemStore::Postgres(store) => self.add_to_postgres(encoders, store, items),
        }
    }

    fn add_to_folder(&mut self, encoders: &mut Encoders, items: &Items) -> anyhow::Result<Added> {
        let mut all = earlier(self.context)?;
        let before: HashSet<String> = all.iter().map(|item| item.id.clone()).collect();
        let (replaced, new) = items.ids.iter().cloned().partition(|id| before.contains(id));
        let given: HashSet<&String> = items.ids.iter().collect();
        all.retain(|item| !given.contains(&item.id));
        let folder = tempfile::tempdir()?;
        let own = self.context.layout.at(folder.path());
        let report = self.encode(encoders, own.clone(), items)?;
        let mut notes = notes(&report);
        let encoded = StoredItem::read(&own, &self.context.config)?;
        if !StoredItem::have_one_encoder(all.iter().chain(&encoded)) {
            notes.extend(self.encode_again(encoders, &mut all)?);
        }
        all.extend(encoded);
        self.publish(&all)?;
        Ok(Added { new, replaced, notes, total: all.len() })
    }

    /// Recomputes the features of items that were added earlier, because the encoders or the dictionary have changed since.
    fn encode_again(&self, encoders: &mut Encoders, stored: &mut Vec<StoredItem>) -> anyhow::Result<Vec<String>> {
        let count = stored.len();
        let folder = tempfile::tempdir()?;
        let own = self.context.layout.at(folder.path());
        let report = self.encode(encoders, own.clone(), &StoredItem::table(stored)).with_context(|| {
            "the features of items that were added earlier are missing or come from other encoders, and cannot be computed again; add such \
             items again, complete, together with the new ones, or remove all added items with `mp4sr items remove`"
        })?;
        *stored = StoredItem::read(&own, &self.context.config)?;
        let again = format!(
            "{count} items that were added earlier were encoded again, because their features were missing or came from other encoders"
        );
        Ok([vec![again], notes(&report)].concat())
    }

    fn add_to_postgres(
        &mut self,
        encoders: &mut Encoders,
        store: &PostgresStore,
        items: &Items,
    ) -> anyhow::Result<Added> {
        let folder = tempfile::tempdir()?;
        let own = self.context.layout.at(folder.path());
        let report = self.encode(encoders, own.clone(), items)?;
        let downloads = Downloads::new(Path::new(&self.context.config.dataset.data));
        let image = |name: &str| match files::read(&downloads.file(name)) {
            Err(error) if error.is_not_found() => Ok(None),
            read => read.map(Some),
        };
        let read = StoredItem::read(&own, &self.context.config)?;
        let stored: Vec<StoredItem> = read.into_iter().map(|item| item.with_images(image)).collect::<Result<_, _>>()?;
        if let Some(approve) = self.approve.as_mut() {
            approve(store.after(self.context, &stored, &[])?)?;
        }
        let Change { new, replaced, total } = store.put(self.context, &stored)?;
        Ok(Added { new, replaced, notes: notes(&report), total })
    }

    fn remove_from_folder(&mut self, ids: &[String]) -> anyhow::Result<usize> {
        let kept = kept_without(self.context, ids)?;
        let removed: HashSet<&String> = ids.iter().collect();
        self.publish(&kept)?;
        Ok(removed.len())
    }

    /// Writes a new generation, and lets it replace the previous one once it is complete and approved.
    fn publish(&mut self, items: &[StoredItem]) -> anyhow::Result<()> {
        let layout = &self.context.layout;
        let before = CurrentItems::read(layout)?;
        remove_stale(layout, &before)?;
        let number = before.generation.as_ref().and_then(|name| name.parse::<u64>().ok()).unwrap_or(0) + 1;
        let generation = (!items.is_empty()).then(|| format!("{number:06}"));
        let own = generation.as_ref().map(|name| layout.new_items_generation(name));
        let prepared = self.prepare(own.as_ref(), items);
        if let (Err(_), Some(own)) = (&prepared, &own) {
            // The error of the change is the one to report, and the next change removes what is left.
            let _ = files::remove_dir_if_present(own.root());
        }
        prepared?;
        files::write_json(&layout.new_items_pointer(), &CurrentItems { generation })?;
        if let Some(name) = before.generation {
            // The change is stored, and the next one removes what is left.
            let _ = files::remove_dir_if_present(layout.new_items_generation(&name).root());
        }
        Ok(())
    }

    /// Writes the generation `own`, or none if no item is left, and asks for approval.
    fn prepare(&mut self, own: Option<&Layout>, items: &[StoredItem]) -> anyhow::Result<()> {
        let config = &self.context.config;
        if let Some(own) = own {
            files::remove_dir_if_present(own.root())?;
            write_generation(own, config, items)?;
        }
        let Some(approve) = self.approve.as_mut() else { return Ok(()) };
        approve(own.map(|own| NewItems::read_from(own, config)).transpose()?)
    }

    /// Writes the item table and the features to the folder `own`. Items without any features are an error.
    fn encode(&self, encoders: &mut Encoders, own: Layout, items: &Items) -> anyhow::Result<ExtractReport> {
        let inner = Context {
            config: self.context.config.clone(),
            layout: own,
            progress: Progress::new(true),
            models: self.context.models.clone(),
        };
        items.write_relative(&inner.layout.items(), Path::new(&inner.config.dataset.data))?;
        let report = encoders.extract_new_items(self.context, &inner)?;
        let new = NewItems::read_from(&inner.layout, &inner.config)?;
        expect_something(&new)?;
        new.expect_encoders(&self.context.layout, &self.context.config)?;
        Ok(report)
    }
}

/// The items that were added to the folder of the run earlier, with their features.
fn earlier(context: &Context) -> anyhow::Result<Vec<StoredItem>> {
    let read = |own: &Layout| StoredItem::read(own, &context.config);
    Ok(CurrentItems::read_with(&context.layout, read)?.unwrap_or_default())
}

/// The items that remain in the folder of the run if `ids` are removed. Items that the run cannot read cannot remain.
fn kept_without(context: &Context, ids: &[String]) -> anyhow::Result<Vec<StoredItem>> {
    let mut all = earlier(context)?;
    expect_added(&all.iter().map(|item| item.id.as_str()).collect(), ids)?;
    let removed: HashSet<&String> = ids.iter().collect();
    all.retain(|item| !removed.contains(&item.id));
    ensure!(
        all.iter().all(|item| item.is_complete(&context.config)),
        "the added items were encoded with other settings of `[extract]` than those of the run, so only all of them can be removed; \
         restore the settings, or add an item again with `mp4sr items add`, which encodes all of them again (one that has lost its only \
         text or image has to be added again, too)"
    );
    Ok(all)
}

/// Reads the items of files that are not in the dataset, with notes on what is left out.
fn read_new(context: &Context, paths: &[PathBuf]) -> anyhow::Result<(Items, Vec<String>)> {
    expect_addable(&context.config)?;
    let (mut items, mut read) = read_items(&context.config, paths, &context.progress)?;
    // A blank line, such as the last one of many editors, is not an item that is lost.
    read.rejected.0.remove(BLANK_LINE);
    name_outside_files(&mut items, Path::new(&context.config.dataset.data))?;
    let mut notes = Vec::new();
    if read.repeated > 0 {
        notes.push(format!("lines that repeat the id of an earlier line and are ignored: {}", read.repeated));
    }
    notes.extend(unread(&read.rejected, "lines could not be read and are not added"));
    notes.extend(unread(&read.refused_images, "images cannot be used"));
    notes.extend(unread(&read.refused_sounds, "sounds cannot be used"));
    let in_dataset: HashSet<String> = Items::read(&context.layout.items())?.ids.into_iter().collect();
    let new: Vec<usize> = (0..items.len()).filter(|&row| !in_dataset.contains(&items.ids[row])).collect();
    let known = items.len() - new.len();
    if new.is_empty() {
        notes.push(format!(
            "all {known} items are already in the dataset, so nothing was added; new items need other ids"
        ));
    } else if known > 0 {
        notes.push(format!("{known} items are already in the dataset and are not changed"));
    }
    Ok((items.select(&new), notes))
}

/// Reads the files of items without adding them, and returns the number of items and sentences on what would be done. Whether images can be
/// decoded is not checked.
pub fn check_files(context: &Context, paths: &[PathBuf]) -> anyhow::Result<(usize, Vec<String>)> {
    encoder_device(context)?;
    let (items, notes) = read_new(context, paths)?;
    let count = items.len();
    if count == 0 {
        return Ok((0, notes));
    }
    let modalities: Vec<&str> = context.config.model.modalities.iter().map(|own| own.name.as_str()).collect();
    let has = |modality: &str, row: usize| match modality {
        "text" => !items.sentences[row].is_empty(),
        "image" => !items.images[row].is_empty(),
        _ => !items.sounds[row].is_empty(),
    };
    let empty = (0..count).filter(|&row| !modalities.iter().any(|modality| has(modality, row)));
    refuse_empty(&empty.map(|row| items.ids[row].as_str()).collect::<Vec<_>>(), &modalities)?;
    if !ItemStore::is_folder_of(context) {
        return Ok((count, [vec![format!("add {count} items to PostgreSQL")], notes].concat()));
    }
    let earlier: HashSet<String> = ItemStore::Folder.items(&context.layout)?.ids.into_iter().collect();
    let replaced = items.ids.iter().filter(|id| earlier.contains(*id)).count();
    Ok((count, [vec![format!("add {} items, and replace {replaced}", count - replaced)], notes].concat()))
}

/// Checks that items can be removed, without removing them, and returns a sentence on what would be done.
pub fn check_removal(context: &Context, ids: &[String]) -> anyhow::Result<String> {
    let ids = &trimmed(ids);
    if !ItemStore::is_folder_of(context) {
        return Ok(format!("remove {} items from PostgreSQL, if they are there", ids.len()));
    }
    kept_without(context, ids)?;
    let count = ids.iter().collect::<HashSet<_>>().len();
    Ok(format!("remove {count} of {} added items", ItemStore::Folder.items(&context.layout)?.len()))
}

/// Ids without the blanks around them, which are not part of them.
fn trimmed(ids: &[String]) -> Vec<String> {
    ids.iter().map(|id| id.trim().to_owned()).collect()
}

/// Rejects ids that were not added to the run.
fn expect_added(known: &HashSet<&str>, ids: &[String]) -> anyhow::Result<()> {
    let unknown: Vec<&str> = ids.iter().map(String::as_str).filter(|id| !known.contains(id)).collect();
    ensure!(
        unknown.is_empty(),
        "these items were not added to the run: {}; remove only items that `mp4sr items list` lists",
        some_of(&unknown)
    );
    Ok(())
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
    // Each text is a sentence or several; the values of one column would become an enumeration.
    let most = records.iter().map(|record| record.texts.len()).max().unwrap_or(0);
    let text_columns: Vec<String> = (0..most).map(|at| format!("text {at}")).collect();
    let mut lines = String::new();
    for record in records {
        let id = record.id.trim();
        ensure!(!id.is_empty(), "an item has no id; give every item one");
        ensure!(!marks_missing_value(id), "the id {} marks a missing value; give the item another id", quoted(id));
        let mut images = Vec::new();
        for bytes in &record.images {
            let name =
                format!("{}.{}", &blake3::hash(bytes).to_hex()[..32], mp4sr_image::extension(bytes).unwrap_or("jpg"));
            let path = folder.join(&name);
            if !path.exists() {
                files::write_bytes(&path, bytes)?;
            }
            images.push(name);
        }
        let ItemRecord { id, title, texts, categories, .. } = record;
        let mut line = json!({"item_id": id, "title": title, "categories": categories, "images": images});
        for (at, column) in text_columns.iter().enumerate() {
            line[column] = texts.get(at).map_or("", String::as_str).into();
        }
        lines.push_str(&format!("{line}\n"));
    }
    let mut config = context.config.clone();
    config.dataset.data = folder.to_string_lossy().into_owned();
    config.source = Source {
        format: Format::Tabular,
        columns: Columns {
            texts: text_columns,
            images: "images".to_owned(),
            categories: vec!["categories".to_owned()],
            ..Columns::default()
        },
        ..Source::default()
    };
    let path = folder.join("records.jsonl");
    files::write_bytes(&path, lines.as_bytes())?;
    // Warnings about a file that the user has not written would only confuse.
    let read = read_items(&config, std::slice::from_ref(&path), &Progress::new(true));
    files::remove_if_present(&path)?;
    let (items, read) = read?;
    if let Some((reason, rejected)) = read.rejected.0.iter().next() {
        let line = rejected.examples.first().and_then(|example| usize::try_from(example.line).ok()?.checked_sub(1));
        let item = line.and_then(|at| records.get(at)).map_or_else(String::new, |record| quoted(&record.id));
        bail!("the item {item} cannot be used: {reason}; correct it");
    }
    if read.repeated > 0 {
        let mut seen = HashSet::new();
        let twice = records.iter().map(|record| record.id.as_str()).find(|id| !seen.insert(id.trim()));
        let item = twice.map_or("an item".to_owned(), |id| format!("the item {}", quoted(id)));
        bail!("{item} is given twice; give each id once");
    }
    Ok(items)
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

/// Removes the images that no added item names: those of a change that was refused, and, before the next change, those of items that the
/// last one removed, because a service may show them until it has loaded the run again.
fn remove_unused_images(context: &Context) -> anyhow::Result<()> {
    let folder = context.layout.new_items_images();
    if !folder.exists() {
        return Ok(());
    }
    let items = ItemStore::Folder.items(&context.layout)?;
    // The names are hashes of the images.
    let used: HashSet<&OsStr> = items.images.iter().flatten().filter_map(|name| Path::new(name).file_name()).collect();
    for path in files::list(&folder)? {
        if path.file_name().is_none_or(|name| !used.contains(name)) {
            files::remove_if_present(&path)?;
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

/// Rejects items for which the model has no features.
fn expect_something(new: &NewItems) -> anyhow::Result<()> {
    let empty = (0..new.items.len()).filter(|&row| is_empty(new, row)).map(|row| new.items.ids[row].as_str());
    let modalities: Vec<&str> = new.modalities.iter().map(|modality| modality.name.as_str()).collect();
    refuse_empty(&empty.collect::<Vec<_>>(), &modalities)
}

/// Rejects items that have nothing of what the model reads, if there are any.
fn refuse_empty(ids: &[&str], modalities: &[&str]) -> anyhow::Result<()> {
    ensure!(
        ids.is_empty(),
        "items without a usable {}, which the model cannot represent: {} ({}); complete them or leave them out",
        modalities.join(" or "),
        ids.len(),
        some_of(ids)
    );
    Ok(())
}

/// Whether the model has no features of an item.
fn is_empty(new: &NewItems, row: usize) -> bool {
    new.modalities.iter().all(|modality| modality.features.rows_of(row) == 0)
}

fn notes(report: &ExtractReport) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(first) = report.unusable.first() {
        let count = report.unusable.len();
        notes.push(format!(
            "{count} images cannot be used; the first is {} of {}: {}",
            quoted(&first.image),
            quoted(&first.item_id),
            first.reason
        ));
    }
    if let Some(first) = report.unusable_sounds.first() {
        let count = report.unusable_sounds.len();
        notes.push(format!(
            "{count} sounds cannot be used; the first is {} of {}: {}",
            quoted(&first.sound),
            quoted(&first.item_id),
            first.reason
        ));
    }
    notes
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
    ensure!(
        !is_empty(&new, 0),
        "no usable {} is given, so the model cannot represent the item; give a text, or a complete image file such as a JPEG or PNG file",
        new.modalities.iter().map(|modality| modality.name.as_str()).collect::<Vec<_>>().join(" or ")
    );
    if !item.images.is_empty() {
        expect_image(&new)?;
    }
    Ok(new)
}
