//! Image files that anybody may have made, decoded in one way for all stages.
//!
//! In: the bytes of a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file. Out: the image, turned upright as its EXIF data says, or the reason why it
//! cannot be used. Files that are too large are never held, images that claim too many pixels are refused before they are
//! decoded, and a decoder that panics is an error like any other.
//!
//! Must not know: what images are for, where they come from.

mod avif;
mod decode;
mod error;
mod jpeg;
mod read;

pub use decode::{MAX_PIXELS, decode, dimensions};
pub use error::{ImageError, Result};
pub use read::{MAX_BYTES, read};
