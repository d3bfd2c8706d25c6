//! Decodes JPEG files to the same levels as libjpeg, which Pillow uses. Other decoders differ by a level or two, which would change an
//! encoder's vectors.

use image::RgbImage;
use mozjpeg::{ColorSpace, Decompress};
use mp4sr_artifact::guarded;

use crate::error::{ImageError, Result};
use crate::pixels::check_pixels;

/// Decodes a complete file of at most `max_pixels` pixels. The orientation in its EXIF data is not applied.
pub(crate) fn decode(bytes: &[u8], max_pixels: u64) -> Result<RgbImage> {
    if !is_whole(bytes) {
        return Err(ImageError::CutShort);
    }
    // The library reports its errors by unwinding.
    guarded(|| pixels(bytes, max_pixels))
        .unwrap_or_else(|reason| Err(reason.downcast_ref::<String>().map_or(ImageError::Panic, ImageError::decode)))
}

fn pixels(bytes: &[u8], max_pixels: u64) -> Result<RgbImage> {
    let failed = |e: std::io::Error| ImageError::decode(&e);
    let start = Decompress::new_mem(bytes).map_err(failed)?;
    let (width, height) = (start.width() as u32, start.height() as u32);
    // A damaged file can claim one size to one reader and another size to the next.
    check_pixels(width, height, max_pixels)?;
    let levels = match start.color_space() {
        ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => {
            let mut lines = start.to_colorspace(ColorSpace::JCS_CMYK).map_err(failed)?;
            lines.read_scanlines::<[u8; 4]>().map_err(failed)?.into_iter().flat_map(rgb_of_cmyk).collect()
        }
        _ => start.rgb().and_then(|mut lines| lines.read_scanlines::<[u8; 3]>()).map_err(failed)?.concat(),
    };
    RgbImage::from_raw(width, height, levels).ok_or_else(|| ImageError::decode(&"its size does not match its pixels"))
}

/// Converts CMYK to RGB as Pillow does. Files hold the inks inverted.
fn rgb_of_cmyk(inverted: [u8; 4]) -> [u8; 3] {
    let light = u32::from(inverted[3]);
    [0, 1, 2].map(|ink| {
        let product = (255 - u32::from(inverted[ink])) * light + 128;
        (light - (((product >> 8) + product) >> 8)) as u8
    })
}

/// Whether the file has its end marker. Without one, the library would fill missing lines with grey.
fn is_whole(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    loop {
        let Some(at) = rest.windows(2).position(|pair| pair[0] == 0xff && pair[1] != 0xff) else { return false };
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        match marker {
            0xd9 => return true,
            // The start marker, the restart markers and an escaped data byte have no length field.
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            _ => {
                let length =
                    rest.first_chunk::<2>().map_or(usize::MAX, |length| usize::from(u16::from_be_bytes(*length)));
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_PIXELS;

    fn encoded() -> Vec<u8> {
        let image = RgbImage::from_fn(53, 41, |x, y| image::Rgb([x as u8 * 4, y as u8 * 6, (x * y) as u8]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn a_truncated_or_broken_file_is_an_error_and_is_never_padded() {
        let whole = encoded();
        assert_eq!(decode(&whole, MAX_PIXELS).unwrap().dimensions(), (53, 41));
        for length in (0..whole.len() - 1).step_by(7) {
            let error = decode(&whole[..length], MAX_PIXELS).unwrap_err();
            assert!(matches!(error, ImageError::CutShort), "{length} bytes: {error}");
        }
        let mut broken = whole.clone();
        // The changed marker hides a quantisation table from the decoder.
        let tables = broken.windows(2).position(|pair| pair == [0xff, 0xdb]).unwrap();
        broken[tables + 1] = 0xe7;
        let reason = decode(&broken, MAX_PIXELS).unwrap_err().to_string();
        assert!(reason.contains("uantization"), "{reason}");
        assert_eq!(decode(&whole, 100).unwrap_err().to_string(), "it has 53 x 41 pixels, more than 100");
    }
}
