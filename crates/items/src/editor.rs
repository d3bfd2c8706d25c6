//! Changes the added items of a run, one change at a time.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mp4sr_artifact::{Downloads, ExtractReport, Items, Layout, Lock, files};
use mp4sr_extract::Encoders;
use mp4sr_pipeline::text::{quoted, some_of};
use mp4sr_pipeline::{Context, Progress};
use mp4sr_run::{CurrentItems, NewItems};
use mp4sr_store::{Change, ItemStore, PostgresStore, StoredItem, write_generation};

use crate::checks::{expect_addable, expect_something};
use crate::leftovers::{remove_stale, remove_unused_images};
use crate::new_files::read_new;
use crate::records::{ItemRecord, of_records, with_usable_images};

/// The name of the lock on a run's added items.
const LOCK: &str = "items";

const LOCK_PAUSE: Duration = Duration::from_millis(20);

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
        // From now on, the file is missing only if it was lost.
        if before.generation.is_none() {
            before.write(layout)?;
        }
        let number = before.generation.as_ref().and_then(|name| name.parse::<u64>().ok()).unwrap_or(0) + 1;
        let generation = (!items.is_empty()).then(|| format!("{number:06}"));
        let own = generation.as_ref().map(|name| layout.new_items_generation(name));
        let prepared = self.prepare(own.as_ref(), items);
        if let (Err(_), Some(own)) = (&prepared, &own) {
            // The error of the change is the one to report, and the next change removes what is left.
            let _ = files::remove_dir_if_present(own.root());
        }
        prepared?;
        CurrentItems { generation }.write(layout)?;
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
