//! Builds the model that a configuration names.

use anyhow::{Context as _, bail, ensure};
use mp4sr_models::{ComputeDevice, Data, Device, Model, Phase, ProcessGroup, RECIPES, RngKey, recipe};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::config::SeenItems;

use crate::Inputs;
use crate::catalog::with_settings;

/// Opens the device that `run.device` names.
pub fn device(config: &Config) -> anyhow::Result<Device> {
    let device: ComputeDevice = config.run.device.parse().map_err(anyhow::Error::msg).context("run.device")?;
    device.open().context("run.device")
}

/// Builds the configured model with new parameters.
pub fn build_model(config: &Config, inputs: &Inputs) -> anyhow::Result<Box<dyn Model>> {
    build_model_in_group(config, inputs, None)
}

/// Builds this process's share of the configured model with new parameters. A model that only one process can train is refused.
pub fn build_model_in_group(
    config: &Config,
    inputs: &Inputs,
    group: Option<&ProcessGroup>,
) -> anyhow::Result<Box<dyn Model>> {
    let name = &config.model.name;
    let recipe = recipe(name).with_context(|| format!("unknown model `{name}`"))?;
    let key = RngKey::new(config.run.seed);
    // This is checked first, because opening a GPU fails for other reasons if there is none.
    ensure!(
        group.is_none() || matches!(config.run.device.parse(), Ok(ComputeDevice::Cpu) | Err(_)),
        "several processes can train only on the CPU, found `run.device = {:?}`; set `run.device = \"cpu\"`, or start one process",
        config.run.device
    );
    let data = Data { group: group.cloned(), ..inputs.data(&device(config)?) };
    if let Some(group) = group {
        let (size, items) = (group.size(), data.items);
        if !recipe.supports.processes {
            let able = RECIPES.iter().filter(|recipe| recipe.supports.processes);
            let able: Vec<String> = able.map(|recipe| format!("`{}`", recipe.name)).collect();
            bail!(
                "`{name}` can be trained by only one process, found {size}; start `mp4sr train` without mpirun, or train {}",
                able.join(" or ")
            );
        }
        ensure!(items >= size, "{items} items cannot be divided among {size} processes; start at most {items}");
    }
    Ok(with_settings(config, |settings| (recipe.build)(settings, data, key))?)
}

/// The phase whose weights rank the items.
pub fn last_phase(model: &dyn Model) -> anyhow::Result<&Phase> {
    model.phases().last().context("the model has no phase")
}

/// Whether the items of a history are excluded from the candidates. Validation, evaluation and lists must agree on this.
pub fn removes_seen(config: &Config, model: &dyn Model) -> bool {
    match config.evaluate.seen_items {
        SeenItems::ByModel => !model.is_sequential(),
        SeenItems::Keep => false,
        SeenItems::Remove => true,
    }
}
