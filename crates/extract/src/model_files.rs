//! The names of the files of an encoder, and what opening one may do.

/// The configuration, which says what a folder contains.
pub(crate) const CONFIG: &str = "config.json";
/// The weights.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// The file that older releases of the Python libraries wrote instead of [`WEIGHTS`].
pub(crate) const PICKLED_WEIGHTS: &str = "pytorch_model.bin";
/// The list of the files with weights, if there are several.
pub(crate) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// The tokenizer, which splits texts into tokens.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// The settings with which the Python library modifies the tokenizer.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The tokens that replace those of [`TOKENIZER_CONFIG`], in a file of older releases.
pub(crate) const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// The processor of images or sounds. Later releases of the Python library write it as a part of [`NESTED_PROCESSOR`].
pub(crate) const PROCESSOR: &str = "preprocessor_config.json";
pub(crate) const NESTED_PROCESSOR: &str = "processor_config.json";
/// The parts of [`NESTED_PROCESSOR`] that replace [`PROCESSOR`].
pub(crate) const PROCESSOR_PARTS: [&str; 2] = ["image_processor", "feature_extractor"];
/// The modules of a sentence encoder, in order.
pub(crate) const MODULES: &str = "modules.json";
/// Settings of a sentence encoder as a whole, in a file beside [`MODULES`].
pub(crate) const WHOLE: &str = "config_sentence_transformers.json";

/// What opening an encoder may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Download files from the hub, and write those of built-in encoders.
    Full,
    /// Use only what is on this machine.
    LocalOnly,
}
