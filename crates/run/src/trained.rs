//! A trained model with its inputs and weights.

use std::path::PathBuf;

use candle_core::Tensor;
use mp4sr_artifact::{Items, Layout, role};
use mp4sr_models::{FINETUNE, Model, Scorer, scorer_of};
use mp4sr_pipeline::Config;

use crate::new_items::item_tables;
use crate::{Checkpoint, Inputs, NewItems, build_model, last_phase, model_catalog};

/// A run's model with the weights that rank the items.
///
/// ```
/// use mp4sr_artifact::Layout;
/// use mp4sr_pipeline::Config;
/// use mp4sr_run::{TrainedModel, model_catalog};
/// # use mp4sr_artifact::{Sequences, hash_ids};
/// # use mp4sr_run::{Checkpoint, CheckpointInfo, Inputs, TrainedPhase, build_model, last_phase};
///
/// # let folder = tempfile::tempdir()?;
/// # let (artifacts, path) = (folder.path(), folder.path().join("shop.toml"));
/// # std::fs::write(&path, "[dataset]\nname = \"shop\"\n[model]\nname = \"popularity\"\n")?;
/// # let sequences = Sequences {
/// #     offsets: vec![0, 4, 8],
/// #     items: vec![2, 3, 1, 3, 2, 1, 1, 3],
/// #     times: vec![1, 2, 3, 4, 1, 2, 3, 4],
/// #     item_hash: hash_ids(["cup", "pot", "pan"]),
/// #     item_count: 3,
/// #     user_hash: None,
/// #     time_kind: mp4sr_artifact::TimeKind::Unstated,
/// #     parts: None,
/// # };
/// # let shop = Layout::new(artifacts, "shop", "popularity");
/// # sequences.write(&shop.sequences(), serde_json::Value::Null)?;
/// # let (config, _) = Config::load(&path, &[], model_catalog())?;
/// # let model = build_model(&config, &Inputs { sequences: sequences.clone(), modalities: Vec::new(), encoders: Default::default(), categories: None })?;
/// # let used = TrainedPhase { model: model.as_ref(), phase: last_phase(model.as_ref())? };
/// # let info = CheckpointInfo { phase: "finetune".to_owned(), ..CheckpointInfo::default() };
/// # Checkpoint::write(&shop.checkpoint("finetune"), &info, used, &sequences.item_hash, Default::default())?;
/// // `path` is a pipeline file, and `artifacts` contains a run that `mp4sr run` has trained with it.
/// let (config, warnings) = Config::load(&path, &[], model_catalog())?;
/// let layout = Layout::new(artifacts, &config.dataset.name, "popularity");
/// let trained = TrainedModel::load(&layout, &config)?;
/// let scorer = trained.scorer()?;
/// assert_eq!(scorer.items().dims()[0], trained.inputs.sequences.item_count);
/// # assert!(warnings.is_empty());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct TrainedModel {
    /// The data that the model was built from.
    pub inputs: Inputs,
    /// The model.
    pub model: Box<dyn Model>,
    /// The checkpoint that contains the model's weights.
    pub checkpoint: Checkpoint,
    /// The items that were added after training. In the inputs and the model, they follow those of the dataset.
    pub new_items: Option<NewItems>,
}

impl TrainedModel {
    /// The files that the model is loaded from, by role.
    pub fn files(layout: &Layout, config: &Config) -> Vec<(String, PathBuf)> {
        let mut files = Inputs::files(layout, config);
        files.push((role::WEIGHTS.to_owned(), layout.checkpoint(FINETUNE)));
        files
    }

    /// Reads and verifies the files, without items that were added to the run.
    pub fn load(layout: &Layout, config: &Config) -> anyhow::Result<Self> {
        Self::load_from(layout, config, None)
    }

    /// Reads and verifies the files, and appends the items that were added to the run. Those that the dataset now contains are left out,
    /// because it knows more about them; their ids are returned.
    pub fn load_with_new_items(
        layout: &Layout,
        config: &Config,
        new_items: Option<NewItems>,
    ) -> anyhow::Result<(Self, Vec<String>)> {
        let Some(new) = new_items else { return Ok((Self::load_from(layout, config, None)?, Vec::new())) };
        let (new, in_dataset) = new.without(&Items::read(&layout.items())?.ids);
        Ok((Self::load_from(layout, config, new)?, in_dataset))
    }

    fn load_from(layout: &Layout, config: &Config, new_items: Option<NewItems>) -> anyhow::Result<Self> {
        let mut inputs = Inputs::load(layout, config)?;
        let path = layout.checkpoint(FINETUNE);
        let mut checkpoint = Checkpoint::read(&path, FINETUNE, &inputs.sequences.item_hash)?;
        checkpoint.info.expect_model(model_catalog(), config, FINETUNE, FINETUNE, &path)?;
        checkpoint.info.expect_encoders(&inputs, &path)?;
        if let Some(new) = &new_items {
            checkpoint.append_rows(item_tables(config)?, new.items.len());
            inputs.append(new)?;
        }
        let model = build_model(config, &inputs)?;
        checkpoint.expect_users(model.as_ref(), inputs.sequences.user_hash.as_ref(), &path)?;
        checkpoint.load_into(model.as_ref(), last_phase(model.as_ref())?, &path)?;
        Ok(Self { inputs, model, checkpoint, new_items })
    }

    /// The item matrix `[n, k]` of the scorer for new items only, computed with the same weights. No vector of the
    /// catalogue is computed.
    pub fn item_vectors(&self, layout: &Layout, config: &Config, new: &NewItems) -> anyhow::Result<Tensor> {
        let inputs = Inputs::of_new_items(new, &self.inputs);
        self.checkpoint.info.expect_encoders(&inputs, &layout.checkpoint(FINETUNE))?;
        let checkpoint =
            self.checkpoint.with_other_items(item_tables(config)?, self.inputs.item_count(), new.items.len());
        let model = build_model(config, &inputs)?;
        let phase = last_phase(model.as_ref())?;
        checkpoint.load_into(model.as_ref(), phase, &layout.checkpoint(FINETUNE))?;
        Ok(model.scorer(phase)?.items().clone())
    }

    /// The scorer of the phase whose weights rank the items.
    pub fn scorer(&self) -> anyhow::Result<Box<dyn Scorer + '_>> {
        let model = self.model.as_ref();
        Ok(scorer_of(model, last_phase(model)?, self.inputs.item_count())?)
    }
}
