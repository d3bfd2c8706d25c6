//! `[train]`, `[pretrain]` and `[finetune]`: the two phases of training.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// Which items the sequences of pre-training keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PretrainItems {
    /// All items.
    #[default]
    All,
    /// Items with at least 10 training events; cold items are removed (cold-start setting).
    Warm,
}

/// The precision of the large matrix products in training or in encoders. Parameters, Adam, LayerNorm and softmax stay f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// f32 whose mantissa the GPU rounds to 10 bits, with sums in f32. Only on a GPU.
    Tf32,
    /// bf16 with sums in f32, on a GPU or on a CPU with AVX-512-BF16.
    Bf16,
}

/// The name by which the operators know the precision.
impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        })
    }
}

/// `[train]`: the keys that apply to both training phases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// The metric on the validation set by which the best epoch is selected and training stops: `R@K`, `N@K`, `Hit@K`, `P@K`, `MAP@K`,
    /// `MRR@K` or `MRR`.
    pub metric: String,
    /// The precision of the large matrix products. Evaluation and recommendation always compute in f32.
    pub precision: Precision,
}

impl Default for Train {
    fn default() -> Self {
        Self { metric: "R@20".to_owned(), precision: Precision::default() }
    }
}

/// The length of a phase, its batch size, and the settings of the optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseSettings {
    /// The maximum number of epochs.
    #[schemars(range(min = 1, max = 100_000))]
    pub epochs: usize,
    /// The number of epochs without a better value of `train.metric` on the validation set after which training stops.
    #[schemars(range(min = 1, max = 100_000))]
    pub patience: usize,
    /// B, the number of samples in a step.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub batch: usize,
    /// Adam's learning rate.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub learning_rate: f64,
    /// The number of epochs at the start over which the learning rate rises linearly, from nearly 0.
    #[schemars(range(min = 0, max = 100_000))]
    pub learning_rate_warm_up: usize,
    /// The factor by which the learning rate is multiplied after every epoch that follows the warm-up. At 1, the learning rate is constant.
    #[schemars(range(min = 0.000_001, max = 1.0))]
    pub learning_rate_decay: f64,
    /// The L2 weight decay, which is added to the gradient.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub weight_decay: f64,
    /// The value at which the joint norm of all gradients is clipped.
    #[schemars(range(min = 0.000_001, max = 1_000_000.0))]
    pub clip_norm: f64,
}

impl PhaseSettings {
    /// The learning rate of a step of an epoch, which counts from 1. `done` is the share of the epoch's steps that are done after this one.
    pub fn learning_rate_at(&self, epoch: usize, done: f64) -> f64 {
        let warm_up = self.learning_rate_warm_up;
        if epoch <= warm_up {
            return self.learning_rate * ((epoch - 1) as f64 + done) / warm_up as f64;
        }
        self.learning_rate * self.learning_rate_decay.powf((epoch - 1 - warm_up) as f64)
    }
}

/// `[pretrain]`: the first phase of models that have two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pretrain {
    /// Whether fine-tuning starts from a pre-trained model (off: the variant `w/o Pre-train`).
    pub enabled: bool,
    /// The run, `<dataset>/<run>`, of any dataset whose pre-trained weights fine-tuning starts from. Empty: the run's own pre-trained
    /// weights.
    pub from: String,
    /// Which items the sequences of pre-training keep.
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
                learning_rate_warm_up: 0,
                learning_rate_decay: 1.0,
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
    /// The candidates of a step's softmax: `all`, or, for large catalogues, the number of items to sample per step in addition to the
    /// batch's targets. Validation ranks all items in both cases.
    pub candidates: String,
    /// Whether to log the loss on the test set after every epoch (Figure 3). No decision depends on it.
    pub log_test_loss: bool,
}

/// The word of `finetune.candidates` for all items.
const ALL: &str = "all";

impl Finetune {
    /// The number of items that are drawn for every step; `None` if all items are candidates.
    ///
    /// # Errors
    /// If the key is neither, the error describes what is allowed.
    pub fn drawn_candidates(&self) -> Result<Option<usize>, &'static str> {
        match self.candidates.as_str() {
            ALL => Ok(None),
            number => match number.parse() {
                Ok(drawn) if drawn > 0 => Ok(Some(drawn)),
                _ => Err("\"all\", or a number of items from 1"),
            },
        }
    }
}

/// A number of candidates may be written without quotes. Whether it is a number of items is checked later.
pub(super) fn candidates_as_text(table: &mut Table) {
    if let Some(value) = table.get_mut("finetune").and_then(|section| section.get_mut("candidates"))
        && matches!(value, Value::Integer(_) | Value::Float(_))
    {
        *value = Value::String(value.to_string());
    }
}

impl Default for Finetune {
    fn default() -> Self {
        Self {
            settings: PhaseSettings {
                epochs: 300,
                patience: 10,
                batch: 1024,
                learning_rate: 0.001,
                learning_rate_warm_up: 0,
                learning_rate_decay: 1.0,
                weight_decay: 0.0001,
                clip_norm: 5.0,
            },
            candidates: ALL.to_owned(),
            log_test_loss: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_over_the_warm_up_and_then_falls() {
        let settings = PhaseSettings {
            learning_rate: 0.8,
            learning_rate_warm_up: 2,
            learning_rate_decay: 0.5,
            ..Finetune::default().settings
        };
        let steps = [(1, 0.25), (1, 1.0), (2, 0.5), (2, 1.0), (3, 0.25), (3, 1.0), (4, 0.5), (5, 1.0)];
        let rates = steps.map(|(epoch, done)| settings.learning_rate_at(epoch, done));
        let expected = [0.1, 0.4, 0.6, 0.8, 0.8, 0.8, 0.4, 0.2];
        assert!(rates.iter().zip(expected).all(|(rate, expected)| (rate - expected).abs() < 1e-12), "{rates:?}");
        let constant = Finetune::default().settings;
        let rates = [1, 2, 300].map(|epoch| constant.learning_rate_at(epoch, 0.5).to_bits());
        assert_eq!(rates, [constant.learning_rate.to_bits(); 3]);
    }
}
