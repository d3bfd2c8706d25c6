//! The operators on the CPU, forward and backward written by hand over slices.
//!
//! Operators implement [`Fused`]; the adapters turn it into candle's custom operators of one, two or three differentiable inputs. Backward
//! draws dropout masks again from their keys instead of storing them. Parallel loops run over fixed shards; gradients to which several
//! shards add, such as that of a weight, are summed in the order of the shards.

mod additive;
mod attention;
mod candidates;
mod edges;
mod elementwise;
mod encode;
mod experts;
mod input;
mod layer;
mod linear;
mod logsumexp;
mod mixture;
mod norm;
mod picked;
mod pool;
mod recurrent;
mod segment;
mod softplus;
mod source_attention;
mod sparse;

pub(crate) use additive::additive_scores;
pub(crate) use candidates::candidates;
pub(crate) use edges::{edge_dot, edge_softmax, edge_sum};
pub(crate) use elementwise::{dropout, dropout_tokens, gather, gelu_activation as gelu, normalize};
pub(crate) use encode::encode;
pub(crate) use experts::expert_products;
pub(crate) use input::sequence_input;
pub(crate) use layer::transformer_layer;
pub(crate) use linear::{linear, product};
pub(crate) use logsumexp::{cross_entropy, row_logsumexp, sampled_cross_entropy};
pub(crate) use norm::layer_norm;
pub(crate) use picked::picked_dot;
pub(crate) use recurrent::recurrent;
pub(crate) use segment::{segment_dot, segment_mix, segment_softmax, segment_sum};
pub(crate) use softplus::row_softplus;
pub(crate) use source_attention::source_attention;
pub(crate) use sparse::{propagate, sparse_product};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::timing::timed;

/// An argument or a result: its values, row after row, and the length of each axis.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    dims: &'a [usize],
}

impl<'a> View<'a> {
    /// The values, row after row.
    pub(crate) fn data(&self) -> &'a [f32] {
        self.data
    }

    /// The length of each axis.
    pub(crate) fn dims(&self) -> &'a [usize] {
        self.dims
    }
}

/// The gradients of the arguments; `None` for an argument without one.
pub(crate) type Gradients<const N: usize> = [Option<Vec<f32>>; N];

/// An operator of N differentiable arguments.
pub(crate) trait Fused<const N: usize>: Send + Sync + 'static {
    const NAME: &'static str;
    fn forward(&self, arguments: [View<'_>; N]) -> Result<(Vec<f32>, Vec<usize>)>;
    fn backward(&self, arguments: [View<'_>; N], result: &[f32], gradient: &[f32]) -> Result<Gradients<N>>;
}

struct Adapter<F>(F);

pub(crate) fn apply1<F: Fused<1>>(op: F, a: &Tensor) -> Result<Tensor> {
    a.contiguous()?.apply_op1(Adapter(op))
}

pub(crate) fn apply2<F: Fused<2>>(op: F, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.contiguous()?.apply_op2(&b.contiguous()?, Adapter(op))
}

pub(crate) fn apply3<F: Fused<3>>(op: F, a: &Tensor, b: &Tensor, c: &Tensor) -> Result<Tensor> {
    a.contiguous()?.apply_op3(&b.contiguous()?, &c.contiguous()?, Adapter(op))
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let data = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("a fused operator needs contiguous arguments"),
    }
}

/// Calls `f` with the values of a contiguous CPU tensor, without copying them.
pub(crate) fn with_slices<const N: usize, T>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> Result<T>,
) -> Result<T> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slot, (storage, layout)) in slices.iter_mut().zip(&held) {
        let Storage::Cpu(cpu) = &**storage else { bail!("a fused operator runs on the CPU") };
        *slot = slice(cpu, layout)?;
    }
    f(slices)
}

fn backward<F: Fused<N>, const N: usize>(
    op: &F,
    arguments: [&Tensor; N],
    result: &Tensor,
    gradient: &Tensor,
) -> Result<[Option<Tensor>; N]> {
    let gradient = gradient.contiguous()?;
    let gradients = with_slices([result, &gradient], |[result, gradient]| {
        with_slices(arguments, |slices| {
            let mut at = 0;
            let views = slices.map(|data| {
                at += 1;
                View { data, dims: arguments[at - 1].dims() }
            });
            timed(F::NAME, "backward", || op.backward(views, result, gradient))
        })
    })?;
    let mut tensors = [const { None }; N];
    for ((slot, gradient), argument) in tensors.iter_mut().zip(gradients).zip(arguments) {
        if let Some(values) = gradient {
            *slot = Some(Tensor::from_vec(values, argument.shape(), argument.device())?);
        }
    }
    Ok(tensors)
}

fn stored((values, dims): (Vec<f32>, Vec<usize>)) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), Shape::from(dims))
}

impl<F: Fused<1>> CustomOp1 for Adapter<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let a = View { data: slice(s, l)?, dims: l.dims() };
        timed(F::NAME, "forward", || self.0.forward([a])).map(stored)
    }
    fn bwd(&self, a: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let [a] = backward(&self.0, [a], result, gradient)?;
        Ok(a)
    }
}

impl<F: Fused<2>> CustomOp2 for Adapter<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }
    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let a = View { data: slice(s1, l1)?, dims: l1.dims() };
        let b = View { data: slice(s2, l2)?, dims: l2.dims() };
        timed(F::NAME, "forward", || self.0.forward([a, b])).map(stored)
    }
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = backward(&self.0, [a, b], result, gradient)?;
        Ok((a, b))
    }
}

impl<F: Fused<3>> CustomOp3 for Adapter<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let a = View { data: slice(s1, l1)?, dims: l1.dims() };
        let b = View { data: slice(s2, l2)?, dims: l2.dims() };
        let c = View { data: slice(s3, l3)?, dims: l3.dims() };
        timed(F::NAME, "forward", || self.0.forward([a, b, c])).map(stored)
    }
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = backward(&self.0, [a, b, c], result, gradient)?;
        Ok((a, b, c))
    }
}

/// Splits a slice with `width` values per row into the parts of the shards.
fn cut(mut data: &mut [f32], lengths: impl Iterator<Item = usize>, width: usize) -> Vec<&mut [f32]> {
    lengths
        .map(|length| {
            let (part, rest) = std::mem::take(&mut data).split_at_mut(length * width);
            data = rest;
            part
        })
        .collect()
}

/// The number of values in a parallel piece of a sum.
const PIECE: usize = 1 << 14;

/// Sums partial results in the order of their shards.
fn ordered_sum(parts: &[&[f32]], length: usize) -> Vec<f32> {
    let mut total = vec![0.0; length];
    total.par_chunks_mut(PIECE).enumerate().for_each(|(piece, total)| {
        for part in parts {
            crate::kernel::accumulate(total, &part[piece * PIECE..][..total.len()]);
        }
    });
    total
}
