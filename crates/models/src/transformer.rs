//! The transformer over packed sequences (specification, section 4): post-norm layers with causal attention, as in RecBole's
//! SASRec.

use candle_core::{Tensor, Var};
use mp4sr_ops::{
    Dropout, LayerDropout, LayerSizes, PackedOffsets, Result, RngKey, gather, pack, plain, sequence_input,
    transformer_layer,
};

use crate::{Initial, Parameters, Trace};

/// Sizes of a transformer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransformerConfig {
    /// `d_0`, the width of tokens.
    pub width: usize,
    /// L, the number of layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width between the two maps of a feed-forward block.
    pub feed_forward: usize,
    /// n, the longest sequence.
    pub positions: usize,
    /// Dropout on inputs, attention weights and branches.
    pub dropout: f64,
}

/// The paper's.
impl Default for TransformerConfig {
    fn default() -> Self {
        Self { width: 64, layers: 2, heads: 2, feed_forward: 256, positions: 50, dropout: 0.2 }
    }
}

/// Learned positions and layers.
#[derive(Debug)]
pub struct Transformer {
    config: TransformerConfig,
    position: Var,
    input_norm: Norm,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Linear {
    weight: Var,
    bias: Var,
}

#[derive(Debug)]
struct Norm {
    weight: Var,
    bias: Var,
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    feed_forward_norm: Norm,
}

impl Linear {
    fn new(parameters: &mut Parameters, prefix: &str, input: usize, output: usize, key: RngKey) -> Result<Self> {
        let weight = parameters.add(&format!("{prefix}.weight"), &[input, output], Initial::Normal, key)?;
        Ok(Self { weight, bias: parameters.add(&format!("{prefix}.bias"), &[output], Initial::Zeros, key)? })
    }
}

impl Norm {
    fn new(parameters: &mut Parameters, prefix: &str, width: usize, key: RngKey) -> Result<Self> {
        let weight = parameters.add(&format!("{prefix}.weight"), &[width], Initial::Ones, key)?;
        Ok(Self { weight, bias: parameters.add(&format!("{prefix}.bias"), &[width], Initial::Zeros, key)? })
    }
}

impl Layer {
    fn new(parameters: &mut Parameters, prefix: &str, config: &TransformerConfig, key: RngKey) -> Result<Self> {
        let (d, inner) = (config.width, config.feed_forward);
        let mut linear = |name: &str, a, b| Linear::new(parameters, &format!("{prefix}.{name}"), a, b, key);
        let (query, keys) = (linear("attention.query", d, d)?, linear("attention.key", d, d)?);
        let (value, output) = (linear("attention.value", d, d)?, linear("attention.output", d, d)?);
        let (up, down) = (linear("feed_forward.up", d, inner)?, linear("feed_forward.down", inner, d)?);
        let attention_norm = Norm::new(parameters, &format!("{prefix}.attention.norm"), d, key)?;
        let feed_forward_norm = Norm::new(parameters, &format!("{prefix}.feed_forward.norm"), d, key)?;
        Ok(Self { query, key: keys, value, output, attention_norm, up, down, feed_forward_norm })
    }

    /// All parameters in the order of [`transformer_layer`].
    fn packed(&self) -> Result<Tensor> {
        let pair = |f: fn(&Linear) -> &Var, axis: usize| {
            Tensor::cat(&[f(&self.key).as_tensor(), f(&self.value).as_tensor()], axis)
        };
        let (norm, norm2) = (&self.attention_norm, &self.feed_forward_norm);
        pack(&[
            &self.query.weight,
            &pair(|l| &l.weight, 1)?,
            &self.output.weight,
            &self.query.bias,
            &pair(|l| &l.bias, 0)?,
            &self.output.bias,
            &self.up.weight,
            &self.up.bias,
            &self.down.weight,
            &self.down.bias,
            &norm.weight,
            &norm.bias,
            &norm2.weight,
            &norm2.bias,
        ])
    }
}

/// Rows of a table that tokens take, `[tokens]` of `[n, d_0]`.
pub type Rows<'a> = (&'a Tensor, &'a [u32]);

impl Transformer {
    /// A transformer with parameters `position`, `input_norm.*`, `layer.*`.
    pub fn new(parameters: &mut Parameters, config: TransformerConfig, key: RngKey) -> Result<Self> {
        let position = parameters.add("position", &[config.positions, config.width], Initial::Normal, key)?;
        let input_norm = Norm::new(parameters, "input_norm", config.width, key)?;
        let layers = (0..config.layers)
            .map(|l| Layer::new(parameters, &format!("layer.{l}"), &config, key))
            .collect::<Result<_>>()?;
        Ok(Self { config, position, input_norm, layers })
    }

    /// h, the output at the last token of every sequence, `[sequences, d_0]`: tokens are rows of `z`, and of `ids` where there
    /// are any.
    ///
    /// A trace asks for every token of the top layer too; the values at the last tokens are the same.
    pub fn forward(
        &self,
        z: Rows<'_>,
        ids: Option<Rows<'_>>,
        offsets: &PackedOffsets,
        key: Option<RngKey>,
        trace: &Trace,
    ) -> Result<Tensor> {
        let drop = |key: Option<RngKey>, purpose: &str| match key {
            Some(key) => key.fold_in(purpose).dropout(self.config.dropout),
            None => Dropout::NONE,
        };
        let norm = &self.input_norm;
        let rows = |row: &Var| row.unsqueeze(0);
        let places = Tensor::cat(&[self.position.as_tensor(), &rows(&norm.weight)?, &rows(&norm.bias)?], 0)?;
        let mut x = sequence_input(z, ids, (&places, &offsets.positions()), drop(key, "input"))?;
        trace.record(|| "input".to_owned(), &x);
        let sizes =
            LayerSizes { width: self.config.width, heads: self.config.heads, feed_forward: self.config.feed_forward };
        for (l, layer) in self.layers.iter().enumerate() {
            let key = key.map(|key| key.fold_in("layer").fold_in_index(l as u64));
            let dropout = LayerDropout {
                weights: drop(key, "weights"),
                attention: drop(key, "attention"),
                feed_forward: drop(key, "feed_forward"),
            };
            let packed = layer.packed()?;
            if trace.is_on() {
                let steps = plain::layer_steps(&x, &packed, sizes, offsets, false, dropout)?;
                trace.record(|| format!("{l}.query"), &steps.query);
                trace.record(|| format!("{l}.key_value"), &steps.key_value);
                trace.record(|| format!("{l}.attention"), &steps.attention);
                trace.record(|| format!("{l}.layer"), &steps.layer);
            }
            let top = l + 1 == self.layers.len() && !trace.is_on();
            x = transformer_layer(&x, &packed, sizes, offsets, top, dropout)?;
        }
        if trace.is_on() { gather(&x, &offsets.last_tokens()) } else { Ok(x) }
    }
}
