//! The number of pixels that an image may have.

use crate::error::{ImageError, Result};

/// The largest number of pixels that stages decode. The header of a tiny file can claim terabytes of pixels.
pub const MAX_PIXELS: u64 = 64 << 20;

/// Rejects a size without pixels or with more than `max_pixels`.
pub(crate) fn check_pixels(width: u32, height: u32, max_pixels: u64) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(ImageError::NoPixels);
    }
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::TooManyPixels { width, height, limit: max_pixels });
    }
    Ok(())
}
