//! The recipe of MP4SR, and the presets of the paper and of the released code.

use mp4sr_ops::Result;

use super::Mp4sr;
use super::config::{Config, phases};
use crate::interface::PRETRAIN;
use crate::recipe::{DECAY_GRID, ModelSettings, Preset, Reads, Recipe, Section, Supports};
use crate::{Refused, Renamed};

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
        let (config, transformer): (Config, _) = (settings.own()?, settings.transformer()?);
        let sampler = settings.candidate_sampler(&data)?;
        // Trained end to end, the model reads all items in every step.
        let pretrain_items = settings.pretrain_items(&data).filter(|_| !config.end_to_end);
        let model = Mp4sr::in_group(config, transformer, data.modalities, &data.device, key, data.group)?;
        let model = match pretrain_items {
            Some(items) => model.with_pretrain_items(items),
            None => model,
        };
        Ok(Box::new(match sampler {
            Some(sampler) => model.with_candidates(sampler),
            None => model,
        }))
    },
};

/// Keys that pre-training does not read.
const FINETUNE_KEYS: [&str; 5] = ["end_to_end", "id_embedding", "id_dropout", "logit_modalities", "logits"];

/// Keys that fine-tuning reads only if the model is trained end to end.
const PRETRAIN_KEYS: [&str; 10] = [
    "projection",
    "false_negatives",
    "cmcl_direction",
    "rho",
    "sequence_dropout",
    "mixup_min",
    "mixup_max",
    "nip_weight",
    "nip_candidates",
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
    if config.id_dropout > 0.0 && !config.id_embedding {
        let allowed = "0, because `model.mp4sr.id_embedding` is false";
        return Err(Refused::new("model.mp4sr.id_dropout", &config.id_dropout, allowed));
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
