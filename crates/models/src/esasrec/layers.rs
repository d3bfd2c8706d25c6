//! The two kinds of transformer layers that eSASRec's authors compare: those of LiGR and those of SASRec.
//!
//! With causal attention A, whose maps have biases, a layer of LiGR (Borisyuk et al., arXiv 2502.03417) computes
//!
//! x <- x + sigmoid(x G + g) * Dropout(A(LayerNorm(x))),   x <- x + sigmoid(x G' + g') * Dropout(F(LayerNorm(x)))
//!
//! with F(z) = W2 Dropout(silu(W1 z) * W3 z). A layer of SASRec (Kang and McAuley, arXiv 1808.09781), whose queries and residual sums have
//! normalised inputs and whose keys and values do not, computes
//!
//! z = LayerNorm(x), x <- z + A(z, x),   z = LayerNorm(x), x <- z + Dropout(F(z))
//!
//! with F(z) = W2 Dropout(relu(W1 z)). Only the maps of F can be without biases.

use candle_core::{Tensor, Var};
use mp4sr_ops::plain::sigmoid;
use mp4sr_ops::{
    Dropout, PackedOffsets, Result, RngKey, ScoreFusion, SourceScope, SourceSizes, dropout, gather, linear, product,
    source_attention,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::maps::Norm;
use crate::{Initial, Parameters, TransformerConfig, trace};

/// The transformer layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// Those of LiGR: residual branches with a LayerNorm before and a gate after them.
    #[default]
    Ligr,
    /// Those of SASRec's authors. They use them with `feed_forward_bias`, `final_norm` and a `model.transformer.feed_forward` equal to the
    /// width.
    Sasrec,
}

/// A linear map with or without a bias.
#[derive(Debug)]
struct Map {
    weight: Var,
    bias: Option<Var>,
}

impl Map {
    /// Creates a map with `sizes` inputs and outputs, whose initial weights are drawn from N(0, `deviation`).
    fn new(
        parameters: &mut Parameters,
        name: &str,
        sizes: [usize; 2],
        deviation: f64,
        bias: Option<Initial>,
        key: RngKey,
    ) -> Result<Self> {
        let weight = parameters.add(&format!("{name}.weight"), &sizes, Initial::Scaled(deviation), key)?;
        let bias =
            bias.map(|initial| parameters.add(&format!("{name}.bias"), &sizes[1..], initial, key)).transpose()?;
        Ok(Self { weight, bias })
    }

    fn of(&self, x: &Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => linear(x, &self.weight, bias),
            None => product(x, &self.weight),
        }
    }
}

/// The standard deviation of the initial weights of a map with `a` inputs and `b` outputs (Glorot and Bengio, 2010).
pub(super) fn glorot(a: usize, b: usize) -> f64 {
    (2.0 / (a + b) as f64).sqrt()
}

/// The tokens of a pass and what is dropped in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass<'a> {
    pub offsets: &'a PackedOffsets,
    /// Whether only the outputs at the last tokens are needed.
    pub last_only: bool,
    /// The key of what is dropped; without it, nothing is.
    pub key: Option<RngKey>,
}

impl Pass<'_> {
    fn drop(&self, name: &str, rate: f64) -> Dropout {
        self.key.map_or(Dropout::NONE, |key| key.fold_in(name).dropout(rate))
    }

    /// The rows of `x`, `[tokens, d_0]`, whose outputs are needed.
    fn queries(&self, x: &Tensor) -> Result<Tensor> {
        if self.last_only { gather(x, &self.offsets.last_tokens()) } else { Ok(x.clone()) }
    }
}

/// Causal attention.
#[derive(Debug)]
struct Attention {
    query: Map,
    key: Map,
    value: Map,
    output: Map,
}

impl Attention {
    fn new(parameters: &mut Parameters, name: &str, d: usize, key: RngKey) -> Result<Self> {
        // The reference initialises query, key and value as one matrix with three times as many outputs.
        let joint = glorot(d, 3 * d);
        let mut map = |part: &str, deviation: f64| {
            Map::new(parameters, &format!("{name}.{part}"), [d, d], deviation, Some(Initial::Zeros), key)
        };
        Ok(Self {
            query: map("query", joint)?,
            key: map("key", joint)?,
            value: map("value", joint)?,
            output: map("output", glorot(d, d))?,
        })
    }

    /// The output of `queries`, `[queries, d_0]`, over the tokens `x`, `[tokens, d_0]`.
    fn of(&self, queries: &Tensor, x: &Tensor, transformer: &TransformerConfig, pass: Pass<'_>) -> Result<Tensor> {
        let TransformerConfig { width, heads, max_sequence_length, .. } = *transformer;
        let key_value = Tensor::cat(&[self.key.of(x)?, self.value.of(x)?], 1)?;
        // With a single source of scores, this is the attention of a plain transformer.
        let sizes = SourceSizes { sources: vec![width], width, heads, max_sequence_length, fusion: ScoreFusion::Sum };
        let scope = SourceScope { real: None, last_only: pass.last_only, bidirectional: false };
        let drop = pass.drop("weights", transformer.dropout);
        let mixed = source_attention(&self.query.of(queries)?, &key_value, None, &sizes, pass.offsets, scope, drop)?;
        self.output.of(&mixed)
    }
}

/// The maps of a feed-forward layer.
#[derive(Debug)]
struct FeedForward {
    /// W1 of LiGR, whose outputs go through silu; `None` in a layer of SASRec.
    switch: Option<Map>,
    /// W3 of LiGR, W1 of SASRec.
    up: Map,
    /// W2.
    down: Map,
}

impl FeedForward {
    fn new(
        p: &mut Parameters,
        name: &str,
        [d, f]: [usize; 2],
        kind: LayerKind,
        has_bias: bool,
        key: RngKey,
    ) -> Result<Self> {
        let bias = |inputs: usize| has_bias.then_some(Initial::Uniform(inputs));
        let mut map = |part: &str, sizes: [usize; 2]| {
            let deviation = glorot(sizes[0], sizes[1]);
            Map::new(p, &format!("{name}.{part}"), sizes, deviation, bias(sizes[0]), key)
        };
        let switch = (kind == LayerKind::Ligr).then(|| map("switch", [d, f])).transpose()?;
        Ok(Self { switch, up: map("up", [d, f])?, down: map("down", [f, d])? })
    }

    fn of(&self, x: &Tensor, drop: Dropout) -> Result<Tensor> {
        let hidden = match &self.switch {
            Some(switch) => (switch.of(x)?.silu()? * self.up.of(x)?)?,
            None => self.up.of(x)?.relu()?,
        };
        self.down.of(&dropout(&hidden, drop)?)
    }
}

/// The gates of the two residual branches of a layer of LiGR.
#[derive(Debug)]
struct Gates {
    attention: Map,
    feed_forward: Map,
}

/// The parameters of a layer.
#[derive(Debug)]
pub(super) struct Layer {
    attention_norm: Norm,
    attention: Attention,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
    /// `None` in a layer of SASRec.
    gates: Option<Gates>,
}

impl Layer {
    pub(super) fn new(
        p: &mut Parameters,
        l: usize,
        transformer: &TransformerConfig,
        kind: LayerKind,
        has_bias: bool,
        key: RngKey,
    ) -> Result<Self> {
        let (d, f) = (transformer.width, transformer.feed_forward);
        let (attention, feed_forward) = (format!("layer.{l}.attention"), format!("layer.{l}.feed_forward"));
        let gate = |p: &mut Parameters, branch: &str| {
            Map::new(p, &format!("{branch}.gate"), [d, d], glorot(d, d), Some(Initial::Uniform(d)), key)
        };
        let gates = match kind {
            LayerKind::Ligr => Some(Gates { attention: gate(p, &attention)?, feed_forward: gate(p, &feed_forward)? }),
            LayerKind::Sasrec => None,
        };
        Ok(Self {
            attention_norm: Norm::new(p, &format!("{attention}.norm"), d, key)?,
            attention: Attention::new(p, &attention, d, key)?,
            feed_forward_norm: Norm::new(p, &format!("{feed_forward}.norm"), d, key)?,
            feed_forward: FeedForward::new(p, &feed_forward, [d, f], kind, has_bias, key)?,
            gates,
        })
    }

    /// The outputs of layer `l` for tokens `x`, `[tokens, d_0]`.
    pub(super) fn of(&self, l: usize, x: &Tensor, transformer: &TransformerConfig, pass: Pass<'_>) -> Result<Tensor> {
        let drop = |name: &str| pass.drop(name, transformer.dropout);
        let normed = self.attention_norm.of(x)?;
        let queries = pass.queries(&normed)?;
        let x = match &self.gates {
            Some(gates) => {
                let y = self.attention.of(&queries, &normed, transformer, pass)?;
                add_gated(&format!("attention.{l}"), &pass.queries(x)?, &y, &gates.attention, drop("attention"))?
            }
            None => (&queries + self.attention.of(&queries, x, transformer, pass)?)?,
        };
        let normed = self.feed_forward_norm.of(&x)?;
        let y = self.feed_forward.of(&normed, drop("hidden"))?;
        match &self.gates {
            Some(gates) => add_gated(&format!("feed_forward.{l}"), &x, &y, &gates.feed_forward, drop("feed_forward")),
            None => normed + dropout(&y, drop("feed_forward"))?,
        }
    }
}

/// x + sigmoid(x G + g) * Dropout(y) for tokens `x` and the output `y` of a branch, `[tokens, d_0]` each.
fn add_gated(name: &str, x: &Tensor, y: &Tensor, gate: &Map, drop: Dropout) -> Result<Tensor> {
    let gate = sigmoid(&gate.of(x)?)?;
    trace::record(|| name.to_owned(), y);
    trace::record(|| format!("{name}.gate"), &gate);
    x + (gate * dropout(y, drop)?)?
}
