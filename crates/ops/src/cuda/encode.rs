//! The item encoders of all modalities in one operator: pooling, one product for all experts and the gate, and the mixture of
//! every use.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, Tensor, bail};

use super::features::GpuRows;
use super::gpu::{DevicePointer, Factor, Floats, Gpu, LaunchGrid, WARPS, arguments, device_pointer};
use super::rows::UploadedGatherIndex;
use super::{OnGpu, View, WIDEST, apply2, lanes};
use crate::{GatherIndex, ItemRows, MixtureSizes, Precision, plain, precision};

/// The largest number of experts: each lane of a warp holds the gate of one.
const EXPERTS: usize = 32;

/// The largest sum of an item's rows and a row's values for which a block has enough shared memory.
const ROOM: usize = 12 << 10;

/// The number of a row's values that a lane holds, for each kernel that pools one item per warp.
const WARP_WIDTHS: [usize; 4] = [4, 12, 16, 24];

/// The largest number of blocks for the items whose pooling has a gradient.
const POOL_BLOCKS: usize = 2048;

/// The largest number of blocks for the items of one expert.
const EXPERT_BLOCKS: usize = 128;

/// The narrowest of these kernels that takes rows of width `d`; `None` for wider rows, whose items take a block each.
fn warp_width(d: usize) -> Option<usize> {
    WARP_WIDTHS.into_iter().find(|lanes| d <= 32 * lanes)
}

pub(crate) fn encode(modalities: &[ItemRows], w: &Tensor, packed: &Tensor, index: &GatherIndex) -> Result<Tensor> {
    let beyond = |ItemRows { features, width, experts, .. }: &ItemRows| {
        *width > WIDEST || *experts > EXPERTS || features.longest() + features.width() > ROOM
    };
    if modalities.iter().any(beyond) {
        return plain::encode(modalities, w, packed, index);
    }
    let (mut first_w, mut first) = (0, 0);
    let mut encoders = Vec::new();
    for rows in modalities {
        if rows.features.count() != index.items() {
            bail!("encode: {} items, uses of {}", rows.features.count(), index.items());
        }
        let sizes = rows.sizes();
        encoders.push(Encoder { rows: rows.clone(), sizes, w: first_w, packed: first });
        (first_w, first) = (first_w + sizes.features, first + sizes.count());
    }
    let width = encoders.first().map_or(0, |e| e.sizes.width);
    if w.dims() != [first_w] || packed.dims() != [first] || encoders.iter().any(|e| e.sizes.width != width) {
        bail!("encode: {:?} and {:?} do not fit, expected [{first_w}] and [{first}]", w.dims(), packed.dims());
    }
    let op = Encode {
        encoders,
        index: index.clone(),
        precision: precision(),
        pooling_learns: w.track_op(),
        keeps: w.track_op() || packed.track_op(),
        kept: Mutex::new(None),
    };
    apply2(op, w, packed)
}

/// The encoder of one modality.
struct Encoder {
    rows: ItemRows,
    sizes: MixtureSizes,
    /// The starts of its parameters in the arguments.
    w: usize,
    packed: usize,
}

struct Encode {
    encoders: Vec<Encoder>,
    index: GatherIndex,
    precision: Precision,
    pooling_learns: bool,
    keeps: bool,
    kept: Mutex<Option<(UploadedGatherIndex, Vec<Kept>)>>,
}

/// The values of forward that backward needs.
struct Kept {
    rows: Arc<GpuRows>,
    /// The pooled vectors, `[n, d]`.
    pooled: Factor,
    /// The weights of the experts and of the gate as one matrix, `[d, columns]`.
    matrix: Factor,
    /// The products e W_k, then the gate before its softmax, `[n, columns]`.
    products: Floats,
}

impl MixtureSizes {
    /// The columns of the product: the experts', then the gate's, then zeros up to a multiple for which products are fast.
    fn gpu_columns(self) -> usize {
        (self.outputs() + self.experts).next_multiple_of(16)
    }
}

/// The inputs of a modality's gradients.
struct Given {
    /// The pooling's parameters of all modalities.
    w: DevicePointer,
    /// The packed parameters of all modalities.
    packed: DevicePointer,
    /// The gradient of the modality's own result.
    dz: DevicePointer,
}

/// Where the gradients of a modality are written, among those of all modalities.
struct Gradients {
    /// A pointer to the pooling's gradient, if the pooling is trained.
    w: Option<DevicePointer>,
    /// A pointer to the gradient of the packed parameters.
    packed: DevicePointer,
}

impl Encoder {
    fn pooling_rows(&self) -> usize {
        self.rows.pooling_rows.unwrap_or(0)
    }

    fn compute(&self, gpu: &Gpu, w: DevicePointer, packed: DevicePointer, precision: Precision) -> Result<Kept> {
        let MixtureSizes { features: d, experts, width } = self.sizes;
        let (items, columns) = (self.rows.features.count(), self.sizes.gpu_columns());
        let rows = self.rows.features.on_gpu(gpu)?;
        let (w, packed) = (w.plus(self.w), packed.plus(self.packed));
        let pooled = gpu.factor(items * d, precision)?;
        let name = format!("pool_{}_{}", rows.kind(), pooled.suffix());
        let (values, starts, counts) = (rows.values(), rows.starts(), rows.counts());
        match warp_width(d) {
            Some(lanes) => gpu.launch(
                &format!("{name}_{lanes}"),
                LaunchGrid::warps(items).shared(4 * d),
                arguments![pooled.at(), values, starts, counts, w, items, d, self.pooling_rows()],
            )?,
            None => gpu.launch(
                &name,
                LaunchGrid::blocks(items, 1).shared(4 * self.rows.features.longest().max(1)),
                arguments![pooled.at(), values, starts, counts, w, d, self.pooling_rows()],
            )?,
        }
        let matrix = gpu.factor(d * columns, precision)?;
        let (weights, gate) = (packed.plus(self.sizes.weights().start), packed.plus(self.sizes.gate().start));
        gpu.launch(
            &format!("mixture_matrix_{}", matrix.suffix()),
            LaunchGrid::blocks(columns.div_ceil(32 * WARPS), d),
            arguments![matrix.at(), weights, gate, d, experts, width, columns],
        )?;
        let products = gpu.allocate::<f32>(items * columns)?;
        let (e, w_k) = (pooled.matrix(items, d), matrix.matrix(d, columns));
        gpu.product_split(device_pointer(&products), e, w_k, self.sizes.outputs(), precision)?;
        Ok(Kept { rows, pooled, matrix, products })
    }

    fn mix(
        &self,
        gpu: &Gpu,
        index: &UploadedGatherIndex,
        kept: &Kept,
        packed: DevicePointer,
        z: DevicePointer,
    ) -> Result<()> {
        let MixtureSizes { experts, width, .. } = self.sizes;
        let [biases, weights, norm_biases] = self.tail(packed);
        gpu.launch(
            &format!("mix_{}", lanes(width)),
            LaunchGrid::warps(index.count()),
            arguments![
                z,
                &kept.products,
                biases,
                weights,
                norm_biases,
                index.rows(),
                index.count(),
                experts,
                width,
                self.sizes.gpu_columns(),
                self.rows.dropout,
            ],
        )
    }

    /// Pointers to the biases, the LayerNorm weights and the LayerNorm biases.
    fn tail(&self, packed: DevicePointer) -> [DevicePointer; 3] {
        let packed = packed.plus(self.packed);
        [self.sizes.biases(), self.sizes.norm_weights(), self.sizes.norm_biases()].map(|part| packed.plus(part.start))
    }

    /// Computes the gradients of w and of the packed parameters from dz of the modality.
    fn gradients(
        &self,
        gpu: &Gpu,
        given: Given,
        index: &UploadedGatherIndex,
        kept: &Kept,
        to: Gradients,
        precision: Precision,
    ) -> Result<()> {
        let (Given { w, packed, dz }, Gradients { w: dw, packed: d_packed }) = (given, to);
        let MixtureSizes { features: d, experts, width } = self.sizes;
        let (items, columns, outputs) = (self.rows.features.count(), self.sizes.gpu_columns(), self.sizes.outputs());
        let [biases, weights, norm_biases] = self.tail(packed);
        let (starts, by_row) = index.by_row(gpu)?;
        let d_products = gpu.factor(items * columns, precision)?;
        let d_gates = gpu.allocate::<f32>(items * experts)?;
        let blocks = EXPERT_BLOCKS.min(items.div_ceil(WARPS)).max(1);
        let partial = gpu.allocate::<f32>(blocks * 3 * outputs)?;
        gpu.launch(
            &format!("mix_backward_{}_{}", d_products.suffix(), lanes(width)),
            LaunchGrid::blocks(blocks, experts),
            arguments![
                d_products.at(),
                &d_gates,
                &partial,
                dz,
                &kept.products,
                biases,
                weights,
                norm_biases,
                starts,
                by_row,
                items,
                experts,
                width,
                columns,
                self.rows.dropout,
            ],
        )?;
        gpu.launch(
            &format!("gates_backward_{}", d_products.suffix()),
            LaunchGrid::threads(items),
            arguments![d_products.at(), &d_gates, &kept.products, items, experts, width, columns],
        )?;
        let tail = gpu.allocate::<f32>(3 * outputs)?;
        gpu.sum_rows(device_pointer(&tail), device_pointer(&partial), blocks, 3 * outputs)?;
        gpu.launch(
            "mixture_tail",
            LaunchGrid::threads(3 * outputs),
            arguments![d_packed.plus(self.sizes.biases().start), &tail, experts, width],
        )?;
        let d_matrix = gpu.allocate::<f32>(d * columns)?;
        let (dp, e) = (d_products.matrix(items, columns), kept.pooled.matrix(items, d));
        gpu.product_split(device_pointer(&d_matrix), e.t(), dp, outputs, precision)?;
        let (to, gate) = (d_packed.plus(self.sizes.weights().start), d_packed.plus(self.sizes.gate().start));
        gpu.launch(
            "mixture_parts",
            LaunchGrid::blocks((outputs + experts).div_ceil(32 * WARPS), d),
            arguments![to, gate, &d_matrix, d, experts, width, columns],
        )?;
        match dw {
            Some(dw) => self.pooling_gradient(gpu, w.plus(self.w), &d_products, kept, dw, precision),
            None => Ok(()),
        }
    }

    /// Computes dw, through de of the items whose pooling has a gradient.
    fn pooling_gradient(
        &self,
        gpu: &Gpu,
        w: DevicePointer,
        d_products: &Factor,
        kept: &Kept,
        dw: DevicePointer,
        precision: Precision,
    ) -> Result<()> {
        let (d, columns, items) = (self.sizes.features, self.sizes.gpu_columns(), self.rows.features.count());
        let learning = kept.rows.learning(self.pooling_rows());
        let count = learning.len();
        let listed: CudaSlice<u32> = gpu.upload(learning)?;
        let chosen = if count == items { None } else { Some(gpu.factor(count * columns, precision)?) };
        if let Some(chosen) = &chosen {
            let name = if matches!(chosen, Factor::Half(_)) { "gather_half_rows" } else { "gather_rows" };
            let grid = LaunchGrid::warps(count);
            gpu.launch(name, grid, arguments![chosen.at(), d_products.at(), &listed, count, columns])?;
        }
        let dp = chosen.as_ref().unwrap_or(d_products).matrix(count, columns);
        let de = gpu.allocate::<f32>(count * d)?;
        gpu.product(device_pointer(&de), dp, kept.matrix.matrix(d, columns).t(), false, precision)?;
        let blocks = count.div_ceil(WARPS).clamp(1, POOL_BLOCKS);
        let partial = gpu.allocate::<f32>(blocks * d)?;
        let (kind, rows) = (kept.rows.kind(), &kept.rows);
        let grid = LaunchGrid::blocks(blocks, 1);
        match warp_width(d) {
            Some(lanes) => gpu.launch(
                &format!("pool_backward_{kind}_{lanes}"),
                grid.shared(4 * (1 + WARPS) * d),
                arguments![
                    &partial,
                    &de,
                    &listed,
                    count,
                    rows.values(),
                    rows.starts(),
                    rows.counts(),
                    w,
                    d,
                    self.pooling_rows()
                ],
            )?,
            None => gpu.launch(
                &format!("pool_backward_{kind}_{}", kept.pooled.suffix()),
                grid.shared(4 * (d + self.rows.features.longest().max(1))),
                arguments![
                    &partial,
                    &de,
                    kept.pooled.at(),
                    &listed,
                    count,
                    rows.values(),
                    rows.starts(),
                    rows.counts(),
                    w,
                    d,
                    self.pooling_rows()
                ],
            )?,
        }
        gpu.sum_rows(dw, device_pointer(&partial), blocks, d)
    }
}

impl OnGpu<2> for Encode {
    const NAME: &'static str = "encode";

    fn forward(&self, gpu: &Gpu, [w, packed]: [View<'_>; 2]) -> Result<(Floats, Vec<usize>)> {
        let width = self.encoders.first().map_or(1, |e| e.sizes.width);
        let index = UploadedGatherIndex::of(gpu, &self.index)?;
        let rows = self.encoders.len() * index.count();
        let z = gpu.allocate::<f32>(rows * width)?;
        let mut all = Vec::new();
        for (m, encoder) in self.encoders.iter().enumerate() {
            let kept = encoder.compute(gpu, w.at, packed.at, self.precision)?;
            encoder.mix(gpu, &index, &kept, packed.at, device_pointer(&z).plus(m * index.count() * width))?;
            if self.keeps {
                all.push(kept);
            }
        }
        if self.keeps {
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some((index, all));
        }
        Ok((z, vec![rows, width]))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        [w, packed]: [View<'_>; 2],
        _: View<'_>,
        dz: View<'_>,
    ) -> Result<[Option<Floats>; 2]> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (index, all) = match kept {
            Some(kept) => kept,
            None => {
                let compute = |e: &Encoder| e.compute(gpu, w.at, packed.at, self.precision);
                (UploadedGatherIndex::of(gpu, &self.index)?, self.encoders.iter().map(compute).collect::<Result<_>>()?)
            }
        };
        let (dw, d_packed) = (gpu.allocate::<f32>(w.dims[0])?, gpu.allocate::<f32>(packed.dims[0])?);
        for (m, (encoder, kept)) in self.encoders.iter().zip(&all).enumerate() {
            let own = dz.at.plus(m * index.count() * encoder.sizes.width);
            let given = Given { w: w.at, packed: packed.at, dz: own };
            let to = Gradients {
                w: self.pooling_learns.then(|| device_pointer(&dw).plus(encoder.w)),
                packed: device_pointer(&d_packed).plus(encoder.packed),
            };
            encoder.gradients(gpu, given, &index, kept, to, self.precision)?;
        }
        Ok([self.pooling_learns.then_some(dw), Some(d_packed)])
    }
}
