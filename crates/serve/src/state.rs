//! What all requests share: the run in service, limits, keys, counters.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use mp4sr_pipeline::StageArgs;
use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_store::{ItemStore, StoreError};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};

use crate::encoders::ResidentEncoders;
use crate::engine::{EngineOptions, Generation};
use crate::error::ApiError;
use crate::keys::Keys;
use crate::limits::{LARGE_BODIES, Limits};
use crate::metrics::{Metrics, ReloadLabels};

/// The state of a service.
pub struct App {
    current: RwLock<Option<Arc<Generation>>>,
    /// Limits of requests.
    pub limits: Limits,
    /// Keys.
    pub keys: Keys,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where the items are that were added to the run.
    pub store: Arc<ItemStore>,
    /// Whether that place could be reached when it was last asked.
    pub store_is_up: AtomicBool,
    /// Whether logs have histories.
    pub log_histories: bool,
    /// Held while the items of the run are changed.
    pub editing: Mutex<()>,
    /// Held while an item that is not in the catalogue is encoded.
    pub encoding: Arc<Semaphore>,
    /// The encoders of texts and images.
    pub encoders: Arc<ResidentEncoders>,
    /// Held by requests with large bodies.
    pub large_bodies: Semaphore,
    stage: StageArgs,
    models: Arc<ModelCatalog>,
    options: EngineOptions,
    loading: Mutex<u64>,
    ids: AtomicU64,
    start: [u8; 32],
}

impl App {
    /// A service without a run.
    pub fn new(
        stage: StageArgs,
        models: Arc<ModelCatalog>,
        options: EngineOptions,
        limits: Limits,
        keys: Keys,
        log_histories: bool,
    ) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let start = format!("{} {}", std::process::id(), now.as_nanos());
        Self {
            current: RwLock::new(None),
            limits,
            keys,
            metrics: options.metrics.clone(),
            store: options.store.clone(),
            store_is_up: AtomicBool::new(true),
            log_histories,
            editing: Mutex::new(()),
            encoding: Arc::new(Semaphore::new(1)),
            encoders: Arc::default(),
            large_bodies: Semaphore::new(LARGE_BODIES),
            stage,
            models,
            options,
            loading: Mutex::new(0),
            ids: AtomicU64::new(0),
            start: *blake3::hash(start.as_bytes()).as_bytes(),
        }
    }

    /// The run in service.
    pub fn generation(&self) -> Result<Arc<Generation>, ApiError> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(ApiError::not_ready)
    }

    /// When a request that comes now has to be answered.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.limits.time
    }

    /// A new id for a request.
    pub fn request_id(&self) -> String {
        let number = self.ids.fetch_add(1, Ordering::Relaxed);
        blake3::keyed_hash(&self.start, &number.to_le_bytes()).to_hex()[..16].to_owned()
    }

    /// Notes whether the place of the added items could be reached, and logs when that has changed.
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

    /// Loads the run anew and puts it into service. Requests that the one before has taken are answered by it. On an error, it stays.
    pub async fn reload(self: &Arc<Self>) -> anyhow::Result<Arc<Generation>> {
        let mut number = self.loading.lock().await;
        *number += 1;
        let (own, next) = (self.clone(), *number);
        let load = move || {
            let context = Arc::new(own.stage.context(&own.models)?);
            Generation::start(next, context, &own.options)
        };
        let loaded = tokio::task::spawn_blocking(load).await.map_err(anyhow::Error::from).and_then(|loaded| loaded);
        let outcome = if loaded.is_ok() { "swapped" } else { "failed" };
        self.metrics.reloads.get_or_create(&ReloadLabels { outcome: outcome.to_owned() }).inc();
        let generation = Arc::new(loaded?);
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
        Ok(generation)
    }
}

/// Writes a line of the log: a JSON object on standard error.
pub fn log(level: &str, fields: &Value) {
    use std::io::Write as _;
    let mut line = json!({ "time": jiff::Timestamp::now().to_string(), "level": level });
    if let (Some(line), Some(fields)) = (line.as_object_mut(), fields.as_object()) {
        line.extend(fields.clone());
    }
    // One call of the system per line. The service keeps running when standard error is closed.
    drop(std::io::stderr().write_all(format!("{line}\n").as_bytes()));
}
