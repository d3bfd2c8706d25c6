use anyhow::Context as _;
use mp4sr_models::{ComputeDevice, Device, Model, Phase, RngKey, recipe};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::config::SeenItems;

use crate::Inputs;
use crate::catalog::with_settings;

/// Where the configuration says that tensors are computed.
pub fn device(config: &Config) -> anyhow::Result<Device> {
    let device: ComputeDevice = config.run.device.parse().map_err(anyhow::Error::msg).context("run.device")?;
    device.open().context("run.device")
}

/// The model that the configuration names, fresh.
pub fn build_model(config: &Config, inputs: &Inputs) -> anyhow::Result<Box<dyn Model>> {
    let name = &config.model.name;
    let recipe = recipe(name).with_context(|| format!("there is no model `{name}`"))?;
    let key = RngKey::new(config.run.seed);
    let data = inputs.data(&device(config)?);
    Ok(with_settings(config, |settings| (recipe.build)(settings, data, key))?)
}

/// The phase whose weights rank the items.
pub fn last_phase(model: &dyn Model) -> anyhow::Result<&Phase> {
    model.phases().last().context("the model has no phase")
}

/// Whether items of a history are left out of the candidates: validation, evaluation and lists ask the same question.
pub fn removes_seen(config: &Config, model: &dyn Model) -> bool {
    match config.evaluate.seen_items {
        SeenItems::ByModel => !model.is_sequential(),
        SeenItems::Keep => false,
        SeenItems::Remove => true,
    }
}
