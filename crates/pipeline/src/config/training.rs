use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// How long a phase trains, in which steps, and how the optimiser takes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseSettings {
    /// The greatest number of epochs.
    #[schemars(range(min = 1, max = 100_000))]
    pub epochs: usize,
    /// Training stops after this many epochs without a better validation R@20.
    #[schemars(range(min = 1, max = 100_000))]
    pub patience: usize,
    /// B, the number of samples in a step.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub batch: usize,
    /// Adam's learning rate.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub learning_rate: f64,
    /// The L2 weight decay, which is added to the gradient.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub weight_decay: f64,
    /// The joint norm of all gradients is clipped at this.
    #[schemars(range(min = 0.000_001, max = 1_000_000.0))]
    pub clip_norm: f64,
}

/// `[pretrain]`: the first phase of models that have two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pretrain {
    /// Whether fine-tuning starts from a pre-trained model (off: the variant `w/o Pre-train`).
    pub enabled: bool,
    /// A run of any dataset, `<dataset>/<run>`, whose pre-trained weights fine-tuning starts from in place of its own. Empty:
    /// its own.
    pub from: String,
    /// Which items are in the sequences of pre-training.
    pub items: PretrainItems,
    /// Epochs, steps and the optimiser.
    #[serde(flatten)]
    pub settings: PhaseSettings,
}

impl Default for Pretrain {
    fn default() -> Self {
        Self {
            enabled: true,
            from: String::new(),
            items: PretrainItems::default(),
            settings: PhaseSettings {
                epochs: 300,
                patience: 20,
                batch: 1024,
                learning_rate: 0.001,
                weight_decay: 0.0,
                clip_norm: 5.0,
            },
        }
    }
}

/// `[finetune]`: the last phase of every model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finetune {
    /// Epochs, steps and the optimiser.
    #[serde(flatten)]
    pub settings: PhaseSettings,
    /// Whether the log has the loss of the test split after every epoch (Figure 3). Nothing is chosen by it.
    pub log_test_loss: bool,
}

impl Default for Finetune {
    fn default() -> Self {
        Self {
            settings: PhaseSettings {
                epochs: 300,
                patience: 10,
                batch: 1024,
                learning_rate: 0.001,
                weight_decay: 0.0001,
                clip_norm: 5.0,
            },
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
    /// Sets several keys together; keys that the pipeline sets win over it.
    pub preset: String,
    /// Training writes the state that a killed run goes on from after every epoch, and within an epoch when this many
    /// seconds have passed.
    #[schemars(range(min = 0.0, max = 86400.0))]
    pub save_seconds: f64,
}

impl Default for Run {
    fn default() -> Self {
        Self { name: "mp4sr".to_owned(), seed: 2020, preset: "default".to_owned(), save_seconds: 60.0 }
    }
}
