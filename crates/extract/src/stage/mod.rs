//! The stage: `dataset/items.parquet` to `features/`.
//!
//! First the missing vectors are added to the cache, a chunk at a time; then features are written out of the cache. Neither
//! holds the vectors of a catalogue in memory.

mod image_files;
mod image_words;
mod images;
mod report;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use mp4sr_artifact::{FeatureType, Features, Fingerprint, Items, Stage, VectorCache, VectorKey, files, vector_key};
use mp4sr_pipeline::config::{ImageFeatures, Storage};
use mp4sr_pipeline::{Context, run_stage};
use serde_json::json;

use self::image_files::ImageFiles;
use self::image_words::embed_words;
use self::report::{EncoderWork, ExtractReport};
use crate::cache::{self, CachedEncoder};
use crate::dictionary;
use crate::error::{Error, Result};
use crate::folder::ModelFolder;
use crate::open::{image_encoder, image_encoder_files};
use crate::sentence::SentenceEncoder;

/// Raised with every change of what the same inputs give.
const VERSION: u32 = 2;
const NAME: &str = "extract";
/// Sentences whose vectors are computed before they go to the cache: enough to sort by length.
const SENTENCES: usize = 4096;

/// Brings `features/` up to date.
pub fn run(context: &Context) -> anyhow::Result<()> {
    let settings = &context.config.extract;
    let text = ModelFolder::open(&settings.text.model)?;
    let image = ModelFolder::open(&settings.image.model)?;
    let mut inputs = vec![("items".to_owned(), context.layout.items())];
    inputs.extend(text.inputs("text", &SentenceEncoder::files(&text)?)?);
    inputs.extend(image.inputs("image", &image_encoder_files(&image)?)?);
    if !settings.image.dictionary.is_empty() {
        inputs.push(("dictionary".to_owned(), PathBuf::from(&settings.image.dictionary)));
    }
    let items = Items::read(&context.layout.items())?;
    let files = ImageFiles::of(&items, Path::new(&context.config.dataset.data));
    let make_stage = || {
        let carried = Fingerprint::of_bytes(dictionary::build(&[], 0).join("\n").as_bytes());
        let recorded = json!({"extract": settings, "image_files": files.fingerprint(), "visual_words": carried});
        Ok(Stage::new(NAME, VERSION, &context.layout.features(), &recorded, &inputs)?)
    };
    run_stage(context, NAME, &context.layout.features(), make_stage, |_| {
        Ok(Extraction { context, items: &items, files: &files }.run(&text, &image)?)
    })
}

struct Extraction<'x> {
    context: &'x Context,
    items: &'x Items,
    files: &'x ImageFiles,
}

impl Extraction<'_> {
    fn run(&self, text: &ModelFolder, image: &ModelFolder) -> Result<Vec<PathBuf>> {
        let settings = &self.context.config.extract;
        let layout = &self.context.layout;
        let image_name = settings.image.encoder_name(&settings.text);
        let text_path = layout.feature_file("text", &settings.text.encoder_name());
        let image_path = layout.feature_file("image", &image_name);

        let encoder = SentenceEncoder::from_folder(text)?;
        let mut sentences = self.open_cache(text, "sentences", SentenceEncoder::files(text)?, encoder.width())?;
        let mut sentence_work = EncoderWork::default();
        self.encode("text", &encoder, &mut sentences, &mut sentence_work, self.items.sentences.iter().flatten())?;
        let keys = |texts: &[String]| texts.iter().map(|text| vector_key(text.as_bytes())).collect::<Vec<_>>();
        let of_items: Vec<Vec<VectorKey>> = self.items.sentences.iter().map(|texts| keys(texts)).collect();
        self.write(&text_path, &sentences, encoder.width(), &of_items)?;

        let embedder = image_encoder(image)?;
        let width = embedder.width();
        let cache = self.open_cache(image, "images", image_encoder_files(image)?, width)?;
        let images = self.embed_images(embedder.as_ref(), cache)?;
        let usable: Vec<Vec<(&String, VectorKey)>> =
            self.items.images.iter().map(|names| self.usable(names, &images)).collect();
        let mut outputs = vec![text_path, image_path.clone()];
        let (mut dictionary_words, mut word_work) = (0, EncoderWork::default());
        match settings.image.features {
            ImageFeatures::Embedding => {
                let of_items: Vec<Vec<VectorKey>> =
                    usable.iter().map(|images| images.iter().map(|(_, key)| *key).collect()).collect();
                self.write(&image_path, &images.vectors, width, &of_items)?;
            }
            ImageFeatures::Words => {
                let Some(word_encoder) = embedder.word_encoder() else {
                    let found = image.model_type()?;
                    return Err(image.config.error(format!("model_type: expected clip, found {found}")));
                };
                let words = self.dictionary()?;
                dictionary_words = words.len();
                let cache = self.open_cache(image, "words", image_encoder_files(image)?, width)?;
                let of_words;
                (of_words, word_work) = embed_words(word_encoder, cache, width, &words)?;
                let words_path = layout.words_file("image", &image_name);
                let chosen = self.choose_words(&words_path, &usable, &images.vectors, &of_words, &words)?;
                self.encode("image words", &encoder, &mut sentences, &mut sentence_work, chosen.iter().flatten())?;
                let of_items: Vec<Vec<VectorKey>> = chosen.iter().map(|texts| keys(texts)).collect();
                self.write(&image_path, &sentences, encoder.width(), &of_items)?;
                outputs.push(words_path);
            }
        }
        let report = ExtractReport {
            sentences: self.items.sentences.iter().map(Vec::len).sum(),
            items_without_text: self.items.sentences.iter().filter(|sentences| sentences.is_empty()).count(),
            images: self.items.images.iter().map(Vec::len).sum(),
            described: usable.iter().map(Vec::len).sum(),
            items_without_image: usable.iter().filter(|images| images.is_empty()).count(),
            dictionary_words,
            sentence_encoder: sentence_work,
            word_encoder: word_work,
            image_encoder: images.work,
            unusable: self.unusable(&images),
        };
        report.log(self.items.len(), &self.context.progress);
        files::write_json(&layout.extract_report(), &report)?;
        outputs.push(layout.extract_report());
        Ok(outputs)
    }

    /// Opens the cached vectors of an encoder and logs which shards could not be used.
    fn open_cache(
        &self,
        folder: &ModelFolder,
        content: &'static str,
        files: Vec<String>,
        width: usize,
    ) -> Result<VectorCache> {
        let encoder = CachedEncoder { folder, content, files, width };
        let cache = cache::open(&self.context.layout.vectors(), &encoder)?;
        cache.damaged().iter().for_each(|damage| self.context.progress.say(format!("extract: {damage}")));
        Ok(cache)
    }

    /// Computes the vectors of the texts that are missing in the cache.
    fn encode<'t>(
        &self,
        what: &str,
        encoder: &SentenceEncoder,
        cache: &mut VectorCache,
        work: &mut EncoderWork,
        texts: impl Iterator<Item = &'t String>,
    ) -> Result<()> {
        let mut seen: HashMap<VectorKey, &String> = HashMap::new();
        for text in texts {
            seen.entry(vector_key(text.as_bytes())).or_insert(text);
        }
        work.distinct += seen.len() as u64;
        let mut new: Vec<(VectorKey, &String)> = seen.into_iter().filter(|(key, _)| !cache.contains(*key)).collect();
        new.sort_unstable();
        let bar = self.context.progress.bar(what, "sentences", new.len() as u64);
        for chunk in new.chunks(SENTENCES) {
            let texts: Vec<&String> = chunk.iter().map(|(_, text)| *text).collect();
            let vectors = encoder.encode(&texts, |count| bar.add(count))?;
            let keys: Vec<VectorKey> = chunk.iter().map(|(key, _)| *key).collect();
            cache.add(&keys, &vectors)?;
        }
        work.computed += encoder.take_count();
        cache.flush().map_err(Error::from)
    }

    /// Writes the features of the items, each with the vectors of its `keys`.
    fn write(&self, path: &Path, cache: &VectorCache, width: usize, keys: &[Vec<VectorKey>]) -> Result<()> {
        let mut offsets = vec![0_i64];
        offsets.extend(keys.iter().scan(0, |rows, keys| {
            *rows += keys.len() as i64;
            Some(*rows)
        }));
        let settings = &self.context.config.extract;
        let kind = match settings.storage {
            Storage::F16 => FeatureType::F16,
            Storage::Bf16 => FeatureType::Bf16,
            Storage::F32 => FeatureType::F32,
        };
        let rows = || keys.iter().flatten().filter_map(|key| cache.get(*key));
        if rows().count() != keys.iter().map(Vec::len).sum::<usize>() {
            return Err(Error::Missing { path: path.to_owned() });
        }
        let (stage, items) = ((NAME, json!(settings)), (self.items.hash(), &offsets[..]));
        match Features::write_rows(path, stage, items, (width, kind), rows)? {
            None => Ok(()),
            Some(_) => {
                Err(Error::Storage { path: path.to_owned(), storage: format!("{:?}", settings.storage).to_lowercase() })
            }
        }
    }
}
