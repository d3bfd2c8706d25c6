//! Resolves the address in `serve.store`, which may name an environment variable or a file.

use std::path::Path;

use mp4sr_artifact::files;
use mp4sr_pipeline::config::StoreAddress;

use crate::StoreError;

const URL_FORMAT: &str = "postgres://USER:PASSWORD@HOST:PORT/DATABASE";

/// The address of PostgreSQL; `None` if added items are kept in the run's folder.
pub(crate) fn resolved(written: &StoreAddress) -> Result<Option<String>, StoreError> {
    let text = written.as_written();
    let (address, origin) = if let Some(name) = text.strip_prefix("env:") {
        let value = std::env::var(name).map_err(|_| {
            StoreError::Settings(format!(
                "`serve.store` is `{text}`, and the environment variable `{name}` is not set; set it to `{FORM}`"
            ))
        })?;
        (value, format!("the variable `{name}`"))
    } else if let Some(path) = text.strip_prefix("file:") {
        let content = files::read_to_string(Path::new(path)).map_err(|error| {
            StoreError::Settings(format!("`serve.store` is `{text}`, and {error}; write `{FORM}` into that file"))
        })?;
        (content, format!("the file `{path}`"))
    } else {
        (text.to_owned(), "it".to_owned())
    };
    let address = address.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if address.starts_with("postgres://") || address.starts_with("postgresql://") {
        return Ok(Some(address.to_owned()));
    }
    Err(StoreError::Settings(format!("`serve.store` is `{text}`, and {origin} contains no URL; write `{FORM}`")))
}
