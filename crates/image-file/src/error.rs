//! The errors of reading and decoding images.

use std::io;

use image::ImageFormat;

/// The reasons why an image file cannot be used. Every message is a clause that follows the file's name.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file could not be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// The path leads to a folder, a pipe or a device.
    #[error("it is not a file")]
    NotAFile,
    /// The file is larger than [`crate::MAX_BYTES`].
    #[error("it has more than {limit} bytes")]
    TooManyBytes {
        /// The largest number of bytes allowed.
        limit: u64,
    },
    /// The file has no content.
    #[error("it is empty")]
    Empty,
    /// The first bytes are not those of an image.
    #[error("it is not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file")]
    UnknownFormat,
    /// The file is an image of another format.
    #[error("it is {0:?}, and only JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF are read; convert it")]
    OtherFormat(ImageFormat),
    /// The AVIF file holds its image in tiles.
    #[error("it is a tiled AVIF image, which is not supported; convert it")]
    AvifGrid,
    /// The file holds its pixels in a way that is not read, such as grey levels with transparency in TIFF.
    #[error("the form of its pixels is not supported; save it as PNG or JPEG")]
    OtherPixels,
    /// The header says that the width or the height is zero.
    #[error("it has no pixels")]
    NoPixels,
    /// The header claims more pixels than allowed.
    #[error("it has {width} x {height} pixels, more than {limit}")]
    TooManyPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The largest number of pixels allowed.
        limit: u64,
    },
    /// The end of the file is missing.
    #[error("it is truncated")]
    CutShort,
    /// The decoder reported an error.
    #[error("it does not decode ({0})")]
    Decode(String),
    /// The decoder panicked.
    #[error("it does not decode (the decoder failed unexpectedly)")]
    Panic,
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, ImageError>;

impl ImageError {
    /// The error of a decoder.
    pub(crate) fn of_decoder(error: image::ImageError) -> Self {
        match error {
            image::ImageError::Unsupported(_) => Self::OtherPixels,
            other => Self::decode(&other),
        }
    }

    /// Wraps a decoder's message, on one line, because some decoders end their messages with a line break.
    pub(crate) fn decode(reason: &impl ToString) -> Self {
        Self::Decode(reason.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
    }
}
