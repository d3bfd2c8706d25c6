//! Where an encoder's files lie: in a folder, or in the hub's cache.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, CacheRepo};
use mp4sr_artifact::{files, json_problem};
use serde::de::DeserializeOwned;
use tokenizers::{Tokenizer, TruncationParams};

use crate::builtin;
use crate::error::{Error, Result};

/// The files of one encoder.
pub(crate) struct Source {
    name: String,
    place: Place,
}

enum Place {
    Folder(PathBuf),
    Hub { cache: CacheRepo, api: Box<ApiRepo> },
}

impl Source {
    /// A folder, or a name on the hub (`owner/name`), whose files are fetched once and then found in the hub's cache.
    pub(crate) fn find(name: &str) -> Result<Self> {
        let folder = Path::new(name);
        let place = if folder.is_dir() {
            Place::Folder(folder.to_owned())
        } else {
            let hub = |reason: String| Error::Hub { name: name.to_owned(), reason };
            if !is_hub_name(name) {
                return Err(hub("it looks like a path, and no folder lies there".to_owned()));
            }
            let api = ApiBuilder::from_env().with_progress(false).build().map_err(|e| hub(e.to_string()))?;
            let cache = Cache::from_env().model(name.to_owned());
            Place::Hub { cache, api: Box::new(api.model(name.to_owned())) }
        };
        Ok(Self { name: name.to_owned(), place })
    }

    /// The same, or an encoder that the program carries, whose files then lie below `cache`.
    pub(crate) fn find_or_carried(name: &str, cache: &Path) -> Result<Self> {
        match builtin::folder(name, cache)? {
            Some(folder) => Ok(Self { name: name.to_owned(), place: Place::Folder(folder) }),
            None => Self::find(name),
        }
    }

    /// As it was named.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A file that must be there.
    pub(crate) fn file(&self, file: &str) -> Result<PathBuf> {
        match &self.place {
            Place::Folder(folder) => {
                let path = folder.join(file);
                if path.is_file() { Ok(path) } else { Err(Error::model(folder, format!("`{file}` is missing in it"))) }
            }
            Place::Hub { cache, api } => match cache.get(file) {
                Some(path) => Ok(path),
                None => api.get(file).map_err(|e| Error::Hub { name: self.name.clone(), reason: e.to_string() }),
            },
        }
    }

    /// A file that may be missing.
    pub(crate) fn optional(&self, file: &str) -> Result<Option<PathBuf>> {
        match self.file(file) {
            Ok(path) => Ok(Some(path)),
            Err(Error::Model { .. }) => Ok(None),
            Err(Error::Hub { reason, .. }) if reason.contains("404") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A JSON file that must be there.
    pub(crate) fn json<T: DeserializeOwned>(&self, file: &str) -> Result<T> {
        read_json(&self.file(file)?)
    }

    /// A JSON file that may be missing.
    pub(crate) fn optional_json<T: DeserializeOwned>(&self, file: &str) -> Result<Option<T>> {
        self.optional(file)?.map(|path| read_json(&path)).transpose()
    }

    /// The tokenizer, cutting at `limit` tokens, its special ones included, and never padding. All its tokens must be
    /// among the model's `vocabulary`.
    pub(crate) fn tokenizer(&self, limit: usize, vocabulary: usize) -> Result<Tokenizer> {
        let path = self.file("tokenizer.json")?;
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|e| Error::model(&path, e))?;
        let highest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0) as usize;
        if highest >= vocabulary {
            let reason = format!("it numbers tokens up to {highest}, and the model knows {vocabulary}");
            return Err(Error::model(&path, reason));
        }
        tokenizer.with_padding(None);
        let truncation = TruncationParams { max_length: limit, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| Error::model(&path, e))?;
        Ok(tokenizer)
    }

    /// Where `file` lies, for messages.
    pub(crate) fn path_of(&self, file: &str) -> PathBuf {
        self.file(file).unwrap_or_else(|_| PathBuf::from(&self.name).join(file))
    }

    /// The files by role, for a manifest.
    pub(crate) fn inputs(&self, role: &str, files: &[String]) -> Result<Vec<(String, PathBuf)>> {
        files.iter().map(|file| Ok((format!("{role}/{file}"), self.file(file)?))).collect()
    }
}

/// The hub's names have at most one slash; anything else was meant as a path.
fn is_hub_name(name: &str) -> bool {
    let allowed = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split('/').count() <= 2 && name.split('/').all(allowed)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&files::read(path)?).map_err(|e| Error::model(path, json_problem(&e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_names_on_the_hub() {
        assert!(is_hub_name("sentence-transformers/all-MiniLM-L6-v2") && is_hub_name("bert-base-uncased"));
        for path in ["data/encoders/none", "/abs", "./rel", "../up", "a//b", ""] {
            assert!(!is_hub_name(path), "{path}");
        }
        let message = Source::find("data/encoders/none").err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("`data/encoders/none` is not a folder"), "{message}");
    }
}
