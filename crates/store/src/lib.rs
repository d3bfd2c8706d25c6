//! The store of the items that were added to a trained run.
//!
//! The crate reads `serve.store`, and takes added items with the features that encoders computed. It returns the same items with
//! byte-identical features, in the order in which they were added, from the run's folder or from PostgreSQL, which all replicas of a
//! service share. It must not know encoders, scores or HTTP.

mod error;
mod generation;
mod postgres;
mod server;
mod store_url;

use std::path::{Path, PathBuf};

use mp4sr_artifact::{Items, Layout, files};
use mp4sr_pipeline::{Config, Context};
use mp4sr_run::{CurrentItems, NewItems};

pub use self::error::StoreError;
pub use self::generation::{StoredItem, StoredRows, write as write_generation};
pub use self::postgres::{Change, PostgresStore};

/// Where the added items of a run are kept.
///
/// ```
/// use std::sync::Arc;
///
/// use mp4sr_artifact::Layout;
/// use mp4sr_pipeline::config::ModelCatalog;
/// use mp4sr_pipeline::{Config, Context, Progress};
/// use mp4sr_store::ItemStore;
///
/// # let folder = tempfile::tempdir()?;
/// let models = Arc::new(ModelCatalog::unchecked());
/// let (config, _) = Config::parse("[dataset]\nname = \"shop\"", "shop.toml", &[], &models)?;
/// let layout = Layout::new(folder.path(), "shop", "mp4sr");
/// let context = Context { config, layout, progress: Progress::new(true), models };
///
/// // Without `serve.store`, added items are stored in the folder of the run.
/// let store = ItemStore::open(&context)?;
/// assert!(matches!(store, ItemStore::Folder));
/// assert!(store.items(&context.layout)?.is_empty());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub enum ItemStore {
    /// Items are stored in the folder of the run.
    Folder,
    /// Items are stored in PostgreSQL.
    Postgres(Box<PostgresStore>),
}

impl ItemStore {
    /// Opens the store that `serve.store` names. PostgreSQL must be reachable; missing tables are created.
    pub fn open(context: &Context) -> Result<Self, StoreError> {
        match store_url::resolved(&context.config.serve.store)? {
            None => Ok(Self::Folder),
            Some(url) => Ok(Self::Postgres(Box::new(PostgresStore::open(&url, context)?))),
        }
    }

    /// Whether added items are stored in the folder of the run.
    pub fn is_folder_of(context: &Context) -> bool {
        context.config.serve.store.as_written().is_empty()
    }

    /// Refuses a `serve.store` that names a variable or a file that is missing, or that is not an address.
    pub fn expect_settings(context: &Context) -> Result<(), StoreError> {
        store_url::resolved(&context.config.serve.store).map(drop)
    }

    /// The added items as a dry run reads them; `None` if there are none, or if they are in PostgreSQL, to which a dry run does not connect,
    /// because missing tables would be created.
    pub fn peek(context: &Context) -> anyhow::Result<Option<NewItems>> {
        match store_url::resolved(&context.config.serve.store)? {
            None => Self::Folder.read(context),
            Some(_) => Ok(None),
        }
    }

    /// Checks that `serve.store`, the dataset and the run of a context are those for which this store was opened.
    pub fn expect(&self, context: &Context) -> Result<(), StoreError> {
        let same = match (self, store_url::resolved(&context.config.serve.store)?) {
            (Self::Folder, url) => url.is_none(),
            (Self::Postgres(store), url) => url.is_some_and(|url| store.is_of(&url, context)),
        };
        if same {
            return Ok(());
        }
        let changed = "`serve.store`, or the name of the dataset or the run, has changed; start the service again";
        Err(StoreError::Settings(changed.to_owned()))
    }

    /// The added items as a model reads them; `None` if there are none. Items that were added to a run of another dataset are an error.
    pub fn read(&self, context: &Context) -> anyhow::Result<Option<NewItems>> {
        match self {
            Self::Folder => NewItems::read(&context.layout, &context.config),
            Self::Postgres(store) => store.read(context),
        }
    }

    /// The table of the added items; empty if there are none.
    pub fn items(&self, layout: &Layout) -> anyhow::Result<Items> {
        match self {
            Self::Folder => {
                let read = |own: &Layout| Ok(Items::read(&own.items())?);
                Ok(CurrentItems::read_with(layout, read)?.unwrap_or_default())
            }
            Self::Postgres(store) => Ok(StoredItem::table(&store.stored()?)),
        }
    }

    /// Writes the added items to the folder of another run, `to`, in the form of a store in a folder, and returns the paths of the files.
    pub fn copy(&self, context: &Context, to: &Layout) -> anyhow::Result<Vec<PathBuf>> {
        let (layout, config) = (&context.layout, &context.config);
        match self {
            Self::Folder => {
                let copied = CurrentItems::read_with(layout, |own| copy_generation(context, own, to))?;
                let Some((mut copies, generation)) = copied else { return Ok(Vec::new()) };
                // Items may be added meanwhile, so the pointer names the generation that was copied, and not the one that there is now.
                let pointer = to.new_items_pointer();
                files::write_json(&pointer, &CurrentItems { generation: Some(generation) })?;
                copies.push(pointer);
                Ok(copies)
            }
            Self::Postgres(store) => {
                let stored = store.stored()?;
                if stored.is_empty() {
                    return Ok(Vec::new());
                }
                let name = "000001".to_owned();
                let own = to.new_items_generation(&name);
                generation::write(&own, config, &stored)?;
                files::write_json(&to.new_items_pointer(), &CurrentItems { generation: Some(name) })?;
                Ok([files_of(config, &own), vec![to.new_items_pointer()]].concat())
            }
        }
    }
}

/// The files of a generation of added items: its table and the features of the modalities.
fn files_of(config: &Config, own: &Layout) -> Vec<PathBuf> {
    let modalities = config.model.modalities.iter();
    let features = modalities.map(|modality| own.feature_file(&modality.name, &config.feature_name(modality)));
    [own.items()].into_iter().chain(features).collect()
}

/// Copies the files and images of a generation of added items to another run, and returns the copies and the generation's name.
fn copy_generation(context: &Context, own: &Layout, to: &Layout) -> anyhow::Result<(Vec<PathBuf>, String)> {
    let (layout, config) = (&context.layout, &context.config);
    let items = Items::read_in(&own.items(), Path::new(&config.dataset.data))?;
    let folder = std::path::absolute(layout.new_items_images())?;
    let images = items.images.iter().flatten().filter_map(|name| {
        let file = Path::new(name).strip_prefix(&folder).ok().filter(|_| Path::new(name).is_file())?;
        Some((Path::new(name).to_owned(), to.new_items_images().join(file)))
    });
    let name = own.root().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let copied = to.new_items_generation(&name);
    let files = files_of(config, own).into_iter().zip(files_of(config, &copied));
    let mut copies = Vec::new();
    for (source, copy) in files.chain(images) {
        files::copy(&source, &copy)?;
        copies.push(copy);
    }
    Ok((copies, name))
}
