//! The stage: `dataset/items.parquet` to `features/`.
//!
//! First the missing vectors are added to the cache, a chunk at a time; then features are written out of the cache. Neither
//! holds the vectors of a catalogue in memory.

mod image_files;
mod image_words;
mod images;
mod plan;
mod report;
mod sounds;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use mp4sr_artifact::{
    EncoderWork, ExtractReport, FeatureType, Features, Fingerprint, Items, Lock, RowsHeader, Stage, VectorKey, files,
    vector_key,
};
use mp4sr_ops::ComputeDevice;
use mp4sr_pipeline::config::{ImageFeatures, Precision, Storage};
use mp4sr_pipeline::{Context, Shard, run_stage};
use serde_json::json;

use self::image_files::ImageFiles;
use self::image_words::embed_words;
use self::plan::{Plan, earlier_stage};
use crate::cache::{self, CachedEncoder, EncoderCache};
use crate::device::EncoderDevice;
use crate::error::{Error, Result};
use crate::folder::{Access, ModelFolder};
use crate::open::{image_encoder, image_encoder_files};
use crate::sentence::SentenceEncoder;

/// Raised with every change of what the same inputs give.
const VERSION: u32 = 3;
const NAME: &str = "extract";

/// Brings `features/` up to date.
pub fn run(context: &Context) -> anyhow::Result<()> {
    let plan = Plan::of(context, context.config.extracted(), Access::Full)?;
    let data = Path::new(&context.config.dataset.data);
    let items = Items::read_in(&context.layout.items(), data)?;
    let files = ImageFiles::of(&items, data);
    let make_stage = || stage_of(context, &plan, &files, Access::Full);
    run_stage(context, NAME, &context.layout.features(), make_stage, |_| {
        let device = encoder_device(context)?;
        Ok(Extraction { context, items: &items, dictionary_items: &items, files: &files, device }.run(&plan)?)
    })
}

/// Brings the vectors of one part of the items into the cache, and writes no features. Parts may be computed at once, by
/// processes on several machines that share the cache, and again after a kill.
pub fn run_shard(context: Context, shard: Shard) -> anyhow::Result<()> {
    let plan = Plan::of(&context, context.config.extracted(), Access::Full)?;
    let data = Path::new(&context.config.dataset.data);
    let all = Items::read_in(&context.layout.items(), data)?;
    let items = all.select(&shard.range(all.len()).collect::<Vec<_>>());
    let files = ImageFiles::of(&items, data);
    let device = encoder_device(&context)?;
    let (shards, name) = (context.layout.root().join("shards"), format!("{NAME}.{}", shard.file_name()));
    let _lock = Lock::acquire(&shards, &name)?;
    let scratch = shards.join(name);
    let own = Context { layout: context.layout.at(&scratch), ..context };
    Extraction { context: &own, items: &items, dictionary_items: &all, files: &files, device }.run(&plan)?;
    files::remove_dir_if_present(&scratch)?;
    own.progress.log(format!(
        "extract: the vectors of part {shard}, {} of {} items, are in the cache; `mp4sr extract` without `--shard` writes features \
         when all parts are done",
        items.len(),
        all.len()
    ));
    Ok(())
}

/// The stage, or that of an earlier run that made all of it.
fn stage_of(context: &Context, plan: &Plan, files: &ImageFiles, access: Access) -> anyhow::Result<Stage> {
    match earlier_stage(context, plan, files, access)? {
        Some(earlier) => Ok(earlier),
        None => plan.stage(context, files),
    }
}

/// The stage as far as this machine has its encoders: nothing is fetched and nothing is written. An encoder that is not here is an error.
pub fn local_stage(context: &Context) -> anyhow::Result<Stage> {
    let access = Access::LocalOnly;
    let plan = Plan::of(context, context.config.extracted(), access)?;
    let data = Path::new(&context.config.dataset.data);
    let items = Items::read_in(&context.layout.items(), data)?;
    stage_of(context, &plan, &ImageFiles::of(&items, data), access)
}

/// Writes the features of new items, whose table is in `context`, as the dataset of the items `known` has them: with the same
/// encoders, dictionary and cache. Says what could not be used.
pub fn extract_new_items(context: &Context, known: &Items) -> anyhow::Result<ExtractReport> {
    let plan = Plan::of(context, context.config.extracted(), Access::Full)?;
    let data = Path::new(&context.config.dataset.data);
    let items = Items::read_in(&context.layout.items(), data)?;
    let files = ImageFiles::of(&items, data);
    let device = encoder_device(context)?;
    Extraction { context, items: &items, dictionary_items: known, files: &files, device }.run(&plan)?;
    let path = context.layout.extract_report();
    serde_json::from_slice(&files::read(&path)?).with_context(|| format!("failed to read `{}`", path.display()))
}

/// Where the configuration says that encoders compute. It fails where the machine lacks the device or its precision.
pub fn encoder_device(context: &Context) -> anyhow::Result<EncoderDevice> {
    let device: ComputeDevice = context.config.run.device.parse().map_err(anyhow::Error::msg).context("run.device")?;
    let precision = match context.config.extract.precision {
        Precision::F32 => mp4sr_ops::Precision::F32,
        Precision::Tf32 => mp4sr_ops::Precision::Tf32,
        Precision::Bf16 => mp4sr_ops::Precision::Bf16,
    };
    Ok(EncoderDevice::open(device, precision)?)
}

/// The sentence encoder with its vectors in the cache, and how much it has computed.
struct Sentences {
    encoder: SentenceEncoder,
    cache: EncoderCache,
    work: EncoderWork,
}

impl Sentences {
    fn open(extraction: &Extraction<'_>, folder: &ModelFolder) -> Result<Self> {
        let encoder = SentenceEncoder::from_folder(folder, &extraction.device)?;
        let files = SentenceEncoder::files(folder)?;
        let cache = extraction.open_cache(folder, "sentences", files, encoder.width())?;
        Ok(Self { encoder, cache, work: EncoderWork::default() })
    }
}

/// The fingerprint of what turns an image into the vectors of the `count` nearest of `words`.
fn encoder_of_words(image: &Fingerprint, text: &Fingerprint, words: &[String], count: usize) -> Fingerprint {
    Fingerprint::of_bytes(format!("{image} {text} {count} {}", words.join("\n")).as_bytes())
}

fn text_keys(texts: &[String]) -> Vec<VectorKey> {
    texts.iter().map(|text| vector_key(text.as_bytes())).collect()
}

struct Extraction<'x> {
    context: &'x Context,
    items: &'x Items,
    /// Whose words join the dictionary.
    dictionary_items: &'x Items,
    files: &'x ImageFiles,
    device: EncoderDevice,
}

impl Extraction<'_> {
    fn run(&self, plan: &Plan) -> Result<Vec<PathBuf>> {
        let mut report = ExtractReport {
            sentences: self.items.sentences.iter().map(Vec::len).sum(),
            items_without_text: self.items.sentences.iter().filter(|sentences| sentences.is_empty()).count(),
            images: self.items.images.iter().map(Vec::len).sum(),
            items_without_image: self.items.images.iter().filter(|images| images.is_empty()).count(),
            sounds: self.items.sounds.iter().map(Vec::len).sum(),
            items_without_sound: self.items.sounds.iter().filter(|sounds| sounds.is_empty()).count(),
            ..ExtractReport::default()
        };
        let mut sentences = plan.text.as_ref().map(|folder| Sentences::open(self, folder)).transpose()?;
        let mut outputs = Vec::new();
        if let Some(sentences) = sentences.as_mut().filter(|_| plan.extracted.text) {
            outputs.push(self.extract_text(sentences)?);
        }
        if let Some(image) = &plan.image {
            outputs.extend(self.extract_images(image, sentences.as_mut(), &mut report)?);
        }
        if let Some(audio) = &plan.audio {
            outputs.push(self.extract_sounds(audio, &mut report)?);
        }
        report.sentence_encoder = sentences.map_or(EncoderWork::default(), |sentences| sentences.work);
        report::log(&report, self.items.len(), plan.extracted, &self.context.progress);
        let path = self.context.layout.extract_report();
        files::write_json(&path, &report)?;
        outputs.push(path);
        Ok(outputs)
    }

    /// Writes the features of items' sentences.
    fn extract_text(&self, sentences: &mut Sentences) -> Result<PathBuf> {
        let path = self.context.layout.feature_file("text", &self.context.config.extract.text.encoder_name());
        self.encode("text", sentences, self.items.sentences.iter().flatten())?;
        let of_items: Vec<Vec<VectorKey>> = self.items.sentences.iter().map(|texts| text_keys(texts)).collect();
        self.write(&path, &sentences.cache, &sentences.cache.fingerprint, &of_items)?;
        Ok(path)
    }

    /// Writes the features of items' images; of words, where `sentences` is there, as `[extract.image]` says.
    fn extract_images(
        &self,
        image: &ModelFolder,
        sentences: Option<&mut Sentences>,
        report: &mut ExtractReport,
    ) -> Result<Vec<PathBuf>> {
        let settings = &self.context.config.extract;
        let image_name = settings.image.encoder_name(&settings.text);
        let path = self.context.layout.feature_file("image", &image_name);
        let embedder = image_encoder(image, &self.device)?;
        let width = embedder.width();
        let cache = self.open_cache(image, "images", image_encoder_files(image)?, width)?;
        let images = self.embed_images(embedder.as_ref(), cache)?;
        let usable: Vec<Vec<(&String, VectorKey)>> =
            self.items.images.iter().map(|names| self.usable(names, &images)).collect();
        let mut outputs = vec![path.clone()];
        match sentences.filter(|_| settings.image.features == ImageFeatures::Words) {
            None => {
                let of_items: Vec<Vec<VectorKey>> =
                    usable.iter().map(|images| images.iter().map(|(_, key)| *key).collect()).collect();
                self.write(&path, &images.cache, &images.cache.fingerprint, &of_items)?;
            }
            Some(sentences) => {
                let Some(word_encoder) = embedder.word_encoder() else {
                    let found = image.model_type()?;
                    return Err(image.config.error(format!("model_type: expected clip, found {found}")));
                };
                let words = self.dictionary()?;
                report.dictionary_words = words.len();
                let cache = self.open_cache(image, "words", image_encoder_files(image)?, width)?;
                let of_words;
                (of_words, report.word_encoder) = embed_words(word_encoder, cache, width, &words)?;
                let words_path = self.context.layout.words_file("image", &image_name);
                let chosen = self.choose_words(&words_path, &usable, &images.cache.vectors, &of_words, &words)?;
                self.encode("image words", sentences, chosen.iter().flatten())?;
                let of_items: Vec<Vec<VectorKey>> = chosen.iter().map(|texts| text_keys(texts)).collect();
                let (of_images, of_texts) = (&images.cache.fingerprint, &sentences.cache.fingerprint);
                let encoder = encoder_of_words(of_images, of_texts, &words, settings.image.words);
                self.write(&path, &sentences.cache, &encoder, &of_items)?;
                outputs.push(words_path);
            }
        }
        report.described = usable.iter().map(Vec::len).sum();
        report.items_without_image = usable.iter().filter(|images| images.is_empty()).count();
        report.unusable = self.unusable(&images);
        report.image_encoder = images.work;
        Ok(outputs)
    }

    /// Opens the cached vectors of an encoder and logs which shards could not be used.
    fn open_cache(
        &self,
        folder: &ModelFolder,
        content: &'static str,
        files: Vec<String>,
        width: usize,
    ) -> Result<EncoderCache> {
        let encoder = CachedEncoder { folder, content, files, width, precision: self.device.precision() };
        let cache = cache::open(&self.context.layout.vectors(), &encoder)?;
        cache.vectors.damaged().iter().for_each(|damage| self.context.progress.log(format!("extract: {damage}")));
        Ok(cache)
    }

    /// Computes the vectors of the texts that are missing in the cache.
    fn encode<'t>(&self, what: &str, sentences: &mut Sentences, texts: impl Iterator<Item = &'t String>) -> Result<()> {
        let Sentences { encoder, cache, work } = sentences;
        let mut seen: HashMap<VectorKey, &String> = HashMap::new();
        for text in texts {
            seen.entry(vector_key(text.as_bytes())).or_insert(text);
        }
        work.distinct += seen.len() as u64;
        let mut new: Vec<(VectorKey, &String)> =
            seen.into_iter().filter(|(key, _)| !cache.vectors.contains(*key)).collect();
        new.sort_unstable();
        let start = Instant::now();
        let bar = self.context.progress.bar(what, "sentences", new.len() as u64);
        for chunk in new.chunks(encoder.texts_at_once()) {
            let texts: Vec<&String> = chunk.iter().map(|(_, text)| *text).collect();
            let vectors = encoder.encode(&texts, |count| bar.add(count))?;
            let keys: Vec<VectorKey> = chunk.iter().map(|(key, _)| *key).collect();
            cache.vectors.add(&keys, &vectors)?;
        }
        cache.vectors.flush()?;
        let computed = encoder.take_count();
        work.computed += computed;
        cache.note(computed, start.elapsed())
    }

    /// Writes the features of the items, each with the vectors of its `keys`; `encoder` is the fingerprint of all that made the
    /// vectors of what an item has. Features are not replaced by none at all.
    fn write(&self, path: &Path, encoded: &EncoderCache, encoder: &Fingerprint, keys: &[Vec<VectorKey>]) -> Result<()> {
        if keys.iter().all(Vec::is_empty)
            && let Some(rows) = Features::stored_rows(path).filter(|&rows| rows > 0)
        {
            return Err(Error::Emptied { path: path.to_owned(), rows });
        }
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
        let rows = || keys.iter().flatten().filter_map(|key| encoded.vectors.get(*key));
        if rows().count() != keys.iter().map(Vec::len).sum::<usize>() {
            return Err(Error::Missing { path: path.to_owned() });
        }
        let mut recorded = json!(settings);
        recorded["encoder"] = json!(encoder);
        let header = RowsHeader {
            stage: NAME,
            settings: recorded,
            item_hash: self.items.hash(),
            offsets: &offsets,
            width: encoded.width(),
            as_type: kind,
        };
        match Features::write_rows(path, header, rows)? {
            None => Ok(()),
            Some(_) => {
                Err(Error::Storage { path: path.to_owned(), storage: format!("{:?}", settings.storage).to_lowercase() })
            }
        }
    }
}
