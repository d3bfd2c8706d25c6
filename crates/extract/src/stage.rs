//! The stage: `dataset/items.parquet` to `features/`.
//!
//! First the cache gets the vectors that it lacks, a chunk at a time; then features are written out of the cache. Neither
//! holds the vectors of a catalogue in memory.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use mp4sr_artifact::{
    Column, Downloads, FeatureType, Features, Fingerprint, Items, Manifest, Stage, StageSettings, Status, Table,
    VectorCache, VectorKey, files, pictures, vector_key,
};
use mp4sr_pipeline::config::{Extract, Extracted, ImageFeatures, Storage};
use mp4sr_pipeline::{Context, run_stage};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cache::{self, Role};
use crate::clip::Clip;
use crate::dictionary;
use crate::error::{Error, Result};
use crate::image_encoder::{self, ImageEncoder};
use crate::sentence::SentenceEncoder;
use crate::source::Source;
use crate::words::WordVectors;

/// Raised with every change of what the same inputs give.
const VERSION: u32 = 2;
const NAME: &str = "extract";
/// How many unusable images are told by name.
const EXAMPLES: usize = 3;
/// Sentences whose vectors are computed before they go to the cache: enough to sort by length.
const SENTENCES: usize = 4096;
/// Image files that are read before their vectors go to the cache.
const IMAGES: usize = 256;

/// Brings `features/` up to date.
pub fn run(context: &Context) -> anyhow::Result<()> {
    let plan = Plan::of(context, context.config.extracted())?;
    let items = Items::read(&context.layout.items())?;
    let files = ImageFiles::of(&items, Path::new(&context.config.dataset.data));
    let make_stage = || match earlier_stage(context, &plan, &files)? {
        Some(earlier) => Ok(earlier),
        None => plan.stage(context, &files),
    };
    run_stage(context, NAME, &context.layout.features(), make_stage, |_| {
        Ok(Extraction { context, items: &items, files: &files }.run(&plan)?)
    })
}

/// What is extracted, and by which encoders: no other is opened.
struct Plan {
    extracted: Extracted,
    text: Option<Source>,
    image: Option<Source>,
}

impl Plan {
    fn of(context: &Context, extracted: Extracted) -> Result<Self> {
        let settings = &context.config.extract;
        let open = |is_used: bool, model: &str| {
            is_used.then(|| Source::find_or_carried(model, &context.layout.encoders())).transpose()
        };
        // The words of images go through the sentence encoder.
        let reads_words = extracted.image && settings.image.features == ImageFeatures::Words;
        let text = open(extracted.text || reads_words, &settings.text.model)?;
        Ok(Self { extracted, text, image: open(extracted.image, &settings.image.model)? })
    }

    /// What is recorded of the settings: without those of encoders that are not used.
    fn recorded(&self, context: &Context, files: &ImageFiles) -> Value {
        let settings = &context.config.extract;
        let carried = || Fingerprint::of_bytes(dictionary::build(&[], 0).join("\n").as_bytes());
        if self.extracted == Extracted::ALL {
            return json!({"extract": settings, "image_files": files.stamp(), "visual_words": carried()});
        }
        let mut recorded = json!({"extract": {"storage": settings.storage}, "extracted": self.extracted});
        if self.text.is_some() {
            recorded["extract"]["text"] = json!(settings.text);
        }
        if self.image.is_some() {
            recorded["extract"]["image"] = json!(settings.image);
            recorded["image_files"] = json!(files.stamp());
            recorded["visual_words"] = json!(carried());
        }
        recorded
    }

    fn stage(&self, context: &Context, files: &ImageFiles) -> anyhow::Result<Stage> {
        let mut inputs = vec![("items".to_owned(), context.layout.items())];
        if let Some(text) = &self.text {
            inputs.extend(text.inputs("text", &SentenceEncoder::files(text)?)?);
        }
        if let Some(image) = &self.image {
            inputs.extend(image.inputs("image", &image_encoder::files(image)?)?);
            let dictionary = &context.config.extract.image.dictionary;
            if !dictionary.is_empty() {
                inputs.push(("dictionary".to_owned(), PathBuf::from(dictionary)));
            }
        }
        let defaults = json!({"extract": Extract::default()});
        let settings = StageSettings::new(self.recorded(context, files), defaults);
        Ok(Stage::new(NAME, VERSION, &context.layout.features(), settings, &inputs)?)
    }
}

/// The stage of an earlier run that extracted everything under the same settings, where it is up to date: it serves a run that
/// reads less. Runs of one dataset with other modalities would otherwise undo each other's work.
fn earlier_stage(context: &Context, plan: &Plan, files: &ImageFiles) -> anyhow::Result<Option<Stage>> {
    if plan.extracted == Extracted::ALL {
        return Ok(None);
    }
    let record = context.layout.features().join(format!("{NAME}.manifest.json"));
    let earlier: Option<Manifest> = files::read(&record).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    // Settings first: what has never run with these must not open their encoders.
    let is_of_these = |manifest: &Manifest| manifest.settings["extract"] == json!(context.config.extract);
    if !earlier.as_ref().is_some_and(is_of_these) {
        return Ok(None);
    }
    let all = Plan::of(context, Extracted::ALL).map_err(anyhow::Error::from);
    let Ok(stage) = all.and_then(|all| all.stage(context, files)) else { return Ok(None) };
    Ok((stage.status()? == Status::UpToDate).then_some(stage))
}

/// The distinct images of items, and the files they lie in.
struct ImageFiles {
    names: Vec<String>,
    paths: Vec<PathBuf>,
    place: HashMap<String, usize>,
}

impl ImageFiles {
    fn of(items: &Items, data: &Path) -> Self {
        let downloads = Downloads::new(data);
        let mut names: Vec<String> = items.images.iter().flatten().cloned().collect();
        names.sort_unstable();
        names.dedup();
        let paths = names.iter().map(|name| downloads.file(name)).collect();
        let place = names.iter().cloned().enumerate().map(|(at, name)| (name, at)).collect();
        Self { names, paths, place }
    }

    /// Names, sizes and times of change: hashing the content would cost more than asking whether there is anything to do
    /// should.
    fn stamp(&self) -> Fingerprint {
        let mut stamp = String::new();
        for (name, path) in self.names.iter().zip(&self.paths) {
            let meta = std::fs::metadata(path).ok();
            let modified = meta.as_ref().and_then(|meta| meta.modified().ok());
            let _ = writeln!(stamp, "{name:?} {:?} {modified:?}", meta.map(|meta| meta.len()));
        }
        Fingerprint::of_bytes(stamp.as_bytes())
    }
}

/// What the vectors of a run took (`features/report.json`).
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Work {
    /// Distinct ones asked for.
    distinct: u64,
    /// Of these, computed; the others were in the cache.
    computed: u64,
}

/// What became of texts and images (`features/report.json`).
#[derive(Debug, Default, Serialize)]
struct ExtractReport {
    /// Sentences of items.
    sentences: usize,
    /// Items without a sentence.
    items_without_text: usize,
    /// Images of items.
    images: usize,
    /// Of these, with a vector.
    described: usize,
    /// Items without such an image.
    items_without_image: usize,
    /// Words of the dictionary.
    dictionary_words: usize,
    /// Sentences that went through the sentence encoder, those made of image words included.
    sentence_encoder: Work,
    /// Words that went through CLIP.
    word_encoder: Work,
    /// Image files that went through the image encoder.
    image_encoder: Work,
    /// Images that can't be used.
    unusable: Vec<Unusable>,
}

/// An image that can't be used.
#[derive(Debug, Serialize)]
struct Unusable {
    item_id: String,
    image: String,
    reason: String,
}

/// The sentence encoder with its vectors in the cache, and what it took.
struct Sentences {
    encoder: SentenceEncoder,
    cache: VectorCache,
    work: Work,
}

impl Sentences {
    fn open(extraction: &Extraction, source: &Source) -> Result<Self> {
        let encoder = SentenceEncoder::from_source(source)?;
        let role = Role { content: "sentences", files: SentenceEncoder::files(source)? };
        let cache = extraction.open(source, &role, encoder.width())?;
        Ok(Self { encoder, cache, work: Work::default() })
    }
}

fn text_keys(texts: &[String]) -> Vec<VectorKey> {
    texts.iter().map(|text| vector_key(text.as_bytes())).collect()
}

/// Vectors in the cache, or the reason why there is none.
type Outcome = std::result::Result<VectorKey, String>;

struct Extraction<'x> {
    context: &'x Context,
    items: &'x Items,
    files: &'x ImageFiles,
}

impl Extraction<'_> {
    fn run(&self, plan: &Plan) -> Result<Vec<PathBuf>> {
        let mut report = ExtractReport {
            sentences: self.items.sentences.iter().map(Vec::len).sum(),
            items_without_text: self.items.sentences.iter().filter(|sentences| sentences.is_empty()).count(),
            images: self.items.images.iter().map(Vec::len).sum(),
            items_without_image: self.items.images.iter().filter(|images| images.is_empty()).count(),
            ..ExtractReport::default()
        };
        let mut sentences = plan.text.as_ref().map(|source| Sentences::open(self, source)).transpose()?;
        let mut outputs = Vec::new();
        if let Some(sentences) = sentences.as_mut().filter(|_| plan.extracted.text) {
            outputs.push(self.extract_text(sentences)?);
        }
        if let Some(image) = &plan.image {
            outputs.extend(self.extract_images(image, sentences.as_mut(), &mut report)?);
        }
        report.sentence_encoder = sentences.map_or(Work::default(), |sentences| sentences.work);
        self.tell(&report, plan.extracted);
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
        self.write(&path, &sentences.cache, sentences.encoder.width(), &of_items)?;
        Ok(path)
    }

    /// Writes the features of items' images; of words, where `sentences` is there, as `[extract.image]` says.
    fn extract_images(
        &self,
        image: &Source,
        sentences: Option<&mut Sentences>,
        report: &mut ExtractReport,
    ) -> Result<Vec<PathBuf>> {
        let settings = &self.context.config.extract;
        let image_name = settings.image.encoder_name(&settings.text);
        let path = self.context.layout.feature_file("image", &image_name);
        let (outcomes, vectors, image_work, width) = self.embed_images(image)?;
        let usable: Vec<Vec<(&String, VectorKey)>> =
            self.items.images.iter().map(|names| self.usable(names, &outcomes)).collect();
        let mut outputs = vec![path.clone()];
        match sentences.filter(|_| settings.image.features == ImageFeatures::Words) {
            None => {
                let of_items: Vec<Vec<VectorKey>> =
                    usable.iter().map(|images| images.iter().map(|(_, key)| *key).collect()).collect();
                self.write(&path, &vectors, width, &of_items)?;
            }
            Some(sentences) => {
                let words = self.dictionary()?;
                report.dictionary_words = words.len();
                let of_words;
                (of_words, report.word_encoder) = self.embed_words(image, &words)?;
                let words_path = self.context.layout.words_file("image", &image_name);
                let chosen = self.choose_words(&words_path, &usable, &vectors, &of_words, &words)?;
                self.encode("image words", sentences, chosen.iter().flatten())?;
                let of_items: Vec<Vec<VectorKey>> = chosen.iter().map(|texts| text_keys(texts)).collect();
                self.write(&path, &sentences.cache, sentences.encoder.width(), &of_items)?;
                outputs.push(words_path);
            }
        }
        report.described = usable.iter().map(Vec::len).sum();
        report.items_without_image = usable.iter().filter(|images| images.is_empty()).count();
        report.image_encoder = image_work;
        report.unusable = self.unusable(&outcomes);
        Ok(outputs)
    }

    /// The vectors of an encoder, with a word about shards that could not be used.
    fn open(&self, source: &Source, role: &Role, width: usize) -> Result<VectorCache> {
        let cache = cache::open(&self.context.layout.vectors(), source, role, width)?;
        cache.damaged().iter().for_each(|damage| self.context.progress.say(format!("extract: {damage}")));
        Ok(cache)
    }

    /// Computes the vectors of those texts that are not in the cache.
    fn encode<'t>(&self, what: &str, sentences: &mut Sentences, texts: impl Iterator<Item = &'t String>) -> Result<()> {
        let Sentences { encoder, cache, work } = sentences;
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

    /// Writes the features of items that own the vectors of `keys`.
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

    /// Every distinct image's key in the vectors, in the order of the files.
    fn embed_images(&self, source: &Source) -> Result<(Vec<Outcome>, VectorCache, Work, usize)> {
        let encoder = image_encoder::from_source(source)?;
        let role = Role { content: "images", files: image_encoder::files(source)? };
        let mut cache = self.open(source, &role, encoder.width())?;
        let bar = self.context.progress.bar("images", "images", self.files.paths.len() as u64);
        let mut outcomes = Vec::with_capacity(self.files.paths.len());
        let mut work = Work::default();
        for (names, paths) in self.files.names.chunks(IMAGES).zip(self.files.paths.chunks(IMAGES)) {
            let mut keys: Vec<Outcome> = names.par_iter().zip(paths).map(|(name, path)| key_of(name, path)).collect();
            let mut new: Vec<(VectorKey, usize)> = keys
                .iter()
                .enumerate()
                .filter_map(|(at, key)| key.as_ref().ok().map(|key| (*key, at)))
                .filter(|(key, _)| !cache.contains(*key))
                .collect();
            new.sort_unstable();
            new.dedup_by_key(|(key, _)| *key);
            let blocks: Vec<&[(VectorKey, usize)]> = new.chunks(encoder.images_at_once()).collect();
            let embedded: Vec<_> = blocks
                .par_iter()
                .with_max_len(1)
                .map(|block| {
                    let embedded = embed(encoder.as_ref(), block, paths);
                    bar.add(block.len() as u64);
                    embedded
                })
                .collect();
            let mut broken: HashMap<VectorKey, String> = HashMap::new();
            for outcome in embedded {
                let Embedded { keys, vectors, unusable } = outcome?;
                work.computed += keys.len() as u64;
                cache.add(&keys, &vectors)?;
                broken.extend(unusable);
            }
            for key in &mut keys {
                if let Some(reason) = key.as_ref().ok().and_then(|key| broken.get(key)) {
                    *key = Err(reason.clone());
                }
            }
            bar.add((keys.len() - new.len()) as u64);
            outcomes.extend(keys);
        }
        cache.flush()?;
        let mut distinct: Vec<VectorKey> =
            outcomes.iter().filter_map(|outcome| outcome.as_ref().ok().copied()).collect();
        distinct.sort_unstable();
        distinct.dedup();
        work.distinct = distinct.len() as u64;
        Ok((outcomes, cache, work, encoder.width()))
    }

    /// Names and keys of those of an item's images that have a vector.
    fn usable<'n>(&self, names: &'n [String], outcomes: &[Outcome]) -> Vec<(&'n String, VectorKey)> {
        let key = |name: &String| outcomes[self.files.place[name]].as_ref().ok().copied();
        names.iter().filter_map(|name| key(name).map(|key| (name, key))).collect()
    }

    fn unusable(&self, outcomes: &[Outcome]) -> Vec<Unusable> {
        let named = self
            .items
            .ids
            .iter()
            .zip(&self.items.images)
            .flat_map(|(id, names)| names.iter().map(move |name| (id, name)));
        named
            .filter_map(|(id, name)| {
                let reason = outcomes[self.files.place[name]].as_ref().err()?.clone();
                Some(Unusable { item_id: id.clone(), image: name.clone(), reason })
            })
            .collect()
    }

    fn dictionary(&self) -> Result<Vec<String>> {
        let settings = &self.context.config.extract.image;
        if settings.dictionary.is_empty() {
            return Ok(dictionary::build(&self.items.sentences, settings.text_words));
        }
        dictionary::read(Path::new(&settings.dictionary))
    }

    /// CLIP's vectors of the dictionary's words; each is computed once, whatever dictionary it stands in.
    fn embed_words(&self, source: &Source, words: &[String]) -> Result<(WordVectors, Work)> {
        let clip = Clip::from_source(source)?;
        let width = clip.width();
        let role = Role { content: "words", files: image_encoder::files(source)? };
        let mut cache = self.open(source, &role, width)?;
        let keys: Vec<VectorKey> = words.iter().map(|word| vector_key(word.as_bytes())).collect();
        let (new_keys, new): (Vec<VectorKey>, Vec<&String>) =
            keys.iter().copied().zip(words).filter(|(key, _)| !cache.contains(*key)).unzip();
        cache.add(&new_keys, &clip.embed_texts(&new)?)?;
        cache.flush()?;
        let vectors: Vec<f32> = keys.iter().filter_map(|key| cache.get(*key)).flatten().copied().collect();
        let work = Work { distinct: words.len() as u64, computed: new.len() as u64 };
        Ok((WordVectors::new(vectors, width), work))
    }

    /// For each item the word lists of its usable images, each joined by spaces; writes the table of words.
    fn choose_words(
        &self,
        path: &Path,
        usable: &[Vec<(&String, VectorKey)>],
        vectors: &VectorCache,
        of_words: &WordVectors,
        words: &[String],
    ) -> Result<Vec<Vec<String>>> {
        let count = self.context.config.extract.image.words;
        let owned: Vec<(usize, &String, VectorKey)> = usable
            .iter()
            .enumerate()
            .flat_map(|(item, images)| images.iter().map(move |&(name, key)| (item, name, key)))
            .collect();
        let found: Vec<_> = owned
            .par_iter()
            .map(|&(_, _, key)| of_words.nearest(vectors.get(key).unwrap_or_default(), count))
            .collect();
        let mut chosen = vec![Vec::new(); usable.len()];
        let (mut column_item, mut column_image) = (Vec::new(), Vec::new());
        let (mut column_words, mut column_scores) = (Vec::new(), Vec::new());
        for (&(item, name, _), found) in owned.iter().zip(found) {
            let list: Vec<String> = found.words.iter().map(|&word| words[word].clone()).collect();
            chosen[item].push(list.join(" "));
            column_item.push(item as u32 + 1);
            column_image.push(name.clone());
            column_words.push(list);
            column_scores.push(found.scores);
        }
        Table::new(vec![
            ("item", Column::U32(column_item)),
            ("image", Column::Text(column_image)),
            ("words", Column::Texts(column_words)),
            ("scores", Column::F32s(column_scores)),
        ])
        .write(path)?;
        Ok(chosen)
    }

    fn tell(&self, report: &ExtractReport, extracted: Extracted) {
        let say = |line: String| self.context.progress.say(line);
        let ExtractReport { sentences, items_without_text, sentence_encoder, word_encoder, image_encoder, .. } = report;
        let Work { distinct, computed } = sentence_encoder;
        say(format!(
            "extract: text: {sentences} sentences of {} items; {items_without_text} items without text",
            self.items.len()
        ));
        if !extracted.image {
            say(format!("extract: image: not read by `model.modalities`; computed {computed} of {distinct} sentences"));
            return;
        }
        say(format!(
            "extract: image: {} images, {} of them can't be used; {} items without image; {} words in the dictionary",
            report.images,
            report.unusable.len(),
            report.items_without_image,
            report.dictionary_words
        ));
        say(format!(
            "extract: computed {computed} of {distinct} sentences, {} of {} images, {} of {} words; the rest was in the cache",
            image_encoder.computed, image_encoder.distinct, word_encoder.computed, word_encoder.distinct
        ));
        for Unusable { item_id, image, reason } in report.unusable.iter().take(EXAMPLES) {
            say(format!("  item {item_id}: `{image}`: {reason}"));
        }
        if report.unusable.len() > EXAMPLES {
            say(format!("  and {} more", report.unusable.len() - EXAMPLES));
        }
    }
}

/// The key of an image file's content.
fn key_of(name: &str, path: &Path) -> Outcome {
    if Downloads::is_address(name) && !path.is_file() {
        return Err("it was not fetched; run `make download`".to_owned());
    }
    pictures::read(path).map(|bytes| vector_key(&bytes))
}

/// Vectors of a few images, and why others have none.
struct Embedded {
    keys: Vec<VectorKey>,
    vectors: Vec<f32>,
    unusable: Vec<(VectorKey, String)>,
}

fn embed(encoder: &dyn ImageEncoder, block: &[(VectorKey, usize)], paths: &[PathBuf]) -> Result<Embedded> {
    let (mut keys, mut pixels, mut unusable) = (Vec::new(), Vec::new(), Vec::new());
    for &(key, at) in block {
        match pictures::read(&paths[at]).and_then(|bytes| encoder.processor().read(&bytes)) {
            Ok(values) => {
                keys.push(key);
                pixels.extend(values);
            }
            Err(reason) => unusable.push((key, reason)),
        }
    }
    Ok(Embedded { vectors: encoder.embed(&pixels)?, keys, unusable })
}
