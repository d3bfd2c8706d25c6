//! The state that all requests share: the run in service, limits, keys and counters.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{Context, Progress, StageArgs};
use mp4sr_run::NewItems;
use mp4sr_store::{ItemStore, StoreError};
use serde_json::json;
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};

use crate::encoders::ResidentEncoders;
use crate::engine::{EngineOptions, Generation};
use crate::error::ApiError;
use crate::file_states::{file_state, file_states};
use crate::keys::ApiKeys;
use crate::limits::{LARGE_BODIES, SEARCHES, STORED_IMAGES, ServiceLimits};
use crate::log::log;
use crate::metrics::{Metrics, ReloadLabels};

/// The time after which a run that could not be loaded is loaded again for the first time.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The number of items that a line of the log names.
const SHOWN_ITEMS: usize = 10;
/// The longest time after which such a run is loaded again.
const LAST_PAUSE: Duration = Duration::from_mins(5);

/// The state of a service.
pub struct App {
    current: RwLock<Option<Arc<Generation>>>,
    /// The limits of requests.
    pub limits: ServiceLimits,
    /// The keys that requests may use.
    pub keys: ApiKeys,
    /// The counters of the service.
    pub metrics: Arc<Metrics>,
    /// The store of the items that were added to the run.
    pub store: Arc<ItemStore>,
    /// Whether that store could be reached when it was last used.
    pub store_is_up: AtomicBool,
    /// Whether histories are written to the log.
    pub log_histories: bool,
    /// The lock that is held while the added items of the run are changed.
    pub editing: Arc<Mutex<()>>,
    /// The permit that is held while an item that is not in the catalogue is encoded.
    pub encoding: Arc<Semaphore>,
    /// The encoders of texts and images.
    pub encoders: Arc<ResidentEncoders>,
    /// The permits that requests for images in PostgreSQL hold. They wait without a thread of their own.
    pub stored_images: Arc<Semaphore>,
    /// The permits that searches for items hold. They wait without a thread of their own.
    pub searches: Arc<Semaphore>,
    /// The permits that requests with large bodies hold.
    pub large_bodies: Semaphore,
    stage: StageArgs,
    models: Arc<ModelCatalog>,
    options: EngineOptions,
    loading: Arc<Mutex<u64>>,
    /// The loads of a run that failed since one was put into service.
    failures: StdMutex<Option<Failures>>,
    ids: AtomicU64,
    start: [u8; 32],
}

impl App {
    /// A service that has not loaded a run yet.
    pub fn new(
        stage: StageArgs,
        models: Arc<ModelCatalog>,
        options: EngineOptions,
        store: Arc<ItemStore>,
        limits: ServiceLimits,
        keys: ApiKeys,
        log_histories: bool,
    ) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let start = format!("{} {}", std::process::id(), now.as_nanos());
        Self {
            current: RwLock::new(None),
            limits,
            keys,
            metrics: options.metrics.clone(),
            store,
            store_is_up: AtomicBool::new(true),
            log_histories,
            editing: Arc::default(),
            encoding: Arc::new(Semaphore::new(1)),
            encoders: Arc::default(),
            stored_images: Arc::new(Semaphore::new(STORED_IMAGES)),
            searches: Arc::new(Semaphore::new(SEARCHES)),
            large_bodies: Semaphore::new(LARGE_BODIES),
            stage,
            models,
            options,
            loading: Arc::new(Mutex::new(0)),
            failures: StdMutex::new(None),
            ids: AtomicU64::new(0),
            start: *blake3::hash(start.as_bytes()).as_bytes(),
        }
    }

    /// The run in service, or an error if none is loaded yet.
    pub fn generation(&self) -> Result<Arc<Generation>, ApiError> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(ApiError::not_ready)
    }

    /// The deadline of a request that arrives now.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.limits.time
    }

    /// Creates a new id for a request.
    pub fn request_id(&self) -> String {
        let number = self.ids.fetch_add(1, Ordering::Relaxed);
        blake3::keyed_hash(&self.start, &number.to_le_bytes()).to_hex()[..16].to_owned()
    }

    /// Records whether the store of the added items could be reached, and logs when that changes.
    pub fn note_store(&self, error: Option<&StoreError>) {
        let is_up = error.is_none_or(|error| !error.is_temporary());
        self.metrics.store_up.set(i64::from(is_up));
        if self.store_is_up.swap(is_up, Ordering::Relaxed) == is_up {
            return;
        }
        match error.filter(|_| !is_up) {
            Some(error) => {
                log("error", &json!({ "event": "the added items cannot be reached", "error": error.to_string() }));
            }
            None => log("info", &json!({ "event": "the added items can be reached again" })),
        }
    }

    /// The context of the run, read from the current files.
    pub fn context(&self) -> anyhow::Result<Context> {
        let progress = Progress::to(|message| log("info", &json!({ "event": "message", "message": message })));
        Ok(Context { progress, ..self.stage.context(&self.models)? })
    }

    /// Loads the run with the added items that `added` returns, without putting it into service. Blocks until no other load runs, and
    /// prevents further ones until the result is dropped.
    pub fn load(
        &self,
        added: impl FnOnce(&Context) -> anyhow::Result<Option<NewItems>>,
    ) -> anyhow::Result<LoadedGeneration> {
        self.load_in(self.loading.clone().blocking_lock_owned(), added, || ())
    }

    fn load_in(
        &self,
        mut turn: OwnedMutexGuard<u64>,
        added: impl FnOnce(&Context) -> anyhow::Result<Option<NewItems>>,
        failed: impl FnOnce(),
    ) -> anyhow::Result<LoadedGeneration> {
        *turn += 1;
        let start = || {
            let context = self.context()?;
            // Files that change while they are read must be noticed afterwards.
            let files = file_states(&context);
            let new_items = added(&context)?;
            Generation::start(*turn, Arc::new(context), &self.options, new_items, files)
        };
        let loaded = start();
        if loaded.is_err() {
            self.count_reload("failed");
            failed();
        }
        Ok(LoadedGeneration { generation: Arc::new(loaded?), turn })
    }

    fn count_reload(&self, outcome: &str) {
        self.metrics.reloads.get_or_create(&ReloadLabels { outcome: outcome.to_owned() }).inc();
    }

    /// Puts a loaded run into service. The previous run still answers the requests that it has accepted.
    pub fn put_in_service(&self, loaded: LoadedGeneration) -> Arc<Generation> {
        let LoadedGeneration { generation, turn } = loaded;
        self.log_lost_items(&generation);
        self.count_reload("swapped");
        self.metrics.generation.set(generation.number as i64);
        self.metrics.items.set(generation.catalogue.items.len() as i64);
        log(
            "info",
            &json!({
                "event": "run in service",
                "generation": generation.number,
                "run": generation.context.layout.run(),
                "model": generation.model,
                "items": generation.catalogue.items.len(),
                "new_items": generation.catalogue.new_items,
                "search": generation.search,
            }),
        );
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(generation.clone());
        *self.failures() = None;
        drop(turn);
        generation
    }

    /// Reloads the run with the items in the store and puts it into service. The previous run stays in service if this fails.
    pub async fn reload(self: &Arc<Self>) -> anyhow::Result<Arc<Generation>> {
        let own = self.clone();
        let load = move || own.load_and_serve(own.loading.clone().blocking_lock_owned());
        tokio::task::spawn_blocking(load).await?
    }

    /// Reloads the run if the last one could not be loaded and it is time to load it again.
    pub async fn retry(self: &Arc<Self>) -> anyhow::Result<()> {
        let own = self.clone();
        let load = move || {
            let turn = own.loading.clone().blocking_lock_owned();
            // Meanwhile, it may have been loaded for another reason.
            if own.is_due() { own.load_and_serve(turn).map(drop) } else { Ok(()) }
        };
        tokio::task::spawn_blocking(load).await?
    }

    fn load_and_serve(&self, turn: OwnedMutexGuard<u64>) -> anyhow::Result<Arc<Generation>> {
        let stored = |context: &Context| {
            self.store.expect(context)?;
            self.store.read(context)
        };
        self.load_in(turn, stored, || self.note_failure()).map(|loaded| self.put_in_service(loaded))
    }

    /// Logs the added items of the run in service that the next one lacks, if these were added to the folder of the former.
    fn log_lost_items(&self, next: &Generation) {
        let before = match self.generation() {
            Ok(before) if matches!(*self.store, ItemStore::Folder) && before.folder != next.folder => before,
            _ => return,
        };
        let catalogue = &before.catalogue;
        let added = &catalogue.items.ids[catalogue.items.len() - catalogue.new_items..];
        let lost: Vec<&str> = added.iter().map(String::as_str).filter(|id| next.catalogue.item(id).is_none()).collect();
        if !lost.is_empty() {
            let shown = &lost[..lost.len().min(SHOWN_ITEMS)];
            log(
                "warn",
                &json!({ "event": "added items are no longer in the run", "count": lost.len(), "items": shown }),
            );
        }
    }

    /// Whether the last run could not be loaded, and it is time to load it again.
    pub fn is_due(&self) -> bool {
        self.failures().is_some_and(|failures| failures.last.elapsed() >= failures.pause())
    }

    /// How often the run could not be loaded since the one in service was.
    pub fn failed_reloads(&self) -> u32 {
        self.failures().map_or(0, |failures| failures.count)
    }

    fn note_failure(&self) {
        let mut failures = self.failures();
        let count = failures.map_or(0, |failures| failures.count) + 1;
        *failures = Some(Failures { count, last: Instant::now() });
    }

    fn failures(&self) -> MutexGuard<'_, Option<Failures>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Loads of a run that failed one after the other.
#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Failures {
    /// The time after which the run is loaded again. It doubles with every failure, because loading costs time and memory.
    fn pause(self) -> Duration {
        (FIRST_PAUSE * 2_u32.saturating_pow(self.count - 1)).min(LAST_PAUSE)
    }
}

/// A run that is loaded and not yet in service. No other run is loaded until it is dropped, so that an older state never replaces a newer
/// one.
pub struct LoadedGeneration {
    generation: Arc<Generation>,
    turn: OwnedMutexGuard<u64>,
}

impl LoadedGeneration {
    /// The run.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Records the present state of the file that names the added items, with which the run was loaded before they were stored.
    pub fn note_stored_change(&mut self) {
        if let Some(own) = Arc::get_mut(&mut self.generation) {
            let pointer = own.context.layout.new_items_pointer();
            let state = file_state(&pointer);
            own.files.insert(pointer, state);
        }
    }
}
