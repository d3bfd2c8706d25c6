//! `[model.mp4sr]`, the presets of the paper and of the released code, and the model's recipe.

use mp4sr_ops::{FalseNegatives, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mp4sr;
use crate::interface::{FINETUNE, PRETRAIN};
use crate::recipe::{DECAY_GRID, ModelSettings, Preset, Reads, Recipe, Refused, Renamed, Section, Supports};
use crate::{CmclDirection, Phase, Pooling, PoolingGradient};

/// How MP4SR is named, configured and built.
pub static RECIPE: Recipe = Recipe {
    name: "mp4sr",
    title: "MP4SR",
    summary: "The paper's model.",
    paper: "Multimodal Pre-training Framework for Sequential Recommendation via Contrastive Learning (arXiv 2303.11879)",
    reads: Reads { features: true, transformer: true, categories: &[] },
    supports: Supports { candidates: true, processes: true },
    section: Section::of::<Config>(),
    phase_reads,
    defaults: "",
    presets: &PRESETS,
    grid: DECAY_GRID,
    renamed: &RENAMED,
    item_tables: |_| Some(&["id_embedding"]),
    check,
    phases: |settings| Ok(phases(&settings.own()?)),
    build: |settings, data, key| {
        let (config, transformer) = (settings.own()?, settings.transformer()?);
        let sampler = settings.candidate_sampler(&data)?;
        let model = Mp4sr::in_group(config, transformer, data.modalities, &data.device, key, data.group)?;
        Ok(Box::new(match sampler {
            Some(sampler) => model.with_candidates(sampler),
            None => model,
        }))
    },
};

/// The number of rows to which the released code pads every item with rows of zeros.
const RELEASED_ROWS: usize = 10;

/// Which rows share the softmax of attention pooling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolingRows {
    /// The item's own rows (paper).
    #[default]
    Masked,
    /// The item's rows and rows of zeros that pad them to `padded_rows` (released code).
    Unmasked,
}

/// Whether pre-training has projection heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// One head per modality (paper).
    #[default]
    On,
    /// The losses are computed on the sequence vectors themselves (released code; the paper's `w/o Proj`).
    Off,
}

/// How fine-tuning computes scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Logits {
    /// Cosine over the temperature (released code).
    #[default]
    Cosine,
    /// Inner product (paper).
    Dot,
}

/// How the share of items that sequence dropout drops is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SequenceDropout {
    /// It is always `rho` (paper).
    #[default]
    Fixed,
    /// It is drawn from U(0, `rho`) once per batch (released code).
    Uniform,
}

/// `[model.mp4sr]`: hyper-parameters of MP4SR.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `d_a`, the width of attention pooling.
    #[schemars(range(min = 1, max = 4096))]
    pub attention: usize,
    /// O, the number of experts of a modality's encoder.
    #[schemars(range(min = 1, max = 256))]
    pub experts: usize,
    /// The dropout probability of the experts.
    #[schemars(range(min = 0.0, max = 0.95))]
    pub expert_dropout: f64,
    /// tau, the temperature of all similarities.
    #[schemars(range(min = 0.0001, max = 100.0))]
    pub temperature: f64,
    /// Whether one item encoder serves all modalities (variant `Shared`).
    pub shared_encoder: bool,
    /// Whether items have id embeddings in fine-tuning.
    pub id_embedding: bool,
    /// The modalities in the logits (variants `T`, `V`). Empty: all.
    pub logit_modalities: Vec<String>,
    /// What happens to the gradient of attention pooling.
    pub pooling_gradient: PoolingGradient,
    /// Which rows share the softmax of attention pooling.
    pub pooling_rows: PoolingRows,
    /// The number of rows that `pooling_rows = "unmasked"` pads every item to.
    #[schemars(range(min = 1, max = 10000))]
    pub padded_rows: usize,
    /// Whether pre-training has projection heads.
    pub projection: Projection,
    /// How samples of the batch that share the sample's target are treated in NIP and CMCL.
    pub false_negatives: FalseNegatives,
    /// How the second direction of CMCL is computed.
    pub cmcl_direction: CmclDirection,
    /// How fine-tuning computes scores.
    pub logits: Logits,
    /// rho, the probability that sequence dropout drops an item.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rho: f64,
    /// How the share of dropped items is chosen.
    pub sequence_dropout: SequenceDropout,
    /// The minimum swap probability of mixup, which is drawn once per batch.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mixup_min: f64,
    /// The maximum swap probability of mixup; 0 disables mixup (variant `w/o C-Mixup`).
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mixup_max: f64,
    /// The weight of NIP; 0 is the variant `w/o NIP`.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub nip_weight: f64,
    /// lambda, the weight of CMCL; 0 is the variant `w/o CMCL`.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub lambda: f64,
    /// Whether fine-tuning starts from random weights and every step adds the loss of pre-training (variant `E2E`).
    pub end_to_end: bool,
}

/// The settings of the paper, except for `false_negatives` and `logits`; the preset `paper` sets these to the paper's values.
impl Default for Config {
    fn default() -> Self {
        Self {
            attention: 64,
            experts: 8,
            expert_dropout: 0.2,
            temperature: 0.07,
            shared_encoder: false,
            id_embedding: true,
            logit_modalities: Vec::new(),
            pooling_gradient: PoolingGradient::default(),
            pooling_rows: PoolingRows::default(),
            padded_rows: RELEASED_ROWS,
            projection: Projection::default(),
            false_negatives: FalseNegatives::default(),
            cmcl_direction: CmclDirection::default(),
            logits: Logits::default(),
            rho: 0.2,
            sequence_dropout: SequenceDropout::default(),
            mixup_min: 0.0,
            mixup_max: 0.5,
            nip_weight: 1.0,
            lambda: 0.01,
            end_to_end: false,
        }
    }
}

impl Config {
    pub(super) fn pooling(&self) -> Pooling {
        Pooling {
            attention: self.attention,
            gradient: self.pooling_gradient,
            pooling_rows: match self.pooling_rows {
                PoolingRows::Masked => None,
                PoolingRows::Unmasked => Some(self.padded_rows),
            },
        }
    }

    /// The range from which the swap probability of mixup is drawn.
    pub(super) fn mixup(&self) -> (f64, f64) {
        (self.mixup_min, self.mixup_max)
    }
}

const PRETRAINED: [Phase; 2] = [Phase::of_prefixes(PRETRAIN), Phase::of_prefixes(FINETUNE)];

/// Both phases, or only fine-tuning if the model is trained end to end.
pub(super) fn phases(config: &Config) -> Vec<Phase> {
    PRETRAINED[usize::from(config.end_to_end)..].to_vec()
}

/// Keys that pre-training does not read.
const FINETUNE_KEYS: [&str; 4] = ["end_to_end", "id_embedding", "logit_modalities", "logits"];

/// Keys that fine-tuning reads only if the model is trained end to end.
const PRETRAIN_KEYS: [&str; 9] = [
    "projection",
    "false_negatives",
    "cmcl_direction",
    "rho",
    "sequence_dropout",
    "mixup_min",
    "mixup_max",
    "nip_weight",
    "lambda",
];

fn phase_reads(settings: &ModelSettings<'_>, phase: &str, key: &str) -> bool {
    match phase {
        PRETRAIN => !FINETUNE_KEYS.contains(&key),
        _ => !PRETRAIN_KEYS.contains(&key) || settings.own["end_to_end"] == true,
    }
}

fn check(settings: &ModelSettings<'_>) -> std::result::Result<(), Refused> {
    let read = |result: Result<Config>| result.map_err(|e| Refused::new("model.mp4sr", &"...", e.to_string()));
    let config = read(settings.own())?;
    let compares = config.lambda > 0.0 && settings.modalities.len() > 1;
    if settings.pretrains && config.nip_weight <= 0.0 && !compares {
        let allowed = "more than 0, or `model.mp4sr.lambda` above 0 and two modalities: pre-training needs a loss";
        return Err(Refused::new("model.mp4sr.nip_weight", &config.nip_weight, allowed));
    }
    if config.mixup_min > config.mixup_max {
        let allowed = format!("at most `model.mp4sr.mixup_max`, which is {}", config.mixup_max);
        return Err(Refused::new("model.mp4sr.mixup_min", &config.mixup_min, allowed));
    }
    match config.logit_modalities.iter().find(|name| !settings.modalities.contains(name)) {
        Some(name) => Err(Refused::new(
            "model.mp4sr.logit_modalities",
            &format!("{name:?}"),
            format!("names from model.modalities: {}", settings.modalities.join(", ")),
        )),
        None => Ok(()),
    }
}

/// The two readings of the paper (specification, section 10), each with all switches, and the tuned hyper-parameters.
const PRESETS: [Preset; 3] = [
    Preset {
        name: "paper",
        summary: "The paper's settings where they differ from the defaults: false negatives are kept, and logits are inner products.",
        keys: r#"
            [model.mp4sr]
            pooling_gradient = "learned"
            pooling_rows = "masked"
            projection = "on"
            false_negatives = "keep"
            cmcl_direction = "symmetric"
            logits = "dot"
            sequence_dropout = "fixed"

            [finetune]
            patience = 10

            [preprocess]
            preset = "strict-5core"
        "#,
    },
    Preset {
        name: "released",
        summary: "The authors' released code, with the settings of its README.",
        keys: r#"
            [model.mp4sr]
            pooling_gradient = "frozen"
            pooling_rows = "unmasked"
            projection = "off"
            false_negatives = "zero_logit"
            cmcl_direction = "row_sums"
            logits = "cosine"
            sequence_dropout = "uniform"

            [pretrain]
            patience = 20
            clip_norm = 5.0

            [finetune]
            patience = 20
            clip_norm = 5.0

            [preprocess]
            preset = "released"
            repeated = "last"
        "#,
    },
    Preset {
        name: "tuned",
        summary: "The hyper-parameters selected on the validation sets of docs/results.md: no projection heads, twice the default \
             learning rate in pre-training, no weight decay in fine-tuning.",
        keys: r#"
            [model.mp4sr]
            projection = "off"

            [pretrain]
            learning_rate = 0.002

            [finetune]
            weight_decay = 0.0
        "#,
    },
];

/// Keys that were in `[model]`, `[pretrain]` and `[finetune]` when there was only one model to configure.
const RENAMED: [Renamed; 20] = [
    Renamed::key("model.attention", "model.mp4sr.attention"),
    Renamed::key("model.experts", "model.mp4sr.experts"),
    Renamed::key("model.expert_dropout", "model.mp4sr.expert_dropout"),
    Renamed::key("model.temperature", "model.mp4sr.temperature"),
    Renamed::key("model.shared_encoder", "model.mp4sr.shared_encoder"),
    Renamed::key("model.id_embedding", "model.mp4sr.id_embedding"),
    Renamed::key("model.logit_modalities", "model.mp4sr.logit_modalities"),
    Renamed::key("model.pooling_gradient", "model.mp4sr.pooling_gradient"),
    Renamed::key("model.pooling_rows", "model.mp4sr.pooling_rows"),
    Renamed::key("model.projection", "model.mp4sr.projection"),
    Renamed {
        from: "model.same_target",
        to: "model.mp4sr.false_negatives",
        values: &[("leave_out", "exclude"), ("zero", "zero_logit")],
    },
    Renamed::key("model.cmcl_direction", "model.mp4sr.cmcl_direction"),
    Renamed::key("model.logits", "model.mp4sr.logits"),
    Renamed::key("pretrain.rho", "model.mp4sr.rho"),
    Renamed::key("pretrain.sequence_dropout", "model.mp4sr.sequence_dropout"),
    Renamed::key("pretrain.mixup_min", "model.mp4sr.mixup_min"),
    Renamed::key("pretrain.mixup_max", "model.mp4sr.mixup_max"),
    Renamed::key("pretrain.nip_weight", "model.mp4sr.nip_weight"),
    Renamed::key("pretrain.lambda", "model.mp4sr.lambda"),
    Renamed::key("finetune.end_to_end", "model.mp4sr.end_to_end"),
];
