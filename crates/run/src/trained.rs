use std::path::PathBuf;

use mp4sr_artifact::Layout;
use mp4sr_models::{FINETUNE, Model, Scorer};
use mp4sr_pipeline::Config;
use mp4sr_protocol::WEIGHTS;

use crate::{Checkpoint, Inputs, build_model, last_phase};

/// A run's model with the weights that rank the items.
pub struct TrainedModel {
    /// What it was built from.
    pub inputs: Inputs,
    /// The model.
    pub model: Box<dyn Model>,
    /// Where its weights come from.
    pub checkpoint: Checkpoint,
}

impl TrainedModel {
    /// The files that it is read from, by role.
    pub fn files(layout: &Layout, config: &Config) -> Vec<(String, PathBuf)> {
        let mut files = Inputs::files(layout, config);
        files.push((WEIGHTS.to_owned(), layout.checkpoint(FINETUNE)));
        files
    }

    /// Reads and verifies them.
    pub fn load(layout: &Layout, config: &Config) -> anyhow::Result<Self> {
        let inputs = Inputs::load(layout, config)?;
        let model = build_model(config, &inputs)?;
        let path = layout.checkpoint(FINETUNE);
        let checkpoint = Checkpoint::read(&path, FINETUNE, &inputs.sequences.item_hash)?;
        checkpoint.load_into(model.as_ref(), last_phase(model.as_ref())?, &path)?;
        Ok(Self { inputs, model, checkpoint })
    }

    /// The model ready to rank.
    pub fn scorer(&self) -> anyhow::Result<Box<dyn Scorer + '_>> {
        Ok(self.model.scorer(last_phase(self.model.as_ref())?)?)
    }
}
