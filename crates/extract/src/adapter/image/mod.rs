//! Image encoders on candle-transformers and candle-nn, which map pixels to one vector per image.

mod architecture;
mod convnext;
mod dinov2;
mod efficientnet;
mod eva02;
mod siglip;
mod vit;

use self::architecture::Architecture;
pub(crate) use self::architecture::ImageModel;
use crate::error::Result;
use crate::folder::ModelFolder;

const ARCHITECTURES: [Architecture; 6] = [
    convnext::ARCHITECTURE,
    dinov2::ARCHITECTURE,
    efficientnet::ARCHITECTURE,
    eva02::ARCHITECTURE,
    siglip::ARCHITECTURE,
    vit::ARCHITECTURE,
];

/// The values of `model_type` that are supported.
pub(crate) fn model_types() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().flat_map(|architecture| architecture.model_types).copied()
}

fn find(model_type: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|architecture| architecture.model_types.contains(&model_type))
}

/// The files that determine the vectors, in addition to the weights; `None` if the `model_type` is not one of these.
pub(crate) fn files(model_type: &str) -> Option<&'static [&'static str]> {
    find(model_type).map(|architecture| architecture.files)
}

/// Loads the image encoder of a folder; `None` if its `model_type` is not one of these.
pub(crate) fn load(folder: &ModelFolder, model_type: &str) -> Result<Option<ImageModel>> {
    find(model_type).map(|architecture| (architecture.load)(folder)).transpose()
}
