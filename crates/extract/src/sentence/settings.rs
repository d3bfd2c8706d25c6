//! How a text is prepared before it goes through the language model: `sentence_bert_config.json`,
//! `config_sentence_transformers.json` and the tokenizer's own limit.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::Result;
use crate::folder::{JsonFile, ModelFolder};
use crate::model_files::{MODULES, TOKENIZER_CONFIG, WHOLE};

/// The names of the settings of the module Transformer. The library reads the first that exists.
const TRANSFORMER: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// The files of a folder that determine the vectors and that not every folder has.
pub(super) fn optional_files(folder: &ModelFolder) -> Result<Vec<String>> {
    let transformer = transformer_file(folder)?.map(|(name, _)| name);
    let mut found = Vec::new();
    for name in [MODULES].into_iter().chain(transformer).chain([WHOLE, TOKENIZER_CONFIG]) {
        found.extend(folder.optional_json(name)?.map(|_| name.to_owned()));
    }
    Ok(found)
}

/// The settings of the module Transformer with their name, if the folder has them. A model of the hub is not asked for further names. As in
/// the reference, they are not read without a list of modules.
fn transformer_file(folder: &ModelFolder) -> Result<Option<(&'static str, JsonFile)>> {
    if folder.optional_json(MODULES)?.is_none() {
        return Ok(None);
    }
    for name in TRANSFORMER {
        if let Some(file) = folder.optional_json(name)? {
            return Ok(Some((name, file)));
        }
    }
    Ok(None)
}

/// How texts are prepared, and what is kept of their vectors.
#[derive(Default)]
pub(super) struct TextSettings {
    /// The largest number of tokens in a text, if a file sets a limit.
    pub limit: Option<usize>,
    pub lower_case: bool,
    /// The prompt that precedes every text; empty if the model has no default prompt.
    pub prompt: String,
    /// The number of leading values of a vector that are kept, if not all are.
    pub truncate: Option<usize>,
}

/// `sentence_bert_config.json`: the settings of the module Transformer.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Transformer {
    max_seq_length: Option<usize>,
    do_lower_case: bool,
    #[serde(rename = "transformer_task")]
    task: Option<String>,
    module_output_name: Option<String>,
    modality_config: Value,
    processing_kwargs: Map<String, Value>,
    model_args: Option<Map<String, Value>>,
    tokenizer_args: Option<Map<String, Value>>,
    config_args: Option<Map<String, Value>>,
    query_length: Value,
    document_length: Value,
    query_expansion: Value,
    // None of these keys changes a vector.
    #[serde(rename = "unpad_inputs")]
    _unpad_inputs: Value,
    #[serde(rename = "model_name_or_path")]
    _model_name_or_path: Value,
    #[serde(rename = "backend")]
    _backend: Value,
}

/// `config_sentence_transformers.json`: the settings of the model as a whole.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Whole {
    prompts: BTreeMap<String, Value>,
    default_prompt_name: Option<String>,
    truncate_dim: Option<usize>,
    model_type: Option<String>,
    #[serde(rename = "__version__")]
    _version: Value,
    // This key says how vectors are compared, which this crate does not do.
    #[serde(rename = "similarity_fn_name")]
    _similarity_fn_name: Value,
}

/// The part of `tokenizer_config.json` that is used.
#[derive(Deserialize)]
struct TokenizerConfig {
    /// The largest number of tokens in a sequence. Some files write "no limit" as a number that does not fit 64 bits.
    model_max_length: Option<f64>,
}

impl TextSettings {
    pub fn read(folder: &ModelFolder) -> Result<Self> {
        let mut settings = Self::default();
        if let Some((_, file)) = transformer_file(folder)? {
            let transformer: Transformer = file.parse()?;
            transformer.check().map_err(|reason| file.error(reason))?;
            if let Some(length @ ..3) = transformer.max_seq_length {
                let reason = "expected room for the first token, the last token and one of the text";
                return Err(file.error(format!("max_seq_length: {reason}, found {length}")));
            }
            settings.limit = transformer.max_seq_length;
            settings.lower_case = transformer.do_lower_case;
        }
        if settings.limit.is_none() {
            // As in the reference, the tokenizer's own limit applies if the model does not set one.
            let file = folder.optional_json(TOKENIZER_CONFIG)?;
            let tokens = file.as_ref().map(JsonFile::parse::<TokenizerConfig>).transpose()?;
            settings.limit = tokens.and_then(|config| config.model_max_length).map(|length| length as usize);
        }
        if let Some(file) = folder.optional_json(WHOLE)? {
            let whole: Whole = file.parse()?;
            settings.prompt = whole.default_prompt().map_err(|reason| file.error(reason))?;
            settings.truncate = whole.truncate_dim;
            if whole.truncate_dim == Some(0) {
                return Err(file.error("truncate_dim: expected a positive number, found 0"));
            }
            if let Some(other) = whole.model_type.filter(|kind| kind != "SentenceTransformer") {
                return Err(file.error(format!("model_type: expected SentenceTransformer, found {other}")));
            }
        }
        Ok(settings)
    }
}

impl Transformer {
    /// Refuses settings that are not supported here.
    fn check(&self) -> std::result::Result<(), String> {
        let differs = |value: &Option<String>, known: &str| value.as_ref().is_some_and(|value| value != known);
        if differs(&self.task, "feature-extraction") {
            return Err(format!("transformer_task: expected feature-extraction, found {:?}", self.task));
        }
        if differs(&self.module_output_name, "token_embeddings") {
            return Err(format!("module_output_name: expected token_embeddings, found {:?}", self.module_output_name));
        }
        let text = &self.modality_config["text"];
        let is_plain = text["method"] == "forward" && text["method_output_name"] == "last_hidden_state";
        if !self.modality_config.is_null() && !is_plain {
            return Err(format!("modality_config.text: expected the last hidden state of forward, found {text}"));
        }
        if let Some((key, value)) = self.processing_kwargs.iter().next() {
            return Err(format!("processing_kwargs: expected none, found {key} = {value}"));
        }
        for (key, arguments) in [
            ("model_args", &self.model_args),
            ("tokenizer_args", &self.tokenizer_args),
            ("config_args", &self.config_args),
        ] {
            // These say where the reference loads from and in which type it computes; they are ignored here.
            let harmless = ["torch_dtype", "dtype", "trust_remote_code", "attn_implementation", "revision"];
            let mut others = arguments.iter().flatten().filter(|(name, _)| !harmless.contains(&name.as_str()));
            if let Some((name, value)) = others.next() {
                return Err(format!("{key}: expected none that changes vectors, found {name} = {value}"));
            }
        }
        let lengths = [
            ("query_length", &self.query_length),
            ("document_length", &self.document_length),
            ("query_expansion", &self.query_expansion),
        ];
        match lengths.iter().find(|(_, value)| !value.is_null() && *value != &Value::Bool(false)) {
            Some((key, value)) => {
                Err(format!("{key}: expected none, found {value} (a model with several vectors per text)"))
            }
            None => Ok(()),
        }
    }
}

impl Whole {
    fn default_prompt(&self) -> std::result::Result<String, String> {
        let Some(name) = &self.default_prompt_name else { return Ok(String::new()) };
        match self.prompts.get(name) {
            Some(Value::String(prompt)) => Ok(prompt.clone()),
            _ => Err(format!("default_prompt_name: expected a name among prompts, found {name}")),
        }
    }
}
