use mp4sr_models::{
    CmclDirection, Config as M2seConfig, Logits, Model, Mp4sr, PoolingGradient, Popularity, Pretraining, RngKey,
    SameGroup, SasRec, TransformerConfig,
};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::config::{self, ModelName, SeenItems};

use mp4sr_protocol::training_part;

use crate::Inputs;

/// Zero rows that the released code pads every item's pooling to.
const RELEASED_PAD_ROWS: usize = 10;

/// The model that the configuration names, fresh. This is where a new model is registered.
pub fn build_model(config: &Config, inputs: &Inputs) -> anyhow::Result<Box<dyn Model>> {
    let key = RngKey::new(config.run.seed);
    Ok(match config.model.name {
        ModelName::Mp4sr => Box::new(Mp4sr::new(m2se_config(config), inputs.modalities.clone(), key)?),
        ModelName::Sasrec => Box::new(SasRec::new(transformer_config(config), inputs.sequences.item_count, key)?),
        ModelName::Popularity => {
            let sequences = &inputs.sequences;
            let training = (0..sequences.user_count()).map(|user| training_part(sequences.of(user)));
            Box::new(Popularity::new(sequences.item_count, training)?)
        }
    })
}

/// Whether items of a history are left out of the candidates: validation, evaluation and lists ask the same question.
pub fn removes_seen(config: &Config, model: &dyn Model) -> bool {
    match config.evaluate.seen_items {
        SeenItems::ByModel => !model.is_sequential(),
        SeenItems::Keep => false,
        SeenItems::Remove => true,
    }
}

fn transformer_config(config: &Config) -> TransformerConfig {
    let model = &config.model;
    TransformerConfig {
        width: model.width,
        layers: model.layers,
        heads: model.heads,
        feed_forward: model.feed_forward,
        positions: model.positions,
        dropout: model.dropout,
    }
}

fn m2se_config(config: &Config) -> M2seConfig {
    let (model, pretrain) = (&config.model, &config.pretrain);
    let in_logits =
        |m: &config::Modality| model.logit_modalities.is_empty() || model.logit_modalities.contains(&m.name);
    M2seConfig {
        transformer: transformer_config(config),
        attention: model.attention,
        experts: model.experts,
        expert_dropout: model.expert_dropout,
        temperature: model.temperature,
        shared_encoder: model.shared_encoder,
        id_embedding: model.id_embedding,
        logit_modalities: (0..model.modalities.len()).filter(|&m| in_logits(&model.modalities[m])).collect(),
        pooling_gradient: match model.pooling_gradient {
            config::PoolingGradient::Learned => PoolingGradient::Learned,
            config::PoolingGradient::Frozen => PoolingGradient::Frozen,
        },
        pad_rows: match model.pooling_rows {
            config::PoolingRows::Masked => None,
            config::PoolingRows::Unmasked => Some(RELEASED_PAD_ROWS),
        },
        projection: model.projection == config::Projection::On,
        same_target: match model.same_target {
            config::SameTarget::LeaveOut => SameGroup::LeaveOut,
            config::SameTarget::Keep => SameGroup::Keep,
            config::SameTarget::Zero => SameGroup::Zero,
        },
        cmcl_direction: match model.cmcl_direction {
            config::CmclDirection::Symmetric => CmclDirection::Symmetric,
            config::CmclDirection::RowSums => CmclDirection::RowSums,
        },
        logits: match model.logits {
            config::Logits::Cosine => Logits::Cosine,
            config::Logits::Dot => Logits::Dot,
        },
        pretraining: Pretraining {
            rho: pretrain.rho,
            uniform_rho: pretrain.sequence_dropout == config::SequenceDropout::Uniform,
            mixup: (pretrain.mixup_min.min(pretrain.mixup_max), pretrain.mixup_max),
            nip_weight: pretrain.nip_weight,
            lambda: pretrain.lambda,
        },
        end_to_end: config.finetune.end_to_end,
    }
}
