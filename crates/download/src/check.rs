//! Checks whether a file is an image that later stages can read: first its header, then by decoding all of it.

use std::path::Path;

use mp4sr_artifact::{Error, Result};
use mp4sr_image::ImageError;

use crate::outcome::{Fate, Verdict};
use crate::sniff;

/// The width and height of an image in pixels.
pub type ImageSize = (u32, u32);

/// Decodes the image in a file. Returns its size, or why it is not kept: it has more than `max_pixels` pixels, or is not an image.
pub fn check(path: &Path, max_pixels: u64) -> Result<std::result::Result<ImageSize, Verdict>> {
    let bytes = match read(path)? {
        Ok(bytes) => bytes,
        Err(error) => return Ok(Err(verdict(&error, &[]))),
    };
    let checked =
        mp4sr_image::dimensions(&bytes).and_then(|size| mp4sr_image::decode(&bytes, max_pixels).map(|_| size));
    Ok(checked.map_err(|error| verdict(&error, &bytes)))
}

/// The size of an image that was checked before, from its header alone.
pub fn size(path: &Path) -> Result<Option<ImageSize>> {
    Ok(read(path)?.ok().and_then(|bytes| mp4sr_image::dimensions(&bytes).ok()))
}

/// Reads a file; a failure of the disk is an error of the run, and not a fault of the image.
fn read(path: &Path) -> Result<std::result::Result<Vec<u8>, ImageError>> {
    match mp4sr_image::read(path) {
        Err(ImageError::Read(error)) => Err(Error::io("read", path, error)),
        outcome => Ok(outcome),
    }
}

/// The verdict on a URL whose image has this error.
fn verdict(error: &ImageError, bytes: &[u8]) -> Verdict {
    match error {
        ImageError::TooManyPixels { .. } => Verdict::new(Fate::TooLarge, format!("{error} (`download.max_pixels`)")),
        ImageError::TooManyBytes { .. } => Verdict::new(Fate::TooLarge, error.to_string()),
        ImageError::UnknownFormat if sniff::is_web_page(bytes) => Verdict::new(Fate::NotAnImage, "it is a web page"),
        _ => Verdict::new(Fate::NotAnImage, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::ImageFormat;
    use mp4sr_artifact::files;

    use super::*;

    fn encode(format: ImageFormat) -> Vec<u8> {
        let image = image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 6, y as u8 * 8, (x * y) as u8]));
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn check_bytes(bytes: &[u8], max_pixels: u64) -> std::result::Result<ImageSize, Verdict> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        files::write_bytes(&path, bytes).unwrap();
        check(&path, max_pixels).unwrap()
    }

    #[test]
    fn complete_images_pass_and_any_truncation_is_reported() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
            let bytes = encode(format);
            assert_eq!(check_bytes(&bytes, 1200), Ok((40, 30)), "{format:?}");
            assert_eq!(check_bytes(&bytes, 1199).unwrap_err().fate, Fate::TooLarge);
            for share in [1, 3, 5, 9] {
                let verdict = check_bytes(&bytes[..bytes.len() * share / 10], 1200).unwrap_err();
                assert_eq!(verdict.fate, Fate::NotAnImage, "{format:?}, {share} tenths: {}", verdict.reason);
            }
        }
    }

    #[test]
    fn other_files_are_recognised_by_their_content() {
        let reason = |bytes: &[u8]| check_bytes(bytes, 1200).unwrap_err().reason;
        assert_eq!(reason(b""), "it is empty");
        assert_eq!(reason(b"\n<!DOCTYPE HTML><p>Not found"), "it is a web page");
        assert!(reason(b"\0\0\x01\0\x01\0").contains("Ico"));
        assert_eq!(reason(b"{}"), "it is not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file");
    }
}
