//! Picks the image encoder that a model folder holds.

use serde_json::Value;

use crate::adapter::image as adapter;
use crate::clip::Clip;
use crate::device::EncoderDevice;
use crate::encoder::ImageEncoder;
use crate::error::{Error, Result};
use crate::folder::ModelFolder;
use crate::model_files::{TOKENIZER, TOKENIZER_CONFIG};
use crate::resnet::ResNet;

/// Loads an image encoder from a folder, or from the hub by its name. Its `config.json` names the architecture.
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
        Architecture::Adapter(model_type) => {
            device.check_f32(&model_type)?;
            Box::new(adapter::load(folder, &model_type)?.ok_or_else(|| unknown(folder, &model_type))?)
        }
    })
}

/// The files that determine the vectors.
pub(crate) fn image_encoder_files(folder: &ModelFolder) -> Result<Vec<String>> {
    let files: &[&str] = match Architecture::of(folder)? {
        Architecture::Clip => &Clip::FILES,
        Architecture::ResNet => &ResNet::FILES,
        Architecture::Adapter(model_type) => adapter::files(&model_type).ok_or_else(|| unknown(folder, &model_type))?,
    };
    let tokenizer_config = files.contains(&TOKENIZER).then(|| tokenizer_config(folder)).transpose()?.flatten();
    let weights = folder.weight_files()?;
    Ok(files.iter().copied().chain(tokenizer_config).map(str::to_owned).chain(weights).collect())
}

/// `tokenizer_config.json`, if it changes how texts are cut. Its other settings agree with `tokenizer.json`, or are refused.
fn tokenizer_config(folder: &ModelFolder) -> Result<Option<&'static str>> {
    let settings: Option<Value> = folder.optional_json(TOKENIZER_CONFIG)?.map(|file| file.parse()).transpose()?;
    Ok(settings.is_some_and(|settings| settings["truncation_side"] == "left").then_some(TOKENIZER_CONFIG))
}

enum Architecture {
    Clip,
    ResNet,
    /// An architecture on candle-transformers or candle-nn, by its name.
    Adapter(String),
}

impl Architecture {
    fn of(folder: &ModelFolder) -> Result<Self> {
        let model_type = folder.architecture()?;
        match model_type.as_str() {
            "clip" => Ok(Self::Clip),
            "resnet" => Ok(Self::ResNet),
            known if adapter::files(known).is_some() => Ok(Self::Adapter(model_type)),
            other => Err(unknown(folder, other)),
        }
    }
}

fn unknown(folder: &ModelFolder, model_type: &str) -> Error {
    let mut known: Vec<&str> = ["clip", "resnet"].into_iter().chain(adapter::model_types()).collect();
    known.sort_unstable();
    folder.config.error(format!("model_type: expected one of {}; found {model_type}", known.join(", ")))
}
