//! A model folder: the files of one encoder, in a folder or in the hub's cache.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mp4sr_artifact::{files, json_problem};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::{Tokenizer, TruncationParams};

use crate::builtin;
use crate::error::{Error, Result};
use crate::hub::HubModel;
use crate::model_files::{
    Access, CONFIG, MODULES, NESTED_PROCESSOR, PICKLED_WEIGHTS, PROCESSOR, PROCESSOR_PARTS, SPECIAL_TOKENS, TOKENIZER,
    TOKENIZER_CONFIG, WEIGHTS, WEIGHTS_INDEX, WHOLE,
};
use crate::processor::Processor;
use crate::tokens;
use crate::weights::WeightsFile;

/// The files of one encoder. The configuration is read when the folder is opened. The other parts, which not every folder has, are read
/// when an encoder is loaded, so that finding out that there is nothing to do does not read any weights.
pub(crate) struct ModelFolder {
    name: String,
    location: Location,
    /// The subfolder of the transformer, which sentence encoders of early releases have; empty if there is none.
    transformer: String,
    /// `config.json`.
    pub config: JsonFile,
}

/// A module of a sentence encoder, of which only the folder is read.
#[derive(Deserialize)]
struct FirstModule {
    path: String,
}

enum Location {
    Folder(PathBuf),
    Hub(Box<HubModel>),
}

/// The index of weights in several files: the file of each tensor.
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

    /// Reduces the file to the first of `parts` that it has.
    fn part(self, parts: &[&str]) -> Result<Self> {
        let whole: serde_json::Value = self.parse()?;
        let part = parts.iter().map(|part| &whole[*part]).find(|part| part.is_object());
        Ok(Self { bytes: part.unwrap_or(&whole).to_string().into_bytes(), ..self })
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

/// Whether a configuration says which model it is of. One that cannot be read is reported when it is used.
fn names_model(path: &Path) -> bool {
    let config: Option<serde_json::Value> =
        files::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    config
        .is_none_or(|config| ["model_type", "architecture", "architectures"].iter().any(|key| !config[*key].is_null()))
}

impl ModelFolder {
    /// Opens a folder, or a model of the hub by its name (`owner/name`), whose files are fetched once and then found in the
    /// hub's cache.
    pub fn open(name: &str) -> Result<Self> {
        Self::at(name, Location::find(name, Access::Full)?)
    }

    fn at(name: &str, location: Location) -> Result<Self> {
        let (mut path, mut transformer) = (location.optional_file(CONFIG)?, String::new());
        // Early sentence encoders have a configuration of their own release here, or none, and that of the language model in its folder.
        if !path.as_ref().is_some_and(|path| names_model(path))
            && let Some(modules) = location.optional_file(MODULES)?
        {
            let modules: Vec<FirstModule> = JsonFile::read(modules)?.parse()?;
            transformer = modules.into_iter().next().map(|module| module.path).unwrap_or_default();
            path = location.optional_file(&format!("{transformer}/{CONFIG}"))?.or(path);
        }
        let path = path.map_or_else(|| location.file(CONFIG), Ok)?;
        Ok(Self { name: name.to_owned(), location, transformer, config: JsonFile::read(path)? })
    }

    /// Like [`Self::open`], but also for a built-in encoder, whose files are then below `cache`.
    pub fn open_or_built_in(name: &str, cache: &Path, access: Access) -> Result<Self> {
        let Some(folder) = builtin::folder(name, cache, access)? else {
            return Self::at(name, Location::find(name, access)?);
        };
        Self::at(name, Location::Folder(folder))
    }

    /// Whether its files are in the hub's cache.
    pub fn is_of_hub(&self) -> bool {
        matches!(self.location, Location::Hub(_))
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

    /// `model_type` of the configuration, or what timm writes instead, `architecture`.
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

    /// The weights of a module other than the language model, from the module's folder.
    pub fn module_weights(&self, module: &str) -> Result<WeightsFile> {
        let file = format!("{module}/{WEIGHTS}");
        match self.optional_file(&file)? {
            Some(path) => WeightsFile::read(&[path]),
            None => Err(self.without_weights(&file)),
        }
    }

    /// The names of the files with weights: one, or the index of several and those that it names.
    pub fn weight_files(&self) -> Result<Vec<String>> {
        if self.optional_file(WEIGHTS)?.is_some() {
            return Ok(vec![WEIGHTS.to_owned()]);
        }
        let Some(index) = self.optional_json(WEIGHTS_INDEX)? else { return Err(self.without_weights(WEIGHTS)) };
        let files: BTreeSet<String> = index.parse::<Index>()?.weight_map.into_values().collect();
        if files.is_empty() {
            return Err(index.error("weight_map: expected the files of tensors, found none"));
        }
        if let Some(outside) = files.iter().find(|file| file.contains(['/', '\\'])) {
            return Err(index.error(format!("weight_map: expected files beside it, found {outside}")));
        }
        Ok(std::iter::once(WEIGHTS_INDEX.to_owned()).chain(files).collect())
    }

    /// The error for a file of weights that does not exist.
    fn without_weights(&self, file: &str) -> Error {
        let missing = match self.file(file) {
            Err(error) => error,
            Ok(path) => Error::model(&path, "it appeared while the folder was being read; run the command again"),
        };
        let pickled = file.replace(WEIGHTS, PICKLED_WEIGHTS);
        if !self.location.has_pickle(&pickled) {
            return missing;
        }
        let remedy = "a pickle may run any code, so it is not read; save it again with `save_pretrained` of the Python \
                      library, or name a revision with safetensors as `owner/name@revision`";
        Error::Hub {
            name: self.name.clone(),
            reason: format!("has no `{file}`, only `{pickled}`"),
            remedy: remedy.to_owned(),
        }
    }

    /// The image processor of a model that takes squares of any size. `side` is an example for messages.
    pub fn processor(&self, side: usize) -> Result<Processor> {
        let file = self.json(PROCESSOR)?;
        let processor = file.parse::<Processor>()?.resolved().map_err(|reason| file.error(reason))?;
        processor.check(side).map_err(|reason| file.error(reason))?;
        Ok(processor)
    }

    /// Whether earlier releases gave tokens other positions: those of MPNet start at 1, whatever the padding token is.
    pub fn has_corrected_positions(&self) -> Result<bool> {
        let config: serde_json::Value = self.config.parse()?;
        Ok(config["model_type"] == "mpnet" && config["pad_token_id"].as_u64().is_some_and(|padding| padding != 1))
    }

    /// Whether earlier releases computed other pixels from the same settings of sizes.
    pub fn has_corrected_sizes(&self) -> Result<bool> {
        Ok(self.json(PROCESSOR)?.parse::<Processor>()?.has_corrected_sizes())
    }

    /// The image processor of a model that takes only squares of `side` x `side`.
    pub fn processor_of_side(&self, side: usize) -> Result<Processor> {
        let processor = self.processor(side)?;
        if processor.side() != side {
            let found = processor.side();
            let reason = format!("pixels: expected {side} x {side} as in config.json, found {found} x {found}");
            return Err(Error::model(&self.file(PROCESSOR)?, reason));
        }
        Ok(processor)
    }

    /// Whether long texts are cut at their start because `tokenizer.json` says so. Earlier releases cut them at their end, so vectors of that
    /// time must not be used.
    pub fn cuts_starts(&self) -> Result<bool> {
        let whole: serde_json::Value = self.json(TOKENIZER)?.parse()?;
        Ok(whole["truncation"]["direction"] == "Left")
    }

    /// The tokenizer, which cuts at `limit` tokens, special tokens included, and never pads. All its tokens must be in the
    /// model's `vocabulary`.
    pub fn tokenizer(&self, limit: usize, vocabulary: usize) -> Result<Tokenizer> {
        let path = self.file(TOKENIZER)?;
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|e| Error::model(&path, e))?;
        let highest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0) as usize;
        if highest >= vocabulary {
            let reason =
                format!("it has token ids up to {highest}, but the vocabulary of the model has {vocabulary} tokens");
            return Err(Error::model(&path, reason));
        }
        tokenizer.with_padding(None);
        let whole = JsonFile::read(path.clone())?.parse()?;
        let config = self.optional_json(TOKENIZER_CONFIG)?;
        let settings = config.as_ref().map_or(Ok(serde_json::Value::Null), JsonFile::parse)?;
        let direction = tokens::check(&settings, &tokenizer, &whole)
            .map_err(|reason| config.as_ref().map_or(Error::model(&path, &reason), |file| file.error(&reason)))?;
        if let Some(file) = self.optional_json(SPECIAL_TOKENS)? {
            tokens::check_map(&file.parse()?, &settings, &tokenizer, &whole).map_err(|reason| file.error(reason))?;
        }
        let truncation = TruncationParams { max_length: limit, direction, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| Error::model(&path, e))?;
        Ok(tokenizer)
    }

    /// A JSON file that must exist.
    pub fn json(&self, file: &str) -> Result<JsonFile> {
        let json = JsonFile::read(self.file(file)?)?;
        if file == PROCESSOR && json.path.ends_with(NESTED_PROCESSOR) { json.part(&PROCESSOR_PARTS) } else { Ok(json) }
    }

    /// A JSON file that may be missing.
    pub fn optional_json(&self, file: &str) -> Result<Option<JsonFile>> {
        self.optional_file(file)?.map(JsonFile::read).transpose()
    }

    /// The paths of `files` for a manifest, each under the name `role/file`.
    pub fn inputs(&self, role: &str, files: &[String]) -> Result<Vec<(String, PathBuf)>> {
        files.iter().map(|file| Ok((format!("{role}/{file}"), self.file(file)?))).collect()
    }

    fn file(&self, file: &str) -> Result<PathBuf> {
        if file == PROCESSOR
            && let Some(nested) = self.nested_processor()?
        {
            return Ok(nested);
        }
        self.location.file(&self.path_within(file))
    }

    fn optional_file(&self, file: &str) -> Result<Option<PathBuf>> {
        self.location.optional_file(&self.path_within(file))
    }

    /// The path of a file within the folder. The transformer's files are in its subfolder.
    fn path_within(&self, file: &str) -> String {
        let is_of_all = self.transformer.is_empty() || file.contains('/') || [MODULES, WHOLE].contains(&file);
        if is_of_all { file.to_owned() } else { format!("{}/{file}", self.transformer) }
    }

    /// The file that contains the processor among other parts. The reference looks there first.
    fn nested_processor(&self) -> Result<Option<PathBuf>> {
        let Some(path) = self.optional_file(NESTED_PROCESSOR)? else { return Ok(None) };
        let whole: serde_json::Value = JsonFile::read(path.clone())?.parse()?;
        Ok(PROCESSOR_PARTS.iter().any(|part| whole[*part].is_object()).then_some(path))
    }
}

impl Location {
    fn find(name: &str, access: Access) -> Result<Self> {
        let folder = Path::new(name);
        if folder.is_dir() {
            return Ok(Self::Folder(folder.to_owned()));
        }
        Ok(Self::Hub(Box::new(HubModel::open(name, access)?)))
    }

    /// The path of a file that must exist.
    fn file(&self, file: &str) -> Result<PathBuf> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(file);
                if path.is_file() { Ok(path) } else { Err(Error::model(folder, format!("`{file}` is missing in it"))) }
            }
            Self::Hub(hub) => hub.file(file),
        }
    }

    /// The path of a file that may be missing.
    fn optional_file(&self, file: &str) -> Result<Option<PathBuf>> {
        match self {
            Self::Folder(folder) => Ok(Some(folder.join(file)).filter(|path| path.is_file())),
            Self::Hub(hub) => hub.optional_file(file),
        }
    }

    /// Whether there is this file, which only Python's pickle can read.
    fn has_pickle(&self, file: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(file).is_file(),
            Self::Hub(hub) => hub.has_pickle(file),
        }
    }
}
