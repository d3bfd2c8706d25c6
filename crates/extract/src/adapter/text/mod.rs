//! Language models on candle-transformers, which map the tokens of a text to one vector per token.

mod architecture;
mod deberta_v2;
mod jina_bert;
mod modernbert;
mod nomic_bert;
mod qwen3;
mod t5;

use self::architecture::Architecture;
pub(crate) use self::architecture::TextModel;
pub(crate) use self::jina_bert::MODEL_TYPE as JINA_BERT;
use crate::error::Result;
use crate::folder::ModelFolder;

const ARCHITECTURES: [Architecture; 6] = [
    deberta_v2::ARCHITECTURE,
    jina_bert::ARCHITECTURE,
    modernbert::ARCHITECTURE,
    nomic_bert::ARCHITECTURE,
    qwen3::ARCHITECTURE,
    t5::ARCHITECTURE,
];

/// The values of `model_type` that are supported.
pub(crate) fn model_types() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().flat_map(|architecture| architecture.model_types).copied()
}

/// Loads the language model of a folder; `None` if its `model_type` is not one of these.
pub(crate) fn load(folder: &ModelFolder, model_type: &str) -> Result<Option<TextModel>> {
    let found = ARCHITECTURES.iter().find(|architecture| architecture.model_types.contains(&model_type));
    found.map(|architecture| (architecture.load)(folder)).transpose()
}
