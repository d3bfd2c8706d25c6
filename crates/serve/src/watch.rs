//! What makes the service load its run again: a signal, or files of the run that changed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mp4sr_artifact::Layout;
use mp4sr_models::FINETUNE;
use mp4sr_store::ItemStore;
use serde_json::json;
use tokio::signal::unix::Signal;

use crate::state::{App, log};

/// The time between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

/// Loads the run again at every `SIGHUP`.
pub async fn on_signal(app: Arc<App>, mut signals: Signal) {
    while signals.recv().await.is_some() {
        reload(&app, "SIGHUP").await;
    }
}

/// Loads the run again when its weights, its dataset or its new items have changed, and have stayed as they are for a while.
pub async fn on_change(app: Arc<App>, layout: Layout) {
    let mut seen = state(&layout);
    let mut pending = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = state(&layout);
        if now == seen {
            pending = None;
        } else if pending.as_ref() == Some(&now) {
            seen = now;
            pending = None;
            reload(&app, "files changed").await;
        } else {
            pending = Some(now);
        }
    }
}

/// Loads the run again when another replica has added or removed items: asks PostgreSQL, where these are kept there, every `poll`.
pub async fn on_additions(app: Arc<App>, poll: Duration) {
    if matches!(*app.store, ItemStore::Folder) {
        return;
    }
    loop {
        tokio::time::sleep(poll).await;
        // A change of items in this process reloads the run by itself.
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

/// Sizes and times of the files that decide what is served.
fn state(layout: &Layout) -> Vec<Option<(u64, Option<SystemTime>)>> {
    let files = [layout.checkpoint(FINETUNE), layout.items(), layout.sequences(), layout.new_items_pointer()];
    let about =
        |path: &std::path::PathBuf| std::fs::metadata(path).ok().map(|about| (about.len(), about.modified().ok()));
    files.iter().map(about).collect()
}

async fn reload(app: &Arc<App>, why: &str) {
    if let Err(error) = app.reload().await {
        let error = format!("{error:#}");
        log("error", &json!({ "event": "the run cannot be loaded; the one before stays", "why": why, "error": error }));
    }
}
