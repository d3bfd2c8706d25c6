//! A model folder: the files of one encoder, in a folder or in the hub's cache.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, CacheRepo};
use mp4sr_artifact::{files, json_problem};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::{Tokenizer, TruncationParams};

use crate::builtin;
use crate::error::{Error, Result};
use crate::processor::Processor;
use crate::weights::WeightsFile;

/// The configuration, by which a folder says what it holds.
pub(crate) const CONFIG: &str = "config.json";
/// The weights.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// The list of the files that the weights are spread over, where they are not in one.
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// How texts become tokens.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// How images become pixels.
pub(crate) const PROCESSOR: &str = "preprocessor_config.json";

/// The files of one encoder. The configuration is read when the folder is opened; the other parts, which not every folder
/// has, when an encoder is loaded: to find out that there is nothing to do takes no weights.
pub(crate) struct ModelFolder {
    name: String,
    location: Location,
    /// `config.json`.
    pub config: JsonFile,
}

enum Location {
    Folder(PathBuf),
    Hub { cache: CacheRepo, api: Box<ApiRepo> },
}

/// Which file holds which tensor, where the weights are not in one file.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// A JSON file with its path, for messages.
pub(crate) struct JsonFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl JsonFile {
    fn read(path: PathBuf) -> Result<Self> {
        Ok(Self { bytes: files::read(&path)?, path })
    }

    /// The content as `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.bytes).map_err(|e| self.error(json_problem(&e)))
    }

    /// An error that names this file.
    pub fn error(&self, reason: impl std::fmt::Display) -> Error {
        Error::model(&self.path, reason)
    }
}

impl ModelFolder {
    /// Opens a folder, or a model of the hub by its name (`owner/name`), whose files are fetched once and then found in the
    /// hub's cache.
    pub fn open(name: &str) -> Result<Self> {
        let location = Location::find(name)?;
        let config = JsonFile::read(location.file(name, CONFIG)?)?;
        Ok(Self { name: name.to_owned(), location, config })
    }

    /// The same, or an encoder that the program carries, whose files are then below `cache`.
    pub fn open_or_carried(name: &str, cache: &Path) -> Result<Self> {
        let Some(folder) = builtin::folder(name, cache)? else { return Self::open(name) };
        let location = Location::Folder(folder);
        let config = JsonFile::read(location.file(name, CONFIG)?)?;
        Ok(Self { name: name.to_owned(), location, config })
    }

    /// The name that it was opened by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `model_type` of the configuration, or `none`.
    pub fn model_type(&self) -> Result<String> {
        let config: serde_json::Value = self.config.parse()?;
        Ok(config["model_type"].as_str().unwrap_or("none").to_owned())
    }

    /// `model_type` of the configuration, or what timm writes in its place, `architecture`.
    pub fn architecture(&self) -> Result<String> {
        let config: serde_json::Value = self.config.parse()?;
        let named = config["model_type"].as_str().or_else(|| config["architecture"].as_str());
        Ok(named.unwrap_or("none").to_owned())
    }

    /// The weights. Encoders copy them into their own layout, so the bytes are not kept here.
    pub fn weights(&self) -> Result<WeightsFile> {
        let files = self.weight_files()?;
        let paths = files.iter().filter(|file| *file != WEIGHTS_INDEX).map(|file| self.file(file));
        WeightsFile::read(&paths.collect::<Result<Vec<_>>>()?)
    }

    /// The weights of a module beside the language model, in its folder.
    pub fn module_weights(&self, module: &str) -> Result<WeightsFile> {
        WeightsFile::read(&[self.file(&format!("{module}/{WEIGHTS}"))?])
    }

    /// The names of the files with weights: one, or the index of several and those that it names.
    pub fn weight_files(&self) -> Result<Vec<String>> {
        let Err(missing) = self.file(WEIGHTS) else { return Ok(vec![WEIGHTS.to_owned()]) };
        let Some(index) = self.optional_json(WEIGHTS_INDEX)? else { return Err(missing) };
        let files: BTreeSet<String> = index.parse::<Index>()?.weight_map.into_values().collect();
        if files.is_empty() {
            return Err(index.error("weight_map: expected the files of tensors, found none"));
        }
        if let Some(outside) = files.iter().find(|file| file.contains(['/', '\\'])) {
            return Err(index.error(format!("weight_map: expected files beside it, found {outside}")));
        }
        Ok(std::iter::once(WEIGHTS_INDEX.to_owned()).chain(files).collect())
    }

    /// The image processor, for a model whose images are squares such as `side` x `side`.
    pub fn processor(&self, side: usize) -> Result<Processor> {
        let file = self.json(PROCESSOR)?;
        let processor = file.parse::<Processor>()?.resolved();
        processor.check(side).map_err(|reason| file.error(reason))?;
        Ok(processor)
    }

    /// The image processor of a model that takes squares of `side` x `side` alone.
    pub fn processor_of_side(&self, side: usize) -> Result<Processor> {
        let processor = self.processor(side)?;
        if processor.side() != side {
            let found = processor.side();
            let reason = format!("pixels: expected {side} x {side} as in config.json, found {found} x {found}");
            return Err(Error::model(&self.file(PROCESSOR)?, reason));
        }
        Ok(processor)
    }

    /// The tokenizer, which cuts at `limit` tokens, special tokens included, and never pads. All its tokens must be in the
    /// model's `vocabulary`.
    pub fn tokenizer(&self, limit: usize, vocabulary: usize) -> Result<Tokenizer> {
        let path = self.file(TOKENIZER)?;
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

    /// A JSON file that must exist.
    pub fn json(&self, file: &str) -> Result<JsonFile> {
        JsonFile::read(self.file(file)?)
    }

    /// A JSON file that may be missing.
    pub fn optional_json(&self, file: &str) -> Result<Option<JsonFile>> {
        match self.json(file) {
            Ok(file) => Ok(Some(file)),
            Err(Error::Model { .. }) => Ok(None),
            Err(Error::Hub { reason, .. }) if reason.contains("404") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The paths of `files`, each under its name behind `role`, for a manifest.
    pub fn inputs(&self, role: &str, files: &[String]) -> Result<Vec<(String, PathBuf)>> {
        files.iter().map(|file| Ok((format!("{role}/{file}"), self.file(file)?))).collect()
    }

    fn file(&self, file: &str) -> Result<PathBuf> {
        self.location.file(&self.name, file)
    }
}

impl Location {
    fn find(name: &str) -> Result<Self> {
        let folder = Path::new(name);
        if folder.is_dir() {
            return Ok(Self::Folder(folder.to_owned()));
        }
        let hub = |reason: String| Error::Hub { name: name.to_owned(), reason };
        if !is_hub_name(name) {
            return Err(hub("it looks like a path, and no folder lies there".to_owned()));
        }
        let api = ApiBuilder::from_env().with_progress(false).build().map_err(|e| hub(e.to_string()))?;
        let cache = Cache::from_env().model(name.to_owned());
        Ok(Self::Hub { cache, api: Box::new(api.model(name.to_owned())) })
    }

    /// The path of a file that must exist; `name` is the model's, for messages.
    fn file(&self, name: &str, file: &str) -> Result<PathBuf> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(file);
                if path.is_file() { Ok(path) } else { Err(Error::model(folder, format!("`{file}` is missing in it"))) }
            }
            Self::Hub { cache, api } => match cache.get(file) {
                Some(path) => Ok(path),
                None => api.get(file).map_err(|e| Error::Hub { name: name.to_owned(), reason: e.to_string() }),
            },
        }
    }
}

/// Names on the hub have at most one slash; anything else was meant as a path.
fn is_hub_name(name: &str) -> bool {
    let allowed = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split('/').count() <= 2 && name.split('/').all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_distinguished_from_names_on_the_hub() {
        assert!(is_hub_name("sentence-transformers/all-MiniLM-L6-v2") && is_hub_name("bert-base-uncased"));
        for path in ["data/encoders/none", "/abs", "./rel", "../up", "a//b", ""] {
            assert!(!is_hub_name(path), "{path}");
        }
        let message = ModelFolder::open("data/encoders/none").err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("`data/encoders/none` is not a folder"), "{message}");
    }
}
