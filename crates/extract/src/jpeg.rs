//! JPEG files to the levels that libjpeg gives, which the reference decodes with: other decoders differ by a level or two,
//! and an encoder's vector with them.

use image::RgbImage;
use mozjpeg::{ColorSpace, Decompress};
use mp4sr_artifact::guarded;

/// The bytes that every JPEG file begins with.
pub(crate) const MAGIC: [u8; 3] = [0xff, 0xd8, 0xff];

/// Decodes a whole file; what is wrong with it otherwise.
pub(crate) fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    if !is_whole(bytes) {
        return Err("it is cut short".to_owned());
    }
    // The library tells of its errors by unwinding.
    match guarded(|| pixels(bytes)) {
        Ok(decoded) => decoded,
        Err(reason) => Err(reason.downcast_ref::<String>().map_or("it does not decode", String::as_str).to_owned()),
    }
}

fn pixels(bytes: &[u8]) -> Result<RgbImage, String> {
    let failed = |e: std::io::Error| e.to_string();
    let start = Decompress::new_mem(bytes).map_err(failed)?;
    let (width, height) = (start.width() as u32, start.height() as u32);
    let levels = match start.color_space() {
        ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => {
            let mut lines = start.to_colorspace(ColorSpace::JCS_CMYK).map_err(failed)?;
            lines.read_scanlines::<[u8; 4]>().map_err(failed)?.into_iter().flat_map(of_inks).collect()
        }
        _ => start.rgb().and_then(|mut lines| lines.read_scanlines::<[u8; 3]>()).map_err(failed)?.concat(),
    };
    RgbImage::from_raw(width, height, levels).ok_or_else(|| "it does not decode".to_owned())
}

/// Four inks to three colours, as Pillow does it; files hold them inverted.
fn of_inks(inverted: [u8; 4]) -> [u8; 3] {
    let light = u32::from(inverted[3]);
    [0, 1, 2].map(|ink| {
        let product = (255 - u32::from(inverted[ink])) * light + 128;
        (light - (((product >> 8) + product) >> 8)) as u8
    })
}

/// Whether the file has its end mark: the library fills what is missing with grey.
fn is_whole(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    loop {
        let Some(at) = rest.windows(2).position(|pair| pair[0] == 0xff && pair[1] != 0xff) else { return false };
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        match marker {
            0xd9 => return true,
            // Start, restarts, and an escaped byte of data have no length.
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

    fn file() -> Vec<u8> {
        std::fs::read("tests/fixtures/pictures/rgb.jpg").unwrap()
    }

    #[test]
    fn a_cut_or_broken_file_is_told_and_never_filled_up() {
        let whole = file();
        assert_eq!(decode(&whole).unwrap().dimensions(), (53, 41));
        for length in (0..whole.len() - 1).step_by(7) {
            assert!(decode(&whole[..length]).is_err(), "{length} bytes");
        }
        let mut broken = whole.clone();
        // A quantisation table that is not there.
        let tables = broken.windows(2).position(|pair| pair == [0xff, 0xdb]).unwrap();
        broken[tables + 1] = 0xe7;
        let reason = decode(&broken).unwrap_err();
        assert!(reason.contains("uantization"), "{reason}");
    }
}
