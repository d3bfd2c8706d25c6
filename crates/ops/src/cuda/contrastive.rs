//! NIP and CMCL in one operator: one product of all views with all views and the targets, the log-sum-exps of its blocks, and
//! the terms.

use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, Tensor, bail};

use super::gpu::{DevicePointer, Floats, Gpu, LaunchGrid, Matrix, WARPS, arguments, device_pointer};
use super::logsumexp::mode;
use super::{OnGpu, View, apply1, apply2};
use crate::{CmclDirection, Contrast, Precision, precision};

/// Returns `[2, B]`: NIP, then CMCL. `views` is `[V, B, d]`.
pub(crate) fn contrastive(views: &Tensor, targets: Option<&Tensor>, contrast: &Contrast) -> Result<Tensor> {
    let op = Contrastive { contrast: contrast.clone(), precision: precision(), kept: Mutex::new(None) };
    match targets {
        Some(targets) => apply2(op, views, targets),
        None => apply1(op, views),
    }
}

struct Contrastive {
    contrast: Contrast,
    precision: Precision,
    kept: Mutex<Option<Kept>>,
}

/// The values of forward that backward needs.
struct Kept {
    groups: CudaSlice<u32>,
    /// The views, then the targets: `[spaces B, d]`.
    spaces: Floats,
    /// The products, `[V B, spaces B]`.
    products: Floats,
    /// The logarithms of the sums, and the logits of the pairs, `[V B, spaces]` each.
    sums: Floats,
    pairs: Floats,
}

/// The sizes of a batch.
#[derive(Clone, Copy)]
struct Shape {
    views: usize,
    spaces: usize,
    batch: usize,
    d: usize,
}

impl Contrastive {
    fn shape(&self, views: View<'_>, targets: Option<View<'_>>) -> Result<Shape> {
        let &[count, batch, d] = views.dims else { bail!("contrastive: expected [V, B, d], found {:?}", views.dims) };
        let fits = targets.is_none_or(|targets| targets.dims == [batch, d]);
        if !fits || self.contrast.groups.len() != batch || count == 0 || batch == 0 {
            bail!("contrastive: {:?} does not fit targets or {} groups", views.dims, self.contrast.groups.len());
        }
        Ok(Shape { views: count, spaces: count + usize::from(targets.is_some()), batch, d })
    }

    fn compute(&self, gpu: &Gpu, views: View<'_>, targets: Option<View<'_>>) -> Result<Kept> {
        let Shape { views: count, spaces, batch, d } = self.shape(views, targets)?;
        let groups = gpu.upload(&self.contrast.groups)?;
        let all = gpu.allocate::<f32>(spaces * batch * d)?;
        let copied = |to: DevicePointer, from: DevicePointer, count: usize| {
            gpu.launch("copy", LaunchGrid::threads(count), arguments![to, from, count])
        };
        copied(device_pointer(&all), views.at, count * batch * d)?;
        if let Some(targets) = targets {
            copied(device_pointer(&all).plus(count * batch * d), targets.at, batch * d)?;
        }
        let rows = count * batch;
        let products = gpu.allocate::<f32>(rows * spaces * batch)?;
        let (a, b) = (Matrix::new(views.at, rows, d), Matrix::new(device_pointer(&all), spaces * batch, d));
        gpu.product(device_pointer(&products), a, b.t(), false, self.precision)?;
        let (sums, pairs) = (gpu.allocate::<f32>(rows * spaces)?, gpu.allocate::<f32>(rows * spaces)?);
        let (mode, scale) = (mode(self.contrast.false_negatives), self.contrast.scale());
        let arguments = arguments![&sums, &pairs, &products, &groups, mode, scale, batch, spaces];
        gpu.launch("contrastive_sums", LaunchGrid::blocks(rows, spaces), arguments)?;
        Ok(Kept { groups, spaces: all, products, sums, pairs })
    }

    fn forward(&self, gpu: &Gpu, views: View<'_>, targets: Option<View<'_>>) -> Result<(Floats, Vec<usize>)> {
        let Shape { views: count, spaces, batch, .. } = self.shape(views, targets)?;
        let kept = self.compute(gpu, views, targets)?;
        let out = gpu.allocate::<f32>(2 * batch)?;
        let row_sums = self.contrast.direction == CmclDirection::RowSums;
        let arguments = arguments![&out, &kept.sums, &kept.pairs, batch, count, spaces, row_sums];
        gpu.launch("contrastive_terms", LaunchGrid::threads(batch), arguments)?;
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok((out, vec![2, batch]))
    }

    /// The gradients of the views and of the targets.
    fn backward(
        &self,
        gpu: &Gpu,
        views: View<'_>,
        targets: Option<View<'_>>,
        dout: View<'_>,
    ) -> Result<(Floats, Option<Floats>)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let kept = match kept {
            Some(kept) => kept,
            None => self.compute(gpu, views, targets)?,
        };
        let Shape { views: count, spaces, batch, d } = self.shape(views, targets)?;
        let rows = count * batch;
        let (d_sums, d_pairs) = (gpu.allocate::<f32>(rows * spaces)?, gpu.allocate::<f32>(rows * spaces)?);
        let row_sums = self.contrast.direction == CmclDirection::RowSums;
        let arguments = arguments![&d_sums, &d_pairs, dout.at, &kept.sums, &kept.pairs, batch, count, spaces, row_sums];
        gpu.launch("contrastive_terms_backward", LaunchGrid::threads(batch), arguments)?;
        let halves = (self.precision == Precision::Bf16)
            .then(|| gpu.factor(rows * spaces * batch, self.precision))
            .transpose()?;
        let (to, suffix) = halves.as_ref().map_or((device_pointer(&kept.products), "f32"), |f| (f.at(), f.suffix()));
        let (mode, scale) = (mode(self.contrast.false_negatives), self.contrast.scale());
        gpu.launch(
            &format!("contrastive_gradient_{suffix}"),
            LaunchGrid::blocks(rows, (spaces * batch).div_ceil(32 * WARPS)),
            arguments![to, &kept.products, &kept.sums, &d_sums, &d_pairs, &kept.groups, mode, scale, batch, spaces],
        )?;
        let dp = match &halves {
            Some(halves) => halves.matrix(rows, spaces * batch),
            None => Matrix::new(device_pointer(&kept.products), rows, spaces * batch),
        };
        // The views are both columns and rows of the products: their gradient is the sum of both parts.
        let d_all = gpu.allocate::<f32>(spaces * batch * d)?;
        gpu.product(device_pointer(&d_all), dp.t(), Matrix::new(views.at, rows, d), false, self.precision)?;
        let d_views = gpu.allocate::<f32>(rows * d)?;
        gpu.product(
            device_pointer(&d_views),
            dp,
            Matrix::new(device_pointer(&kept.spaces), spaces * batch, d),
            false,
            self.precision,
        )?;
        gpu.launch("add_to", LaunchGrid::threads(rows * d), arguments![&d_views, &d_all, rows * d])?;
        if targets.is_none() {
            return Ok((d_views, None));
        }
        let d_targets = gpu.allocate::<f32>(batch * d)?;
        let from = device_pointer(&d_all).plus(rows * d);
        gpu.launch("copy", LaunchGrid::threads(batch * d), arguments![&d_targets, from, batch * d])?;
        Ok((d_views, Some(d_targets)))
    }
}

impl OnGpu<1> for Contrastive {
    const NAME: &'static str = "contrastive";

    fn forward(&self, gpu: &Gpu, [views]: [View<'_>; 1]) -> Result<(Floats, Vec<usize>)> {
        self.forward(gpu, views, None)
    }

    fn backward(&self, gpu: &Gpu, [views]: [View<'_>; 1], _: View<'_>, dout: View<'_>) -> Result<[Option<Floats>; 1]> {
        Ok([Some(self.backward(gpu, views, None, dout)?.0)])
    }
}

impl OnGpu<2> for Contrastive {
    const NAME: &'static str = "contrastive";

    fn forward(&self, gpu: &Gpu, [views, targets]: [View<'_>; 2]) -> Result<(Floats, Vec<usize>)> {
        self.forward(gpu, views, Some(targets))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        [views, targets]: [View<'_>; 2],
        _: View<'_>,
        dout: View<'_>,
    ) -> Result<[Option<Floats>; 2]> {
        let (d_views, d_targets) = self.backward(gpu, views, Some(targets), dout)?;
        Ok([Some(d_views), d_targets])
    }
}
