//! Products, rows of tables and sparse products.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Error, Result, Tensor, bail};

use super::gpu::{DevicePointer, Floats, Gpu, LaunchGrid, Matrix, arguments, device_pointer};
use super::{OnGpu, View, apply1, apply2, apply3};
use crate::sparse::CompressedRows;
use crate::{GatherIndex, Precision, SparseMatrix, precision};

pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    apply3(Linear(precision()), x, weight, bias)
}

pub(crate) fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    apply2(Product(precision()), x, weight)
}

struct Linear(Precision);

struct Product(Precision);

fn shapes(x: View<'_>, weight: View<'_>) -> Result<(usize, usize, usize)> {
    match (x.dims, weight.dims) {
        (&[t, a], &[a2, b]) if a == a2 && a > 0 && b > 0 => Ok((t, a, b)),
        (x, w) => bail!("linear: {x:?} does not fit {w:?}"),
    }
}

/// dx and dW of y = x W.
fn gradients(
    gpu: &Gpu,
    x: View<'_>,
    weight: View<'_>,
    dy: DevicePointer,
    precision: Precision,
) -> Result<(Floats, Floats)> {
    let (t, a, b) = shapes(x, weight)?;
    let (dx, dw) = (gpu.allocate::<f32>(t * a)?, gpu.allocate::<f32>(a * b)?);
    let dy = Matrix::new(dy, t, b);
    gpu.product(device_pointer(&dx), dy, Matrix::new(weight.at, a, b).t(), false, precision)?;
    gpu.product(device_pointer(&dw), Matrix::new(x.at, t, a).t(), dy, false, precision)?;
    Ok((dx, dw))
}

impl OnGpu<3> for Linear {
    const NAME: &'static str = "linear";

    fn forward(&self, gpu: &Gpu, [x, weight, bias]: [View<'_>; 3]) -> Result<(Floats, Vec<usize>)> {
        let (t, a, b) = shapes(x, weight)?;
        if bias.dims != [b] {
            bail!("linear: bias {:?} does not fit weight {:?}", bias.dims, weight.dims);
        }
        let y = gpu.allocate::<f32>(t * b)?;
        gpu.product(device_pointer(&y), Matrix::new(x.at, t, a), Matrix::new(weight.at, a, b), false, self.0)?;
        gpu.launch("add_bias", LaunchGrid::threads(t * b), arguments![&y, bias.at, t * b, b])?;
        Ok((y, vec![t, b]))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        [x, weight, _]: [View<'_>; 3],
        _: View<'_>,
        gradient: View<'_>,
    ) -> Result<[Option<Floats>; 3]> {
        let (t, _, b) = shapes(x, weight)?;
        let (dx, dw) = gradients(gpu, x, weight, gradient.at, self.0)?;
        let db = gpu.allocate::<f32>(b)?;
        gpu.column_sums(device_pointer(&db), gradient.at, t, b)?;
        Ok([Some(dx), Some(dw), Some(db)])
    }
}

impl OnGpu<2> for Product {
    const NAME: &'static str = "product";

    fn forward(&self, gpu: &Gpu, [x, weight]: [View<'_>; 2]) -> Result<(Floats, Vec<usize>)> {
        let (t, a, b) = shapes(x, weight)?;
        let y = gpu.allocate::<f32>(t * b)?;
        gpu.product(device_pointer(&y), Matrix::new(x.at, t, a), Matrix::new(weight.at, a, b), false, self.0)?;
        Ok((y, vec![t, b]))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        [x, weight]: [View<'_>; 2],
        _: View<'_>,
        gradient: View<'_>,
    ) -> Result<[Option<Floats>; 2]> {
        let (dx, dw) = gradients(gpu, x, weight, gradient.at, self.0)?;
        Ok([Some(dx), Some(dw)])
    }
}

pub(crate) fn normalize(x: &Tensor) -> Result<Tensor> {
    apply1(Normalize, x)
}

struct Normalize;

impl OnGpu<1> for Normalize {
    const NAME: &'static str = "normalize";

    fn forward(&self, gpu: &Gpu, [x]: [View<'_>; 1]) -> Result<(Floats, Vec<usize>)> {
        let &[t, d] = x.dims else { bail!("normalize: expected [t, d], found {:?}", x.dims) };
        let y = gpu.allocate::<f32>(t * d)?;
        gpu.launch("normalize", LaunchGrid::warps(t), arguments![&y, x.at, t, d])?;
        Ok((y, vec![t, d]))
    }

    fn backward(&self, gpu: &Gpu, [x]: [View<'_>; 1], _: View<'_>, dy: View<'_>) -> Result<[Option<Floats>; 1]> {
        let (t, d) = (x.dims[0], x.dims[1]);
        let dx = gpu.allocate::<f32>(t * d)?;
        gpu.launch("normalize_backward", LaunchGrid::warps(t), arguments![&dx, dy.at, x.at, t, d])?;
        Ok([Some(dx)])
    }
}

/// The uses of a table's rows on the GPU. Their order, which only backward needs, is computed by another thread while the GPU is working.
pub(crate) struct UploadedGatherIndex {
    count: usize,
    /// The number of rows of the table.
    rows: usize,
    /// The row of every use, `[uses]`.
    uploaded: CudaSlice<u32>,
    order: Mutex<Order>,
}

/// The uses of each row.
enum Order {
    UnderWay(Receiver<RowIndex>),
    Known(Arc<Uploaded>),
}

/// The uses of each row on the host.
enum RowIndex {
    /// No row is used twice.
    Once,
    Index(GatherIndex),
}

/// The uses of each row on the GPU.
enum Uploaded {
    Once,
    Index {
        /// The starts of the rows' uses and their end, the uses by row, and the rows with many uses.
        values: CudaSlice<u32>,
        many: usize,
    },
}

/// The number of uses of a row above which a block adds them up instead of a warp.
const MANY: usize = 48;

/// Whether no row occurs twice.
fn are_once(rows: &[u32], table: usize) -> bool {
    let mut seen = vec![0u64; table.div_ceil(64)];
    rows.iter().all(|&row| {
        let (word, bit) = (&mut seen[row as usize / 64], 1 << (row % 64));
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    })
}

impl UploadedGatherIndex {
    pub fn new(gpu: &Gpu, rows: &[u32], table: usize, name: &str) -> Result<Self> {
        if let Some(row) = rows.iter().find(|&&row| row as usize >= table) {
            bail!("{name}: row {row} of {table}");
        }
        let (uploaded, rows, (sender, receiver)) = (gpu.upload(rows)?, rows.to_vec(), std::sync::mpsc::channel());
        let count = rows.len();
        rayon::spawn(move || {
            let index =
                if are_once(&rows, table) { RowIndex::Once } else { RowIndex::Index(GatherIndex::new(rows, table)) };
            // Without a backward pass, the receiver is gone by now.
            let _ = sender.send(index);
        });
        Ok(Self { count, rows: table, uploaded, order: Mutex::new(Order::UnderWay(receiver)) })
    }

    /// Builds the uses from an index, which sorts them when backward needs their order.
    pub fn of(gpu: &Gpu, index: &GatherIndex) -> Result<Self> {
        if let Some(row) = index.item_of().iter().find(|&&row| row as usize >= index.items()) {
            bail!("a use of row {row} of {}", index.items());
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        let _ = sender.send(RowIndex::Index(index.clone()));
        let uploaded = gpu.upload(index.item_of())?;
        let (count, rows) = (index.count(), index.items());
        Ok(Self { count, rows, uploaded, order: Mutex::new(Order::UnderWay(receiver)) })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// The row of every use.
    pub fn rows(&self) -> DevicePointer {
        device_pointer(&self.uploaded)
    }

    fn order(&self, gpu: &Gpu) -> Result<Arc<Uploaded>> {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match &*order {
            Order::Known(uploaded) => return Ok(uploaded.clone()),
            Order::UnderWay(receiver) => receiver.recv().map_err(Error::wrap)?,
        };
        let uploaded = Arc::new(match index {
            RowIndex::Once => Uploaded::Once,
            RowIndex::Index(index) => {
                let starts = index.starts();
                let many = (0..self.rows as u32)
                    .filter(|&row| (starts[row as usize + 1] - starts[row as usize]) as usize > MANY);
                let mut values = starts.to_vec();
                values.extend_from_slice(index.by_item());
                values.extend(many);
                let many = values.len() - starts.len() - index.count();
                Uploaded::Index { values: gpu.upload(&values)?, many }
            }
        });
        *order = Order::Known(uploaded.clone());
        Ok(uploaded)
    }

    /// Pointers to the starts of the rows' uses, and of the uses by row.
    pub fn by_row(&self, gpu: &Gpu) -> Result<(DevicePointer, DevicePointer)> {
        match &*self.order(gpu)? {
            Uploaded::Once => bail!("the order of these uses was not requested"),
            Uploaded::Index { values, .. } => {
                let starts = device_pointer(values);
                Ok((starts, starts.plus(self.rows + 1)))
            }
        }
    }

    /// For every row of the table, the sum of its uses' rows of `gradient` `[uses, d]`: `[rows, d]`.
    pub fn scatter(&self, gpu: &Gpu, gradient: DevicePointer, d: usize) -> Result<Floats> {
        let out = gpu.allocate::<f32>(self.rows * d)?;
        self.scatter_into(gpu, device_pointer(&out), gradient, d)?;
        Ok(out)
    }

    pub fn scatter_into(&self, gpu: &Gpu, out: DevicePointer, gradient: DevicePointer, d: usize) -> Result<()> {
        let rows = self.rows;
        match &*self.order(gpu)? {
            Uploaded::Once => {
                gpu.launch("fill_zero", LaunchGrid::threads(rows * d), arguments![out, rows * d])?;
                let grid = LaunchGrid::warps(self.count);
                gpu.launch("scatter_once", grid, arguments![out, gradient, self.rows(), self.count, d])
            }
            Uploaded::Index { values, many } => {
                let starts = device_pointer(values);
                let by_row = starts.plus(rows + 1);
                let grid = LaunchGrid { threads: (1024, 1), ..LaunchGrid::blocks(*many, 1) };
                let long = by_row.plus(self.count);
                gpu.launch("scatter_long_rows", grid, arguments![out, gradient, starts, by_row, long, d])?;
                gpu.launch(
                    "scatter_rows",
                    LaunchGrid::warps(rows),
                    arguments![out, gradient, starts, by_row, rows, d, MANY],
                )
            }
        }
    }
}

pub(crate) fn gather(table: &Tensor, rows: &[u32]) -> Result<Tensor> {
    apply1(Gather { rows: rows.to_vec(), index: OnceLock::new() }, table)
}

struct Gather {
    rows: Vec<u32>,
    index: OnceLock<UploadedGatherIndex>,
}

impl OnGpu<1> for Gather {
    const NAME: &'static str = "gather";

    fn forward(&self, gpu: &Gpu, [table]: [View<'_>; 1]) -> Result<(Floats, Vec<usize>)> {
        let &[n, d] = table.dims else { bail!("gather: expected [n, d], found {:?}", table.dims) };
        let index = UploadedGatherIndex::new(gpu, &self.rows, n, Self::NAME)?;
        let out = gpu.allocate::<f32>(index.count() * d)?;
        let grid = LaunchGrid::warps(index.count());
        gpu.launch("gather_rows", grid, arguments![&out, table.at, index.rows(), index.count(), d])?;
        let dims = vec![index.count(), d];
        let _ = self.index.set(index);
        Ok((out, dims))
    }

    fn backward(&self, gpu: &Gpu, [table]: [View<'_>; 1], _: View<'_>, dy: View<'_>) -> Result<[Option<Floats>; 1]> {
        let Some(index) = self.index.get() else { bail!("gather: backward before forward") };
        Ok([Some(index.scatter(gpu, dy.at, table.dims[1])?)])
    }
}

/// A sparse matrix on the GPU, and its transpose.
#[derive(Debug)]
pub(crate) struct GpuSparse {
    by_row: GpuRows,
    by_column: GpuRows,
}

#[derive(Debug)]
struct GpuRows {
    offsets: CudaSlice<u32>,
    columns: CudaSlice<u32>,
    weights: Floats,
    rows: usize,
}

impl GpuRows {
    fn new(gpu: &Gpu, rows: &CompressedRows) -> Result<Self> {
        let offsets: Vec<u32> = rows.offsets.iter().map(|&offset| offset as u32).collect();
        Ok(Self {
            rows: offsets.len() - 1,
            offsets: gpu.upload(&offsets)?,
            columns: gpu.upload(&rows.columns)?,
            weights: gpu.upload(&rows.weights)?,
        })
    }

    /// y = A x; with `sum`, sum += y.
    fn times(&self, gpu: &Gpu, sum: Option<DevicePointer>, x: DevicePointer, d: usize) -> Result<Floats> {
        let y = gpu.allocate::<f32>(self.rows * d)?;
        let total = sum.unwrap_or(DevicePointer::NONE);
        let (offsets, columns, weights) = (&self.offsets, &self.columns, &self.weights);
        let arguments = arguments![&y, total, x, offsets, columns, weights, self.rows, d, sum.is_some()];
        gpu.launch("sparse_rows", LaunchGrid::warps(self.rows), arguments)?;
        Ok(y)
    }
}

/// The matrix on `gpu`, to which it is uploaded once.
fn on_gpu(matrix: &SparseMatrix, gpu: &Gpu) -> Result<Arc<GpuSparse>> {
    if let Some(sparse) = matrix.gpu.get() {
        return Ok(sparse.clone());
    }
    let sparse =
        GpuSparse { by_row: GpuRows::new(gpu, &matrix.by_row)?, by_column: GpuRows::new(gpu, &matrix.by_column)? };
    Ok(matrix.gpu.get_or_init(|| Arc::new(sparse)).clone())
}

pub(crate) fn sparse_product(matrix: &SparseMatrix, x: &Tensor) -> Result<Tensor> {
    if x.dims().first() != Some(&matrix.columns()) {
        bail!("sparse_product: [{}, {}] does not fit {:?}", matrix.rows(), matrix.columns(), x.dims());
    }
    apply1(SparseProduct(matrix.clone()), x)
}

struct SparseProduct(SparseMatrix);

impl OnGpu<1> for SparseProduct {
    const NAME: &'static str = "sparse_product";

    fn forward(&self, gpu: &Gpu, [x]: [View<'_>; 1]) -> Result<(Floats, Vec<usize>)> {
        let d = x.dims[1];
        Ok((on_gpu(&self.0, gpu)?.by_row.times(gpu, None, x.at, d)?, vec![self.0.rows(), d]))
    }

    fn backward(&self, gpu: &Gpu, [x]: [View<'_>; 1], _: View<'_>, dy: View<'_>) -> Result<[Option<Floats>; 1]> {
        Ok([Some(on_gpu(&self.0, gpu)?.by_column.times(gpu, None, dy.at, x.dims[1])?)])
    }
}

pub(crate) fn propagate(adjacency: &SparseMatrix, x: &Tensor, layers: usize) -> Result<Tensor> {
    if x.dims().first() != Some(&adjacency.columns()) || adjacency.rows() != adjacency.columns() {
        bail!("propagate: [{}, {}] does not fit {:?}", adjacency.rows(), adjacency.columns(), x.dims());
    }
    apply1(Propagate { adjacency: adjacency.clone(), layers }, x)
}

struct Propagate {
    adjacency: SparseMatrix,
    layers: usize,
}

/// The mean of x, A x, ..., A^layers x.
fn mean_of_powers(gpu: &Gpu, rows: &GpuRows, x: View<'_>, layers: usize) -> Result<Floats> {
    let (count, d) = (x.dims[0] * x.dims[1], x.dims[1]);
    let sum = gpu.zeros::<f32>(count)?;
    gpu.launch("add_to", LaunchGrid::threads(count), arguments![&sum, x.at, count])?;
    let mut layer: Option<Floats> = None;
    for _ in 0..layers {
        let from = layer.as_ref().map_or(x.at, device_pointer);
        layer = Some(rows.times(gpu, Some(device_pointer(&sum)), from, d)?);
    }
    gpu.launch("scale_all", LaunchGrid::threads(count), arguments![&sum, 1.0 / (layers + 1) as f32, count])?;
    Ok(sum)
}

impl OnGpu<1> for Propagate {
    const NAME: &'static str = "propagate";

    fn forward(&self, gpu: &Gpu, [x]: [View<'_>; 1]) -> Result<(Floats, Vec<usize>)> {
        let sparse = on_gpu(&self.adjacency, gpu)?;
        Ok((mean_of_powers(gpu, &sparse.by_row, x, self.layers)?, x.dims.to_vec()))
    }

    fn backward(&self, gpu: &Gpu, _: [View<'_>; 1], _: View<'_>, dy: View<'_>) -> Result<[Option<Floats>; 1]> {
        let sparse = on_gpu(&self.adjacency, gpu)?;
        Ok([Some(mean_of_powers(gpu, &sparse.by_column, dy, self.layers)?)])
    }
}
