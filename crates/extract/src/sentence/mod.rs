//! Computes the vectors of sentences as the Python library sentence-transformers does.
//!
//! Reimers and Gurevych, Sentence-BERT, 2019 (arXiv 1908.10084). `modules.json` with the modules that it names,
//! `sentence_bert_config.json` and `config_sentence_transformers.json` of a model are supported; its `config.json` says which
//! language model it uses.

mod head;
mod language;
mod pooling;
mod settings;

use std::sync::atomic::{AtomicU64, Ordering};

use mp4sr_ops::DeviceEncoder;
use rayon::prelude::*;
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{NormalizerWrapper, Tokenizer};

use self::head::{Head, modules};
use self::language::LanguageModel;
use self::settings::{TextSettings, optional_files};
use crate::adapter::text::{self, TextModel};
use crate::device::{EncoderDevice, overlap};
use crate::error::{Error, Result};
use crate::folder::ModelFolder;
use crate::model_files::{CONFIG, TOKENIZER};

/// The number of tokens that go through the layers together: enough for efficient products, few enough to stay in the caches.
const TOKENS: usize = 512;
/// The same for a GPU, which needs many thousands of tokens to be busy.
const TOKENS_ON_GPU: usize = 16_384;
/// The number of texts that are tokenised while the GPU computes the previous ones.
const TEXTS_AHEAD: usize = 4096;
/// The number of texts that one call should encode: enough to sort them by length, or to keep a GPU busy.
const TEXTS: usize = 4096;
const TEXTS_ON_GPU: usize = 65_536;

fn model_types() -> impl Iterator<Item = &'static str> {
    LanguageModel::MODEL_TYPES.into_iter().chain(text::model_types())
}

fn unknown(folder: &ModelFolder, model_type: &str) -> Error {
    let mut known: Vec<&str> = model_types().collect();
    known.sort_unstable();
    folder.config.error(format!("model_type: expected one of {}; found {model_type}", known.join(", ")))
}

/// A language model: the fast path, or a model of candle-transformers.
enum Model {
    Fast(Box<LanguageModel>),
    Adapter(TextModel),
}

impl Model {
    fn load(folder: &ModelFolder, device: &EncoderDevice) -> Result<Self> {
        let model_type = LanguageModel::model_type(folder)?;
        if let Some(model) = LanguageModel::load(folder, &model_type, device)? {
            return Ok(Self::Fast(Box::new(model)));
        }
        device.check_f32(&model_type)?;
        match text::load(folder, &model_type)? {
            Some(model) => Ok(Self::Adapter(model)),
            None => Err(unknown(folder, &model_type)),
        }
    }

    fn width(&self) -> usize {
        match self {
            Self::Fast(model) => model.width(),
            Self::Adapter(model) => model.width,
        }
    }

    fn vocabulary(&self) -> usize {
        match self {
            Self::Fast(model) => model.vocabulary(),
            Self::Adapter(model) => model.vocabulary,
        }
    }

    fn longest(&self) -> usize {
        match self {
            Self::Fast(model) => model.longest,
            Self::Adapter(model) => model.longest,
        }
    }

    /// The model on a GPU, if it was loaded onto one.
    fn gpu(&self) -> Option<(&LanguageModel, &DeviceEncoder)> {
        match self {
            Self::Fast(model) => model.gpu().map(|gpu| (&**model, gpu)),
            Self::Adapter(_) => None,
        }
    }

    fn forward(&self, sequences: &[&[u32]]) -> Result<Vec<f32>> {
        match self {
            Self::Fast(model) => Ok(model.forward(sequences)),
            Self::Adapter(model) => model.forward(sequences),
        }
    }
}

/// A sentence encoder.
///
/// ```
/// use mp4sr_extract::SentenceEncoder;
///
/// # let name = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/encoders/tiny-sentence");
/// let encoder = SentenceEncoder::load(name)?;
/// let vectors = encoder.encode(&["a red cup", "a blue pan"], |_done| ())?;
/// assert_eq!((encoder.width(), vectors.len()), (96, 192), "two vectors of 96 numbers, one after the other");
/// # Ok::<(), mp4sr_extract::Error>(())
/// ```
pub struct SentenceEncoder {
    model: Model,
    tokenizer: Tokenizer,
    head: Head,
    /// The prompt that precedes every text.
    prompt: String,
    count: AtomicU64,
}

impl SentenceEncoder {
    /// Loads a sentence encoder from a folder, or from the hub by its name.
    pub fn load(name: &str) -> Result<Self> {
        Self::load_on(name, &EncoderDevice::CPU)
    }

    /// [`Self::load`] for a device.
    pub fn load_on(name: &str, device: &EncoderDevice) -> Result<Self> {
        Self::from_folder(&ModelFolder::open(name)?, device)
    }

    /// The files that determine the vectors.
    pub(crate) fn files(folder: &ModelFolder) -> Result<Vec<String>> {
        let model_type = LanguageModel::model_type(folder)?;
        if !model_types().any(|known| known == model_type) {
            return Err(unknown(folder, &model_type));
        }
        // The weights are requested last, because a cache that has them counts as complete when the hub cannot be reached.
        let mut optional = optional_files(folder)?;
        if let Some((_, modules)) = modules(folder)? {
            optional.extend(modules.iter().flat_map(head::Module::files));
        }
        let weights = folder.weight_files()?;
        Ok([CONFIG.to_owned(), TOKENIZER.to_owned()].into_iter().chain(weights).chain(optional).collect())
    }

    pub(crate) fn from_folder(folder: &ModelFolder, device: &EncoderDevice) -> Result<Self> {
        let settings = TextSettings::read(folder)?;
        let head = Head::read(folder, settings.truncate, !settings.prompt.is_empty())?;
        let model = Model::load(folder, device)?;
        head.check(folder, model.width())?;
        if model.gpu().is_some() && head.poolings.iter().any(|pooling| pooling.readout().is_none()) {
            return Err(Error::Device(format!(
                "extract.text.model: on a GPU, only the pooling modes mean, cls and max are supported, and this model uses {:?}; \
                 set run.device to \"cpu\"",
                head.poolings
            )));
        }
        let limit = settings.limit.unwrap_or(usize::MAX).min(model.longest());
        let mut tokenizer = folder.tokenizer(limit, model.vocabulary())?;
        if settings.lower_case {
            lower_case_first(&mut tokenizer).map_err(|e| folder.config.error(e.to_string()))?;
        }
        Ok(Self { tokenizer, model, head, prompt: settings.prompt, count: AtomicU64::new(0) })
    }

    /// d, the width of a vector.
    pub fn width(&self) -> usize {
        self.head.width(self.model.width())
    }

    /// How many texts a call of [`Self::encode`] should have.
    pub(crate) fn texts_at_once(&self) -> usize {
        if self.model.gpu().is_some() { TEXTS_ON_GPU } else { TEXTS }
    }

    /// Returns one vector per text, `[texts, d]` row by row. Texts go through the model sorted by length and without padding, so the vector
    /// of a text does not depend on the texts beside it. On the CPU, this holds exactly; on a GPU, up to the rounding of products of other
    /// sizes. `done` is called with the number of texts that were encoded since its last call.
    pub fn encode<S: AsRef<str> + Sync>(&self, texts: &[S], done: impl Fn(u64) + Sync) -> Result<Vec<f32>> {
        if let Some((model, gpu)) = self.model.gpu() {
            return self.encode_on(model, gpu, texts, done);
        }
        let Tokenized { tokens, order } = self.tokenize(texts)?;
        let blocks = blocks(&order, TOKENS, |i| tokens[i].len());
        let encode = |block: &&[usize]| {
            let sequences: Vec<&[u32]> = block.iter().map(|&i| tokens[i].as_slice()).collect();
            let vectors = self.vectors(&sequences)?;
            self.count.fetch_add(block.len() as u64, Ordering::Relaxed);
            done(block.len() as u64);
            Result::Ok(vectors)
        };
        // The longest texts come first, because they would keep a single thread busy at the end.
        let vectors: Vec<Vec<f32>> = blocks.par_iter().rev().with_max_len(1).map(encode).collect::<Result<_>>()?;
        let d = self.width();
        let mut all = vec![0.0; texts.len() * d];
        for (block, vectors) in blocks.iter().rev().zip(&vectors) {
            for (&i, vector) in block.iter().zip(vectors.chunks_exact(d)) {
                all[i * d..(i + 1) * d].copy_from_slice(vector);
            }
        }
        Ok(all)
    }

    /// Computes the vectors of some texts on the GPU while the CPU tokenises the next ones.
    fn encode_on<S: AsRef<str> + Sync>(
        &self,
        model: &LanguageModel,
        gpu: &DeviceEncoder,
        texts: &[S],
        done: impl Fn(u64),
    ) -> Result<Vec<f32>> {
        let d = self.width();
        let mut all = vec![0.0; texts.len() * d];
        let mut parts = all.chunks_mut(TEXTS_AHEAD * d);
        let compute = |ready: Result<Tokenized>| {
            let (Tokenized { tokens, order }, part) = (ready?, parts.next().unwrap_or_default());
            for block in blocks(&order, TOKENS_ON_GPU, |i| tokens[i].len()) {
                let sequences: Vec<&[u32]> = block.iter().map(|&i| tokens[i].as_slice()).collect();
                let readouts = self.head.poolings.iter().filter_map(|pooling| pooling.readout());
                let pooled = readouts.map(|readout| model.embed_on(gpu, &sequences, readout));
                let pooled = pooled.collect::<Result<Vec<_>>>()?;
                let width = model.width();
                for (at, &i) in block.iter().enumerate() {
                    let row = pooled.iter().flat_map(|pooled| &pooled[at * width..(at + 1) * width]);
                    part[i * d..(i + 1) * d].copy_from_slice(&self.head.forward(row.copied().collect()));
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

    /// Returns the number of texts that went through the model since the last call.
    pub fn take_count(&self) -> u64 {
        self.count.swap(0, Ordering::Relaxed)
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let text = format!("{}{text}", self.prompt);
        let encoding = self
            .tokenizer
            .encode(text.as_str(), true)
            .map_err(|e| Error::Tokens { text: text.chars().take(80).collect(), reason: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The vectors of sequences, `[sequences, d]`.
    fn vectors(&self, sequences: &[&[u32]]) -> Result<Vec<f32>> {
        let width = self.model.width();
        let hidden = self.model.forward(sequences)?;
        let mut vectors = Vec::with_capacity(sequences.len() * self.width());
        let mut first = 0;
        for tokens in sequences {
            let states = &hidden[first * width..(first + tokens.len()) * width];
            let pooled = self.head.poolings.iter().flat_map(|pooling| pooling.pool(states, width)).collect();
            vectors.extend(self.head.forward(pooled));
            first += tokens.len();
        }
        Ok(vectors)
    }
}

/// The tokens of texts, and the indices of the texts from the shortest to the longest.
struct Tokenized {
    tokens: Vec<Vec<u32>>,
    order: Vec<usize>,
}

/// Cuts `order` into blocks of at most `most` tokens; a longer sequence gets its own block.
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

/// Lets a tokenizer write text in lower case before anything else. Special tokens that occur in a text keep their spelling.
fn lower_case_first(tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
    let own = tokenizer.get_normalizer().cloned();
    let all = std::iter::once(NormalizerWrapper::from(Lowercase)).chain(own).collect();
    tokenizer.with_normalizer(Some(NormalizerWrapper::from(Sequence::new(all)))).map(|_| ())
}
