//! l_j = log of the sum over columns i of exp(scale a_j . b_i); cross-entropy with targets t subtracts scale a_j . b_t.
//!
//! The matrix of logits is computed in blocks of columns. If one block holds it, backward reuses the products of forward; otherwise, it
//! computes them again.

use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, Tensor, bail};

use super::gpu::{DevicePointer, Floats, Gpu, LaunchGrid, Matrix, WARPS, arguments, device_pointer};
use super::{OnGpu, View, apply2};
use crate::{FalseNegatives, Mask, Precision, precision};

/// The largest number of products in a block: 1 GiB.
const BLOCK: usize = 256 << 20;

pub(crate) fn row_logsumexp(a: &Tensor, b: &Tensor, scale: f32, mask: &Mask) -> Result<Tensor> {
    apply2(
        RowLogSumExp { scale, mask: mask.clone(), targets: Vec::new(), precision: precision(), kept: Mutex::new(None) },
        a,
        b,
    )
}

pub(crate) fn cross_entropy(a: &Tensor, b: &Tensor, targets: &[u32], scale: f32) -> Result<Tensor> {
    let columns = b.dim(0)?;
    if let Some(target) = targets.iter().find(|&&target| target as usize >= columns) {
        bail!("cross_entropy: target {target} of {columns}");
    }
    let (targets, precision) = (targets.to_vec(), precision());
    apply2(RowLogSumExp { scale, mask: Mask::None, targets, precision, kept: Mutex::new(None) }, a, b)
}

/// The number that tells the kernels how to treat other columns in the row's group.
pub(super) fn mode(false_negatives: FalseNegatives) -> u32 {
    match false_negatives {
        FalseNegatives::Exclude => 1,
        FalseNegatives::Keep => 2,
        FalseNegatives::ZeroLogit => 3,
    }
}

struct RowLogSumExp {
    scale: f32,
    mask: Mask,
    /// The column of each row whose logit is subtracted; empty if none is.
    targets: Vec<u32>,
    precision: Precision,
    kept: Mutex<Option<Kept>>,
}

/// The values of forward that backward needs.
struct Kept {
    /// The targets, then the groups.
    indices: CudaSlice<u32>,
    /// A maximum and a sum for each row.
    state: Floats,
    /// The products, if one block holds them all.
    products: Option<Floats>,
}

/// The mask and the targets, as arguments of the kernels.
#[derive(Clone, Copy)]
struct MaskPointers {
    targets: DevicePointer,
    groups: DevicePointer,
    mode: u32,
    diagonal: bool,
}

impl RowLogSumExp {
    fn pointers(&self, indices: &CudaSlice<u32>) -> MaskPointers {
        let at = device_pointer(indices);
        let targets = if self.targets.is_empty() { DevicePointer::NONE } else { at };
        match &self.mask {
            Mask::None => MaskPointers { targets, groups: DevicePointer::NONE, mode: 0, diagonal: true },
            Mask::FalseNegatives { false_negatives, diagonal, .. } => {
                let groups = at.plus(self.targets.len());
                MaskPointers { targets, groups, mode: mode(*false_negatives), diagonal: *diagonal }
            }
        }
    }

    fn indices(&self, gpu: &Gpu) -> Result<CudaSlice<u32>> {
        let mut all = self.targets.clone();
        if let Mask::FalseNegatives { groups, .. } = &self.mask {
            all.extend_from_slice(groups);
        }
        gpu.upload(&all)
    }

    /// The number of columns in a block.
    fn width(n: usize, m: usize) -> usize {
        (BLOCK / n.max(1)).clamp(1, m.max(1))
    }

    fn products(&self, gpu: &Gpu, out: &Floats, a: View<'_>, b: DevicePointer, columns: usize) -> Result<()> {
        let (n, d) = (a.dims[0], a.dims[1]);
        gpu.product(device_pointer(out), Matrix::new(a.at, n, d), Matrix::new(b, columns, d).t(), false, self.precision)
    }

    fn compute(&self, gpu: &Gpu, a: View<'_>, b: View<'_>) -> Result<(Floats, Kept)> {
        let (n, d, m) = (a.dims[0], a.dims[1], b.dims[0]);
        let indices = self.indices(gpu)?;
        let MaskPointers { targets, groups, mode, diagonal } = self.pointers(&indices);
        let (out, hits, state) = (gpu.allocate::<f32>(n)?, gpu.allocate::<f32>(n)?, gpu.allocate::<f32>(2 * n)?);
        let width = Self::width(n, m);
        let products = gpu.allocate::<f32>(n * width)?;
        for first in (0..m).step_by(width) {
            let columns = width.min(m - first);
            self.products(gpu, &products, a, b.at.plus(first * d), columns)?;
            gpu.launch(
                "log_sum_block",
                LaunchGrid::blocks(n, 1),
                arguments![
                    &out,
                    &hits,
                    &state,
                    &products,
                    targets,
                    groups,
                    mode,
                    diagonal,
                    self.scale,
                    first,
                    columns,
                    first == 0,
                    first + columns == m,
                ],
            )?;
        }
        let products = (width == m).then_some(products);
        Ok((out, Kept { indices, state, products }))
    }
}

impl OnGpu<2> for RowLogSumExp {
    const NAME: &'static str = "row_logsumexp";

    fn forward(&self, gpu: &Gpu, [a, b]: [View<'_>; 2]) -> Result<(Floats, Vec<usize>)> {
        let (&[n, d], &[m, d2]) = (a.dims, b.dims) else {
            bail!("row_logsumexp: expected two matrices, found {:?} and {:?}", a.dims, b.dims)
        };
        let square = match &self.mask {
            Mask::None => true,
            Mask::FalseNegatives { groups, first_row, .. } => groups.len() == n && n == m && *first_row == 0,
        };
        if d != d2 || d == 0 || m == 0 || !square || !(self.targets.is_empty() || self.targets.len() == n) {
            bail!("row_logsumexp: {:?} and {:?} do not fit each other and the mask", a.dims, b.dims);
        }
        let (out, kept) = self.compute(gpu, a, b)?;
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok((out, vec![n]))
    }

    fn backward(&self, gpu: &Gpu, [a, b]: [View<'_>; 2], _: View<'_>, dl: View<'_>) -> Result<[Option<Floats>; 2]> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let kept = match kept {
            Some(kept) => kept,
            None => self.compute(gpu, a, b)?.1,
        };
        let (n, d, m) = (a.dims[0], a.dims[1], b.dims[0]);
        let MaskPointers { targets, groups, mode, diagonal } = self.pointers(&kept.indices);
        let (da, db) = (gpu.allocate::<f32>(n * d)?, gpu.allocate::<f32>(m * d)?);
        let width = Self::width(n, m);
        let products = match &kept.products {
            Some(products) => products,
            None => &gpu.allocate::<f32>(n * width)?,
        };
        for first in (0..m).step_by(width) {
            let columns = width.min(m - first);
            let own = b.at.plus(first * d);
            if kept.products.is_none() {
                self.products(gpu, products, a, own, columns)?;
            }
            // In f32, the gradients overwrite the products.
            let halves =
                (self.precision == Precision::Bf16).then(|| gpu.factor(n * columns, self.precision)).transpose()?;
            let (to, suffix) = halves.as_ref().map_or((device_pointer(products), "f32"), |f| (f.at(), f.suffix()));
            gpu.launch(
                &format!("log_sum_gradient_{suffix}"),
                LaunchGrid::blocks(n, columns.div_ceil(4 * 32 * WARPS)),
                arguments![
                    to,
                    products,
                    &kept.state,
                    dl.at,
                    targets,
                    groups,
                    mode,
                    diagonal,
                    self.scale,
                    first,
                    columns
                ],
            )?;
            let p = halves.as_ref().map_or(Matrix::new(device_pointer(products), n, columns), |f| f.matrix(n, columns));
            gpu.product(device_pointer(&da), p, Matrix::new(own, columns, d), first > 0, self.precision)?;
            let to = device_pointer(&db).plus(first * d);
            gpu.product(to, p.t(), Matrix::new(a.at, n, d), false, self.precision)?;
        }
        Ok([Some(da), Some(db)])
    }
}
