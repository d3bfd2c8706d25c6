//! The stage: `dataset/items.parquet` to `features/`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use mp4sr_artifact::{Column, FeatureType, Features, Fingerprint, Items, Stage, Table, files};
use mp4sr_pipeline::config::{Extract, Storage};
use mp4sr_pipeline::{Context, run_stage};
use serde::Serialize;
use serde_json::json;

use crate::clip::{Clip, Described};
use crate::dictionary;
use crate::error::{Error, Result};
use crate::sentence::SentenceEncoder;
use crate::source::Source;

/// Raised with every change of what the same inputs give.
const VERSION: u32 = 1;
const NAME: &str = "extract";
/// How many unusable images are told by name.
const EXAMPLES: usize = 3;

/// Brings `features/` up to date.
pub fn run(context: &Context) -> anyhow::Result<()> {
    let settings = &context.config.extract;
    let text = Source::find(&settings.text.model)?;
    let image = Source::find(&settings.image.model)?;
    let mut inputs = vec![("items".to_owned(), context.layout.items())];
    inputs.extend(SentenceEncoder::inputs(&text)?);
    inputs.extend(Clip::inputs(&image)?);
    if !settings.image.dictionary.is_empty() {
        inputs.push(("dictionary".to_owned(), PathBuf::from(&settings.image.dictionary)));
    }
    let items = Items::read(&context.layout.items())?;
    let make_stage = || {
        let carried = Fingerprint::of_bytes(dictionary::build(&[], 0).join("\n").as_bytes());
        let recorded = json!({
            "extract": settings,
            "image_files": stamp_images(&items),
            "visual_words": carried,
        });
        Ok(Stage::new(NAME, VERSION, &context.layout.features(), &recorded, &inputs)?)
    };
    run_stage(context, NAME, &context.layout.features(), make_stage, |_| Ok(extract(context, &items, &text, &image)?))
}

/// Names, sizes and times of change of all image files: hashing their content would cost more than asking whether there is
/// anything to do should.
fn stamp_images(items: &Items) -> Fingerprint {
    let mut stamp = String::new();
    for path in items.images.iter().flatten() {
        let meta = std::fs::metadata(path).ok();
        let modified = meta.as_ref().and_then(|meta| meta.modified().ok());
        let _ = writeln!(stamp, "{path:?} {:?} {modified:?}", meta.map(|meta| meta.len()));
    }
    Fingerprint::of_bytes(stamp.as_bytes())
}

/// Sentence vectors by sentence, each computed once.
struct Vectors {
    width: usize,
    rows: Vec<f32>,
    place: BTreeMap<String, usize>,
}

impl Vectors {
    /// Encodes the sentences among `texts` that are not there yet.
    fn add(&mut self, context: &Context, encoder: &SentenceEncoder, what: &str, texts: &[Vec<String>]) -> Result<()> {
        let mut new: Vec<&String> = texts.iter().flatten().filter(|text| !self.place.contains_key(*text)).collect();
        new.sort_unstable();
        new.dedup();
        let bar = context.progress.bar(what, "sentences", new.len() as u64);
        self.rows.extend(encoder.encode(&new, context.config.extract.batch, |count| bar.add(count))?);
        let first = self.place.len();
        self.place.extend(new.into_iter().cloned().enumerate().map(|(i, text)| (text, first + i)));
        Ok(())
    }

    /// Writes the features of items that own the sentences `texts`.
    fn write(&self, context: &Context, path: &Path, items: &Items, texts: &[Vec<String>]) -> Result<()> {
        let mut offsets = vec![0_i64];
        let mut values = Vec::new();
        for text in texts.iter().map(|texts| texts.iter().filter_map(|text| self.place.get(text))) {
            let before = values.len();
            for &row in text {
                values.extend_from_slice(&self.rows[row * self.width..(row + 1) * self.width]);
            }
            offsets.push(offsets[offsets.len() - 1] + ((values.len() - before) / self.width) as i64);
        }
        let settings = &context.config.extract;
        let kind = match settings.storage {
            Storage::F16 => FeatureType::F16,
            Storage::Bf16 => FeatureType::Bf16,
            Storage::F32 => FeatureType::F32,
        };
        let features = Features::from_f32(offsets, &values, self.width, kind, items.hash());
        let features = features.ok_or_else(|| Error::Storage {
            path: path.to_owned(),
            storage: format!("{:?}", settings.storage).to_lowercase(),
        })?;
        Ok(features.write(path, NAME, json!(settings))?)
    }
}

fn extract(context: &Context, items: &Items, text: &Source, image: &Source) -> Result<Vec<PathBuf>> {
    let settings = &context.config.extract;
    let (text_name, image_name) = (settings.text.encoder_name(), settings.image.encoder_name(&settings.text));
    let text_path = context.layout.feature_file("text", &text_name);
    let image_path = context.layout.feature_file("image", &image_name);
    let words_path = context.layout.words_file("image", &image_name);

    let encoder = SentenceEncoder::from_source(text)?;
    let mut vectors = Vectors { width: encoder.width(), rows: Vec::new(), place: BTreeMap::new() };
    vectors.add(context, &encoder, "text", &items.sentences)?;
    vectors.write(context, &text_path, items, &items.sentences)?;
    let distinct = vectors.place.len();
    let owned: usize = items.sentences.iter().map(Vec::len).sum();
    let without = items.sentences.iter().filter(|sentences| sentences.is_empty()).count();
    context.progress.say(format!(
        "extract: text: {owned} sentences ({distinct} distinct) of {} items; {without} items without text",
        items.len()
    ));

    let (chosen, report) = choose_words(context, settings, items, image)?;
    vectors.add(context, &encoder, "image words", &chosen)?;
    vectors.write(context, &image_path, items, &chosen)?;
    let report_path = context.layout.extract_report();
    files::write_json(&report_path, &report)?;
    Ok(vec![text_path, image_path, words_path, report_path])
}

/// What became of the images (`features/report.json`).
#[derive(Debug, Serialize)]
struct ImageReport {
    /// Images of items.
    images: usize,
    /// Of these, described in words.
    described: usize,
    /// Items without a described image.
    items_without_image: usize,
    /// Words of the dictionary.
    dictionary_words: usize,
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

/// For each item the word lists of its readable images, each joined by spaces; writes the table of words.
fn choose_words(
    context: &Context,
    settings: &Extract,
    items: &Items,
    image: &Source,
) -> Result<(Vec<Vec<String>>, ImageReport)> {
    let words = if settings.image.dictionary.is_empty() {
        dictionary::build(&items.sentences, settings.image.text_words)
    } else {
        dictionary::read(Path::new(&settings.image.dictionary))?
    };
    let clip = Clip::from_source(image)?;
    let word_vectors = clip.word_vectors(&words)?;
    let owned: Vec<(usize, &String)> =
        items.images.iter().enumerate().flat_map(|(item, paths)| paths.iter().map(move |path| (item, path))).collect();
    let mut paths: Vec<&String> = owned.iter().map(|(_, path)| *path).collect();
    paths.sort_unstable();
    paths.dedup();
    let bar = context.progress.bar("images", "images", paths.len() as u64);
    let described =
        clip.describe(&paths, &word_vectors, settings.image.words, settings.batch, |count| bar.add(count))?;
    drop(bar);
    let described: BTreeMap<&String, Described> = paths.into_iter().zip(described).collect();

    let mut chosen = vec![Vec::new(); items.len()];
    let (mut column_item, mut column_image) = (Vec::new(), Vec::new());
    let (mut column_words, mut column_scores) = (Vec::new(), Vec::new());
    for &(item, path) in &owned {
        if let Some(Ok(found)) = described.get(path) {
            let list: Vec<String> = found.words.iter().map(|&word| words[word].clone()).collect();
            chosen[item].push(list.join(" "));
            column_item.push(item as u32 + 1);
            column_image.push(path.clone());
            column_words.push(list);
            column_scores.push(found.scores.clone());
        }
    }
    let image_name = settings.image.encoder_name(&settings.text);
    Table::new(vec![
        ("item", Column::U32(column_item)),
        ("image", Column::Text(column_image)),
        ("words", Column::Texts(column_words)),
        ("scores", Column::F32s(column_scores)),
    ])
    .write(&context.layout.words_file("image", &image_name))?;
    let report = image_report(items, &owned, &described, &chosen, words.len());
    tell(context, &report);
    Ok((chosen, report))
}

fn image_report(
    items: &Items,
    owned: &[(usize, &String)],
    described: &BTreeMap<&String, Described>,
    chosen: &[Vec<String>],
    dictionary_words: usize,
) -> ImageReport {
    let unusable = owned.iter().filter_map(|&(item, path)| match described.get(path) {
        Some(Err(reason)) => {
            Some(Unusable { item_id: items.ids[item].clone(), image: path.clone(), reason: reason.clone() })
        }
        _ => None,
    });
    let unusable: Vec<Unusable> = unusable.collect();
    ImageReport {
        images: owned.len(),
        described: owned.len() - unusable.len(),
        items_without_image: chosen.iter().filter(|lists| lists.is_empty()).count(),
        dictionary_words,
        unusable,
    }
}

fn tell(context: &Context, report: &ImageReport) {
    let ImageReport { described, items_without_image, dictionary_words, unusable, .. } = report;
    context.progress.say(format!(
        "extract: image: {described} images described from {dictionary_words} words; {} images can't be used; \
         {items_without_image} items without image",
        unusable.len()
    ));
    for Unusable { item_id, image, reason } in unusable.iter().take(EXAMPLES) {
        context.progress.say(format!("  item {item_id}: `{image}`: {reason}"));
    }
    if unusable.len() > EXAMPLES {
        context.progress.say(format!("  and {} more", unusable.len() - EXAMPLES));
    }
}
