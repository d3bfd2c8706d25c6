//! One post-norm transformer layer over packed sequences in one operator: attention, feed-forward block with GELU, both with
//! dropout, residual and LayerNorm.
//!
//! Biases are added by the kernels that read the products. Attention goes sequence by sequence and head by head through shared
//! memory; backward computes its weights again.

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor, bail};

use super::gpu::{BLOCKS, DevicePointer, Floats, Gpu, LaunchGrid, Matrix, WARPS, arguments, device_pointer};
use super::{OnGpu, View, WIDEST, apply2, lanes, with_views};
use crate::layout::LayerParts;
use crate::{LayerDropout, LayerSizes, PackedOffsets, Precision, plain, precision};

/// The widest head that the kernels of attention take.
const WIDEST_HEAD: usize = 128;

/// The number of warps in a block of attention.
const ATTENTION_WARPS: usize = 4;

pub(crate) fn transformer_layer(
    x: &Tensor,
    packed: &Tensor,
    sizes: LayerSizes,
    offsets: &PackedOffsets,
    last_only: bool,
    dropout: LayerDropout,
) -> Result<Tensor> {
    let longest = (0..offsets.count()).map(|j| offsets.range(j).len()).max().unwrap_or(0);
    let op = Layer {
        sizes,
        offsets: offsets.clone(),
        longest,
        last_only,
        dropout,
        precision: precision(),
        keeps: x.track_op() || packed.track_op(),
        kept: Mutex::new(None),
    };
    let room = with_views([x], |gpu, _| Ok(gpu.shared()))?;
    let beyond = op.shared(true) > room || sizes.width > WIDEST || sizes.width / sizes.heads.max(1) > WIDEST_HEAD;
    if beyond {
        return plain::transformer_layer(x, packed, sizes, offsets, last_only, dropout);
    }
    apply2(op, x, packed)
}

struct Layer {
    sizes: LayerSizes,
    offsets: PackedOffsets,
    /// The number of tokens of the longest sequence.
    longest: usize,
    last_only: bool,
    dropout: LayerDropout,
    precision: Precision,
    keeps: bool,
    kept: Mutex<Option<Kept>>,
}

/// The values of forward that backward needs. Products do not include their biases.
struct Kept {
    /// The rows of x from which queries are computed, if these are not all rows.
    query_rows: Option<Floats>,
    query: Floats,
    key_value: Floats,
    attended: Floats,
    /// The standardised rows n and 1/s, after attention (1) and after the feed-forward block (2).
    n1: Floats,
    inverse1: Floats,
    x1: Floats,
    up: Floats,
    activated: Floats,
    n2: Floats,
    inverse2: Floats,
}

impl Layer {
    fn parts(&self, packed: DevicePointer) -> LayerParts<DevicePointer> {
        self.sizes.ranges().map(|range| packed.plus(range.start))
    }

    /// A pointer to the sequences' first tokens and the end, after which the last token of each follows.
    fn sequences(&self, gpu: &Gpu) -> Result<DevicePointer> {
        if let Some(offsets) = self.offsets.gpu.get() {
            return Ok(device_pointer(offsets));
        }
        let first = (0..self.offsets.count()).map(|j| self.offsets.range(j).start as u32);
        let all = first.chain([self.offsets.tokens() as u32]).chain(self.offsets.last_tokens());
        let offsets = gpu.upload(&all.collect::<Vec<_>>())?;
        Ok(device_pointer(self.offsets.gpu.get_or_init(|| offsets)))
    }

    fn rows(&self) -> usize {
        if self.last_only { self.offsets.count() } else { self.offsets.tokens() }
    }

    /// The number of warps in a block of attention: one if a sequence has a single query.
    fn warps(&self, backward: bool) -> usize {
        if self.last_only && !backward { 1 } else { ATTENTION_WARPS }
    }

    /// Bytes of shared memory that attention needs for the longest sequence.
    fn shared(&self, backward: bool) -> usize {
        let (keys, width) = (self.longest, self.sizes.width / self.sizes.heads.max(1));
        let queries = if self.last_only { 1 } else { keys };
        let warps = self.warps(backward);
        let values = if backward {
            2 * (keys + queries) * (width + 1) + 2 * queries + warps * keys
        } else {
            2 * keys * (width + 1) + warps * (keys + width)
        };
        4 * values
    }

    fn attention_grid(&self, backward: bool) -> LaunchGrid {
        let blocks = (self.offsets.count(), self.sizes.heads);
        LaunchGrid { blocks, threads: (32 * self.warps(backward), 1), shared: self.shared(backward) }
    }

    fn product(&self, gpu: &Gpu, out: &Floats, a: Matrix, b: Matrix) -> Result<()> {
        gpu.product(device_pointer(out), a, b, false, self.precision)
    }

    /// dW = x^T dy.
    fn weight_gradient(&self, gpu: &Gpu, dw: DevicePointer, x: Matrix, dy: Matrix) -> Result<()> {
        gpu.product(dw, x.t(), dy, false, self.precision)
    }

    fn compute(&self, gpu: &Gpu, x: DevicePointer, packed: DevicePointer) -> Result<(Floats, Kept)> {
        let LayerSizes { width: d, heads, feed_forward: f, bidirectional } = self.sizes;
        let (p, rows, tokens) = (self.parts(packed), self.rows(), self.offsets.tokens());
        let sequences = self.sequences(gpu)?;
        let last = sequences.plus(self.offsets.count() + 1);
        let query_rows = if self.last_only {
            let query_rows = gpu.allocate::<f32>(rows * d)?;
            gpu.launch("gather_rows", LaunchGrid::warps(rows), arguments![&query_rows, x, last, rows, d])?;
            Some(query_rows)
        } else {
            None
        };
        let query_rows_at = query_rows.as_ref().map_or(x, device_pointer);
        let values = |count: usize| gpu.allocate::<f32>(count);
        let (query, key_value) = (values(rows * d)?, values(tokens * 2 * d)?);
        self.product(gpu, &query, Matrix::new(query_rows_at, rows, d), Matrix::new(p.query, d, d))?;
        self.product(gpu, &key_value, Matrix::new(x, tokens, d), Matrix::new(p.key_value, d, 2 * d))?;
        let attended = values(rows * d)?;
        gpu.launch(
            "attention",
            self.attention_grid(false),
            arguments![
                &attended,
                &query,
                p.query_bias,
                &key_value,
                p.key_value_bias,
                sequences,
                d,
                heads,
                self.last_only,
                bidirectional,
                self.dropout.weights,
            ],
        )?;
        let branch = values(rows * d)?;
        self.product(gpu, &branch, Matrix::new(device_pointer(&attended), rows, d), Matrix::new(p.output, d, d))?;
        let (n1, inverse1, x1) = (values(rows * d)?, values(rows)?, values(rows * d)?);
        let add_norm = format!("add_norm_{}", lanes(d));
        let (weight, bias) = (p.attention_norm, p.attention_norm_bias);
        let drop = self.dropout.attention;
        let all = arguments![&x1, &n1, &inverse1, query_rows_at, &branch, p.output_bias, weight, bias, rows, d, drop];
        gpu.launch(&add_norm, LaunchGrid::warps(rows), all)?;
        let (up, activated) = (values(rows * f)?, values(rows * f)?);
        self.product(gpu, &up, Matrix::new(device_pointer(&x1), rows, d), Matrix::new(p.up, d, f))?;
        gpu.launch("gelu", LaunchGrid::threads(rows * f), arguments![&activated, &up, p.up_bias, rows * f, f])?;
        self.product(gpu, &branch, Matrix::new(device_pointer(&activated), rows, f), Matrix::new(p.down, f, d))?;
        let (n2, inverse2, y) = (values(rows * d)?, values(rows)?, values(rows * d)?);
        let (weight, bias) = (p.feed_forward_norm, p.feed_forward_norm_bias);
        let drop = self.dropout.feed_forward;
        let all = arguments![&y, &n2, &inverse2, &x1, &branch, p.down_bias, weight, bias, rows, d, drop];
        gpu.launch(&add_norm, LaunchGrid::warps(rows), all)?;
        let kept = Kept { query_rows, query, key_value, attended, n1, inverse1, x1, up, activated, n2, inverse2 };
        Ok((y, kept))
    }

    /// The gradients of LayerNorm(x + Dropout(branch + bias)). Returns dx and dbranch, and writes the gradients of the LayerNorm's weight,
    /// its bias and the branch's bias to the pointers in `to`.
    fn add_norm_gradients(
        &self,
        gpu: &Gpu,
        dy: DevicePointer,
        n: &Floats,
        inverse: &Floats,
        weight: DevicePointer,
        drop: crate::Dropout,
        to: [DevicePointer; 3],
    ) -> Result<(Floats, Floats)> {
        let (d, rows) = (self.sizes.width, self.rows());
        let blocks = BLOCKS.min(rows.max(1));
        let (dx, branch) = (gpu.allocate::<f32>(rows * d)?, gpu.allocate::<f32>(rows * d)?);
        let partial = gpu.allocate::<f32>(blocks * 3 * d)?;
        gpu.launch(
            &format!("add_norm_backward_{}", lanes(d)),
            LaunchGrid::blocks(blocks, 1),
            arguments![&dx, &branch, &partial, dy, n, inverse, weight, rows, d, drop],
        )?;
        let sums = gpu.allocate::<f32>(3 * d)?;
        gpu.sum_rows(device_pointer(&sums), device_pointer(&partial), blocks, 3 * d)?;
        let [weight, bias, branch_bias] = to;
        gpu.launch("three_parts", LaunchGrid::threads(d), arguments![weight, bias, branch_bias, &sums, d])?;
        Ok((dx, branch))
    }

    fn gradients(
        &self,
        gpu: &Gpu,
        x: DevicePointer,
        packed: DevicePointer,
        kept: &Kept,
        dy: DevicePointer,
    ) -> Result<[Floats; 2]> {
        let LayerSizes { width: d, heads, feed_forward: f, bidirectional } = self.sizes;
        let (p, rows, tokens) = (self.parts(packed), self.rows(), self.offsets.tokens());
        let d_packed = gpu.allocate::<f32>(self.sizes.count())?;
        let dp = self.parts(device_pointer(&d_packed));
        let values = |count: usize| gpu.allocate::<f32>(count);
        let to = [dp.feed_forward_norm, dp.feed_forward_norm_bias, dp.down_bias];
        let (dropout, weight) = (self.dropout.feed_forward, p.feed_forward_norm);
        let (dx1, branch) = self.add_norm_gradients(gpu, dy, &kept.n2, &kept.inverse2, weight, dropout, to)?;

        let (branch, activated) =
            (Matrix::new(device_pointer(&branch), rows, d), Matrix::new(device_pointer(&kept.activated), rows, f));
        self.weight_gradient(gpu, dp.down, activated, branch)?;
        let d_up = values(rows * f)?;
        self.product(gpu, &d_up, branch, Matrix::new(p.down, f, d).t())?;
        let blocks = BLOCKS.min(rows.max(1));
        let partial = values(blocks * f)?;
        let grid = LaunchGrid::blocks(blocks, f.div_ceil(32 * WARPS));
        gpu.launch("gelu_backward", grid, arguments![&d_up, &partial, &kept.up, p.up_bias, rows, f])?;
        gpu.sum_rows(dp.up_bias, device_pointer(&partial), blocks, f)?;
        let d_up = Matrix::new(device_pointer(&d_up), rows, f);
        self.weight_gradient(gpu, dp.up, Matrix::new(device_pointer(&kept.x1), rows, d), d_up)?;
        gpu.product(device_pointer(&dx1), d_up, Matrix::new(p.up, d, f).t(), true, self.precision)?;

        let to = [dp.attention_norm, dp.attention_norm_bias, dp.output_bias];
        let (dropout, weight, dx1) = (self.dropout.attention, p.attention_norm, device_pointer(&dx1));
        let (d_query_rows, branch) =
            self.add_norm_gradients(gpu, dx1, &kept.n1, &kept.inverse1, weight, dropout, to)?;
        let branch = Matrix::new(device_pointer(&branch), rows, d);
        self.weight_gradient(gpu, dp.output, Matrix::new(device_pointer(&kept.attended), rows, d), branch)?;
        let d_attended = values(rows * d)?;
        self.product(gpu, &d_attended, branch, Matrix::new(p.output, d, d).t())?;

        let (dq, dkv) = (values(rows * d)?, values(tokens * 2 * d)?);
        gpu.launch(
            "attention_backward",
            self.attention_grid(true),
            arguments![
                &dq,
                &dkv,
                &d_attended,
                &kept.query,
                p.query_bias,
                &kept.key_value,
                p.key_value_bias,
                self.sequences(gpu)?,
                d,
                heads,
                self.last_only,
                bidirectional,
                self.dropout.weights,
            ],
        )?;
        let query_rows = Matrix::new(kept.query_rows.as_ref().map_or(x, device_pointer), rows, d);
        let (dq_matrix, dkv_matrix) =
            (Matrix::new(device_pointer(&dq), rows, d), Matrix::new(device_pointer(&dkv), tokens, 2 * d));
        self.weight_gradient(gpu, dp.query, query_rows, dq_matrix)?;
        self.weight_gradient(gpu, dp.key_value, Matrix::new(x, tokens, d), dkv_matrix)?;
        gpu.column_sums(dp.query_bias, device_pointer(&dq), rows, d)?;
        gpu.column_sums(dp.key_value_bias, device_pointer(&dkv), tokens, 2 * d)?;
        gpu.product(device_pointer(&d_query_rows), dq_matrix, Matrix::new(p.query, d, d).t(), true, self.precision)?;
        let key_value = Matrix::new(p.key_value, d, 2 * d).t();
        if !self.last_only {
            gpu.product(device_pointer(&d_query_rows), dkv_matrix, key_value, true, self.precision)?;
            return Ok([d_query_rows, d_packed]);
        }
        let dx = values(tokens * d)?;
        self.product(gpu, &dx, dkv_matrix, key_value)?;
        let last = self.sequences(gpu)?.plus(self.offsets.count() + 1);
        gpu.launch("add_rows_at", LaunchGrid::warps(rows), arguments![&dx, &d_query_rows, last, rows, d])?;
        Ok([dx, d_packed])
    }
}

impl OnGpu<2> for Layer {
    const NAME: &'static str = "transformer_layer";

    fn forward(&self, gpu: &Gpu, [x, packed]: [View<'_>; 2]) -> Result<(Floats, Vec<usize>)> {
        let LayerSizes { width: d, heads, .. } = self.sizes;
        if x.dims != [self.offsets.tokens(), d] || packed.dims != [self.sizes.count()] || !d.is_multiple_of(heads) {
            let tokens = self.offsets.tokens();
            bail!("transformer_layer: {:?} and {:?} do not fit {tokens} tokens, {:?}", x.dims, packed.dims, self.sizes);
        }
        let (y, kept) = self.compute(gpu, x.at, packed.at)?;
        if self.keeps {
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        }
        Ok((y, vec![self.rows(), d]))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        [x, packed]: [View<'_>; 2],
        _: View<'_>,
        dy: View<'_>,
    ) -> Result<[Option<Floats>; 2]> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A second backward pass finds nothing kept and computes the values again.
        let kept = match kept {
            Some(kept) => kept,
            None => self.compute(gpu, x.at, packed.at)?.1,
        };
        Ok(self.gradients(gpu, x.at, packed.at, &kept, dy.at)?.map(Some))
    }
}
