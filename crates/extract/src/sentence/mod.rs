//! Sentences to vectors, as the Python library sentence-transformers computes them.
//!
//! Reimers and Gurevych, Sentence-BERT, 2019 (arXiv 1908.10084). `modules.json`, the pooling's `config.json` and
//! `sentence_bert_config.json` of a model are followed; its `config.json` says which language model it uses.

mod language;

use std::sync::atomic::{AtomicU64, Ordering};

use mp4sr_ops::{DeviceEncoder, Readout};
use rayon::prelude::*;
use serde::Deserialize;
use tokenizers::Tokenizer;

use self::language::LanguageModel;
use crate::device::{EncoderDevice, overlap};
use crate::error::{Error, Result};
use crate::folder::{CONFIG, JsonFile, ModelFolder, TOKENIZER, WEIGHTS};

/// Tokens that go through the layers together: enough for efficient products, few enough to stay in the caches.
const TOKENS: usize = 512;
/// The same on a card, which needs many thousands to be busy.
const TOKENS_ON_CARD: usize = 16_384;
/// Texts that are split into tokens while the card computes those before.
const TEXTS_AHEAD: usize = 4096;
/// Texts whose vectors should be computed by one call: enough to sort them by length, or to keep a card busy.
const TEXTS: usize = 4096;
const TEXTS_ON_CARD: usize = 65_536;
/// Below this a norm counts as zero, as in the reference.
const SMALLEST_NORM: f32 = 1e-12;

/// The files that determine the vectors, beside those that `modules.json` names.
const REQUIRED: [&str; 3] = [CONFIG, TOKENIZER, WEIGHTS];
const MODULES: &str = "modules.json";
const SENTENCE_CONFIG: &str = "sentence_bert_config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const OPTIONAL: [&str; 3] = [MODULES, SENTENCE_CONFIG, TOKENIZER_CONFIG];

/// How the vectors of tokens are combined into one.
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

impl Module {
    fn is_pooling(&self) -> bool {
        self.kind.ends_with(".Pooling")
    }

    fn settings(&self) -> String {
        format!("{}/config.json", self.path)
    }
}

/// `modules.json` and the modules that it names; none where the file is missing.
fn modules(folder: &ModelFolder) -> Result<Option<(JsonFile, Vec<Module>)>> {
    let file = folder.optional_json(MODULES)?;
    file.map(|file| file.parse().map(|modules| (file, modules))).transpose()
}

/// How token vectors are pooled, and whether the result is normalised.
fn head(folder: &ModelFolder) -> Result<(Pooling, bool)> {
    let (mut pooling, mut normalise) = (Pooling::Mean, false);
    let Some((file, modules)) = modules(folder)? else { return Ok((pooling, normalise)) };
    for module in modules {
        match module.kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" => {}
            "Normalize" => normalise = true,
            "Pooling" => {
                let settings = folder.json(&module.settings())?;
                pooling = pooling_mode(&settings.parse()?).map_err(|reason| settings.error(reason))?;
            }
            other => {
                return Err(file.error(format!("module {other}: expected Transformer, Pooling, Normalize")));
            }
        }
    }
    Ok((pooling, normalise))
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

/// The part of `tokenizer_config.json` that is used.
#[derive(Deserialize)]
struct TokenizerConfig {
    /// The most tokens of a sequence. Some files write "no limit" as a number that does not fit 64 bits.
    model_max_length: Option<f64>,
}

/// A sentence encoder.
pub struct SentenceEncoder {
    model: LanguageModel,
    tokenizer: Tokenizer,
    pooling: Pooling,
    normalise: bool,
    lower_case: bool,
    count: AtomicU64,
}

impl SentenceEncoder {
    /// Loads the sentence encoder in a folder, or of this name on the hub.
    pub fn load(name: &str) -> Result<Self> {
        Self::load_on(name, &EncoderDevice::CPU)
    }

    /// [`Self::load`] for a device.
    pub fn load_on(name: &str, device: &EncoderDevice) -> Result<Self> {
        Self::from_folder(&ModelFolder::open(name)?, device)
    }

    /// The files that determine the vectors.
    pub(crate) fn files(folder: &ModelFolder) -> Result<Vec<String>> {
        let mut files: Vec<String> = REQUIRED.iter().map(|&file| file.to_owned()).collect();
        for file in OPTIONAL {
            files.extend(folder.optional_json(file)?.map(|_| file.to_owned()));
        }
        if let Some((_, modules)) = modules(folder)? {
            files.extend(modules.iter().filter(|module| module.is_pooling()).map(Module::settings));
        }
        Ok(files)
    }

    pub(crate) fn from_folder(folder: &ModelFolder, device: &EncoderDevice) -> Result<Self> {
        let (pooling, normalise) = head(folder)?;
        let model = LanguageModel::load(folder, device)?;
        let sentence = folder.optional_json(SENTENCE_CONFIG)?;
        let sentence = sentence.as_ref().map(JsonFile::parse::<SentenceConfig>).transpose()?;
        let tokens = folder.optional_json(TOKENIZER_CONFIG)?;
        let tokens = tokens.as_ref().map(JsonFile::parse::<TokenizerConfig>).transpose()?;
        // As in the reference, the tokenizer's own bound counts where the model names none.
        let limit = sentence.as_ref().and_then(|config| config.max_seq_length);
        let of_tokenizer = || tokens.and_then(|config| config.model_max_length).map(|length| length as usize);
        let limit = limit.or_else(of_tokenizer).unwrap_or(usize::MAX).min(model.longest);
        Ok(Self {
            tokenizer: folder.tokenizer(limit, model.vocabulary())?,
            model,
            pooling,
            normalise,
            lower_case: sentence.is_some_and(|config| config.do_lower_case),
            count: AtomicU64::new(0),
        })
    }

    /// d, the width of a vector.
    pub fn width(&self) -> usize {
        self.model.width()
    }

    /// How many texts a call of [`Self::encode`] should have.
    pub(crate) fn texts_at_once(&self) -> usize {
        if self.model.card().is_some() { TEXTS_ON_CARD } else { TEXTS }
    }

    /// Returns one vector per text, `[texts, d]` row by row. Texts go through the model sorted by length and without
    /// padding, so that the vector of a text does not depend on the texts beside it: to the bit on the processor, and on a card but for
    /// the rounding of products of other sizes. `done` is called with the
    /// number of texts that were encoded since its last call.
    pub fn encode<S: AsRef<str> + Sync>(&self, texts: &[S], done: impl Fn(u64) + Sync) -> Result<Vec<f32>> {
        if let Some(card) = self.model.card() {
            return self.encode_on(card, texts, done);
        }
        let Tokenized { tokens, order } = self.tokenize(texts)?;
        let blocks = blocks(&order, TOKENS, |i| tokens[i].len());
        let encode = |block: &&[usize]| {
            let sequences: Vec<&[u32]> = block.iter().map(|&i| tokens[i].as_slice()).collect();
            let vectors = self.vectors(&sequences);
            self.count.fetch_add(block.len() as u64, Ordering::Relaxed);
            done(block.len() as u64);
            vectors
        };
        // The longest first: they would keep one thread busy at the end.
        let vectors: Vec<Vec<f32>> = blocks.par_iter().rev().with_max_len(1).map(encode).collect();
        let d = self.width();
        let mut all = vec![0.0; texts.len() * d];
        for (block, vectors) in blocks.iter().rev().zip(&vectors) {
            for (&i, vector) in block.iter().zip(vectors.chunks_exact(d)) {
                all[i * d..(i + 1) * d].copy_from_slice(vector);
            }
        }
        Ok(all)
    }

    /// The card computes the vectors of some texts while the processor splits the next ones into tokens.
    fn encode_on<S: AsRef<str> + Sync>(
        &self,
        card: &DeviceEncoder,
        texts: &[S],
        done: impl Fn(u64),
    ) -> Result<Vec<f32>> {
        let d = self.width();
        let mut all = vec![0.0; texts.len() * d];
        let mut parts = all.chunks_mut(TEXTS_AHEAD * d);
        let compute = |ready: Result<Tokenized>| {
            let (Tokenized { tokens, order }, part) = (ready?, parts.next().unwrap_or_default());
            for block in blocks(&order, TOKENS_ON_CARD, |i| tokens[i].len()) {
                let sequences: Vec<&[u32]> = block.iter().map(|&i| tokens[i].as_slice()).collect();
                let mut vectors = self.model.embed_on(card, &sequences, self.pooling.readout())?;
                for (&i, vector) in block.iter().zip(vectors.chunks_exact_mut(d)) {
                    if self.normalise {
                        normalise(vector);
                    }
                    part[i * d..(i + 1) * d].copy_from_slice(vector);
                }
                self.count.fetch_add(block.len() as u64, Ordering::Relaxed);
                done(block.len() as u64);
            }
            Result::Ok(())
        };
        overlap(texts.chunks(TEXTS_AHEAD), |texts| self.tokenize(texts), compute)?;
        Ok(all)
    }

    fn tokenize<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Tokenized> {
        let tokens = texts.par_iter().map(|text| self.tokens(text.as_ref())).collect::<Result<Vec<_>>>()?;
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|&i| (tokens[i].len(), i));
        Ok(Tokenized { tokens, order })
    }

    /// How many texts went through the model since the last call.
    pub fn take_count(&self) -> u64 {
        self.count.swap(0, Ordering::Relaxed)
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        // As Python's `strip`, which also removes four separators that Rust does not count as white space.
        let text = text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c));
        let lowered = if self.lower_case { text.to_lowercase() } else { String::new() };
        let text = if self.lower_case { &lowered } else { text };
        let encoding = self
            .tokenizer
            .encode(text, true)
            .map_err(|e| Error::Tokens { text: text.chars().take(80).collect(), reason: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// `[sequences, d]`.
    fn vectors(&self, sequences: &[&[u32]]) -> Vec<f32> {
        let d = self.width();
        let hidden = self.model.forward(sequences);
        let mut vectors = vec![0.0; sequences.len() * d];
        let mut first = 0;
        for (vector, tokens) in vectors.chunks_exact_mut(d).zip(sequences) {
            self.pooling.pool(vector, &hidden[first * d..(first + tokens.len()) * d]);
            first += tokens.len();
            if self.normalise {
                normalise(vector);
            }
        }
        vectors
    }
}

/// The tokens of texts, and the texts' numbers from the shortest to the longest.
struct Tokenized {
    tokens: Vec<Vec<u32>>,
    order: Vec<usize>,
}

fn normalise(vector: &mut [f32]) {
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(SMALLEST_NORM);
    vector.iter_mut().for_each(|x| *x /= norm);
}

impl Pooling {
    fn readout(self) -> Readout<'static> {
        match self {
            Self::Mean => Readout::Mean,
            Self::First => Readout::First,
            Self::Max => Readout::Max,
        }
    }

    /// A sequence's tokens `[tokens, d]` to its vector. A sequence without any has zeros.
    fn pool(self, vector: &mut [f32], tokens: &[f32]) {
        let d = vector.len();
        let mut rows = tokens.chunks_exact(d);
        match self {
            Self::First => vector.copy_from_slice(rows.next().unwrap_or(&vec![0.0; d])),
            Self::Mean => {
                rows.for_each(|row| vector.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
                let count = (tokens.len() / d).max(1) as f32;
                vector.iter_mut().for_each(|sum| *sum /= count);
            }
            Self::Max => {
                vector.copy_from_slice(rows.next().unwrap_or(&vec![0.0; d]));
                rows.for_each(|row| vector.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(*x)));
            }
        }
    }
}

/// Cuts `order` into blocks of at most `most` tokens; a longer sequence is a block of its own.
fn blocks(order: &[usize], most: usize, length: impl Fn(usize) -> usize) -> Vec<&[usize]> {
    let (mut blocks, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (at, &i) in order.iter().enumerate() {
        if at > start && tokens + length(i) > most {
            blocks.push(&order[start..at]);
            (start, tokens) = (at, 0);
        }
        tokens += length(i);
    }
    blocks.extend((start < order.len()).then(|| &order[start..]));
    blocks
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
