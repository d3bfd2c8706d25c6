use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Precision;

/// Before the name of an encoder that the program carries, in place of a folder.
pub const BUILTIN: &str = "builtin:";

/// How feature values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// IEEE half: 2 bytes.
    #[default]
    F16,
    /// Brain half: 2 bytes.
    Bf16,
    /// Single: 4 bytes.
    F32,
}

/// `[extract]`: encoders of sentences, images and sounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Extract {
    /// How feature values are stored.
    pub storage: Storage,
    /// What the encoders' products are computed from. `tf32` and `bf16` are faster and change the vectors a little.
    pub precision: Precision,
    /// Sentences to vectors.
    pub text: TextExtract,
    /// Images to words.
    pub image: ImageExtract,
    /// Sounds to vectors.
    pub audio: AudioExtract,
}

/// Which features the modalities of a pipeline read, of those that can be extracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extracted {
    /// Those of sentences.
    pub text: bool,
    /// Those of images.
    pub image: bool,
    /// Those of sounds.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub audio: bool,
}

impl Extracted {
    /// What the default modalities read.
    pub const ALL: Self = Self { text: true, image: true, audio: false };
}

/// What an image becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageFeatures {
    /// The words that CLIP finds in it, through the sentence encoder.
    #[default]
    Words,
    /// The image encoder's own vector.
    Embedding,
}

/// `[extract.text]`: sentences to vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TextExtract {
    /// A sentence-transformers model: a folder, a name on the hub, or `builtin:tiny-sentence`, which the program carries.
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

/// `[extract.image]`: images to the words that CLIP finds in them, or to an image encoder's vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImageExtract {
    /// A CLIP model, or for `embedding` any image encoder of `docs/encoders.md`: a folder, a name on the hub, or
    /// `builtin:tiny-clip`, which the program carries.
    pub model: String,
    /// What an image becomes: `words` is the paper's, `embedding` gives its variant `ResNet` and plain CLIP.
    pub features: ImageFeatures,
    /// N, the words kept of an image.
    #[schemars(range(min = 1, max = 1000))]
    pub words: usize,
    /// A file with a word a line. Empty: frequent words of the dataset's own texts and the carried list of visual words.
    pub dictionary: String,
    /// How many words of the dataset's own texts join the dictionary.
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

/// `[extract.audio]`: sounds to an audio encoder's vectors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AudioExtract {
    /// A Whisper, whose encoder is used: a folder or a name on the hub. Needed where a modality is called `audio`.
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
