//! y = x W + b. Backward: dx = dy W^T, dW = x^T dy, db = column sums of dy. A constant x, such as features, has no dx. Rows are cut into
//! fixed shards; dW and db are the ordered sums of the shards' parts.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply2, apply3, ordered_sum};
use crate::kernel::{Mat, add_rows, matmul};

/// The number of rows in a forward shard: at width 64, a few shards fit the second-level cache.
const ROWS: usize = 512;

/// The number of rows in a shard of a weight's gradient. It is large, because each shard holds a whole gradient.
const GRADIENT_ROWS: usize = 2048;

pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    apply3(Linear { constant_input: !x.track_op() }, x, weight, bias)
}

pub(crate) fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    apply2(Product { constant_input: !x.track_op() }, x, weight)
}

struct Linear {
    constant_input: bool,
}

impl Fused<3> for Linear {
    const NAME: &'static str = "linear";

    fn forward(&self, [x, weight, bias]: [View<'_>; 3]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (t, a, b) = shapes(&x, &weight)?;
        if bias.dims != [b] {
            bail!("linear: bias {:?} does not fit weight {:?}", bias.dims, weight.dims);
        }
        Ok((forward(x.data, weight.data, Some(bias.data), a, b), vec![t, b]))
    }

    fn backward(&self, [x, weight, _]: [View<'_>; 3], _: &[f32], gradient: &[f32]) -> Result<Gradients<3>> {
        let (_, a, b) = shapes(&x, &weight)?;
        let (dw, db) = weight_gradients(x.data, gradient, a, b);
        let dx = (!self.constant_input).then(|| input_gradient(weight.data, gradient, a, b));
        Ok([dx, Some(dw), Some(db)])
    }
}

struct Product {
    constant_input: bool,
}

impl Fused<2> for Product {
    const NAME: &'static str = "product";

    fn forward(&self, [x, weight]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (t, a, b) = shapes(&x, &weight)?;
        Ok((forward(x.data, weight.data, None, a, b), vec![t, b]))
    }

    fn backward(&self, [x, weight]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let (_, a, b) = shapes(&x, &weight)?;
        let (dw, _) = weight_gradients(x.data, gradient, a, b);
        let dx = (!self.constant_input).then(|| input_gradient(weight.data, gradient, a, b));
        Ok([dx, Some(dw)])
    }
}

fn shapes(x: &View<'_>, weight: &View<'_>) -> Result<(usize, usize, usize)> {
    match (x.dims, weight.dims) {
        (&[t, a], &[a2, b]) if a == a2 && a > 0 && b > 0 => Ok((t, a, b)),
        (x, w) => bail!("linear: {x:?} does not fit {w:?}"),
    }
}

fn forward(x: &[f32], weight: &[f32], bias: Option<&[f32]>, a: usize, b: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / a * b];
    out.par_chunks_mut(ROWS * b).zip(x.par_chunks(ROWS * a)).for_each(|(out, x)| {
        if let Some(bias) = bias {
            out.chunks_exact_mut(b).for_each(|row| row.copy_from_slice(bias));
        }
        matmul(out, Mat::new(x, x.len() / a, a), Mat::new(weight, a, b), bias.is_some());
    });
    out
}

fn input_gradient(weight: &[f32], gradient: &[f32], a: usize, b: usize) -> Vec<f32> {
    let mut dx = vec![0.0; gradient.len() / b * a];
    dx.par_chunks_mut(ROWS * a).zip(gradient.par_chunks(ROWS * b)).for_each(|(dx, dy)| {
        matmul(dx, Mat::new(dy, dy.len() / b, b), Mat::new(weight, a, b).t(), false);
    });
    dx
}

fn weight_gradients(x: &[f32], gradient: &[f32], a: usize, b: usize) -> (Vec<f32>, Vec<f32>) {
    let shards = x.par_chunks(GRADIENT_ROWS * a).zip(gradient.par_chunks(GRADIENT_ROWS * b));
    let parts: Vec<(Vec<f32>, Vec<f32>)> = shards
        .map(|(x, dy)| {
            let (mut dw, mut db) = (vec![0.0; a * b], vec![0.0; b]);
            let rows = x.len() / a;
            matmul(&mut dw, Mat::new(x, rows, a).t(), Mat::new(dy, rows, b), false);
            add_rows(&mut db, dy);
            (dw, db)
        })
        .collect();
    let (dw, db): (Vec<Vec<f32>>, Vec<Vec<f32>>) = parts.into_iter().unzip();
    let sum = |parts: &[Vec<f32>], length| ordered_sum(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>(), length);
    (sum(&dw, a * b), sum(&db, b))
}
