//! The reasons to reload the run: a signal, changed files, or items that another replica added or removed.

use std::sync::Arc;
use std::time::Duration;

use mp4sr_pipeline::error_chain;
use mp4sr_store::ItemStore;
use serde_json::json;
use tokio::signal::unix::Signal;

use crate::file_states::{FileStates, file_states};
use crate::log::log;
use crate::state::App;

/// The time between two checks of the files.
const INTERVAL: Duration = Duration::from_secs(1);
/// Why a run that could not be loaded is loaded again.
const RETRIED: &str = "it could not be loaded before";

/// Reloads the run on every `SIGHUP`.
pub async fn on_signal(app: Arc<App>, mut signals: Signal) {
    while signals.recv().await.is_some() {
        reload(&app, "SIGHUP").await;
    }
}

/// Reloads the run when its weights, its configuration, its dataset, its features or its added items have changed, and then stayed
/// unchanged between two checks. A run that could not be loaded is loaded again later.
pub async fn on_change(app: Arc<App>) {
    let (mut number, mut seen, mut pending) = (0, FileStates::new(), None);
    loop {
        // The files may have changed while the run was loaded, here or for another reason.
        if let Ok(generation) = app.generation()
            && generation.number != number
        {
            (number, seen) = (generation.number, generation.files.clone());
        }
        tokio::time::sleep(INTERVAL).await;
        let now = state(&app);
        let is_retry = now == seen && app.is_due();
        if now == seen && !is_retry {
            pending = None;
        } else if is_retry || pending.as_ref() == Some(&now) {
            pending = None;
            if is_retry {
                retry(&app).await;
            } else {
                reload(&app, "files changed").await;
            }
            // If it could not be loaded, only a further change is a reason to load it again.
            seen = now;
        } else {
            pending = Some(now);
        }
    }
}

/// Reloads the run when another replica has added or removed items. If added items are kept in PostgreSQL, asks it every `poll`; otherwise
/// returns at once. Items with which the run could not be loaded are loaded again later.
pub async fn on_additions(app: Arc<App>, poll: Duration) {
    if matches!(*app.store, ItemStore::Folder) {
        return;
    }
    // The last error that is not one of reaching PostgreSQL, which is logged elsewhere.
    let mut refused = None;
    loop {
        tokio::time::sleep(poll).await;
        // A change of items by this process reloads the run itself.
        let editing = app.editing.lock().await;
        let store = app.store.clone();
        let ask = move || match &*store {
            ItemStore::Folder => Ok(false),
            ItemStore::Postgres(store) => store.has_changed(),
        };
        match tokio::task::spawn_blocking(ask).await {
            Ok(changed) => {
                app.note_store(changed.as_ref().err());
                match &changed {
                    // A run that could not be loaded is loaded again later, even if the items have changed once more.
                    Ok(true) if app.failed_reloads() > 0 && !app.is_due() => {}
                    Ok(true) => reload(&app, "another replica changed the added items").await,
                    Ok(false) if app.is_due() => retry(&app).await,
                    _ => {}
                }
                note(&mut refused, changed.err().filter(|error| !error.is_temporary()).map(|error| error.to_string()));
            }
            Err(error) => note(&mut refused, Some(error.to_string())),
        }
        drop(editing);
    }
}

/// Logs an error of asking for changes if it is a new one.
fn note(last: &mut Option<String>, error: Option<String>) {
    if let Some(error) = error.as_ref().filter(|error| last.as_ref() != Some(error)) {
        log("error", &json!({ "event": "failed to ask for changes of the added items", "error": error }));
    }
    *last = error;
}

/// The present states of the files of the run in service.
fn state(app: &App) -> FileStates {
    app.generation().map_or_else(|_| FileStates::new(), |generation| file_states(&generation.context))
}

/// Reloads the run. If it cannot be loaded, the log says why.
async fn reload(app: &Arc<App>, why: &str) {
    log_failure(app.reload().await.err(), why);
}

/// Reloads the run if it still could not be loaded.
async fn retry(app: &Arc<App>) {
    log_failure(app.retry().await.err(), RETRIED);
}

fn log_failure(error: Option<anyhow::Error>, why: &str) {
    let Some(error) = error else { return };
    let error = error_chain(&error);
    log(
        "error",
        &json!({ "event": "failed to load the run; the previous one stays in service", "why": why, "error": error }),
    );
}
