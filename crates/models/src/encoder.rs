//! The item encoder of one modality (specification, section 3; paper, equations 3 and 4): attention pooling of the item's
//! rows, then a mixture of experts.

use candle_core::{Tensor, Var};
use mp4sr_ops::{Dropout, GatherIndex, ItemRows, Ragged, Result, RngKey, plain};

use crate::{Initial, Parameters, Trace};

/// What happens to the gradient of attention pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolingGradient {
    /// It trains.
    Learned,
    /// It is cut, as in the authors' released code.
    Frozen,
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
    pooling_gradient: PoolingGradient,
    pad_rows: Option<usize>,
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
    /// An encoder of rows of `width` to vectors of `model_width`, with parameters under `prefix`.
    pub fn new(
        parameters: &mut Parameters,
        prefix: &str,
        (width, attention, model_width, experts): (usize, usize, usize, usize),
        pooling_gradient: PoolingGradient,
        pad_rows: Option<usize>,
        key: RngKey,
    ) -> Result<Self> {
        let mut add =
            |name: &str, shape: &[usize], initial| parameters.add(&format!("{prefix}.{name}"), shape, initial, key);
        let w1 = add("pool.w1", &[width, attention], Initial::Normal)?;
        let w2 = add("pool.w2", &[attention, 1], Initial::Normal)?;
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
        Ok(Self { w1, w2, gate, experts, pooling_gradient, pad_rows, width: model_width })
    }

    /// The folded pooling vector, `[d]`, cut from the graph where pooling is frozen.
    pub fn pooling(&self) -> Result<Tensor> {
        let w = mp4sr_ops::product(&self.w1, &self.w2)?.squeeze(1)?;
        Ok(if self.pooling_gradient == PoolingGradient::Frozen { w.detach() } else { w })
    }

    /// All other parameters in the order of [`mp4sr_ops::encode`]: experts' weights, gate, biases, LayerNorms.
    pub fn parameters(&self) -> Vec<&Tensor> {
        let all = |pick: fn(&Expert) -> &Var| self.experts.iter().map(move |e| pick(e).as_tensor());
        let weights = all(|e| &e.weight).chain([self.gate.as_tensor()]);
        weights.chain(all(|e| &e.bias)).chain(all(|e| &e.norm_weight)).chain(all(|e| &e.norm_bias)).collect()
    }

    /// What it works on: the items of `features`, each use with its own dropout.
    pub fn rows(&self, features: Ragged, dropout: Dropout) -> ItemRows {
        ItemRows { features, pad_rows: self.pad_rows, experts: self.experts.len(), width: self.width, dropout }
    }

    /// Records the steps of encoding the items of `rows`.
    pub fn trace(&self, rows: &ItemRows, name: &str, trace: &Trace) -> Result<()> {
        if !trace.is_on() {
            return Ok(());
        }
        let (w, packed) = (self.pooling()?, mp4sr_ops::pack(&self.parameters())?);
        let steps = plain::encoded(rows, &w, &packed)?;
        let once = GatherIndex::each_once(rows.features.count());
        let outputs = plain::experts(&steps.products, &steps.norms, rows.experts, &once, Dropout::NONE)?;
        let alpha = plain::pooling_weights(&rows.features, &w.unsqueeze(1)?, rows.pad_rows)?;
        trace.record(|| format!("alpha.{name}"), &alpha);
        trace.record(|| format!("pooled.{name}"), &steps.pooled);
        trace.record(|| format!("gate.{name}"), &steps.gate);
        trace.record(|| format!("experts.{name}"), &outputs);
        Ok(())
    }
}
