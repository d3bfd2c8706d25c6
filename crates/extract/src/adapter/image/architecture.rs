//! What the image encoders of all architectures share: the trait of their layers, and how pixels become vectors.

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
    pub(super) layers: Box<dyn ImageLayers>,
    pub(super) processor: Processor,
    /// d, the width of a vector.
    pub(super) width: usize,
}

/// An architecture: the values of `model_type` by which a configuration names it, the files that it reads in addition to its weights, and
/// how it is loaded.
pub(super) struct Architecture {
    pub(super) model_types: &'static [&'static str],
    pub(super) files: &'static [&'static str],
    pub(super) load: fn(&ModelFolder) -> Result<ImageModel>,
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
        // Images go through the layers one at a time, so that a vector does not depend on the other images.
        for image in pixels.chunks_exact(3 * side * side) {
            let image = Tensor::from_slice(image, (1, 3, side, side), &Device::Cpu)?;
            vectors.extend(self.layers.forward(&image)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(vectors)
    }
}
