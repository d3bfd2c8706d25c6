//! The item encoder of one modality (specification, section 3; paper, equations 3 to 5): attention pooling of the item's
//! rows, then a mixture of experts.

use candle_core::{Tensor, Var};
use mp4sr_ops::{Dropout, GatherIndex, ItemRows, MixtureSizes, Ragged, Result, RngKey, plain};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Initial, PackedParameter, Parameters, trace};

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

/// How the rows of an item are pooled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pooling {
    /// The width of attention pooling, `d_a`.
    pub attention: usize,
    /// Whether the pooling is trained.
    pub gradient: PoolingGradient,
    /// The number of rows to which every item is padded with rows of zeros; `None` if only real rows share the softmax.
    pub pooling_rows: Option<usize>,
}

/// Attention pooling and a mixture of experts.
///
/// The pooling applies two linear maps in sequence, so only their product w = W1 W2 matters. Their biases cancel in the softmax and are left
/// out.
#[derive(Debug)]
pub struct ItemEncoder {
    w1: Var,
    w2: Var,
    /// All other parameters, in the layout of [`MixtureSizes`].
    mixture: Var,
    pooling: Pooling,
    sizes: MixtureSizes,
}

/// The parameters of a mixture of experts under `prefix`.
fn mixture(prefix: &str, sizes: MixtureSizes) -> Vec<PackedParameter> {
    let MixtureSizes { features, experts, width } = sizes;
    let part = |name: String, shape: &[usize], initial, start: usize| PackedParameter {
        name: format!("{prefix}.{name}"),
        shape: shape.to_vec(),
        initial,
        start,
        stride: None,
    };
    // With a gate of zeros, all experts start with the same weight.
    let mut parts = vec![part("gate.weight".to_owned(), &[features, experts], Initial::Zeros, sizes.gate().start)];
    for k in 0..experts {
        let expert = |name: &str, shape: &[usize], initial, all: std::ops::Range<usize>| {
            let count: usize = shape.iter().product();
            part(format!("expert.{k}.{name}"), shape, initial, all.start + k * count)
        };
        parts.push(expert("weight", &[features, width], Initial::Normal, sizes.weights()));
        // With a bias of zero, an item without rows would have no variance under LayerNorm, and its gradient would explode.
        parts.push(expert("bias", &[width], Initial::Uniform(features), sizes.biases()));
        parts.push(expert("norm.weight", &[width], Initial::Ones, sizes.norm_weights()));
        parts.push(expert("norm.bias", &[width], Initial::Zeros, sizes.norm_biases()));
    }
    parts
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
        let mut add =
            |name: &str, shape: &[usize]| parameters.add(&format!("{prefix}.{name}"), shape, Initial::Normal, key);
        let (w1, w2) =
            (add("pool.w1", &[sizes.features, pooling.attention])?, add("pool.w2", &[pooling.attention, 1])?);
        let mixture = parameters.add_packed(&[sizes.count()], &mixture(prefix, sizes), key)?;
        Ok(Self { w1, w2, mixture, pooling, sizes })
    }

    /// The folded pooling vector w, `[d]`, detached from the graph if the pooling is frozen.
    pub fn pooling_vector(&self) -> Result<Tensor> {
        let w = mp4sr_ops::product(&self.w1, &self.w2)?.squeeze(1)?;
        Ok(if self.pooling.gradient == PoolingGradient::Frozen { w.detach() } else { w })
    }

    /// All other parameters as one vector.
    pub fn packed(&self) -> &Tensor {
        &self.mixture
    }

    /// The input of the encoder: the items of `features`, with dropout that is drawn for each use.
    pub fn rows(&self, features: Ragged, dropout: Dropout) -> ItemRows {
        let MixtureSizes { experts, width, .. } = self.sizes;
        ItemRows { features, pooling_rows: self.pooling.pooling_rows, experts, width, dropout }
    }

    /// Records the steps of encoding the items of `rows` if a trace is collected.
    pub(crate) fn trace(&self, rows: &ItemRows, name: &str) -> Result<()> {
        if !trace::is_on() {
            return Ok(());
        }
        let w = self.pooling_vector()?;
        let steps = plain::encoded(rows, &w, self.packed())?;
        let once = GatherIndex::each_once(rows.features.count());
        let outputs = plain::experts(&steps.products, &steps.norms, rows.experts, &once, Dropout::NONE)?;
        let alpha = plain::pooling_weights(&rows.features, &w.unsqueeze(1)?, rows.pooling_rows)?;
        trace::record(|| format!("alpha.{name}"), &alpha);
        trace::record(|| format!("pooled.{name}"), &steps.pooled);
        trace::record(|| format!("gate.{name}"), &steps.gate);
        trace::record(|| format!("experts.{name}"), &outputs);
        Ok(())
    }
}
