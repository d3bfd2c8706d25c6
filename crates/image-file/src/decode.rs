//! Decodes images of all supported formats.

use std::io::Cursor;
use std::sync::{Mutex, PoisonError};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use mp4sr_artifact::guarded;

use crate::error::{ImageError, Result};
use crate::pixels::check_pixels;
use crate::{avif, jpeg};

/// The memory in bytes that a decoder may need in addition to the pixels, for tables, profiles and metadata.
const DECODER_BYTES: u64 = 64 << 20;
/// Images with more pixels are decoded one at a time, so that the memory of decoders does not grow with the number of threads.
const LARGE: u64 = 16_000_000;
/// The memory in bytes per pixel: a decoder may hold two copies of 16-bit RGBA, which has 8 bytes per pixel.
const BYTES_PER_PIXEL: u64 = 16;

/// Decodes an image file of at most `max_pixels` pixels and turns the image upright as its EXIF data says.
///
/// JPEG files become RGB with the levels of libjpeg, AVIF files RGB or RGBA with 8 bits per channel; other formats keep their own channels
/// and depth. Only the first frame of an animation is decoded. Broken EXIF data is ignored, as in Pillow.
///
/// ```
/// use image::{ImageFormat, RgbImage};
/// use mp4sr_image::{MAX_PIXELS, decode, dimensions};
///
/// let mut png = std::io::Cursor::new(Vec::new());
/// RgbImage::new(4, 3).write_to(&mut png, ImageFormat::Png)?;
/// let png = png.into_inner();
/// assert_eq!(dimensions(&png)?, (4, 3));
/// assert_eq!(decode(&png, MAX_PIXELS)?.width(), 4);
/// assert!(decode(&png, 11).is_err(), "12 pixels are more than 11");
/// assert!(decode(&png[..40], MAX_PIXELS).is_err(), "a truncated file");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<DynamicImage> {
    static ONE_LARGE: Mutex<()> = Mutex::new(());
    let is_large = dimensions(bytes).is_ok_and(|(width, height)| u64::from(width) * u64::from(height) > LARGE);
    let _turn = is_large.then(|| ONE_LARGE.lock().unwrap_or_else(PoisonError::into_inner));
    guarded(|| upright(bytes, max_pixels)).unwrap_or(Err(ImageError::Panic))
}

/// Reads the width and height from the file's header without decoding the image. They are as stored, before any rotation by EXIF data.
pub fn dimensions(bytes: &[u8]) -> Result<(u32, u32)> {
    let read = || {
        if avif::is_avif(bytes) {
            return avif::dimensions(bytes);
        }
        let reader = ImageReader::with_format(Cursor::new(bytes), format(bytes)?);
        reader.into_dimensions().map_err(ImageError::of_decoder)
    };
    guarded(read).unwrap_or(Err(ImageError::Panic))
}

fn upright(bytes: &[u8], max_pixels: u64) -> Result<DynamicImage> {
    if avif::is_avif(bytes) {
        return avif::decode(bytes, max_pixels);
    }
    let format = format(bytes)?;
    let failed = ImageError::of_decoder;
    let mut decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    check_pixels(width, height, max_pixels)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = if format == ImageFormat::Jpeg {
        DynamicImage::ImageRgb8(jpeg::decode(bytes, max_pixels)?)
    } else {
        // A decoder counts only the memory that it needs in addition to the pixels; the caller has to reserve that of the pixels.
        let mut limits = Limits::default();
        limits.max_alloc = Some(DECODER_BYTES + u64::from(width) * u64::from(height) * BYTES_PER_PIXEL);
        limits.reserve(decoder.total_bytes()).map_err(failed)?;
        decoder.set_limits(limits).map_err(failed)?;
        DynamicImage::from_decoder(decoder).map_err(failed)?
    };
    image.apply_orientation(orientation);
    Ok(image)
}

/// The usual extension of an image's file name, by its first bytes; `None` if they are not those of an image that is read.
pub fn extension(bytes: &[u8]) -> Option<&'static str> {
    kind(bytes)?.extensions_str().first().copied()
}

/// The media type of an image, such as `image/png`, by its first bytes; `None` if they are not those of an image that is read.
pub fn media_type(bytes: &[u8]) -> Option<&'static str> {
    kind(bytes).map(|format| format.to_mime_type())
}

fn kind(bytes: &[u8]) -> Option<ImageFormat> {
    if avif::is_avif(bytes) { Some(ImageFormat::Avif) } else { format(bytes).ok() }
}

/// Detects the format from the first bytes, whatever the file's name is.
fn format(bytes: &[u8]) -> Result<ImageFormat> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    match image::guess_format(bytes) {
        Ok(
            format @ (ImageFormat::Jpeg
            | ImageFormat::Png
            | ImageFormat::WebP
            | ImageFormat::Gif
            | ImageFormat::Bmp
            | ImageFormat::Tiff),
        ) => Ok(format),
        Ok(other) => Err(ImageError::OtherFormat(other)),
        Err(_) => Err(ImageError::UnknownFormat),
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;
    use crate::MAX_PIXELS;

    /// The header of a PNG file of 60,000 x 60,000 pixels, and the start of its data.
    const HUGE: &[u8] =
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea`\0\0\xea`\x08\x02\0\0\0\x0f\xb0\xe2\x15\0\0\0\0IDAT5\xaf\x06\x1e";

    const FORMATS: [ImageFormat; 6] =
        [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff];

    fn reason(bytes: &[u8], max_pixels: u64) -> String {
        decode(bytes, max_pixels).unwrap_err().to_string()
    }

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let image = RgbImage::from_fn(40, 30, |x, y| Rgb([x as u8 * 6, y as u8 * 8, (x * y) as u8]));
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn the_first_bytes_tell_the_extension_and_the_media_type() {
        let found = |bytes: &[u8]| (extension(bytes), media_type(bytes));
        let formats: Vec<_> = FORMATS.map(|format| found(&encoded(format))).into_iter().collect();
        let expected = [
            ("jpg", "image/jpeg"),
            ("png", "image/png"),
            ("webp", "image/webp"),
            ("gif", "image/gif"),
            ("bmp", "image/bmp"),
            ("tiff", "image/tiff"),
        ];
        assert_eq!(formats, expected.map(|(extension, kind)| (Some(extension), Some(kind))));
        assert_eq!(found(b"\0\0\0\x14ftypmif1\0\0\0\0avif"), (Some("avif"), Some("image/avif")));
        assert_eq!(found(b"GIF but no image"), (None, None));
    }

    #[test]
    fn an_image_that_declares_too_many_pixels_is_refused_before_it_is_decoded() {
        assert_eq!(reason(HUGE, MAX_PIXELS), "it has 60000 x 60000 pixels, more than 67108864");
        assert_eq!(dimensions(HUGE).unwrap(), (60_000, 60_000));
        assert!(check_pixels(8192, 8192, MAX_PIXELS).is_ok());
        assert!(check_pixels(8192, 8193, MAX_PIXELS).is_err());
        assert!(check_pixels(u32::MAX, u32::MAX, MAX_PIXELS).is_err());
        assert_eq!(check_pixels(0, 3, MAX_PIXELS).unwrap_err().to_string(), "it has no pixels");
    }

    #[test]
    fn complete_images_decode_and_every_truncation_is_an_error() {
        for format in FORMATS {
            let bytes = encoded(format);
            let image = decode(&bytes, 1200).unwrap();
            assert_eq!((image.width(), image.height()), (40, 30), "{format:?}");
            assert_eq!(dimensions(&bytes).unwrap(), (40, 30), "{format:?}");
            assert_eq!(reason(&bytes, 1199), "it has 40 x 30 pixels, more than 1199", "{format:?}");
            for tenths in [1, 3, 5, 9] {
                assert!(decode(&bytes[..bytes.len() * tenths / 10], 1200).is_err(), "{format:?}: {tenths} tenths");
            }
        }
    }

    #[test]
    fn other_files_are_recognised_by_their_content() {
        assert_eq!(reason(b"", 1), "it is empty");
        assert_eq!(reason(b"{}", 1), "it is not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file");
        let icon = b"\0\0\x01\0\x01\0";
        assert_eq!(
            reason(icon, 1),
            "it is Ico, and only JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF are read; convert it"
        );
    }

    #[test]
    fn pixels_that_are_not_supported_have_a_remedy() {
        // One pixel of grey and transparency: the header of TIFF, nine entries of (tag, type, count, value), and the pixel.
        let entries =
            [(256, 1), (257, 1), (258, 0x0008_0008), (259, 1), (262, 1), (273, 122), (277, 2), (278, 1), (279, 2)];
        let mut tiff = b"II*\0\x08\0\0\0\x09\0".to_vec();
        for (tag, value) in entries {
            let count = if tag == 258 { 2_u32 } else { 1 };
            tiff.extend([u16::to_le_bytes(tag), u16::to_le_bytes(3)].concat());
            tiff.extend([count.to_le_bytes(), u32::to_le_bytes(value)].concat());
        }
        tiff.extend([0, 0, 0, 0, 100, 255]);
        assert_eq!(reason(&tiff, 1), "the form of its pixels is not supported; save it as PNG or JPEG");
    }

    #[test]
    fn no_flipped_bit_makes_the_decoder_panic() {
        for format in FORMATS {
            let whole = encoded(format);
            for at in 0..whole.len().min(400) {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << (at % 8);
                let found = decode(&bytes, MAX_PIXELS);
                assert!(
                    found.map_or_else(|e| !e.to_string().contains('\n'), |image| image.width() > 0),
                    "{format:?}: {at}"
                );
            }
        }
    }
}
