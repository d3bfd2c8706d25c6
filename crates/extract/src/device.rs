//! The device on which encoders compute, and the work of the CPU ahead of a GPU.

use std::sync::mpsc::sync_channel;

use candle_core::Device;
use mp4sr_ops::{ComputeDevice, DeviceEncoder, EncoderParts, Precision, check_precision};

use crate::error::{Error, Result};

/// The device that encoders compute on, and the precision of their matrix products.
#[derive(Clone, Debug)]
pub struct EncoderDevice {
    device: Device,
    precision: Precision,
}

impl EncoderDevice {
    /// The CPU, which computes in f32.
    pub const CPU: Self = Self { device: Device::Cpu, precision: Precision::F32 };

    /// Opens a device. Fails if the machine does not have the GPU, if the program was built for the CPU alone, or if the CPU does not
    /// support the precision.
    pub fn open(device: ComputeDevice, precision: Precision) -> Result<Self> {
        check_precision(device, precision).map_err(|reason| {
            Error::Device(format!(
                "extract.precision = \"{precision}\": {reason}; use \"f32\", or a GPU in `run.device`"
            ))
        })?;
        let opened = device.open().map_err(|error| Error::Device(error.to_string()))?;
        Ok(Self { device: opened, precision })
    }

    /// The precision that products are rounded to.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The device on which tensors are created.
    pub(crate) fn tensors(&self) -> &Device {
        &self.device
    }

    /// Whether it is a GPU.
    pub(crate) fn is_gpu(&self) -> bool {
        !self.device.is_cpu()
    }

    /// Rejects precisions other than f32, for an encoder that computes only in f32 on the CPU, such as those on candle-transformers.
    pub(crate) fn check_f32(&self, model_type: &str) -> Result<()> {
        match self.precision {
            Precision::F32 => Ok(()),
            other => Err(Error::Device(format!(
                "extract.precision: encoders of model_type {model_type} compute in f32 on the CPU, not in {other}; use f32"
            ))),
        }
    }

    /// Uploads the encoder if the device is a GPU.
    pub(crate) fn upload(&self, parts: EncoderParts<'_>) -> Result<Option<DeviceEncoder>> {
        let upload = || DeviceEncoder::new(parts, &self.device, self.precision);
        Ok(self.is_gpu().then(upload).transpose()?)
    }
}

/// The number of prepared blocks that may wait for the GPU.
const READY: usize = 2;

/// Calls `compute` with every prepared block in order, while `prepare` works on the next ones in a separate thread. It stops at the first
/// error.
pub fn overlap<B, P: Send, E>(
    blocks: impl Iterator<Item = B> + Send,
    prepare: impl Fn(B) -> P + Send,
    mut compute: impl FnMut(P) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(READY);
        scope.spawn(move || {
            for block in blocks {
                // After an error, the receiver is gone.
                if send.send(prepare(block)).is_err() {
                    return;
                }
            }
        });
        receive.into_iter().try_for_each(&mut compute)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_computed_in_order_and_an_error_ends_the_work() {
        let mut found = Vec::new();
        let keep = |block| {
            found.push(block);
            Result::Ok(())
        };
        overlap(0..20, |block| 2 * block, keep).unwrap();
        assert_eq!(found, (0..20).map(|block| 2 * block).collect::<Vec<_>>());
        let mut count = 0;
        let result = overlap(
            0..1000,
            |block| block,
            |block| {
                count += 1;
                if block == 3 { Err(Error::Device("gone".to_owned())) } else { Ok(()) }
            },
        );
        assert_eq!((result.is_err(), count), (true, 4));
    }

    #[test]
    fn the_cpu_refuses_precisions_that_it_lacks() {
        let message = EncoderDevice::open(ComputeDevice::Cpu, Precision::Tf32).unwrap_err().to_string();
        assert!(message.contains("extract.precision = \"tf32\": the CPU has no tf32"), "{message}");
        assert!(!EncoderDevice::open(ComputeDevice::Cpu, Precision::F32).unwrap().is_gpu());
    }
}
