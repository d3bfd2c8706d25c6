//! The operators on an NVIDIA GPU: products by cuBLAS, everything else by the kernels of `kernels.cu`, whose backward is
//! written by hand.
//!
//! Operators implement [`OnGpu`]; the adapters turn it into candle's custom operators of one, two or three differentiable inputs. Backward
//! draws dropout masks again from their keys, the same as on the CPU. Work goes to one stream, in the order of the calls, and sums have a
//! fixed order: the same inputs give the same bytes on the same GPU. Sizes beyond the limits of the kernels, such as [`WIDEST`], are left
//! to the plain operators.

mod adam;
mod candidates;
mod contrastive;
mod convolution;
mod encode;
mod features;
mod gpu;
mod inference;
mod layer;
mod logsumexp;
mod ranking;
mod rows;
mod sequence;

pub(crate) use adam::{GpuMoments, GpuStepOutcome, Stepping};
pub(crate) use candidates::candidates;
pub(crate) use contrastive::contrastive;
pub(crate) use convolution::GpuResNet;
pub(crate) use encode::encode;
pub(crate) use features::GpuFeatures;
pub(crate) use inference::{GpuEncoder, GpuTransformer};
pub(crate) use layer::transformer_layer;
pub(crate) use logsumexp::{cross_entropy, row_logsumexp};
pub(crate) use ranking::GpuScores;
pub(crate) use rows::{GpuSparse, gather, linear, normalize, product, propagate, sparse_product};
pub(crate) use sequence::sequence_input;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::cuda_backend::{CudaDevice, CudaStorage, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Storage, Tensor, bail};

use crate::timing::timed;
use gpu::{DevicePointer, Floats, Gpu, device_pointer};

/// Indices on a GPU.
pub(crate) type GpuIndices = candle_core::cuda_backend::cudarc::driver::CudaSlice<u32>;

/// The widest row that the kernels hold in registers.
pub(crate) const WIDEST: usize = 1024;

/// The device of GPU `ordinal`, opened once. All work goes to one stream, so candle does not have to track which work uses which memory.
#[allow(unsafe_code, reason = "tells candle that it need not track the use of memory")]
pub(crate) fn device(ordinal: usize) -> Result<Device> {
    static OPEN: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&ordinal) {
        return Ok(device.clone());
    }
    let device = Device::new_cuda_with_stream(ordinal)?;
    if let Device::Cuda(cuda) = &device {
        // SAFETY: the device has one stream, on which everything happens in the order of the calls.
        unsafe { cuda.disable_event_tracking() };
        keep_memory(cuda)?;
    }
    open.insert(ordinal, device.clone());
    Ok(device)
}

/// Makes freed memory stay with the process: otherwise, every wait for the GPU returns it to the system, and the next step has to allocate
/// it again.
#[allow(unsafe_code, reason = "sets an attribute of the memory pool by a pointer")]
fn keep_memory(device: &CudaDevice) -> Result<()> {
    let context = device.cuda_stream().context().clone();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut bytes = u64::MAX;
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is the device's own, and the attribute is a number of 64 bits, which lives until the call returns.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        result::mem_pool::set_attribute(pool, threshold, std::ptr::from_mut(&mut bytes).cast()).w()
    }
}

/// An argument or a result: a pointer to its values, row after row, and the length of each axis.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    at: DevicePointer,
    dims: &'a [usize],
}

/// An operator of N differentiable arguments.
pub(crate) trait OnGpu<const N: usize>: Send + Sync + 'static {
    const NAME: &'static str;
    fn forward(&self, gpu: &Gpu, arguments: [View<'_>; N]) -> Result<(Floats, Vec<usize>)>;
    /// Returns the gradients of the arguments; `None` for an argument without one.
    fn backward(
        &self,
        gpu: &Gpu,
        arguments: [View<'_>; N],
        result: View<'_>,
        gradient: View<'_>,
    ) -> Result<[Option<Floats>; N]>;
}

struct Adapter<F>(F);

pub(crate) fn apply1<F: OnGpu<1>>(op: F, a: &Tensor) -> Result<Tensor> {
    a.contiguous()?.apply_op1(Adapter(op))
}

pub(crate) fn apply2<F: OnGpu<2>>(op: F, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.contiguous()?.apply_op2(&b.contiguous()?, Adapter(op))
}

pub(crate) fn apply3<F: OnGpu<3>>(op: F, a: &Tensor, b: &Tensor, c: &Tensor) -> Result<Tensor> {
    a.contiguous()?.apply_op3(&b.contiguous()?, &c.contiguous()?, Adapter(op))
}

/// The class of kernels for rows of width `d`: the values that each lane holds.
fn lanes(d: usize) -> usize {
    d.div_ceil(32).next_power_of_two()
}

fn view<'a>(storage: &CudaStorage, layout: &'a Layout) -> Result<View<'a>> {
    match layout.contiguous_offsets() {
        Some((start, _)) => {
            Ok(View { at: device_pointer(storage.as_cuda_slice::<f32>()?).plus(start), dims: layout.dims() })
        }
        None => bail!("an operator on a GPU needs contiguous arguments"),
    }
}

/// Calls `f` with the views of contiguous tensors of one GPU.
pub(crate) fn with_views<const N: usize, T>(
    tensors: [&Tensor; N],
    f: impl FnOnce(&Gpu, [View<'_>; N]) -> Result<T>,
) -> Result<T> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut views = [View { at: DevicePointer::NONE, dims: &[] }; N];
    let mut gpu = None;
    for (slot, (storage, layout)) in views.iter_mut().zip(&held) {
        let Storage::Cuda(storage) = &**storage else { bail!("an operator on a GPU got a tensor that is elsewhere") };
        *slot = view(storage, layout)?;
        gpu = Some(Gpu::of(storage.device())?);
    }
    match gpu {
        Some(gpu) => f(&gpu, views),
        None => bail!("an operator on a GPU needs an argument"),
    }
}

/// A tensor of values on the GPU.
fn tensor(gpu: &Gpu, values: Floats, shape: impl Into<Shape>) -> Tensor {
    let storage = CudaStorage::wrap_cuda_slice(values, gpu.device().clone());
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

fn backward<F: OnGpu<N>, const N: usize>(
    op: &F,
    arguments: [&Tensor; N],
    result: &Tensor,
    gradient: &Tensor,
) -> Result<[Option<Tensor>; N]> {
    let gradient = gradient.contiguous()?;
    let (gpu, gradients) = with_views([result, &gradient], |gpu, [result, gradient]| {
        let back = |gpu: &Gpu, views: [View<'_>; N]| op.backward(gpu, views, result, gradient);
        let gradients = timed(F::NAME, "backward", || with_views(arguments, back))?;
        Ok((gpu.clone(), gradients))
    })?;
    let mut tensors = [const { None }; N];
    for ((slot, gradient), argument) in tensors.iter_mut().zip(gradients).zip(arguments) {
        *slot = gradient.map(|values| tensor(&gpu, values, argument.shape()));
    }
    Ok(tensors)
}

/// The measured time is that of the host; the GPU may still be working.
fn forward<F: OnGpu<N>, const N: usize>(
    op: &F,
    device: &CudaDevice,
    arguments: [View<'_>; N],
) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::of(device)?;
    let (values, dims) = timed(F::NAME, "forward", || op.forward(&gpu, arguments))?;
    Ok((CudaStorage::wrap_cuda_slice(values, device.clone()), Shape::from(dims)))
}

fn elsewhere<T>(name: &str) -> Result<T> {
    bail!("{name}: this is the implementation for GPUs")
}

impl<F: OnGpu<1>> CustomOp1 for Adapter<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere(F::NAME)
    }
    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        forward(&self.0, s.device(), [view(s, l)?])
    }
    fn bwd(&self, a: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let [a] = backward(&self.0, [a], result, gradient)?;
        Ok(a)
    }
}

impl<F: OnGpu<2>> CustomOp2 for Adapter<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere(F::NAME)
    }
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        forward(&self.0, s1.device(), [view(s1, l1)?, view(s2, l2)?])
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

impl<F: OnGpu<3>> CustomOp3 for Adapter<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }
    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        elsewhere(F::NAME)
    }
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        forward(&self.0, s1.device(), [view(s1, l1)?, view(s2, l2)?, view(s3, l3)?])
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
