//! The stage, which reads `dataset/items.parquet` and writes `features/`.
//!
//! First, the missing vectors are added to the cache, chunk by chunk; then, features are written from the cache. Neither step holds the
//! vectors of a catalogue in memory.

mod encoders;
mod extraction;
mod image_files;
mod image_words;
mod images;
mod plan;
mod report;
mod sounds;

use std::path::{Path, PathBuf};

use mp4sr_artifact::{EncoderWork, ExtractReport, Fingerprint, Items, Lock, Stage, VectorKey, files, vector_key};
use mp4sr_pipeline::config::ImageFeatures;
use mp4sr_pipeline::{Context, Shard, run_stage};

use self::encoders::opened;
pub use self::encoders::{Encoders, encoder_device};
use self::extraction::{DictionaryItems, Extraction, NAME, Sentences};
use self::image_files::ImageFiles;
use self::image_words::Dictionary;
use self::images::{ImageVectors, Images};
use self::plan::{ExtractPlan, earlier_stage};
use self::sounds::Sounds;
use crate::error::Result;
use crate::model_files::Access;

/// Brings `features/` up to date.
pub fn run(context: &Context) -> anyhow::Result<()> {
    let plan = ExtractPlan::of(context, context.config.extracted(), Access::Full)?;
    let data = Path::new(&context.config.dataset.data);
    // The items are read before the stage is made, because their images are inputs of the stage.
    let read = Fingerprint::of_file(&context.layout.items())?;
    let items = Items::read_in(&context.layout.items(), data)?;
    let files = ImageFiles::of(&items, data);
    let make_stage = || stage_of(context, &plan, &files, Access::Full);
    run_stage(context, NAME, &context.layout.features(), make_stage, |stage| {
        stage.expect_input_as_before("items", &read)?;
        let mut encoders = Encoders::of(context)?;
        let dictionary_items = DictionaryItems::These(&items);
        let extraction = Extraction { context, items: &items, dictionary_items, files: &files, keep: true };
        let outputs = extraction.run(&mut encoders)?;
        stage.expect_unchanged_inputs()?;
        Ok(outputs)
    })
}

/// Adds the vectors of one shard of the items to the cache, and writes no features. Shards may be computed at the same time, by processes
/// on several machines that share the cache, and again after a kill.
pub fn run_shard(context: Context, shard: Shard) -> anyhow::Result<()> {
    let plan = ExtractPlan::of(&context, context.config.extracted(), Access::Full)?;
    let data = Path::new(&context.config.dataset.data);
    let all = Items::read_in(&context.layout.items(), data)?;
    let items = all.select(&shard.range(all.len()).collect::<Vec<_>>());
    let files = ImageFiles::of(&items, data);
    let mut encoders = Encoders::planned(&context, plan)?;
    let (shards, name) = (context.layout.root().join("shards"), format!("{NAME}.{}", shard.file_name()));
    let _lock = Lock::acquire(&shards, &name)?;
    files::remove_leftovers(&shards)?;
    // On machines that do not see each other's locks, two processes may compute the same shard.
    let scratch = files::temporary_of(&shards.join(name));
    let own = Context { layout: context.layout.at(&scratch), ..context };
    let dictionary_items = DictionaryItems::These(&all);
    Extraction { context: &own, items: &items, dictionary_items, files: &files, keep: true }.run(&mut encoders)?;
    files::remove_dir_if_present(&scratch)?;
    own.progress.log(format!(
        "extract: the vectors of shard {shard}, {} of {} items, are in the cache; `mp4sr extract` without `--shard` writes the \
         features once all shards are done",
        items.len(),
        all.len()
    ));
    Ok(())
}

/// The stage, or that of an earlier run that extracted everything.
fn stage_of(context: &Context, plan: &ExtractPlan, files: &ImageFiles, access: Access) -> anyhow::Result<Stage> {
    match earlier_stage(context, plan, files, access)? {
        Some(earlier) => Ok(earlier),
        None => plan.stage(context, files),
    }
}

/// The stage, built only from encoders that are on this machine: nothing is downloaded or written. Fails if an encoder is missing.
pub fn local_stage(context: &Context) -> anyhow::Result<Stage> {
    let access = Access::LocalOnly;
    let plan = ExtractPlan::of(context, context.config.extracted(), access)?;
    let data = Path::new(&context.config.dataset.data);
    let items = Items::read_in(&context.layout.items(), data)?;
    stage_of(context, &plan, &ImageFiles::of(&items, data), access)
}

/// The fingerprint of what turns an image into the vectors of the `count` nearest of `words`.
fn encoder_of_words(image: &Fingerprint, text: &Fingerprint, words: &[String], count: usize) -> Fingerprint {
    Fingerprint::of_bytes(format!("{image} {text} {count} {}", words.join("\n")).as_bytes())
}

fn text_keys(texts: &[String]) -> Vec<VectorKey> {
    texts.iter().map(|text| vector_key(text.as_bytes())).collect()
}

impl Extraction<'_> {
    fn run(&self, encoders: &mut Encoders) -> Result<Vec<PathBuf>> {
        let mut report = ExtractReport {
            sentences: self.items.sentences.iter().map(Vec::len).sum(),
            items_without_text: self.items.sentences.iter().filter(|sentences| sentences.is_empty()).count(),
            images: self.items.images.iter().map(Vec::len).sum(),
            items_without_image: self.items.images.iter().filter(|images| images.is_empty()).count(),
            sounds: self.items.sounds.iter().map(Vec::len).sum(),
            items_without_sound: self.items.sounds.iter().filter(|sounds| sounds.is_empty()).count(),
            ..ExtractReport::default()
        };
        let extracted = encoders.plan.extracted;
        let mut outputs = Vec::new();
        let Encoders { plan, device, text, .. } = encoders;
        if let Some(folder) = plan.text.as_ref().filter(|_| extracted.text) {
            let sentences = opened(text, || Sentences::open(self, folder, device))?;
            outputs.push(self.extract_text(sentences)?);
        }
        outputs.extend(self.extract_images(encoders, &mut report)?);
        let Encoders { plan, device, text, audio, .. } = encoders;
        if let Some(folder) = &plan.audio {
            let sounds = opened(audio, || Sounds::open(self, folder, device))?;
            outputs.push(self.extract_sounds(sounds, &mut report)?);
        }
        report.sentence_encoder = text.as_mut().map_or(EncoderWork::default(), |own| std::mem::take(&mut own.work));
        report::log(&report, self.items.len(), extracted, &self.context.progress);
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
        self.write(&path, &["text"], &sentences.cache, &sentences.cache.fingerprint, &of_items)?;
        Ok(path)
    }

    /// Writes the features of items' images, if the plan includes them: the vectors of words or of the images themselves, as
    /// `[extract.image]` says.
    fn extract_images(&self, encoders: &mut Encoders, report: &mut ExtractReport) -> Result<Vec<PathBuf>> {
        let Encoders { plan, device, text, image, dictionary, .. } = encoders;
        let Some(folder) = &plan.image else { return Ok(Vec::new()) };
        let settings = &self.context.config.extract;
        let image_name = settings.image.encoder_name(&settings.text);
        let path = self.context.layout.feature_file("image", &image_name);
        let images = opened(image, || Images::open(self, folder, device))?;
        let ImageVectors { keys, work } = self.embed_images(images)?;
        report.image_encoder = work;
        let usable: Vec<Vec<(&String, VectorKey)>> =
            self.items.images.iter().map(|names| self.usable(names, &keys)).collect();
        let mut outputs = vec![path.clone()];
        match plan.text.as_ref().filter(|_| settings.image.features == ImageFeatures::Words) {
            None => {
                let of_items: Vec<Vec<VectorKey>> =
                    usable.iter().map(|images| images.iter().map(|(_, key)| *key).collect()).collect();
                self.write(&path, &["image"], &images.cache, &images.cache.fingerprint, &of_items)?;
            }
            Some(of_sentences) => {
                let sentences = opened(text, || Sentences::open(self, of_sentences, device))?;
                let dictionary = opened(dictionary, || Dictionary::open(self, folder, device, images))?;
                report.dictionary_words = dictionary.words.len();
                report.word_encoder = dictionary.take_work();
                let words_path = self.context.layout.words_file("image", &image_name);
                let chosen = self.choose_words(&words_path, &usable, &images.cache.vectors, dictionary)?;
                self.encode("image words", sentences, chosen.iter().flatten())?;
                let of_items: Vec<Vec<VectorKey>> = chosen.iter().map(|texts| text_keys(texts)).collect();
                let (of_images, of_texts) = (&images.cache.fingerprint, &sentences.cache.fingerprint);
                let encoder = encoder_of_words(of_images, of_texts, &dictionary.words, settings.image.words);
                self.write(&path, &["image", "text"], &sentences.cache, &encoder, &of_items)?;
                outputs.push(words_path);
            }
        }
        report.described = usable.iter().map(Vec::len).sum();
        report.items_without_image = usable.iter().filter(|images| images.is_empty()).count();
        report.unusable = self.unusable(&keys);
        Ok(outputs)
    }
}
