//! The rows of items on the GPU, in the type in which they are stored: all rows if they fit, otherwise those of a view's items.

use std::sync::{Arc, OnceLock};

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, bail};
use half::{bf16, f16};

use super::gpu::{DevicePointer, Gpu, device_pointer};
use crate::ragged::{Ragged, StoredValues};

/// The fraction of the free memory that features may take; the rest is left to the step.
const SHARE: (usize, usize) = (3, 5);

/// The data of a table and its views that is kept on the GPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct GpuFeatures {
    /// The whole table, shared by all views; `None` once it was found too large.
    table: Arc<OnceLock<Option<Arc<Values>>>>,
    /// This view's rows.
    view: Arc<OnceLock<Arc<GpuRows>>>,
}

impl GpuFeatures {
    /// The same table for another view.
    pub fn other_view(&self) -> Self {
        Self { table: self.table.clone(), view: Arc::default() }
    }
}

#[derive(Debug)]
enum Values {
    F32(CudaSlice<f32>),
    F16(CudaSlice<f16>),
    Bf16(CudaSlice<bf16>),
}

/// The rows of some items.
#[derive(Debug)]
pub(crate) struct GpuRows {
    values: Arc<Values>,
    /// The first row of each item among the values.
    starts: CudaSlice<u64>,
    counts: CudaSlice<u32>,
    /// The items with more than one row, and those with at least one.
    several: Vec<u32>,
    any: Vec<u32>,
}

impl GpuRows {
    /// The type of the values, as it appears in the names of the kernels that read them.
    pub fn kind(&self) -> &'static str {
        match &*self.values {
            Values::F32(_) => "f32",
            Values::F16(_) => "f16",
            Values::Bf16(_) => "bf16",
        }
    }

    pub fn values(&self) -> DevicePointer {
        match &*self.values {
            Values::F32(values) => device_pointer(values),
            Values::F16(values) => device_pointer(values),
            Values::Bf16(values) => device_pointer(values),
        }
    }

    pub fn starts(&self) -> DevicePointer {
        device_pointer(&self.starts)
    }

    pub fn counts(&self) -> DevicePointer {
        device_pointer(&self.counts)
    }

    /// The items whose pooling has a gradient: the weight of a single row is always 1.
    pub fn learning(&self, pooling_rows: usize) -> &[u32] {
        if pooling_rows > 1 { &self.any } else { &self.several }
    }
}

fn upload(gpu: &Gpu, values: &StoredValues) -> Result<Values> {
    Ok(match values {
        StoredValues::F32(values) => Values::F32(gpu.upload((**values).as_ref())?),
        StoredValues::F16(values) => Values::F16(gpu.upload((**values).as_ref())?),
        StoredValues::Bf16(values) => Values::Bf16(gpu.upload((**values).as_ref())?),
    })
}

fn fits(device: &CudaDevice, bytes: usize) -> Result<bool> {
    let (free, _) = device.cuda_stream().context().mem_get_info().w()?;
    Ok(bytes <= free / SHARE.1 * SHARE.0)
}

/// The values of the rows in some ranges, one range after the other.
fn joined<T: Copy>(values: &[T], rows: &[(usize, usize)], width: usize) -> Vec<T> {
    let mut all = Vec::with_capacity(rows.iter().map(|(start, end)| (end - start) * width).sum());
    rows.iter().for_each(|&(start, end)| all.extend_from_slice(&values[start * width..end * width]));
    all
}

impl Ragged {
    /// This view's rows on the GPU. The table is uploaded once, and the positions of rows once per view.
    pub(crate) fn on_gpu(&self, gpu: &Gpu) -> Result<Arc<GpuRows>> {
        if let Some(rows) = self.gpu.view.get() {
            return Ok(rows.clone());
        }
        let table = match self.gpu.table.get() {
            Some(table) => table.clone(),
            None => {
                let table = if fits(gpu.device(), self.values.bytes())? {
                    Some(Arc::new(upload(gpu, &self.values)?))
                } else {
                    None
                };
                self.gpu.table.get_or_init(|| table).clone()
            }
        };
        let counts: Vec<u32> = self.rows.iter().map(|(start, end)| (end - start) as u32).collect();
        let (values, starts) = match table {
            Some(values) => (values, self.rows.iter().map(|&(start, _)| start as u64).collect::<Vec<_>>()),
            None => {
                let rows: usize = counts.iter().map(|&count| count as usize).sum();
                let bytes = rows * self.width * (self.values.bytes() / self.values.len().max(1));
                if !fits(gpu.device(), bytes)? {
                    bail!(
                        "{} MiB of features do not fit into the free memory of the GPU; use a larger GPU or the CPU",
                        bytes >> 20
                    );
                }
                let own = match &self.values {
                    StoredValues::F32(v) => Values::F32(gpu.upload(&joined((**v).as_ref(), &self.rows, self.width))?),
                    StoredValues::F16(v) => Values::F16(gpu.upload(&joined((**v).as_ref(), &self.rows, self.width))?),
                    StoredValues::Bf16(v) => {
                        Values::Bf16(gpu.upload(&joined((**v).as_ref(), &self.rows, self.width))?)
                    }
                };
                let ends = counts.iter().scan(0u64, |end, &count| {
                    let start = *end;
                    *end += u64::from(count);
                    Some(start)
                });
                (Arc::new(own), ends.collect())
            }
        };
        let with = |least: u32| (0..counts.len() as u32).filter(|&i| counts[i as usize] >= least).collect();
        let rows = GpuRows {
            values,
            starts: gpu.upload(&starts)?,
            several: with(2),
            any: with(1),
            counts: gpu.upload(&counts)?,
        };
        Ok(self.gpu.view.get_or_init(|| Arc::new(rows)).clone())
    }
}
