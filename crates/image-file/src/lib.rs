//! Decodes image files from any source, in one way for all stages.
//!
//! The crate takes the bytes of a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file. It returns the image, turned upright as its EXIF data says,
//! or the reason why it cannot be used. Files that are too large are never held in memory, images that claim too many pixels are rejected
//! before they are decoded, and a panic of a decoder becomes an ordinary error. The crate must not know what images are for or where they
//! come from.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests write damaged files"))]

mod avif;
mod decode;
mod error;
mod jpeg;
mod pixels;
mod read;

pub use decode::{decode, dimensions, extension, media_type};
pub use error::{ImageError, Result};
pub use pixels::MAX_PIXELS;
pub use read::{MAX_BYTES, read};
