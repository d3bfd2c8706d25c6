//! A GPU: its memory, its kernels, and products by cuBLAS.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::cublas::{result::gemm_ex, sys as blas};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, DevicePtr, DeviceRepr, PinnedHostSlice, ValidAsZeroBits, result,
    sys,
};
use candle_core::cuda_backend::{CudaDevice, DeviceId, WrapErr, cudarc::nvrtc::Ptx};
use candle_core::{Error, Result, bail};
use half::bf16;

use crate::{Dropout, Precision};

/// The kernels that [`build.rs`](../../build.rs) compiled.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// The size in bytes of the host memory for uploads.
const STAGING: usize = 64 << 20;

/// The size in bytes of the shared memory that every kernel may use without requesting it.
const SHARED: usize = 48 << 10;

/// The number of columns of a product that cuBLAS computes together on recent GPUs.
const TILE: usize = 128;

/// The number of multiplications in a product from which a second call takes less time than another tile.
const WORTH_A_CALL: usize = 1 << 32;

/// The number of warps in a block, as the kernels assume.
pub(crate) const WARPS: usize = 8;

/// The number of blocks of kernels that loop over rows and write a partial sum each. It is the same for all GPUs, so that sums do not
/// depend on the size of the GPU.
pub(crate) const BLOCKS: usize = 512;

/// Values on the GPU.
pub(crate) type Floats = CudaSlice<f32>;

/// The kernels that a device has loaded.
struct Loaded {
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<String, CudaFunction>>,
    staging: Mutex<Staging>,
    /// The shared memory that a block may request, in bytes.
    shared: usize,
}

/// Page-locked memory, which the GPU reads while the host continues. A copy from other memory would wait for all earlier work.
struct Staging {
    memory: PinnedHostSlice<u8>,
    /// The number of bytes used since the host last waited for the GPU.
    used: usize,
}

impl Staging {
    #[allow(unsafe_code, reason = "allocates memory without initialising it")]
    fn new(context: &Arc<CudaContext>) -> Result<Self> {
        // SAFETY: the values are bytes, and `upload` writes each range before it is read.
        Ok(Self { memory: unsafe { context.alloc_pinned(STAGING) }.w()?, used: 0 })
    }
}

static LOADED: LazyLock<Mutex<HashMap<DeviceId, Arc<Loaded>>>> = LazyLock::new(Mutex::default);

/// A device with its kernels.
#[derive(Clone)]
pub(crate) struct Gpu {
    device: CudaDevice,
    loaded: Arc<Loaded>,
}

/// A pointer to memory of the GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DevicePointer(u64);

impl DevicePointer {
    /// No memory: the value of an argument that a kernel does not need.
    pub const NONE: Self = Self(0);

    /// The pointer as two words.
    pub fn words(self) -> [u32; 2] {
        [self.0 as u32, (self.0 >> 32) as u32]
    }

    /// The pointer `count` values of f32 further on.
    pub fn plus(self, count: usize) -> Self {
        self.plus_bytes(size_of::<f32>() * count)
    }

    fn plus_bytes(self, count: usize) -> Self {
        Self(self.0 + count as u64)
    }
}

/// A pointer to a slice. It is valid for all work that is launched before the slice is dropped, because memory is freed in the order of
/// the stream.
pub(crate) fn device_pointer<T>(slice: &CudaSlice<T>) -> DevicePointer {
    DevicePointer(slice.device_ptr(slice.stream()).0)
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) struct Argument([u64; 2]);

impl From<DevicePointer> for Argument {
    fn from(pointer: DevicePointer) -> Self {
        Self([pointer.0, 0])
    }
}

impl<T> From<&CudaSlice<T>> for Argument {
    fn from(slice: &CudaSlice<T>) -> Self {
        device_pointer(slice).into()
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self([value.into(), 0])
    }
}

impl From<bool> for Argument {
    fn from(value: bool) -> Self {
        Self([value.into(), 0])
    }
}

/// For parameters of 32 and of 64 bits: a kernel reads as many bytes as its parameter has.
impl From<usize> for Argument {
    fn from(value: usize) -> Self {
        Self([value as u64, 0])
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self([value.to_bits().into(), 0])
    }
}

impl From<f64> for Argument {
    fn from(value: f64) -> Self {
        Self([value.to_bits(), 0])
    }
}

impl From<Dropout> for Argument {
    fn from(dropout: Dropout) -> Self {
        let (threshold, scale, [key_0, key_1]) = dropout.parts();
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        Self([pair(threshold, scale.to_bits()), pair(key_0, key_1)])
    }
}

/// The blocks and threads of a launch.
#[derive(Clone, Copy)]
pub(crate) struct LaunchGrid {
    pub blocks: (usize, usize),
    pub threads: (usize, usize),
    /// The shared memory of a block, in bytes.
    pub shared: usize,
}

impl LaunchGrid {
    /// Blocks of eight warps.
    pub fn blocks(x: usize, y: usize) -> Self {
        Self { blocks: (x, y), threads: (32 * WARPS, 1), shared: 0 }
    }

    /// A warp for each of `count` rows.
    pub fn warps(count: usize) -> Self {
        Self::blocks(count.div_ceil(WARPS), 1)
    }

    /// A thread for each of `count` values.
    pub fn threads(count: usize) -> Self {
        Self::blocks(count.div_ceil(32 * WARPS), 1)
    }

    pub fn shared(self, bytes: usize) -> Self {
        Self { shared: bytes, ..self }
    }
}

macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { &mut [$($crate::cuda::gpu::Argument::from($argument)),*] };
}
pub(crate) use arguments;

/// A factor of a product.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    at: DevicePointer,
    rows: usize,
    columns: usize,
    /// The number of values from the start of a row to the start of the next one.
    stride: usize,
    transposed: bool,
    half: bool,
}

impl Matrix {
    /// A matrix of f32, row after row.
    pub fn new(at: DevicePointer, rows: usize, columns: usize) -> Self {
        Self { at, rows, columns, stride: columns, transposed: false, half: false }
    }

    /// A range of the matrix's columns. The matrix must not be transposed.
    fn columns(self, part: Range<usize>) -> Self {
        let bytes = if self.half { size_of::<bf16>() } else { size_of::<f32>() };
        Self { at: self.at.plus_bytes(part.start * bytes), columns: part.len(), ..self }
    }

    /// The transpose of the matrix.
    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// The same matrix in bf16, from another buffer.
    fn of_halves(self, halves: &CudaSlice<bf16>) -> Self {
        Self { at: device_pointer(halves), half: true, ..self }
    }

    fn shape(self) -> (usize, usize) {
        if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }
}

/// Where a product is written.
#[derive(Clone, Copy)]
struct Out {
    at: DevicePointer,
    /// The number of values from the start of a row to the start of the next one.
    stride: usize,
    half: bool,
}

impl Out {
    /// A result of f32, row after row.
    fn rows(at: DevicePointer, columns: usize) -> Self {
        Self { at, stride: columns, half: false }
    }
}

/// Inputs or results of products, in f32, or in bf16 if products are computed from bf16.
pub(crate) enum Factor {
    Single(Floats),
    Half(CudaSlice<bf16>),
}

impl Factor {
    /// The values as a matrix, row after row.
    pub fn matrix(&self, rows: usize, columns: usize) -> Matrix {
        match self {
            Self::Single(values) => Matrix::new(device_pointer(values), rows, columns),
            Self::Half(values) => Matrix { half: true, ..Matrix::new(device_pointer(values), rows, columns) },
        }
    }

    /// The suffix in the names of kernels for this type.
    pub fn suffix(&self) -> &'static str {
        match self {
            Self::Single(_) => "f32",
            Self::Half(_) => "bf16",
        }
    }

    pub fn at(&self) -> DevicePointer {
        match self {
            Self::Single(values) => device_pointer(values),
            Self::Half(values) => device_pointer(values),
        }
    }
}

impl Gpu {
    /// The GPU of a device; its kernels are loaded once.
    pub fn of(device: &CudaDevice) -> Result<Self> {
        let mut all = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = all.get(&device.id()) {
            return Ok(Self { device: device.clone(), loaded: loaded.clone() });
        }
        let context = device.cuda_stream().context().clone();
        let module = context.load_module(Ptx::from_binary(KERNELS.to_vec())).w()?;
        let limit = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared = context.attribute(limit).w()? as usize;
        let staging = Mutex::new(Staging::new(&context)?);
        let loaded = Arc::new(Loaded { module, functions: Mutex::default(), staging, shared });
        all.insert(device.id(), loaded.clone());
        Ok(Self { device: device.clone(), loaded })
    }

    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// The shared memory that a block may request, in bytes.
    pub fn shared(&self) -> usize {
        self.loaded.shared
    }

    /// Uninitialised memory.
    #[allow(unsafe_code, reason = "allocates memory without initialising it")]
    pub fn allocate<T: DeviceRepr>(&self, count: usize) -> Result<CudaSlice<T>> {
        // SAFETY: the host reads memory of the GPU only after a kernel or a copy has written all of it.
        unsafe { self.device.alloc::<T>(count.max(1)) }
    }

    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, count: usize) -> Result<CudaSlice<T>> {
        self.device.alloc_zeros::<T>(count.max(1))
    }

    /// Memory for a factor of products of the given precision.
    pub fn factor(&self, count: usize, precision: Precision) -> Result<Factor> {
        Ok(if precision == Precision::Bf16 {
            Factor::Half(self.allocate(count)?)
        } else {
            Factor::Single(self.allocate(count)?)
        })
    }

    /// Copies values to the GPU. The host may change or drop them as soon as this returns.
    #[allow(unsafe_code, reason = "copies through pinned memory without waiting for the GPU")]
    pub fn upload<T: DeviceRepr + 'static>(&self, values: &[T]) -> Result<CudaSlice<T>> {
        if values.is_empty() {
            return self.allocate(1);
        }
        let bytes = size_of_val(values);
        if bytes > STAGING / 4 {
            return self.device.clone_htod(values);
        }
        let to = self.allocate::<T>(values.len())?;
        let stream = self.device.cuda_stream();
        let mut staging = self.loaded.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if staging.used + bytes > STAGING {
            stream.synchronize().w()?;
            staging.used = 0;
        }
        let start = staging.used;
        staging.used = (start + bytes).next_multiple_of(256);
        let from = staging.memory.as_mut_ptr().w()?;
        // SAFETY: the range from `start` is within the staging memory and in no copy that is under way: the host has waited for the GPU since
        // the range was last used. `values` has `bytes` bytes, and `to` has room for them.
        unsafe {
            let from = from.add(start);
            from.copy_from_nonoverlapping(values.as_ptr().cast(), bytes);
            let staged = std::slice::from_raw_parts(from.cast_const(), bytes);
            result::memcpy_htod_async(device_pointer(&to).0, staged, stream.cu_stream()).w()?;
        }
        Ok(to)
    }

    fn function(&self, name: &str, shared: usize) -> Result<CudaFunction> {
        let mut functions = self.loaded.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let function = self.loaded.module.load_function(name).w()?;
        if shared > 0 {
            let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let own = function.shared_size_bytes().w()?;
            function.set_attribute(limit, self.loaded.shared as i32 - own).w()?;
        }
        functions.insert(name.to_owned(), function.clone());
        Ok(function)
    }

    /// Launches a kernel. The arguments must be those that it takes, in its order, and the memory of each must be large enough for what the
    /// kernel reads or writes. Only the operators of this module launch kernels.
    #[allow(unsafe_code, reason = "launches a kernel of CUDA C")]
    pub fn launch(&self, name: &str, grid: LaunchGrid, arguments: &mut [Argument]) -> Result<()> {
        let (x, y) = grid.blocks;
        if x == 0 || y == 0 {
            return Ok(());
        }
        if x > i32::MAX as usize || y > usize::from(u16::MAX) || grid.shared > self.loaded.shared.max(SHARED) {
            bail!("{name}: a grid of {x} by {y} blocks with {} bytes of shared memory does not fit", grid.shared);
        }
        let function = self.function(name, grid.shared)?;
        let mut pointers: Vec<*mut c_void> = arguments.iter_mut().map(|a| a.0.as_mut_ptr().cast()).collect();
        let threads = (grid.threads.0 as u32, grid.threads.1 as u32, 1);
        let stream = self.device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let blocks = (x as u32, y as u32, 1);
        // SAFETY: `pointers` point to `arguments`, which live until the launch has copied them. The callers pass what the kernel takes, as
        // documented above; the twins compare each kernel with candle's operations for all shapes that its operator accepts.
        unsafe {
            result::launch_kernel(
                function.cu_function(),
                blocks,
                threads,
                grid.shared as u32,
                stream.cu_stream(),
                &mut pointers,
            )
        }
        .w()
    }

    /// Rounds values to bf16.
    pub fn halves(&self, from: DevicePointer, count: usize) -> Result<CudaSlice<bf16>> {
        let to = self.allocate::<bf16>(count)?;
        let count = count as u64;
        let grid = LaunchGrid::threads((count as usize).div_ceil(4));
        self.launch("to_bf16", grid, arguments![&to, from, count as usize])?;
        Ok(to)
    }

    /// out = a b, or out += a b if `add`. `out` is f32, row after row.
    pub fn product(&self, out: DevicePointer, a: Matrix, b: Matrix, add: bool, precision: Precision) -> Result<()> {
        if precision == Precision::Bf16 && !(a.half && b.half) {
            let rounded = |m: Matrix| if m.half { Ok(None) } else { self.halves(m.at, m.rows * m.columns).map(Some) };
            let (halves_a, halves_b) = (rounded(a)?, rounded(b)?);
            let a = halves_a.as_ref().map_or(a, |halves| a.of_halves(halves));
            let b = halves_b.as_ref().map_or(b, |halves| b.of_halves(halves));
            return self.gemm(Out::rows(out, b.shape().1), a, b, add, precision);
        }
        self.gemm(Out::rows(out, b.shape().1), a, b, add, precision)
    }

    /// out = a b, first for the columns before `split` and then for the others. The time of a product grows by tiles of [`TILE`] columns,
    /// and a few columns after many would take a whole tile.
    pub fn product_split(
        &self,
        out: DevicePointer,
        a: Matrix,
        b: Matrix,
        split: usize,
        precision: Precision,
    ) -> Result<()> {
        let ((m, k), columns) = (a.shape(), b.columns);
        if !split.is_multiple_of(TILE) || m * k * columns < WORTH_A_CALL || a.half != b.half || b.transposed {
            return self.product(out, a, b, false, precision);
        }
        for part in [0..split, split..columns] {
            let to = Out { stride: columns, ..Out::rows(out.plus(part.start), part.len()) };
            self.gemm(to, a, b.columns(part), false, precision)?;
        }
        Ok(())
    }

    /// out = a b for an `out` that other products read, in f32 or bf16 like its factors.
    pub fn product_to(&self, out: &Factor, a: Matrix, b: Matrix, precision: Precision) -> Result<()> {
        let to = Out { half: matches!(out, Factor::Half(_)), ..Out::rows(out.at(), b.shape().1) };
        self.gemm(to, a, b, false, precision)
    }

    #[allow(unsafe_code, reason = "calls cuBLAS")]
    fn gemm(&self, out: Out, a: Matrix, b: Matrix, add: bool, precision: Precision) -> Result<()> {
        let ((m, k), (k_b, n)) = (a.shape(), b.shape());
        if k != k_b || a.half != b.half || (out.half && !a.half) {
            bail!("a product of {:?} and {:?}", a.shape(), b.shape());
        }
        if m == 0 || n == 0 {
            return Ok(());
        }
        let operation = |m: Matrix| {
            if m.transposed { blas::cublasOperation_t::CUBLAS_OP_T } else { blas::cublasOperation_t::CUBLAS_OP_N }
        };
        let kind = |half: bool| if half { blas::cudaDataType::CUDA_R_16BF } else { blas::cudaDataType::CUDA_R_32F };
        let compute = match precision {
            Precision::Tf32 if !a.half => blas::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let (one, beta) = (1.0f32, if add { 1.0f32 } else { 0.0 });
        let pointer = |at: DevicePointer| at.0 as *const c_void;
        let blas = self.device.cublas_handle();
        // cuBLAS stores matrices column after column, so this computes out^T = b^T a^T.
        // SAFETY: a `Matrix` and an `Out` describe memory of the GPU that holds their rows and columns at their stride, in the type of `half`;
        // the factors fit together, as checked above. The twins compare the products with candle's.
        unsafe {
            gemm_ex(
                *blas.handle(),
                operation(b),
                operation(a),
                n as i32,
                m as i32,
                k as i32,
                std::ptr::from_ref(&one).cast(),
                pointer(b.at),
                kind(b.half),
                b.stride as i32,
                pointer(a.at),
                kind(a.half),
                a.stride as i32,
                std::ptr::from_ref(&beta).cast(),
                out.at.0 as *mut c_void,
                kind(out.half),
                out.stride as i32,
                compute,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| Error::Msg(format!("cuBLAS failed on a product of [{m}, {k}] and [{k}, {n}]: {error:?}")))
    }

    /// The sum of `rows` partial results of `columns` values each, in a fixed order.
    pub fn sum_rows(&self, out: DevicePointer, partial: DevicePointer, rows: usize, columns: usize) -> Result<()> {
        let grid = LaunchGrid { blocks: (columns.div_ceil(32), 1), threads: (32, 16), shared: 0 };
        self.launch("sum_rows", grid, arguments![out, partial, rows, columns])
    }

    /// The sums of the columns of `x` `[rows, columns]`.
    pub fn column_sums(&self, out: DevicePointer, x: DevicePointer, rows: usize, columns: usize) -> Result<()> {
        let blocks = rows.clamp(1, BLOCKS);
        let partial = self.allocate::<f32>(blocks * columns)?;
        let grid = LaunchGrid::blocks(blocks, columns.div_ceil(32 * WARPS));
        self.launch("column_sums", grid, arguments![&partial, x, rows, columns])?;
        self.sum_rows(out, device_pointer(&partial), blocks, columns)
    }
}

/// Page-locked memory for large uploads, which are several times as fast as from ordinary memory. It is kept between calls.
#[derive(Default)]
pub(crate) struct LargeUploads(Mutex<Option<PinnedHostSlice<f32>>>);

impl LargeUploads {
    /// The number of threads that copy values; a single one is slower than the GPU's bus. They do not belong to the pool, whose tasks may
    /// be waiting for the lock.
    const THREADS: usize = 8;

    /// Uploads values. The result may be longer than `values`; what follows them is arbitrary.
    pub fn upload(&self, gpu: &Gpu, values: &[f32]) -> Result<Floats> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let earlier = kept.take().filter(|pinned| pinned.len() >= values.len());
        let mut pinned = match earlier {
            Some(pinned) => pinned,
            None => Self::pinned(gpu, values.len().max(1))?,
        };
        let room = pinned.as_mut_slice().w()?;
        let part = values.len().div_ceil(Self::THREADS).max(1);
        std::thread::scope(|scope| {
            for (to, from) in room.chunks_mut(part).zip(values.chunks(part)) {
                scope.spawn(move || to[..from.len()].copy_from_slice(from));
            }
        });
        let mut uploaded = gpu.allocate::<f32>(pinned.len())?;
        let stream = gpu.device.cuda_stream();
        stream.memcpy_htod(&pinned, &mut uploaded).w()?;
        // The next call overwrites the memory, so the copy must be complete.
        stream.synchronize().w()?;
        *kept = Some(pinned);
        Ok(uploaded)
    }

    #[allow(unsafe_code, reason = "allocates memory without initialising it")]
    fn pinned(gpu: &Gpu, count: usize) -> Result<PinnedHostSlice<f32>> {
        // SAFETY: every bit pattern is a number, and the next line writes all values.
        let mut pinned = unsafe { gpu.device.cuda_stream().context().alloc_pinned::<f32>(count) }.w()?;
        pinned.as_mut_slice().w()?.fill(0.0);
        Ok(pinned)
    }
}
