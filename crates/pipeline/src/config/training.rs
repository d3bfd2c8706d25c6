use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::preset::Preset;

/// How the share of dropped items is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SequenceDropout {
    /// Always `rho` (paper).
    #[default]
    Fixed,
    /// Drawn from U(0, `rho`) once a batch (released code).
    Uniform,
}

/// Which items are in the sequences of pre-training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PretrainItems {
    /// All.
    #[default]
    All,
    /// Those with at least 10 training events; cold ones are taken out (cold-start setting).
    Warm,
}

/// `[pretrain]`: NIP and CMCL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pretrain {
    /// Whether fine-tuning starts from a pre-trained model (off: the variant `w/o Pre-train`).
    pub enabled: bool,
    /// A run of any dataset, `<dataset>/<run>`, whose pre-trained weights fine-tuning starts from in place of its own. Empty:
    /// its own.
    pub from: String,
    /// Which items are in the sequences of pre-training.
    pub items: PretrainItems,
    /// At most this many epochs.
    #[schemars(range(min = 1, max = 100_000))]
    pub epochs: usize,
    /// Stops after this many epochs without a better validation R@20.
    #[schemars(range(min = 1, max = 100_000))]
    pub patience: usize,
    /// B, samples in a step.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub batch: usize,
    /// Adam's learning rate.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub learning_rate: f64,
    /// L2 weight decay, added to the gradient.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub weight_decay: f64,
    /// The joint norm of all gradients is clipped at this.
    #[schemars(range(min = 0.000_001, max = 1_000_000.0))]
    pub clip_norm: f64,
    /// rho, the probability that sequence dropout drops an item.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rho: f64,
    /// How the share of dropped items is chosen.
    pub sequence_dropout: SequenceDropout,
    /// The least swap probability of mixup, drawn once a batch.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mixup_min: f64,
    /// The greatest swap probability of mixup; 0 switches mixup off (variant `w/o C-Mixup`).
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mixup_max: f64,
    /// Weight of NIP; 0 is the variant `w/o NIP`.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub nip_weight: f64,
    /// lambda, the weight of CMCL; 0 is the variant `w/o CMCL`.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub lambda: f64,
}

impl Default for Pretrain {
    fn default() -> Self {
        Self {
            enabled: true,
            from: String::new(),
            items: PretrainItems::default(),
            epochs: 300,
            patience: 20,
            batch: 1024,
            learning_rate: 0.001,
            weight_decay: 0.0,
            clip_norm: 5.0,
            rho: 0.2,
            sequence_dropout: SequenceDropout::default(),
            mixup_min: 0.0,
            mixup_max: 0.5,
            nip_weight: 1.0,
            lambda: 0.01,
        }
    }
}

/// `[finetune]`: cross-entropy over all items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Finetune {
    /// At most this many epochs.
    #[schemars(range(min = 1, max = 100_000))]
    pub epochs: usize,
    /// Stops after this many epochs without a better validation R@20.
    #[schemars(range(min = 1, max = 100_000))]
    pub patience: usize,
    /// B, samples in a step.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub batch: usize,
    /// Adam's learning rate.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub learning_rate: f64,
    /// L2 weight decay, added to the gradient.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub weight_decay: f64,
    /// The joint norm of all gradients is clipped at this.
    #[schemars(range(min = 0.000_001, max = 1_000_000.0))]
    pub clip_norm: f64,
    /// One stage from random weights: every step adds the loss of pre-training, with its settings, to cross-entropy (variant
    /// `E2E`).
    pub end_to_end: bool,
    /// Whether the log has the loss of the test split after every epoch (Figure 3). Nothing is chosen by it.
    pub log_test_loss: bool,
}

impl Default for Finetune {
    fn default() -> Self {
        Self {
            epochs: 300,
            patience: 10,
            batch: 1024,
            learning_rate: 0.001,
            weight_decay: 0.0001,
            clip_norm: 5.0,
            end_to_end: false,
            log_test_loss: false,
        }
    }
}

/// Whether items of the history are candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SeenItems {
    /// Kept for sequential models, removed for general ones, as in `RecBole`.
    #[default]
    ByModel,
    /// Candidates like all others.
    Keep,
    /// Not candidates.
    Remove,
}

/// `[evaluate]`: ranking and metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluate {
    /// K of R@K and N@K.
    #[schemars(length(min = 1))]
    pub k: Vec<usize>,
    /// Whether items of the history are candidates.
    pub seen_items: SeenItems,
    /// Users scored at once.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub batch: usize,
    /// The test split is ranked again from the last events of every history alone, once for each of these numbers: users as
    /// if they were new.
    pub short_histories: Vec<usize>,
}

impl Default for Evaluate {
    fn default() -> Self {
        Self { k: vec![5, 10, 20], seen_items: SeenItems::default(), batch: 256, short_histories: Vec::new() }
    }
}

/// `[recommend]`: top-K lists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Recommend {
    /// K, the length of a list.
    #[schemars(range(min = 1, max = 100_000))]
    pub top: usize,
    /// Whether a history ends before the test item, so that lists can be judged by it; else it is the whole sequence.
    pub before_test_item: bool,
}

impl Default for Recommend {
    fn default() -> Self {
        Self { top: 10, before_test_item: true }
    }
}

/// `[report]`: the report page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Report {
    /// Other runs of the same dataset to put beside this one in the tables.
    pub beside: Vec<String>,
    /// Users shown with their history and their list.
    #[schemars(range(min = 0, max = 1000))]
    pub users: usize,
}

impl Default for Report {
    fn default() -> Self {
        Self { beside: Vec::new(), users: 8 }
    }
}

/// `[run]`: what belongs to a run as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// The run's name when `RUN=` and `--run` give none.
    pub name: String,
    /// Every random draw is a function of this, its purpose and its place.
    pub seed: u64,
    /// Sets all switches between the paper and the released code together; keys that the pipeline sets win over it.
    pub preset: Preset,
    /// Training writes the state that a killed run goes on from after every epoch, and within an epoch when this many
    /// seconds have passed.
    #[schemars(range(min = 0.0, max = 86400.0))]
    pub save_seconds: f64,
}

impl Default for Run {
    fn default() -> Self {
        Self { name: "mp4sr".to_owned(), seed: 2020, preset: Preset::default(), save_seconds: 60.0 }
    }
}
