//! Changes of the added items of the run in service.

use std::sync::Arc;

use mp4sr_items::Editor;
use mp4sr_pipeline::{ConfigError, Context, error_chain};
use mp4sr_run::OtherEncoder;
use mp4sr_store::{ItemStore, StoreError};
use serde_json::json;

use crate::engine::Generation;
use crate::error::ApiError;
use crate::log::log;
use crate::state::App;

type Result<T> = std::result::Result<T, ApiError>;

/// The error of loading the run with changed items. They are not stored.
#[derive(Debug, thiserror::Error)]
#[error(
    "the run cannot be loaded with this change, so nothing was changed: {0}; correct the run and send the change again"
)]
struct LoadError(String);

/// The folder of the run is another one than at the start of a change, because a link in its path was given another target.
#[derive(Debug, thiserror::Error)]
#[error("the run was replaced while its items were changed, so nothing was changed; send the change again")]
struct RunReplaced;

/// Changes the added items with `edit`, and returns its result and the run in service that has the change. The run is loaded with the
/// change before the change is stored, so a run that cannot be loaded keeps its items.
pub async fn changed<T: Send + 'static>(
    app: Arc<App>,
    edit: impl FnOnce(&Context, &mut Editor<'_>) -> anyhow::Result<T> + Send + 'static,
) -> Result<(T, Arc<Generation>)> {
    // A service that has not loaded a run yet has nothing to compare the change with.
    app.generation()?;
    // A change whose client disconnects while it waits is not made, so that repeated requests do not pile up.
    let editing = app.editing.clone().lock_owned().await;
    // A client that disconnects later must not leave the run half changed, so the work continues.
    let work = tokio::spawn(async move {
        let _editing = editing;
        let own = app.clone();
        let change = move || {
            let context = own.context()?;
            let of_change = Context { layout: context.layout.resolved(), ..own.context()? };
            let folder = of_change.layout.run();
            own.store.expect(&context)?;
            let mut loaded = None;
            let mut load = |new_items| {
                let ready = own.load(|_| Ok(new_items)).map_err(|error| LoadError(error_chain(&error)))?;
                if ready.generation().folder != folder {
                    return Err(RunReplaced.into());
                }
                loaded = Some(ready);
                Ok(())
            };
            // A request does not wait for another process that changes the items; the client can send it again.
            let wait = std::time::Duration::ZERO;
            let mut editor = Editor { context: &of_change, store: &own.store, approve: Some(&mut load), wait };
            let done = edit(&context, &mut editor)?;
            // Other replicas may have changed the items in PostgreSQL at the same time, so they are read again.
            let in_folder = matches!(*own.store, ItemStore::Folder);
            let loaded = loaded.filter(|_| in_folder).map(|mut loaded| {
                // The run in service has this change, so it must not be loaded again because of it.
                loaded.note_stored_change();
                own.put_in_service(loaded)
            });
            anyhow::Ok((done, loaded))
        };
        let done = tokio::task::spawn_blocking(change).await.map_err(|e| ApiError::internal(&e.to_string()))?;
        let (done, generation) = done.map_err(|error| not_changed(&app, &error))?;
        let generation = match generation {
            Some(generation) => generation,
            None => app.reload().await.map_err(|error| not_in_service(&app, &error))?,
        };
        Ok::<_, ApiError>((done, generation))
    });
    work.await.map_err(|e| ApiError::internal(&e.to_string()))?
}

/// The answer for added items that could not be read or changed: 503 if a later attempt may succeed, 500 if the run cannot be loaded,
/// otherwise 422.
pub fn not_changed(app: &App, error: &anyhow::Error) -> ApiError {
    if let Some(own) = error.downcast_ref::<StoreError>().filter(|own| own.is_temporary()) {
        app.note_store(Some(own));
        return ApiError::store_unavailable(error_chain(error));
    }
    match error.downcast_ref::<mp4sr_artifact::Error>() {
        Some(mp4sr_artifact::Error::Locked { .. }) => ApiError::locked(error_chain(error)),
        _ if error.is::<RunReplaced>() => ApiError::locked(error_chain(error)),
        _ if error.is::<LoadError>() || is_of_machine(error) => internal(error),
        _ => ApiError::refused(error_chain(error)),
    }
}

/// Whether an error is one of the machine or of the run, such as a full disk or a damaged file, so that the same request may succeed later.
pub fn is_of_machine(error: &anyhow::Error) -> bool {
    let is_own = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<std::io::Error>()
            || cause.is::<ConfigError>()
            || cause.is::<mp4sr_artifact::Error>()
            || cause.is::<OtherEncoder>()
            || matches!(cause.downcast_ref::<StoreError>(), Some(StoreError::Settings(_)))
    };
    error.chain().any(is_own)
}

/// The answer for an error that is not one of the request, which is also logged.
pub fn internal(error: &anyhow::Error) -> ApiError {
    let message = error_chain(error);
    log("error", &json!({ "event": "failed to answer", "error": message }));
    ApiError::internal(&message)
}

/// The answer for items that PostgreSQL has stored, and that could not be read again: 503 if it could not be reached, otherwise 500.
fn not_in_service(app: &App, error: &anyhow::Error) -> ApiError {
    let message = format!("the change is stored, but it is not in service yet: {}", error_chain(error));
    log("error", &json!({ "event": "failed to put a change into service", "error": message }));
    match error.downcast_ref::<StoreError>().filter(|own| own.is_temporary()) {
        Some(own) => {
            app.note_store(Some(own));
            ApiError::store_unavailable(message)
        }
        None => ApiError::internal(&message),
    }
}
