//! The item encoder of one modality (specification, section 3; paper, equations 3 and 4): attention pooling of the item's
//! rows, then a mixture of experts.

use candle_core::{Tensor, Var};
use mp4sr_ops::{
    Dropout, ExpertParts, GatherIndex, ItemRows, MixtureSizes, Ragged, Result, RngKey, pack_mixture, plain,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Initial, Parameters, trace};

/// What happens to the gradient of attention pooling (specification, section 10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolingGradient {
    /// The pooling is trained (paper).
    #[default]
    Learned,
    /// The gradient is cut, so that the pooling stays as it started (released code).
    Frozen,
}

/// How items' rows are pooled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pooling {
    /// The width of attention pooling, `d_a`.
    pub attention: usize,
    /// What happens to its gradient.
    pub gradient: PoolingGradient,
    /// Rows of zeros pad every item's rows up to this number; none where only real rows share the softmax.
    pub pad_rows: Option<usize>,
}

/// Attention pooling and mixture of experts.
///
/// There is no non-linearity between the pooling's two maps, so only w = W1 W2 counts, and their biases cancel in the
/// softmax: they are left out.
#[derive(Debug)]
pub struct ItemEncoder {
    w1: Var,
    w2: Var,
    gate: Var,
    experts: Vec<Expert>,
    pooling: Pooling,
    width: usize,
}

#[derive(Debug)]
struct Expert {
    weight: Var,
    bias: Var,
    norm_weight: Var,
    norm_bias: Var,
}

impl ItemEncoder {
    /// An encoder with parameters under `prefix`.
    pub fn new(
        parameters: &mut Parameters,
        prefix: &str,
        sizes: MixtureSizes,
        pooling: Pooling,
        key: RngKey,
    ) -> Result<Self> {
        let MixtureSizes { features: width, experts, width: model_width } = sizes;
        let mut add =
            |name: &str, shape: &[usize], initial| parameters.add(&format!("{prefix}.{name}"), shape, initial, key);
        let w1 = add("pool.w1", &[width, pooling.attention], Initial::Normal)?;
        let w2 = add("pool.w2", &[pooling.attention, 1], Initial::Normal)?;
        // A gate of zeros starts with all experts alike.
        let gate = add("gate.weight", &[width, experts], Initial::Zeros)?;
        let experts = (0..experts)
            .map(|k| {
                Ok(Expert {
                    weight: add(&format!("expert.{k}.weight"), &[width, model_width], Initial::Normal)?,
                    // At zero, an item without rows has no variance under LayerNorm and its gradient explodes.
                    bias: add(&format!("expert.{k}.bias"), &[model_width], Initial::Uniform(width))?,
                    norm_weight: add(&format!("expert.{k}.norm.weight"), &[model_width], Initial::Ones)?,
                    norm_bias: add(&format!("expert.{k}.norm.bias"), &[model_width], Initial::Zeros)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { w1, w2, gate, experts, pooling, width: model_width })
    }

    /// The folded pooling vector, `[d]`, cut from the graph where pooling is frozen.
    pub fn pooling_vector(&self) -> Result<Tensor> {
        let w = mp4sr_ops::product(&self.w1, &self.w2)?.squeeze(1)?;
        Ok(if self.pooling.gradient == PoolingGradient::Frozen { w.detach() } else { w })
    }

    /// All other parameters as one vector.
    pub fn packed(&self) -> Result<Tensor> {
        let parts = self.experts.iter().map(|expert| ExpertParts {
            weight: &expert.weight,
            bias: &expert.bias,
            norm_weight: &expert.norm_weight,
            norm_bias: &expert.norm_bias,
        });
        pack_mixture(&parts.collect::<Vec<_>>(), &self.gate)
    }

    /// What it works on: the items of `features`, each use with its own dropout.
    pub fn rows(&self, features: Ragged, dropout: Dropout) -> ItemRows {
        ItemRows { features, pad_rows: self.pooling.pad_rows, experts: self.experts.len(), width: self.width, dropout }
    }

    /// Records the steps of encoding the items of `rows` where a trace is collected.
    pub(crate) fn trace(&self, rows: &ItemRows, name: &str) -> Result<()> {
        if !trace::is_on() {
            return Ok(());
        }
        let (w, packed) = (self.pooling_vector()?, self.packed()?);
        let steps = plain::encoded(rows, &w, &packed)?;
        let once = GatherIndex::each_once(rows.features.count());
        let outputs = plain::experts(&steps.products, &steps.norms, rows.experts, &once, Dropout::NONE)?;
        let alpha = plain::pooling_weights(&rows.features, &w.unsqueeze(1)?, rows.pad_rows)?;
        trace::record(|| format!("alpha.{name}"), &alpha);
        trace::record(|| format!("pooled.{name}"), &steps.pooled);
        trace::record(|| format!("gate.{name}"), &steps.gate);
        trace::record(|| format!("experts.{name}"), &outputs);
        Ok(())
    }
}
