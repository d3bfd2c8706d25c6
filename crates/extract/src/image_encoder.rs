//! What an encoder of images is: a picture's pixels to a vector.

use crate::clip::Clip;
use crate::error::{Error, Result};
use crate::picture::Processor;
use crate::resnet::ResNet;
use crate::source::Source;

/// An encoder of images with fixed weights. A picture's vector does not depend on the pictures beside it.
pub trait ImageEncoder: Send + Sync {
    /// d, the width of a vector.
    fn width(&self) -> usize;

    /// How a picture becomes pixels.
    fn processor(&self) -> &Processor;

    /// How many pictures are best embedded together by one thread.
    fn images_at_once(&self) -> usize;

    /// Vectors `[images, d]` of pixels `[images, 3, side, side]`.
    fn embed(&self, pixels: &[f32]) -> Result<Vec<f32>>;
}

/// Loads what `config.json` says lies in the folder or on the hub.
pub fn load_image_encoder(name: &str) -> Result<Box<dyn ImageEncoder>> {
    from_source(&Source::find(name)?)
}

pub(crate) fn from_source(source: &Source) -> Result<Box<dyn ImageEncoder>> {
    match model_type(source)?.as_str() {
        "resnet" => Ok(Box::new(ResNet::from_source(source)?)),
        _ => Ok(Box::new(Clip::from_source(source)?)),
    }
}

/// The files that decide what the vectors are.
pub(crate) fn files(source: &Source) -> Result<Vec<String>> {
    let files: &[&str] = if model_type(source)? == "resnet" { &ResNet::FILES } else { &Clip::FILES };
    Ok(files.iter().map(|&file| file.to_owned()).collect())
}

fn model_type(source: &Source) -> Result<String> {
    let about: serde_json::Value = source.json("config.json")?;
    match about["model_type"].as_str().unwrap_or("none") {
        kind @ ("clip" | "resnet") => Ok(kind.to_owned()),
        other => Err(Error::model(
            &source.path_of("config.json"),
            format!("model_type: expected clip or resnet, found {other}"),
        )),
    }
}
