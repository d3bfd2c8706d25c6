//! How parameters are packed into one vector, for operators with more of them than candle can pass. Each order is defined here and nowhere
//! else.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

/// Cuts a packed tensor into its parts, one after the other.
struct Unpack<'a> {
    packed: &'a Tensor,
    at: usize,
}

impl Unpack<'_> {
    fn next(&mut self, shape: &[usize]) -> Result<Tensor> {
        let length = shape.iter().product();
        let part = self.packed.narrow(0, self.at, length)?.reshape(shape)?;
        self.at += length;
        Ok(part)
    }
}

/// The parameters of a transformer layer, or their gradients, in the order in which they are packed. Weights are `[in, out]`.
#[derive(Clone, Debug)]
pub struct LayerParts<T> {
    /// The map to the queries, `[d, d]`.
    pub query: T,
    /// The map to the keys, then to the values, `[d, 2 d]`.
    pub key_value: T,
    /// The map of the heads' outputs, `[d, d]`.
    pub output: T,
    /// The bias of the queries, `[d]`.
    pub query_bias: T,
    /// The biases of the keys, then of the values, `[2 d]`.
    pub key_value_bias: T,
    /// The bias of the map of the heads' outputs, `[d]`.
    pub output_bias: T,
    /// The map into the feed-forward block, `[d, f]`.
    pub up: T,
    /// The bias of the map into the feed-forward block, `[f]`.
    pub up_bias: T,
    /// The map out of the feed-forward block, `[f, d]`.
    pub down: T,
    /// The bias of the map out of the feed-forward block, `[d]`.
    pub down_bias: T,
    /// The weight of the LayerNorm after attention, `[d]`.
    pub attention_norm: T,
    /// The bias of the LayerNorm after attention, `[d]`.
    pub attention_norm_bias: T,
    /// The weight of the LayerNorm after the feed-forward block, `[d]`.
    pub feed_forward_norm: T,
    /// The bias of the LayerNorm after the feed-forward block, `[d]`.
    pub feed_forward_norm_bias: T,
}

impl<T> LayerParts<T> {
    fn from_array(parts: [T; 14]) -> Self {
        let [
            query,
            key_value,
            output,
            query_bias,
            key_value_bias,
            output_bias,
            up,
            up_bias,
            down,
            down_bias,
            attention_norm,
            attention_norm_bias,
            feed_forward_norm,
            feed_forward_norm_bias,
        ] = parts;
        Self {
            query,
            key_value,
            output,
            query_bias,
            key_value_bias,
            output_bias,
            up,
            up_bias,
            down,
            down_bias,
            attention_norm,
            attention_norm_bias,
            feed_forward_norm,
            feed_forward_norm_bias,
        }
    }

    fn as_array(&self) -> [&T; 14] {
        [
            &self.query,
            &self.key_value,
            &self.output,
            &self.query_bias,
            &self.key_value_bias,
            &self.output_bias,
            &self.up,
            &self.up_bias,
            &self.down,
            &self.down_bias,
            &self.attention_norm,
            &self.attention_norm_bias,
            &self.feed_forward_norm,
            &self.feed_forward_norm_bias,
        ]
    }
}

impl LayerParts<Range<usize>> {
    /// Applies `f` to the range of every part.
    #[cfg(feature = "cuda")]
    pub(crate) fn map<T>(self, f: impl Fn(&Range<usize>) -> T) -> LayerParts<T> {
        LayerParts::from_array(self.as_array().map(f))
    }
}

/// The sizes of a transformer layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSizes {
    /// `d_0`, the width of tokens.
    pub width: usize,
    /// The number of attention heads.
    pub heads: usize,
    /// The width between the two maps of the feed-forward block.
    pub feed_forward: usize,
    /// Whether a token also attends to the tokens after it; in causal attention it does not.
    pub bidirectional: bool,
}

impl LayerSizes {
    fn shapes(self) -> LayerParts<Vec<usize>> {
        let Self { width: d, feed_forward: f, .. } = self;
        LayerParts {
            query: vec![d, d],
            key_value: vec![d, 2 * d],
            output: vec![d, d],
            query_bias: vec![d],
            key_value_bias: vec![2 * d],
            output_bias: vec![d],
            up: vec![d, f],
            up_bias: vec![f],
            down: vec![f, d],
            down_bias: vec![d],
            attention_norm: vec![d],
            attention_norm_bias: vec![d],
            feed_forward_norm: vec![d],
            feed_forward_norm_bias: vec![d],
        }
    }

    fn lengths(self) -> [usize; 14] {
        self.shapes().as_array().map(|shape| shape.iter().product())
    }

    /// The range of each part in the packed vector.
    pub fn ranges(self) -> LayerParts<Range<usize>> {
        let mut end = 0;
        LayerParts::from_array(self.lengths().map(|length| {
            end += length;
            end - length..end
        }))
    }

    /// The number of the layer's parameters.
    pub fn count(self) -> usize {
        self.lengths().iter().sum()
    }

    /// The parts of a packed tensor, each in its shape.
    pub(crate) fn unpack(self, packed: &Tensor) -> Result<LayerParts<Tensor>> {
        let mut unpack = Unpack { packed, at: 0 };
        let parts = self.shapes().as_array().map(|shape| unpack.next(shape));
        let parts: Vec<Tensor> = parts.into_iter().collect::<Result<_>>()?;
        match parts.try_into() {
            Ok(parts) => Ok(LayerParts::from_array(parts)),
            Err(_) => bail!("a transformer layer has 14 parameters"),
        }
    }

    pub(crate) fn parts(self, packed: &[f32]) -> LayerParts<&[f32]> {
        let mut rest = packed;
        LayerParts::from_array(self.lengths().map(|length| {
            let (part, after) = rest.split_at(length);
            rest = after;
            part
        }))
    }

    pub(crate) fn parts_mut(self, packed: &mut [f32]) -> LayerParts<&mut [f32]> {
        let mut rest = packed;
        LayerParts::from_array(self.lengths().map(|length| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            part
        }))
    }
}

/// The sizes of a mixture of experts, from which the ranges of its parameters in their packed vector follow: the experts' weights
/// `[d, d_0]` one after the other, the gate `[d, o]`, all experts' biases, and the weights and then the biases of all LayerNorms, `[o d_0]`
/// each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MixtureSizes {
    /// d, the width of features.
    pub features: usize,
    /// o, the number of experts.
    pub experts: usize,
    /// d_0, the width of an expert.
    pub width: usize,
}

impl MixtureSizes {
    /// The number of outputs of all experts together.
    pub(crate) fn outputs(self) -> usize {
        self.experts * self.width
    }

    /// The range of the experts' weights, `[d, d_0]` each.
    pub fn weights(self) -> Range<usize> {
        0..self.features * self.outputs()
    }

    /// The range of the gate, `[d, o]`.
    pub fn gate(self) -> Range<usize> {
        let start = self.weights().end;
        start..start + self.features * self.experts
    }

    /// The range of the experts' biases, `[d_0]` each.
    pub fn biases(self) -> Range<usize> {
        let start = self.gate().end;
        start..start + self.outputs()
    }

    /// The range of the weights of their LayerNorms, `[d_0]` each.
    pub fn norm_weights(self) -> Range<usize> {
        let start = self.biases().end;
        start..start + self.outputs()
    }

    /// The range of the biases of their LayerNorms, `[d_0]` each.
    pub fn norm_biases(self) -> Range<usize> {
        let start = self.norm_weights().end;
        start..start + self.outputs()
    }

    /// The number of the mixture's parameters.
    pub fn count(self) -> usize {
        self.norm_biases().end
    }

    /// A part of a packed tensor in the given shape.
    pub(crate) fn part(packed: &Tensor, range: &Range<usize>, shape: &[usize]) -> Result<Tensor> {
        packed.narrow(0, range.start, range.len())?.reshape(shape)
    }
}

/// The parameters of a transformer's input: the embeddings of the positions `[n, d]`, then the weight and the bias of the LayerNorm `[d]`
/// as two more rows.
pub(crate) struct Positions<'a> {
    pub(crate) table: &'a [f32],
    pub(crate) norm_weight: &'a [f32],
    pub(crate) norm_bias: &'a [f32],
}

impl<'a> Positions<'a> {
    /// The parts of packed rows of width `d`.
    pub(crate) fn of(packed: &'a [f32], d: usize) -> Self {
        let (table, norm) = packed.split_at(packed.len() - 2 * d);
        let (norm_weight, norm_bias) = norm.split_at(d);
        Self { table, norm_weight, norm_bias }
    }

    /// The parts of a packed tensor: the positions, the LayerNorm's weight and its bias.
    pub(crate) fn unpack(packed: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let rows = packed.dim(0)? - 2;
        Ok((packed.narrow(0, 0, rows)?, packed.get(rows)?, packed.get(rows + 1)?))
    }
}
