//! The item encoder of one modality (specification, section 3; paper, equations 3 and 4): attention pooling of the item's
//! rows, then a mixture of experts.

use candle_core::{Tensor, Var};
use mp4sr_ops::{Dropout, Ragged, Result, Stream, Uses, plain};

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
}

#[derive(Debug)]
struct Expert {
    weight: Var,
    bias: Var,
    norm_weight: Var,
    norm_bias: Var,
}

/// What does not depend on a use's dropout: computed once per distinct item.
#[derive(Debug)]
pub struct EncodedItems {
    /// `[n, O d_0]`: e W_k + b_k.
    pub products: Tensor,
    /// `[n, O]`: g = softmax(e W3).
    pub gate: Tensor,
    /// `[2, O d_0]`: weights and biases of the experts' LayerNorms.
    pub norms: Tensor,
}

impl ItemEncoder {
    /// An encoder of rows of `width` to vectors of `model_width`, with parameters under `prefix`.
    pub fn new(
        parameters: &mut Parameters,
        prefix: &str,
        (width, attention, model_width, experts): (usize, usize, usize, usize),
        pooling_gradient: PoolingGradient,
        pad_rows: Option<usize>,
        stream: Stream,
    ) -> Result<Self> {
        let mut add =
            |name: &str, shape: &[usize], initial| parameters.add(&format!("{prefix}.{name}"), shape, initial, stream);
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
        Ok(Self { w1, w2, gate, experts, pooling_gradient, pad_rows })
    }

    /// Pools and multiplies: once per distinct item of `features`.
    pub fn encode(&self, features: &Ragged, name: &str, trace: &Trace) -> Result<EncodedItems> {
        let mut w = mp4sr_ops::product(&self.w1, &self.w2)?;
        if self.pooling_gradient == PoolingGradient::Frozen {
            w = w.detach();
        }
        let pooled = mp4sr_ops::pool(features, &w, self.pad_rows)?;
        let cat = |pick: fn(&Expert) -> &Var, axis: usize| {
            Tensor::cat(&self.experts.iter().map(|e| pick(e).as_tensor()).collect::<Vec<_>>(), axis)
        };
        let products = mp4sr_ops::linear(&pooled, &cat(|e| &e.weight, 1)?, &cat(|e| &e.bias, 0)?)?;
        let gate = plain::gate(&mp4sr_ops::product(&pooled, &self.gate)?)?;
        let norms = Tensor::stack(&[cat(|e| &e.norm_weight, 0)?, cat(|e| &e.norm_bias, 0)?], 0)?;
        if trace.is_on() {
            trace.record(|| format!("pooled.{name}"), &pooled);
            trace.record(|| format!("gate.{name}"), &gate);
            trace.record(|| format!("alpha.{name}"), &mp4sr_ops::pooling_weights(features, &w, self.pad_rows)?);
            let once = Uses::each_once(features.count());
            let each = mp4sr_ops::experts(&products, &norms, self.experts.len(), &once, Dropout::NONE)?;
            trace.record(|| format!("experts.{name}"), &each);
        }
        Ok(EncodedItems { products, gate, norms })
    }
}

impl EncodedItems {
    /// z of every use, `[uses, d_0]`, each with its own dropout.
    pub fn mix(&self, uses: &Uses, dropout: Dropout) -> Result<Tensor> {
        mp4sr_ops::mixture(&self.products, &self.gate, &self.norms, uses, dropout)
    }
}
