//! The encoders that a pipeline needs and where their files are, found out without loading or downloading any.

use mp4sr_pipeline::Context;
use mp4sr_pipeline::config::ImageFeatures;
use serde_json::Value;

use crate::adapter::audio::AudioEncoder;
use crate::builtin;
use crate::error::{Error, Result};
use crate::folder::ModelFolder;
use crate::hub::HubModel;
use crate::model_files::Access;
use crate::open::image_encoder_files;
use crate::sentence::SentenceEncoder;

/// The content that an encoder is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderRole {
    /// Sentences, and the words of images.
    Sentences,
    /// Images.
    Images,
    /// Sounds.
    Sounds,
}

/// Where the files of an encoder are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncoderLocation {
    /// Built into the program.
    BuiltIn,
    /// A local folder.
    Folder,
    /// The cache of the hub.
    Cached,
    /// The hub, from which extraction downloads them.
    Hub,
    /// They cannot be used, with the reason.
    Unusable(String),
}

/// An encoder that extraction opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncoderFacts {
    /// The content that it is for.
    pub role: EncoderRole,
    /// The name as configured.
    pub name: String,
    /// Where its files are.
    pub location: EncoderLocation,
    /// The size of its weights in bytes; `None` if it is unknown.
    pub weight_bytes: Option<u64>,
    /// The width of its vectors; `None` if it is unknown.
    pub width: Option<usize>,
}

/// The encoders that a pipeline needs. With `online`, the hub is asked for the size of weights that are not on this machine.
pub fn encoders(context: &Context, online: bool) -> Vec<EncoderFacts> {
    let (settings, extracted) = (&context.config.extract, context.config.extracted());
    let reads_words = extracted.image && settings.image.features == ImageFeatures::Words;
    let needed = [
        (extracted.text || reads_words, EncoderRole::Sentences, &settings.text.model),
        (extracted.image, EncoderRole::Images, &settings.image.model),
        (extracted.audio, EncoderRole::Sounds, &settings.audio.model),
    ];
    let needed = needed.into_iter().filter(|(is_needed, ..)| *is_needed);
    needed.map(|(_, role, name)| facts(context, role, name, online)).collect()
}

fn facts(context: &Context, role: EncoderRole, name: &str, online: bool) -> EncoderFacts {
    let known =
        |location, weight_bytes, width| EncoderFacts { role, name: name.to_owned(), location, weight_bytes, width };
    if let Some((bytes, config)) = builtin::contents(name) {
        let config = serde_json::from_slice(config).unwrap_or(Value::Null);
        return known(EncoderLocation::BuiltIn, Some(bytes), width(&config, role));
    }
    let opened = ModelFolder::open_or_built_in(name, &context.layout.encoders(), Access::LocalOnly)
        .and_then(|folder| Ok((weight_bytes(&folder, role)?, folder)));
    match opened {
        Ok((bytes, folder)) => {
            let location = if folder.is_of_hub() { EncoderLocation::Cached } else { EncoderLocation::Folder };
            let config = folder.config.parse().unwrap_or(Value::Null);
            known(location, Some(bytes), width(&config, role))
        }
        Err(error) => match HubModel::open(name, if online { Access::Full } else { Access::LocalOnly }) {
            // A name on the hub, some of whose files are not on this machine.
            Ok(hub) if matches!(error, Error::Hub { .. }) => {
                let bytes = if online { hub.weight_bytes() } else { None };
                known(EncoderLocation::Hub, bytes, None)
            }
            _ => known(EncoderLocation::Unusable(error.to_string()), None, None),
        },
    }
}

/// The total size of the weight files in bytes. Fails if a file that the encoder needs is missing.
fn weight_bytes(folder: &ModelFolder, role: EncoderRole) -> Result<u64> {
    let files = match role {
        EncoderRole::Sentences => SentenceEncoder::files(folder)?,
        EncoderRole::Images => image_encoder_files(folder)?,
        EncoderRole::Sounds => AudioEncoder::files(folder)?,
    };
    let paths = folder.inputs("", &files)?;
    let weights = paths.iter().filter(|(name, _)| name.ends_with(".safetensors"));
    Ok(weights.filter_map(|(_, path)| path.metadata().ok()).map(|about| about.len()).sum())
}

/// The width of the vectors, if the configuration states it.
fn width(config: &Value, role: EncoderRole) -> Option<usize> {
    let keys: &[&str] = match role {
        EncoderRole::Images => &["projection_dim", "hidden_size"],
        EncoderRole::Sentences | EncoderRole::Sounds => &["hidden_size", "d_model", "dim", "n_embd"],
    };
    keys.iter().find_map(|key| config[*key].as_u64()).map(|width| width as usize)
}
