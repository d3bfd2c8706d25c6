//! `[extract]`: the encoders of texts, images and sounds.

use std::path::Path;

use mp4sr_artifact::FeatureType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Precision;

/// The prefix of the name of an encoder that is built into the program.
pub const BUILTIN: &str = "builtin:";

/// `[extract]`: how the encoders of sentences, images and sounds compute and store features.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Extract {
    /// How feature values are stored.
    pub storage: FeatureType,
    /// The precision of the encoders' matrix products. `tf32` and `bf16` are faster and change the vectors slightly.
    pub precision: Precision,
    /// How sentences are converted to vectors.
    pub text: TextExtract,
    /// How images are converted to words or vectors.
    pub image: ImageExtract,
    /// How sounds are converted to vectors.
    pub audio: AudioExtract,
}

/// Which of the features that can be extracted the modalities of a pipeline read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extracted {
    /// The features of sentences.
    pub text: bool,
    /// The features of images.
    pub image: bool,
    /// The features of sounds.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub audio: bool,
}

impl Extracted {
    /// What the default modalities read.
    pub const ALL: Self = Self { text: true, image: true, audio: false };
}

/// How an image is represented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageFeatures {
    /// As the words that CLIP finds in it, which the sentence encoder turns into vectors.
    #[default]
    Words,
    /// As the vector that the image encoder computes.
    Embedding,
}

/// `[extract.text]`: the encoder that turns sentences into vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TextExtract {
    /// The sentence-transformers model: a folder, a name on the Hugging Face hub, or `builtin:tiny-sentence`, which is built into the
    /// program.
    pub model: String,
}

impl Default for TextExtract {
    fn default() -> Self {
        Self { model: "data/encoders/tiny-sentence".to_owned() }
    }
}

impl TextExtract {
    /// The name of the encoder in file names.
    pub fn encoder_name(&self) -> String {
        base_name(&self.model)
    }
}

/// `[extract.image]`: the encoder that turns images into words or into vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImageExtract {
    /// The CLIP model, or, for `embedding`, any image encoder of `docs/encoders.md`: a folder, a name on the Hugging Face hub, or
    /// `builtin:tiny-clip`, which is built into the program.
    pub model: String,
    /// How an image is represented: `words` as in the paper; `embedding` gives the paper's variant `ResNet`, or plain CLIP.
    pub features: ImageFeatures,
    /// N, the number of words per image.
    #[schemars(range(min = 1, max = 1000))]
    pub words: usize,
    /// The dictionary file, with one word or phrase per line, in which `#` starts a comment. Empty: frequent words of the dataset's own
    /// texts, and the built-in list of visual words.
    pub dictionary: String,
    /// The number of words of the dataset's own texts that are added to the dictionary.
    #[schemars(range(min = 0, max = 100_000))]
    pub text_words: usize,
}

impl Default for ImageExtract {
    fn default() -> Self {
        Self {
            model: "data/encoders/tiny-clip".to_owned(),
            features: ImageFeatures::Words,
            words: 15,
            dictionary: String::new(),
            text_words: 1000,
        }
    }
}

impl ImageExtract {
    /// The name of the encoder in file names: with `words`, what CLIP finds goes through the sentence encoder.
    pub fn encoder_name(&self, text: &TextExtract) -> String {
        match self.features {
            ImageFeatures::Words => format!("{}-{}-words-{}", base_name(&self.model), self.words, text.encoder_name()),
            ImageFeatures::Embedding => base_name(&self.model),
        }
    }
}

/// `[extract.audio]`: the encoder that turns sounds into vectors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AudioExtract {
    /// The Whisper model whose encoder is used: a folder, or a name on the Hugging Face hub. Required if a modality is called `audio`.
    pub model: String,
}

impl AudioExtract {
    /// The name of the encoder in file names.
    pub fn encoder_name(&self) -> String {
        base_name(&self.model)
    }
}

fn base_name(model: &str) -> String {
    let model = model.strip_prefix(BUILTIN).unwrap_or(model);
    let (path, revision) = model.split_once('@').unwrap_or((model, ""));
    let mut name = Path::new(path).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if !revision.is_empty() {
        name = format!("{name}-{revision}");
    }
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect()
}
