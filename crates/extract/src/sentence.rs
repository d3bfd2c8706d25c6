//! Sentences to vectors: a sentence-transformers model of the BERT kind.
//!
//! Reimers and Gurevych, Sentence-BERT, 2019 (arXiv 1908.10084). Reference: the Python library sentence-transformers, whose
//! `modules.json`, `1_Pooling/config.json` and `sentence_bert_config.json` are followed.

use candle_core::{D, DType, Device, Tensor};
use candle_transformers::models::bert::{BertModel, Config};
use rayon::prelude::*;
use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::error::{Error, Result};
use crate::source::Source;

/// The files that decide what the encoder computes; the rest of the folder does not matter.
const REQUIRED: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];
const OPTIONAL: [&str; 3] = ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"];

/// How token vectors become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pooling {
    Mean,
    First,
    Max,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Reads the mode from a pooling module's settings: a flag per mode, or in newer files the mode by name.
fn pooling_mode(settings: &serde_json::Map<String, serde_json::Value>) -> std::result::Result<Pooling, String> {
    let named = settings.get("pooling_mode").and_then(|mode| mode.as_str());
    let flags = settings.iter().filter(|(_, set)| set.as_bool() == Some(true));
    let modes: Vec<&str> = match named {
        Some(mode) => vec![mode],
        None => flags.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")).collect(),
    };
    match modes.as_slice() {
        ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        ["cls" | "cls_token"] => Ok(Pooling::First),
        ["max" | "max_tokens"] => Ok(Pooling::Max),
        other => Err(format!("pooling {other:?}: expected one of mean, cls, max")),
    }
}

#[derive(Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

/// A sentence encoder.
pub struct SentenceEncoder {
    model: BertModel,
    tokenizer: Tokenizer,
    width: usize,
    pad: u32,
    pooling: Pooling,
    normalise: bool,
    lower_case: bool,
}

impl SentenceEncoder {
    /// Loads from a folder or, where `name` is none, through the hub's cache.
    pub fn load(name: &str) -> Result<Self> {
        Self::from_source(&Source::find(name)?)
    }

    pub(crate) fn inputs(source: &Source) -> Result<Vec<(String, std::path::PathBuf)>> {
        source.inputs("text", &REQUIRED, &OPTIONAL)
    }

    pub(crate) fn from_source(source: &Source) -> Result<Self> {
        let config_path = source.file("config.json")?;
        let kind: serde_json::Value = source.json("config.json")?;
        match kind["model_type"].as_str() {
            Some("bert") => {}
            found => {
                let found = found.unwrap_or("none");
                return Err(Error::model(&config_path, format!("model_type: expected bert, found {found}")));
            }
        }
        let config: Config = source.json("config.json")?;
        let (mut pooling, mut normalise) = (Pooling::Mean, false);
        for module in source.optional_json::<Vec<Module>>("modules.json")?.unwrap_or_default() {
            match module.kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Normalize" => normalise = true,
                "Pooling" => {
                    let file = format!("{}/config.json", module.path);
                    let mode = pooling_mode(&source.json(&file)?);
                    pooling = mode.map_err(|reason| Error::model(&source.path_of(&file), reason))?;
                }
                other => {
                    let reason = format!("module {other}: expected Transformer, Pooling, Normalize");
                    return Err(Error::model(&source.path_of("modules.json"), reason));
                }
            }
        }
        let sentence: Option<SentenceConfig> = source.optional_json("sentence_bert_config.json")?;
        let limit = sentence.as_ref().and_then(|c| c.max_seq_length).unwrap_or(usize::MAX);
        let limit = limit.min(config.max_position_embeddings);
        let tokenizer = source.tokenizer(limit)?;
        let weights = source.weights()?;
        let model =
            BertModel::load(weights, &config).map_err(|e| Error::model(&source.path_of("model.safetensors"), e))?;
        Ok(Self {
            model,
            tokenizer,
            width: config.hidden_size,
            pad: config.pad_token_id as u32,
            pooling,
            normalise,
            lower_case: sentence.is_some_and(|c| c.do_lower_case),
        })
    }

    /// d, the width of a vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One vector per text, `[texts, d]` row by row. Texts are batched by length, `batch` at most at once; what a text's
    /// vector is does not depend on the texts beside it. `done` hears how many more are done.
    pub fn encode<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        batch: usize,
        done: impl Fn(u64) + Sync,
    ) -> Result<Vec<f32>> {
        let tokens = texts.par_iter().map(|text| self.tokens(text.as_ref())).collect::<Result<Vec<_>>>()?;
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|&i| (tokens[i].len(), i));
        let blocks: Vec<&[usize]> = order.chunks(batch.max(1)).collect();
        let vectors = blocks
            .par_iter()
            .map(|block| {
                let rows: Vec<&[u32]> = block.iter().map(|&i| tokens[i].as_slice()).collect();
                let vectors = self.forward(&rows)?.flatten_all()?.to_vec1::<f32>()?;
                done(block.len() as u64);
                Ok(vectors)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut all = vec![0.0; texts.len() * self.width];
        for (block, vectors) in blocks.iter().zip(&vectors) {
            for (&i, vector) in block.iter().zip(vectors.chunks_exact(self.width)) {
                all[i * self.width..(i + 1) * self.width].copy_from_slice(vector);
            }
        }
        Ok(all)
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let lowered = if self.lower_case { text.to_lowercase() } else { String::new() };
        let text = if self.lower_case { &lowered } else { text };
        let encoding = self
            .tokenizer
            .encode(text, true)
            .map_err(|e| Error::Tokens { text: text.chars().take(80).collect(), reason: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// `[rows, d]` of rows of token ids, padded to the longest and masked.
    fn forward(&self, rows: &[&[u32]]) -> Result<Tensor> {
        let length = rows.iter().map(|row| row.len()).max().unwrap_or(0).max(1);
        let shape = (rows.len(), length);
        let padded = |fill: &dyn Fn(&[u32], usize) -> u32| -> Vec<u32> {
            rows.iter().flat_map(|row| (0..length).map(move |at| fill(row, at))).collect()
        };
        let ids = padded(&|row, at| row.get(at).copied().unwrap_or(self.pad));
        let mask = padded(&|row, at| u32::from(at < row.len()));
        let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
        let mask = Tensor::from_vec(mask, shape, &Device::Cpu)?;
        let hidden = self.model.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
        let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
        let pooled = match self.pooling {
            Pooling::First => hidden.narrow(1, 0, 1)?.squeeze(1)?,
            Pooling::Mean => {
                // 1e-9 as in the reference; only an empty row could come near it.
                let count = (mask.sum(1)? + 1e-9)?;
                hidden.broadcast_mul(&mask)?.sum(1)?.broadcast_div(&count)?
            }
            Pooling::Max => {
                let absent = ((mask - 1.0)? * 1e9)?;
                hidden.broadcast_add(&absent)?.max(1)?
            }
        };
        if !self.normalise {
            return Ok(pooled);
        }
        let norm = pooled.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?;
        Ok(pooled.broadcast_div(&norm)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_is_read_from_flags_and_from_names() {
        let read = |text: &str| pooling_mode(&serde_json::from_str(text).unwrap());
        assert_eq!(read(r#"{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}"#), Ok(Pooling::Mean));
        assert_eq!(read(r#"{"pooling_mode": "cls", "include_prompt": true}"#), Ok(Pooling::First));
        let message = read(r#"{"pooling_mode_lasttoken": true}"#).unwrap_err();
        assert!(message.contains("lasttoken") && message.contains("expected one of"), "{message}");
    }
}
