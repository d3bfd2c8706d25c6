//! Scores of rows against all columns, for as many rows at a time as fit.

use candle_core::cuda_backend::WrapErr;
use candle_core::{Result, Tensor};

use super::gpu::{Floats, Gpu, LaunchGrid, Matrix, arguments, device_pointer};
use super::with_views;
use crate::{Precision, Removed};

/// The largest number of scores that are held at once, unless one row has more.
const BLOCK: usize = 64 << 20;

/// A matrix `[m, d]` on a GPU, whose rows are the columns of the scores.
pub(crate) struct GpuScores {
    matrix: Tensor,
    count: usize,
    d: usize,
}

impl GpuScores {
    pub fn new(matrix: &Tensor) -> Result<Self> {
        let (count, d) = matrix.dims2()?;
        Ok(Self { matrix: matrix.contiguous()?.detach(), count, d })
    }

    /// m, the number of columns.
    pub fn count(&self) -> usize {
        self.count
    }

    /// d, the width of rows.
    pub fn width(&self) -> usize {
        self.d
    }

    /// Calls `visit` with the scores of some rows at a time, in multiples of `multiple`: with the first row, the number of rows, and their
    /// scores, `[rows, m]`.
    fn each(
        &self,
        rows: &Tensor,
        multiple: usize,
        mut visit: impl FnMut(&Gpu, usize, usize, &Floats) -> Result<()>,
    ) -> Result<()> {
        let rows = rows.contiguous()?;
        let n = rows.dim(0)?;
        let together = (BLOCK / self.count.max(1)).max(1).next_multiple_of(multiple).min(n.max(1));
        with_views([&rows, &self.matrix], |gpu, [rows, matrix]| {
            let scores: Floats = gpu.allocate(together * self.count)?;
            let columns = Matrix::new(matrix.at, self.count, self.d).t();
            for first in (0..n).step_by(together) {
                let count = together.min(n - first);
                let own = Matrix::new(rows.at.plus(first * self.d), count, self.d);
                gpu.product(device_pointer(&scores), own, columns, false, Precision::F32)?;
                visit(gpu, first, count, &scores)?;
            }
            Ok(())
        })
    }

    /// Calls `visit` with the first row and the scores of some rows at a time, on the host.
    pub fn download(
        &self,
        rows: &Tensor,
        multiple: usize,
        mut visit: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.each(rows, multiple, |gpu, first, count, scores| {
            let mut host = vec![0.0f32; count * self.count];
            gpu.device().memcpy_dtoh(&scores.slice(..count * self.count), &mut host)?;
            gpu.device().cuda_stream().synchronize().w()?;
            visit(first, &host)
        })
    }

    /// See [`crate::ScoreBlocks::count_ahead`]. `None` if a score is not finite.
    pub fn count_ahead(&self, rows: &Tensor, targets: &[u32], removed: &Removed) -> Result<Option<Vec<u32>>> {
        let mut all = Vec::with_capacity(targets.len());
        self.each(rows, 1, |gpu, first, count, scores| {
            let targets = gpu.upload(&targets[first..first + count])?;
            let (offsets, columns) =
                (gpu.upload(&removed.offsets[first..=first + count])?, gpu.upload(&removed.columns)?);
            let ahead = gpu.allocate::<u32>(2 * count)?;
            let arguments = arguments![&ahead, scores, &targets, &offsets, &columns, self.count];
            gpu.launch("count_ahead", LaunchGrid::blocks(count, 1), arguments)?;
            all.extend(gpu.device().clone_dtoh(&ahead)?);
            Ok(())
        })?;
        let finite = all.chunks_exact(2).all(|row| row[1] as usize == self.count);
        Ok(finite.then(|| all.chunks_exact(2).map(|row| row[0]).collect()))
    }
}
