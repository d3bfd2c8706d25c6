//! Picks the image encoder that a model folder holds.

use crate::clip::Clip;
use crate::device::EncoderDevice;
use crate::encoder::ImageEncoder;
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::resnet::ResNet;

/// Loads the image encoder in a folder, or of this name on the hub: its `config.json` says which one it is.
pub fn load_image_encoder(name: &str) -> Result<Box<dyn ImageEncoder>> {
    load_image_encoder_on(name, &EncoderDevice::CPU)
}

/// [`load_image_encoder`] for a device.
pub fn load_image_encoder_on(name: &str, device: &EncoderDevice) -> Result<Box<dyn ImageEncoder>> {
    image_encoder(&ModelFolder::open(name)?, device)
}

pub(crate) fn image_encoder(folder: &ModelFolder, device: &EncoderDevice) -> Result<Box<dyn ImageEncoder>> {
    Ok(match Architecture::of(folder)? {
        Architecture::Clip => Box::new(Clip::load(folder, device)?),
        Architecture::ResNet => Box::new(ResNet::load(folder, device)?),
    })
}

/// The files that determine the vectors.
pub(crate) fn image_encoder_files(folder: &ModelFolder) -> Result<Vec<String>> {
    let files: &[&str] = match Architecture::of(folder)? {
        Architecture::Clip => &Clip::FILES,
        Architecture::ResNet => &ResNet::FILES,
    };
    Ok(files.iter().map(|&file| file.to_owned()).collect())
}

enum Architecture {
    Clip,
    ResNet,
}

impl Architecture {
    fn of(folder: &ModelFolder) -> Result<Self> {
        match folder.model_type()?.as_str() {
            "clip" => Ok(Self::Clip),
            "resnet" => Ok(Self::ResNet),
            other => Err(folder.config.error(format!("model_type: expected clip or resnet, found {other}"))),
        }
    }
}
