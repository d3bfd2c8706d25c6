//! The devices that compute, and the precision of matrix products.

use std::sync::atomic::{AtomicU8, Ordering};

use candle_core::{Device, Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where tensors are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ComputeDevice {
    /// The CPU.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
}

impl std::fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(gpu) => write!(f, "cuda:{gpu}"),
        }
    }
}

impl std::str::FromStr for ComputeDevice {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let gpu = |number: &str| number.parse().ok().map(Self::Cuda);
        let found = match name {
            "cpu" => Some(Self::Cpu),
            _ => name.strip_prefix("cuda:").and_then(gpu),
        };
        found.ok_or_else(|| format!("expected \"cpu\" or \"cuda:0\" (or the number of another GPU), found \"{name}\""))
    }
}

impl ComputeDevice {
    /// Opens the device. Fails if the machine does not have that GPU, or if the program was built without the feature `cuda`.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => match crate::cuda::device(gpu) {
                Ok(device) => Ok(device),
                Err(error) => {
                    bail!("failed to open cuda:{gpu}: {error}; `nvidia-smi` lists the GPUs of this machine")
                }
            },
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(gpu) => bail!(
                "cuda:{gpu}: this program was built for the CPU only; build it with `make build CUDA=1`, which needs the CUDA \
                 toolkit"
            ),
        }
    }
}

/// The number format of matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// f32 whose mantissa the GPU rounds to 10 bits; sums are f32.
    Tf32,
    /// bf16; sums are f32. On the CPU, it needs AVX-512-BF16, and uses AMX where the processor has it.
    Bf16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        })
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = [Self::F32, Self::Tf32, Self::Bf16].into_iter().find(|precision| precision.to_string() == name);
        found.ok_or_else(|| format!("expected \"f32\", \"tf32\" or \"bf16\", found \"{name}\""))
    }
}

/// Returns an error with the reason if a device does not support a precision.
pub fn check_precision(device: ComputeDevice, precision: Precision) -> std::result::Result<(), String> {
    match (device, precision) {
        (ComputeDevice::Cuda(_), _) | (_, Precision::F32) => Ok(()),
        (ComputeDevice::Cpu, Precision::Bf16) if crate::kernel::bf16::is_available() => Ok(()),
        (ComputeDevice::Cpu, Precision::Bf16) => {
            Err("this processor lacks the instructions of AVX-512-BF16".to_owned())
        }
        (ComputeDevice::Cpu, Precision::Tf32) => Err("the CPU has no tf32".to_owned()),
    }
}

static PRECISION: AtomicU8 = AtomicU8::new(Precision::F32 as u8);

/// Sets the precision of the large matrix products of all threads from now on. Parameters, Adam, LayerNorm and softmax stay f32.
/// [`check_precision`] says whether a device supports it.
pub fn set_precision(precision: Precision) {
    PRECISION.store(precision as u8, Ordering::Relaxed);
}

/// Runs `compute` with the products in `precision`, and restores the previous precision, even after a panic.
pub fn with_precision<T>(precision: Precision, compute: impl FnOnce() -> T) -> T {
    struct Restore(Precision);
    impl Drop for Restore {
        fn drop(&mut self) {
            set_precision(self.0);
        }
    }
    let _restore = Restore(self::precision());
    set_precision(precision);
    compute()
}

pub(crate) fn precision() -> Precision {
    match PRECISION.load(Ordering::Relaxed) {
        1 => Precision::Tf32,
        2 => Precision::Bf16,
        _ => Precision::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_round_trip() {
        for name in ["cpu", "cuda:0", "cuda:12"] {
            assert_eq!(name.parse::<ComputeDevice>().unwrap().to_string(), name);
        }
        for name in ["gpu", "cuda", "cuda:", "cuda:x", "CPU", "cuda0", ""] {
            assert!(name.parse::<ComputeDevice>().unwrap_err().contains("expected \"cpu\""), "{name}");
        }
    }

    #[test]
    fn a_panic_restores_the_precision() {
        let before = precision();
        // The CPU computes tf32 as f32, so tests in other threads are not affected.
        let panicked = std::panic::catch_unwind(|| with_precision(Precision::Tf32, || panic!("for the test")));
        assert!(panicked.is_err());
        assert_eq!(precision(), before);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_program_without_cuda_reports_how_to_build_one() {
        let error = ComputeDevice::Cuda(0).open().unwrap_err().to_string();
        assert!(error.contains("make build CUDA=1"), "{error}");
    }
}
