//! Adam on the GPU: one launch updates all parameters, and the host does not wait for the GPU until the norm is requested.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, Storage, Tensor, bail};

use super::gpu::{DevicePointer, Floats, Gpu, LaunchGrid, arguments, device_pointer};
use super::with_views;
use crate::adam::{Rates, Update};

/// The number of values in a piece, which a block of threads processes.
const PIECE: usize = 1 << 13;

/// The number of 32-bit words that describe a piece to the kernels.
const WORDS: usize = 12;

/// The moments of all parameters, and whether a step was not finite.
pub(crate) struct GpuMoments {
    gpu: Gpu,
    first: Vec<Floats>,
    second: Vec<Floats>,
    stopped: CudaSlice<u32>,
}

/// The joint norm of the gradients of a step, and its loss, which the GPU may still be computing.
pub(crate) struct GpuStepOutcome {
    gpu: Gpu,
    values: CudaSlice<f64>,
}

impl GpuStepOutcome {
    /// Waits for the values: the norm, the loss, and 1 if the step was taken or 0 if not.
    pub fn wait(&self) -> Result<[f64; 3]> {
        let values = self.gpu.device().clone_dtoh(&self.values)?;
        Ok([values[0], values[1], values[2]])
    }
}

/// A parameter of a step: its number, its values, its gradient, and its bias corrections.
pub(crate) struct Stepping<'a> {
    pub at: usize,
    pub parameter: &'a Tensor,
    pub gradient: Tensor,
    pub update: Update,
}

impl std::fmt::Debug for GpuStepOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a step on a GPU")
    }
}

impl std::fmt::Debug for GpuMoments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "moments of {} parameters on a GPU", self.first.len())
    }
}

impl Clone for GpuMoments {
    fn clone(&self) -> Self {
        Self {
            gpu: self.gpu.clone(),
            first: self.first.clone(),
            second: self.second.clone(),
            stopped: self.stopped.clone(),
        }
    }
}

impl GpuMoments {
    /// Uploads stored moments to the device of `like`.
    pub fn new(like: &Tensor, first: &[Vec<f32>], second: &[Vec<f32>]) -> Result<Self> {
        let (storage, _) = like.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("adam: the parameters are not on a GPU") };
        let gpu = Gpu::of(candle_core::backend::BackendStorage::device(storage))?;
        let upload = |moments: &[Vec<f32>]| moments.iter().map(|m| gpu.upload(m)).collect::<Result<Vec<_>>>();
        let (first, second, stopped) = (upload(first)?, upload(second)?, gpu.zeros::<u32>(1)?);
        Ok(Self { gpu, first, second, stopped })
    }

    /// Other moments on the same GPU.
    pub fn replaced(&self, first: &[Vec<f32>], second: &[Vec<f32>]) -> Result<Self> {
        let upload = |moments: &[Vec<f32>]| moments.iter().map(|m| self.gpu.upload(m)).collect::<Result<Vec<_>>>();
        let (first, second, stopped) = (upload(first)?, upload(second)?, self.gpu.zeros::<u32>(1)?);
        Ok(Self { gpu: self.gpu.clone(), first, second, stopped })
    }

    /// First and second moments, of `lengths` values each.
    pub fn values(&self, lengths: &[usize]) -> Result<[Vec<Vec<f32>>; 2]> {
        let download = |moments: &[Floats]| {
            let pairs = moments.iter().zip(lengths);
            pairs
                .map(|(values, &length)| {
                    let mut values = self.gpu.device().clone_dtoh(values)?;
                    values.truncate(length);
                    Ok(values)
                })
                .collect::<Result<Vec<_>>>()
        };
        Ok([download(&self.first)?, download(&self.second)?])
    }

    /// Takes one step, unless the loss or the norm is not finite, in this step or an earlier one.
    pub fn step(&self, parameters: &[Stepping<'_>], loss: &Tensor, rates: Rates) -> Result<GpuStepOutcome> {
        let mut pieces: Vec<u32> = Vec::new();
        for Stepping { at, parameter, gradient, update } in parameters {
            with_views([*parameter, gradient], |_, [value, gradient]| {
                let count: usize = value.dims.iter().product();
                let moments = [device_pointer(&self.first[*at]), device_pointer(&self.second[*at])];
                for start in (0..count).step_by(PIECE) {
                    let here = |at: DevicePointer| at.plus(start).words();
                    let length = PIECE.min(count - start) as u64;
                    pieces.extend([value.at, moments[0], moments[1], gradient.at].map(here).concat());
                    pieces.extend([length as u32, (length >> 32) as u32]);
                    pieces.extend([update.step_size.to_bits(), update.second_root.to_bits()]);
                }
                Ok(())
            })?;
        }
        let count = pieces.len() / WORDS;
        let table = self.gpu.upload(&pieces)?;
        let squares = self.gpu.allocate::<f64>(count)?;
        let values = self.gpu.allocate::<f64>(3)?;
        let grid = LaunchGrid::blocks(count, 1);
        self.gpu.launch("piece_squares", grid, arguments![&squares, &table])?;
        with_views([loss], |gpu, [loss]| {
            let arguments = arguments![&values, &self.stopped, &squares, count, loss.at];
            gpu.launch("joint_norm", LaunchGrid::blocks(1, 1), arguments)
        })?;
        let Rates { clip_norm, decay, fresh_1, fresh_2 } = rates;
        let arguments = arguments![&table, &values, &self.stopped, clip_norm, decay, fresh_1, fresh_2];
        self.gpu.launch("adam", grid, arguments)?;
        Ok(GpuStepOutcome { gpu: self.gpu.clone(), values })
    }
}
