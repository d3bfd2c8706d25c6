//! Image encoders on candle-transformers and candle-nn, which map pixels to one vector per image.

mod convnext;
mod dinov2;
mod efficientnet;
mod eva02;
mod siglip;
mod vit;

use candle_core::{Device, Tensor};

use crate::encoder::ImageEncoder;
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::processor::Processor;

/// The layers of an image encoder.
pub(super) trait ImageLayers: Send + Sync {
    /// The vectors `[images, d]` of pixels `[images, 3, side, side]`.
    fn forward(&self, pixels: &Tensor) -> candle_core::Result<Tensor>;
}

/// An image encoder with its processor.
pub(crate) struct ImageModel {
    layers: Box<dyn ImageLayers>,
    processor: Processor,
    /// d, the width of a vector.
    width: usize,
}

/// An architecture: the values of `model_type` by which a configuration names it, the files that it reads in addition to its weights, and
/// how it is loaded.
struct Architecture {
    model_types: &'static [&'static str],
    files: &'static [&'static str],
    load: fn(&ModelFolder) -> Result<ImageModel>,
}

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

impl ImageEncoder for ImageModel {
    fn width(&self) -> usize {
        self.width
    }

    fn processor(&self) -> &Processor {
        &self.processor
    }

    fn images_at_once(&self) -> usize {
        1
    }

    fn is_on_gpu(&self) -> bool {
        false
    }

    fn embed(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        let side = self.processor.side();
        let mut vectors = Vec::new();
        // One image at a time, so that its vector is exactly the same whatever is beside it.
        for image in pixels.chunks_exact(3 * side * side) {
            let image = Tensor::from_slice(image, (1, 3, side, side), &Device::Cpu)?;
            vectors.extend(self.layers.forward(&image)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(vectors)
    }
}
