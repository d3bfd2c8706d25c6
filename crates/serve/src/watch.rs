//! The reasons to reload the run: a signal, changed files, or items that another replica added or removed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mp4sr_pipeline::Context;
use mp4sr_run::TrainedModel;
use mp4sr_store::ItemStore;
use serde_json::json;
use tokio::signal::unix::Signal;

use crate::state::{App, log};

/// The time between two checks of the files.
const INTERVAL: Duration = Duration::from_secs(1);

/// Reloads the run on every `SIGHUP`.
pub async fn on_signal(app: Arc<App>, mut signals: Signal) {
    while signals.recv().await.is_some() {
        reload(&app, "SIGHUP").await;
    }
}

/// Reloads the run when its weights, its dataset, its features or its added items have changed, and then stayed unchanged between two
/// checks.
pub async fn on_change(app: Arc<App>, context: Arc<Context>) {
    let layout = &context.layout;
    let own = [layout.items(), layout.users(), layout.new_items_pointer()];
    let model = TrainedModel::files(layout, &context.config).into_iter().map(|(_, path)| path);
    let files: Vec<PathBuf> = model.chain(own).collect();
    let mut seen = state(&files);
    let mut pending = None;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = state(&files);
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

/// The sizes and modification times of files.
fn state(files: &[PathBuf]) -> Vec<Option<(u64, Option<SystemTime>)>> {
    let about = |path: &PathBuf| std::fs::metadata(path).ok().map(|about| (about.len(), about.modified().ok()));
    files.iter().map(about).collect()
}

async fn reload(app: &Arc<App>, why: &str) {
    if let Err(error) = app.reload().await {
        let error = format!("{error:#}");
        log(
            "error",
            &json!({ "event": "failed to load the run; the previous one stays in service", "why": why, "error": error }),
        );
    }
}
