//! Resolves the URL in `serve.store`, which may name an environment variable or a file.

use std::path::Path;

use mp4sr_artifact::files;
use mp4sr_pipeline::config::StoreUrl;
use mp4sr_pipeline::hide_passwords;

use crate::StoreError;

const URL_FORMAT: &str = "postgres://USER:PASSWORD@HOST:PORT/DATABASE";

/// The URL of PostgreSQL; `None` if added items are kept in the run's folder.
pub(crate) fn resolved(written: &StoreUrl) -> Result<Option<String>, StoreError> {
    let text = written.as_written();
    let shown = hide_passwords(text);
    let (url, origin) = if let Some(name) = text.strip_prefix("env:") {
        let value = std::env::var(name).map_err(|_| {
            StoreError::Settings(format!(
                "`serve.store` is `{shown}`, and the environment variable `{name}` is not set; set it to `{URL_FORMAT}`"
            ))
        })?;
        (value, format!("the value of the variable `{name}`"))
    } else if let Some(path) = text.strip_prefix("file:") {
        let content = files::read_to_string(Path::new(path)).map_err(|error| {
            StoreError::Settings(format!(
                "`serve.store` is `{shown}`, and {error}; write `{URL_FORMAT}` into that file"
            ))
        })?;
        (content, format!("the content of the file `{path}`"))
    } else {
        (text.to_owned(), "it".to_owned())
    };
    let url = url.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return Ok(Some(url.to_owned()));
    }
    Err(StoreError::Settings(format!(
        "`serve.store` is `{shown}`, and {origin} is not a PostgreSQL URL; write `{URL_FORMAT}`"
    )))
}
