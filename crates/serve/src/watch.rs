//! The reasons to reload the run: a signal, changed files, or items that another replica added or removed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mp4sr_pipeline::error_chain;
use mp4sr_run::TrainedModel;
use mp4sr_store::ItemStore;
use serde_json::json;
use tokio::signal::unix::Signal;

use crate::state::{App, log};

/// The time between two checks of the files.
const INTERVAL: Duration = Duration::from_secs(1);
/// The time after which a run that could not be loaded is loaded again.
const RETRY: Duration = Duration::from_secs(10);

/// Reloads the run on every `SIGHUP`.
pub async fn on_signal(app: Arc<App>, mut signals: Signal) {
    while signals.recv().await.is_some() {
        reload(&app, "SIGHUP").await;
    }
}

/// Reloads the run when its weights, its configuration, its dataset, its features or its added items have changed, and then stayed
/// unchanged between two checks. A run that could not be loaded is loaded again later.
pub async fn on_change(app: Arc<App>) {
    let mut seen = state(&app);
    let mut pending = None;
    // When a reload failed, and the run that was in service then.
    let mut failed: Option<(Instant, Option<u64>)> = None;
    let in_service = || app.generation().ok().map(|generation| generation.number);
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = state(&app);
        // A run that was loaded for another reason in the meantime need not be loaded again.
        failed = failed.filter(|(_, before)| *before == in_service());
        let is_retry = now == seen && failed.is_some_and(|(at, _)| at.elapsed() >= RETRY);
        if now == seen && !is_retry {
            pending = None;
        } else if is_retry || pending.as_ref() == Some(&now) {
            pending = None;
            let why = if is_retry { "it could not be loaded before" } else { "files changed" };
            failed = (!reload(&app, why).await).then(|| (Instant::now(), in_service()));
            // The run may now read other files. Those that have changed since these checks still have to be noticed.
            seen = state(&app);
            for (path, before) in now {
                seen.entry(path).and_modify(|own| *own = before);
            }
        } else {
            pending = Some(now);
        }
    }
}

/// Reloads the run when another replica has added or removed items. If added items are kept in PostgreSQL, asks it every `poll`; otherwise
/// returns at once.
pub async fn on_additions(app: Arc<App>, poll: Duration) {
    if matches!(*app.store, ItemStore::Folder) {
        return;
    }
    loop {
        tokio::time::sleep(poll).await;
        // A change of items by this process reloads the run itself.
        let editing = app.editing.lock().await;
        let store = app.store.clone();
        let ask = move || match &*store {
            ItemStore::Folder => Ok(false),
            ItemStore::Postgres(store) => store.has_changed(),
        };
        let Ok(changed) = tokio::task::spawn_blocking(ask).await else { return };
        app.note_store(changed.as_ref().err());
        if changed.is_ok_and(|changed| changed) {
            reload(&app, "another replica changed the added items").await;
        }
        drop(editing);
    }
}

/// The sizes and modification times of the files of the run in service.
fn state(app: &App) -> BTreeMap<PathBuf, Option<(u64, Option<SystemTime>)>> {
    let Ok(generation) = app.generation() else { return BTreeMap::new() };
    let (layout, config) = (&generation.context.layout, &generation.context.config);
    let own = [layout.items(), layout.users(), layout.new_items_pointer(), layout.run().join("config.toml")];
    let model = TrainedModel::files(layout, config).into_iter().map(|(_, path)| path);
    let about = |path: PathBuf| {
        let about = std::fs::metadata(&path).ok().map(|about| (about.len(), about.modified().ok()));
        (path, about)
    };
    model.chain(own).map(about).collect()
}

/// Reloads the run, and returns whether it could be loaded.
async fn reload(app: &Arc<App>, why: &str) -> bool {
    let Err(error) = app.reload().await else { return true };
    let error = error_chain(&error);
    log(
        "error",
        &json!({ "event": "failed to load the run; the previous one stays in service", "why": why, "error": error }),
    );
    false
}
