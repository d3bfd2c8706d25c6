//! What is extracted, from which inputs, and whether an earlier run has done it.

use std::path::PathBuf;

use mp4sr_artifact::{Fingerprint, Manifest, Stage, StageSettings, Status, role};
use mp4sr_pipeline::Context;
use mp4sr_pipeline::config::{Extract, Extracted, ImageFeatures};
use serde_json::{Value, json};

use super::extraction::{NAME, VERSION};
use super::image_files::ImageFiles;
use crate::adapter::audio::AudioEncoder;
use crate::dictionary;
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::model_files::Access;
use crate::open::image_encoder_files;
use crate::sentence::SentenceEncoder;

/// What is extracted, and the encoders for it. No others are opened.
pub(super) struct ExtractPlan {
    pub(super) extracted: Extracted,
    pub(super) text: Option<ModelFolder>,
    pub(super) image: Option<ModelFolder>,
    pub(super) audio: Option<ModelFolder>,
}

impl ExtractPlan {
    pub(super) fn of(context: &Context, extracted: Extracted, access: Access) -> Result<Self> {
        let settings = &context.config.extract;
        let open = |is_used: bool, model: &str| {
            is_used.then(|| ModelFolder::open_or_built_in(model, &context.layout.encoders(), access)).transpose()
        };
        // The words of images go through the sentence encoder.
        let reads_words = extracted.image && settings.image.features == ImageFeatures::Words;
        let text = open(extracted.text || reads_words, &settings.text.model)?;
        let audio = open(extracted.audio, &settings.audio.model)?;
        Ok(Self { extracted, text, image: open(extracted.image, &settings.image.model)?, audio })
    }

    /// The settings that the manifest records, without those of unused encoders.
    fn recorded(&self, context: &Context, files: &ImageFiles) -> Value {
        let settings = &context.config.extract;
        let built_in = || Fingerprint::of_bytes(dictionary::build(&[], 0).join("\n").as_bytes());
        if self.extracted == Extracted::ALL {
            return json!({"extract": settings, "image_files": files.fingerprint(), "visual_words": built_in()});
        }
        let mut recorded = json!({"extract": {"storage": settings.storage, "precision": settings.precision}, "extracted": self.extracted});
        if self.text.is_some() {
            recorded["extract"]["text"] = json!(settings.text);
        }
        if self.image.is_some() {
            recorded["extract"]["image"] = json!(settings.image);
            recorded["image_files"] = json!(files.fingerprint());
            recorded["visual_words"] = json!(built_in());
        }
        if self.audio.is_some() {
            recorded["extract"]["audio"] = json!(settings.audio);
            recorded["sound_files"] = json!(files.sounds());
        }
        recorded
    }

    /// The files that decide what is extracted, by role.
    pub(super) fn inputs(&self, context: &Context) -> Result<Vec<(String, PathBuf)>> {
        let mut inputs = vec![(role::ITEMS.to_owned(), context.layout.items())];
        if let Some(text) = &self.text {
            inputs.extend(text.inputs("text", &SentenceEncoder::files(text)?)?);
        }
        if let Some(image) = &self.image {
            inputs.extend(image.inputs("image", &image_encoder_files(image)?)?);
            let dictionary = &context.config.extract.image.dictionary;
            if !dictionary.is_empty() {
                inputs.push(("dictionary".to_owned(), PathBuf::from(dictionary)));
            }
        }
        if let Some(audio) = &self.audio {
            inputs.extend(audio.inputs("audio", &AudioEncoder::files(audio)?)?);
        }
        Ok(inputs)
    }

    pub(super) fn stage(&self, context: &Context, files: &ImageFiles) -> anyhow::Result<Stage> {
        let inputs = self.inputs(context)?;
        let defaults = json!({"extract": Extract::default()});
        let settings = StageSettings::new(self.recorded(context, files), defaults).shown_as(&[
            ("image_files", "the files of the images"),
            ("sound_files", "the files of the sounds"),
            ("visual_words", "the words that are built into the program"),
        ]);
        Ok(Stage::new(NAME, VERSION, &context.layout.features(), settings, &inputs)?)
    }
}

/// The stage of an earlier run that extracted everything under the same settings, if it is up to date. A run that reads less can use it;
/// otherwise, runs of one dataset with different modalities would undo each other's work.
pub(super) fn earlier_stage(
    context: &Context,
    plan: &ExtractPlan,
    files: &ImageFiles,
    access: Access,
) -> anyhow::Result<Option<Stage>> {
    if plan.extracted == Extracted::ALL || plan.extracted.audio {
        return Ok(None);
    }
    let earlier = Manifest::read(&context.layout.features(), NAME)?;
    // The settings are compared first, so that encoders are not opened for settings that have never run.
    let settings = StageSettings::new(json!(context.config.extract), json!(Extract::default()));
    let is_of_these = |manifest: &Manifest| {
        let mut recorded = manifest.settings["extract"].clone();
        // The audio encoder does not affect the features of texts and images.
        if recorded.is_object() {
            recorded["audio"] = json!(context.config.extract.audio);
        }
        settings.changed_since(&recorded).is_none()
    };
    if !earlier.as_ref().is_some_and(is_of_these) {
        return Ok(None);
    }
    let all = ExtractPlan::of(context, Extracted::ALL, access).map_err(anyhow::Error::from);
    let Ok(stage) = all.and_then(|all| all.stage(context, files)) else { return Ok(None) };
    Ok((stage.status()? == Status::UpToDate).then_some(stage))
}
