//! `config.json` of a model, checked key by key.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::folder::{JsonFile, ModelFolder};

/// Keys of any `config.json` that do not change a vector: names, classes, training, generation, other tasks' heads.
const HARMLESS: [&str; 74] = [
    "_attn_implementation",
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_activation",
    "classifier_bias",
    "classifier_dropout",
    "classifier_dropout_prob",
    "classifier_pooling",
    "cls_token_id",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// How an architecture treats the keys of its configuration.
pub(crate) struct ArchitectureKeys {
    /// Keys that the layers follow, whatever their value.
    pub supported: &'static [&'static str],
    /// Keys of which only some values are supported, as JSON. The first value is what a missing key means.
    pub only: &'static [(&'static str, &'static [&'static str])],
    /// Keys that do not change a vector, in addition to those of any model.
    pub harmless: &'static [&'static str],
}

/// A configuration whose keys are all known.
pub(crate) struct ArchitectureSettings<'f> {
    file: &'f JsonFile,
    /// The prefix of the keys in messages: empty, or a section with a dot.
    section: &'static str,
    values: Map<String, Value>,
}

impl<'f> ArchitectureSettings<'f> {
    /// Reads `config.json` and refuses keys that are not among `keys`, and values that are not supported.
    pub fn read(folder: &'f ModelFolder, keys: &ArchitectureKeys) -> Result<Self> {
        Self::checked(&folder.config, "", folder.config.parse()?, keys)
    }

    /// Like [`Self::read`], but for a section of `config.json`, such as `vision_config.`; `keys` are the section's.
    pub fn section(folder: &'f ModelFolder, section: &'static str, keys: &ArchitectureKeys) -> Result<Self> {
        let mut all: Map<String, Value> = folder.config.parse()?;
        let name = section.trim_end_matches('.');
        let Some(Value::Object(values)) = all.remove(name) else {
            return Err(folder.config.error(format!("{name}: expected an object")));
        };
        Self::checked(&folder.config, section, values, keys)
    }

    fn checked(
        file: &'f JsonFile,
        section: &'static str,
        values: Map<String, Value>,
        keys: &ArchitectureKeys,
    ) -> Result<Self> {
        let settings = Self { file, section, values };
        for (key, value) in &settings.values {
            let known = [keys.supported, keys.harmless, &HARMLESS].iter().any(|keys| keys.contains(&key.as_str()));
            match keys.only.iter().find(|(only, _)| only == key) {
                Some((_, values)) => settings.check_value(key, value, values)?,
                None if known => {}
                None => {
                    let found = format!("{section}{key}: this key is not supported, and it may change the vectors");
                    return Err(file.error(format!("{found} (found {value})")));
                }
            }
        }
        Ok(settings)
    }

    fn check_value(&self, key: &str, value: &Value, values: &[&str]) -> Result<()> {
        let supported =
            values.iter().any(|text| serde_json::from_str::<Value>(text).is_ok_and(|known| same(&known, value)));
        if supported { Ok(()) } else { Err(self.refused(key, &values.join(" or "), value)) }
    }

    /// The error for a key whose value is not supported.
    pub fn refused(&self, key: &str, expected: &str, found: &Value) -> crate::error::Error {
        self.file.error(format!("{}{key}: expected {expected}, found {found}", self.section))
    }

    /// An error about the configuration.
    pub fn error(&self, reason: impl std::fmt::Display) -> crate::error::Error {
        self.file.error(reason)
    }

    /// The value of a key; null if it is missing.
    pub fn value(&self, key: &str) -> &Value {
        self.values.get(key).unwrap_or(&Value::Null)
    }

    /// A size that must exist.
    pub fn size(&self, key: &str) -> Result<usize> {
        let value = self.value(key);
        let size = value.as_u64().filter(|&size| size > 0 && size < 1 << 32);
        size.map(|size| size as usize).ok_or_else(|| self.refused(key, "a positive whole number", value))
    }

    /// A size, or the reference's default if the key is missing or null.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.value(key).is_null() { Ok(default) } else { self.size(key) }
    }

    /// A number, or the reference's default if the key is missing or null.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        let value = self.value(key);
        if value.is_null() {
            return Ok(default);
        }
        value.as_f64().filter(|number| number.is_finite()).ok_or_else(|| self.refused(key, "a number", value))
    }

    /// Whether a switch is on, or the reference's default if it is missing.
    pub fn is_on(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            Value::Null => Ok(default),
            Value::Bool(on) => Ok(*on),
            other => Err(self.refused(key, "true or false", other)),
        }
    }

    /// A list of sizes.
    pub fn sizes(&self, key: &str) -> Result<Vec<usize>> {
        serde_json::from_value(self.value(key).clone())
            .map_err(|_| self.refused(key, "a list of whole numbers", self.value(key)))
    }

    /// The base of the angles of rotary positions, from `rope_parameters` of transformers 5 or `key` of earlier releases. Scaled positions
    /// are refused.
    pub fn rope_theta(&self, kind: Option<&str>, key: &str, default: f64) -> Result<f64> {
        let parameters = match (self.value("rope_parameters"), kind) {
            (Value::Object(kinds), Some(kind)) => kinds.get(kind).unwrap_or(&Value::Null),
            (parameters, _) => parameters,
        };
        let Value::Object(parameters) = parameters else { return self.number_or(key, default) };
        for (name, value) in parameters {
            let supported = match name.as_str() {
                "rope_theta" => value.is_number(),
                "rope_type" | "type" => value == "default",
                _ => false,
            };
            if !supported {
                return Err(self.refused(&format!("rope_parameters.{name}"), "rope_theta and the default type", value));
            }
        }
        Ok(parameters.get("rope_theta").and_then(Value::as_f64).unwrap_or(default))
    }

    /// The configuration as candle's `T`, after `changes` are applied. The changes also set the keys that candle requires but that do not
    /// affect the vectors.
    pub fn as_candle<T: DeserializeOwned>(&self, changes: Value) -> Result<T> {
        let mut values = self.values.clone();
        if let Value::Object(changes) = changes {
            values.extend(changes);
        }
        serde_json::from_value(json!(values)).map_err(|e| self.file.error(mp4sr_artifact::json_problem(&e)))
    }
}

/// Whether two values are equal. Numbers are compared by value, so 1 equals 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b).is_eq(),
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_keys_are_sorted() {
        assert!(HARMLESS.is_sorted());
    }
}
