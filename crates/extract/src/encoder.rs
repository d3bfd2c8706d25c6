//! The interfaces of encoders of images and words.

use crate::error::Result;
use crate::processor::Processor;

/// An encoder of images with fixed weights. The vector of an image does not depend on the images beside it.
pub trait ImageEncoder: Send + Sync {
    /// d, the width of a vector.
    fn width(&self) -> usize;

    /// Turns image files into the pixels that the encoder was trained on.
    fn processor(&self) -> &Processor;

    /// How many images a call should embed together.
    fn images_at_once(&self) -> usize;

    /// Whether it computes on a GPU: one call at a time, while the CPU prepares the next images.
    fn is_on_gpu(&self) -> bool;

    /// Vectors `[images, d]` of pixels `[images, 3, side, side]`.
    fn embed(&self, pixels: &[f32]) -> Result<Vec<f32>>;

    /// The encoder of words into the space of the images' vectors, if there is one.
    fn word_encoder(&self) -> Option<&dyn WordEncoder> {
        None
    }
}

/// An encoder of words into the space of an image encoder's vectors.
pub trait WordEncoder: Send + Sync {
    /// Vectors `[words, d]`, not normalised.
    fn embed_words(&self, words: &[&str]) -> Result<Vec<f32>>;
}
