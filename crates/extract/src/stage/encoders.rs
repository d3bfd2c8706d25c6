//! Encoders with their cached vectors: opened when they are first needed, then kept.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context as _;
use mp4sr_artifact::{ExtractReport, Items, files};
use mp4sr_ops::ComputeDevice;
use mp4sr_pipeline::Context;
use mp4sr_pipeline::config::{Extract, Extracted};

use super::extraction::{DictionaryItems, Extraction, Sentences};
use super::image_files::ImageFiles;
use super::image_words::Dictionary;
use super::images::Images;
use super::plan::ExtractPlan;
use super::sounds::Sounds;
use crate::device::EncoderDevice;
use crate::error::Result;
use crate::model_files::Access;

/// The encoders that a configuration names. Each is opened, with the index of its cached vectors, by the first text, image or sound that
/// needs it, and stays in memory.
pub struct Encoders {
    pub(super) plan: ExtractPlan,
    pub(super) device: EncoderDevice,
    pub(super) text: Option<Sentences>,
    pub(super) image: Option<Images>,
    pub(super) dictionary: Option<Dictionary>,
    pub(super) audio: Option<Sounds>,
    basis: Basis,
}

/// Everything that determines the vectors of the encoders.
#[derive(PartialEq)]
struct Basis {
    settings: Extract,
    extracted: Extracted,
    device: String,
    /// The files of the encoders and of the dictionary, and the table of the dataset's items, whose words join the dictionary.
    files: Vec<FileState>,
}

/// A file with its length and modification time, if it exists.
#[derive(PartialEq)]
struct FileState {
    path: PathBuf,
    state: Option<(u64, Option<SystemTime>)>,
}

impl FileState {
    fn of(path: PathBuf) -> Self {
        let state = std::fs::metadata(&path).ok().map(|about| (about.len(), about.modified().ok()));
        Self { path, state }
    }
}

impl Encoders {
    /// The encoders of the configuration of a dataset's `context`. None is opened yet; one that is not on this machine is downloaded.
    pub fn of(context: &Context) -> anyhow::Result<Self> {
        let plan = ExtractPlan::of(context, context.config.extracted(), Access::Full)?;
        Self::planned(context, plan)
    }

    pub(super) fn planned(context: &Context, plan: ExtractPlan) -> anyhow::Result<Self> {
        let files = plan.inputs(context)?.into_iter().map(|(_, path)| FileState::of(path)).collect();
        let basis = Basis {
            settings: context.config.extract.clone(),
            extracted: plan.extracted,
            device: context.config.run.device.clone(),
            files,
        };
        let device = encoder_device(context)?;
        Ok(Self { plan, device, text: None, image: None, dictionary: None, audio: None, basis })
    }

    /// Whether these are the encoders of `context`, and their files have not changed.
    pub fn fit(&self, context: &Context) -> bool {
        let Basis { settings, extracted, device, files } = &self.basis;
        let of_dataset = files.iter().any(|file| file.path == context.layout.items());
        let config = &context.config;
        let same = *settings == config.extract && *extracted == config.extracted() && *device == config.run.device;
        same && of_dataset && files.iter().all(|file| *file == FileState::of(file.path.clone()))
    }

    /// Writes the features of new items, whose table is in `own`, with the same encoders, dictionary and cache as the dataset of `context`.
    /// The report names what could not be used.
    pub fn extract_new_items(&mut self, context: &Context, own: &Context) -> anyhow::Result<ExtractReport> {
        self.extract(context, own, true)
    }

    /// Like [`Self::extract_new_items`], but for items that are needed only once: their vectors do not stay in the cache.
    pub fn extract_once(&mut self, context: &Context, own: &Context) -> anyhow::Result<ExtractReport> {
        let report = self.extract(context, own, false);
        // Whatever was computed before an error must not stay either.
        let caches = [
            self.text.as_mut().map(|own| &mut own.cache),
            self.image.as_mut().map(|own| &mut own.cache),
            self.audio.as_mut().map(|own| &mut own.cache),
        ];
        caches.into_iter().flatten().for_each(|cache| cache.vectors.discard());
        report
    }

    fn extract(&mut self, context: &Context, own: &Context, keep: bool) -> anyhow::Result<ExtractReport> {
        let items = Items::read_in(&own.layout.items(), std::path::Path::new(&own.config.dataset.data))?;
        let files = ImageFiles::of(&items, std::path::Path::new(&own.config.dataset.data));
        let dictionary_items = DictionaryItems::OfDataset(&context.layout);
        Extraction { context: own, items: &items, dictionary_items, files: &files, keep }.run(self)?;
        let path = own.layout.extract_report();
        serde_json::from_slice(&files::read(&path)?).with_context(|| format!("failed to read `{}`", path.display()))
    }
}

/// The device that the configuration sets for encoders. Fails if the machine does not have it, or the device lacks the precision.
pub fn encoder_device(context: &Context) -> anyhow::Result<EncoderDevice> {
    let device: ComputeDevice = context.config.run.device.parse().map_err(anyhow::Error::msg).context("run.device")?;
    let precision = context.config.extract.precision.to_string();
    let precision = precision.parse().map_err(anyhow::Error::msg).context("extract.precision")?;
    Ok(EncoderDevice::open(device, precision)?)
}

/// The content of `slot`, which is opened first if it is empty.
pub(super) fn opened<T>(slot: &mut Option<T>, open: impl FnOnce() -> Result<T>) -> Result<&mut T> {
    let own = match slot.take() {
        Some(own) => own,
        None => open()?,
    };
    Ok(slot.insert(own))
}
