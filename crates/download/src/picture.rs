//! Whether a file is a picture that later stages can read: by its header first, then by decoding all of it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use image::{ImageFormat, ImageReader, Limits};
use mp4sr_artifact::{Result, files, guarded};

use crate::outcome::{Fate, Verdict};
use crate::sniff;

/// Pictures of more pixels are decoded one at a time, so that memory does not grow with the threads.
const LARGE: u64 = 16_000_000;

/// Width and height of a picture.
pub type Size = (u32, u32);

/// The size of a picture that decodes and has at most `max_pixels`, or why it is none.
pub fn check(path: &Path, max_pixels: u64) -> Result<std::result::Result<Size, Verdict>> {
    static ONE_LARGE: Mutex<()> = Mutex::new(());
    let start = sniff::start(path)?;
    let format = match form(&start) {
        Ok(format) => format,
        Err(reason) => return Ok(Err(Verdict::new(Fate::NotAnImage, reason))),
    };
    let size = match attempt(|| reader(path, format).map(ImageReader::into_dimensions))? {
        Ok(size) => size,
        Err(reason) => return Ok(Err(Verdict::new(Fate::NotAnImage, reason))),
    };
    let pixels = u64::from(size.0) * u64::from(size.1);
    if pixels > max_pixels {
        let reason = format!("it has {} x {} pixels, more than {max_pixels} (`download.max_pixels`)", size.0, size.1);
        return Ok(Err(Verdict::new(Fate::TooLarge, reason)));
    }
    let _turn = (pixels > LARGE).then(|| ONE_LARGE.lock().unwrap_or_else(PoisonError::into_inner));
    let decoded = attempt(|| {
        let mut reader = reader(path, format)?;
        reader.limits(limits(max_pixels));
        Ok(reader.decode())
    })?;
    let reason = match decoded {
        Err(reason) => reason,
        Ok(_) if format == ImageFormat::Jpeg && !ends_as_jpeg(BufReader::new(files::open(path)?)) => {
            "it is a picture that is cut short".to_owned()
        }
        Ok(_) => return Ok(Ok(size)),
    };
    Ok(Err(Verdict::new(Fate::NotAnImage, reason)))
}

/// The size by the header alone, of a picture that was checked before.
pub fn size(path: &Path) -> Result<Option<Size>> {
    let Ok(format) = form(&sniff::start(path)?) else { return Ok(None) };
    Ok(attempt(|| reader(path, format).map(ImageReader::into_dimensions))?.ok())
}

/// Runs a decoder; what it can't read, and what it panics at, is told in words. Only opening the file is our failure.
fn attempt<T>(decode: impl FnOnce() -> Result<image::ImageResult<T>>) -> Result<std::result::Result<T, String>> {
    match guarded(decode) {
        Ok(outcome) => Ok(outcome?.map_err(|e| format!("it does not decode ({e})"))),
        Err(_) => Ok(Err("it does not decode (the decoder gave up)".to_owned())),
    }
}

fn reader(path: &Path, format: ImageFormat) -> Result<ImageReader<BufReader<File>>> {
    Ok(ImageReader::with_format(BufReader::new(files::open(path)?), format))
}

/// The form, if it is one that is read.
fn form(start: &[u8]) -> std::result::Result<ImageFormat, String> {
    if start.is_empty() {
        return Err("it is empty".to_owned());
    }
    match image::guess_format(start) {
        Ok(format) if format.reading_enabled() => Ok(format),
        Ok(format) => Err(format!("it is {format:?}, and only JPEG, PNG, WebP and GIF are read")),
        Err(_) if sniff::is_web_page(start) => Err("it is a web page".to_owned()),
        Err(_) => Err("it is none of JPEG, PNG, WebP and GIF".to_owned()),
    }
}

/// Room for the widest pixels (8 bytes) twice.
fn limits(max_pixels: u64) -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some((64 << 20) + max_pixels * 16);
    limits
}

/// Whether a JPEG file has its end. The decoder fills what is missing with grey.
fn ends_as_jpeg(mut file: impl BufRead + Seek) -> bool {
    loop {
        match next_marker(&mut file) {
            None => return false,
            Some(0xd9) => return true,
            // Start, restarts, and an escaped byte of data have no length.
            Some(0x00 | 0x01 | 0xd0..=0xd8) => {}
            Some(_) => {
                let mut length = [0; 2];
                if file.read_exact(&mut length).is_err() {
                    return false;
                }
                let rest = u16::from_be_bytes(length).saturating_sub(2);
                if file.seek_relative(i64::from(rest)).is_err() {
                    return false;
                }
            }
        }
    }
}

/// The byte behind the next 0xff.
fn next_marker(file: &mut impl BufRead) -> Option<u8> {
    file.skip_until(0xff).ok().filter(|skipped| *skipped > 0)?;
    file.bytes().find(|byte| !matches!(byte, Ok(0xff)))?.ok()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn encode(format: ImageFormat) -> Vec<u8> {
        let picture = image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 6, y as u8 * 8, (x * y) as u8]));
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn check_bytes(bytes: &[u8], max_pixels: u64) -> std::result::Result<Size, Verdict> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture");
        files::write_bytes(&path, bytes).unwrap();
        check(&path, max_pixels).unwrap()
    }

    #[test]
    fn whole_pictures_pass_and_any_cut_is_told() {
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
    fn what_is_no_picture_is_named() {
        let reason = |bytes: &[u8]| check_bytes(bytes, 1200).unwrap_err().reason;
        assert_eq!(reason(b""), "it is empty");
        assert_eq!(reason(b"\n<!DOCTYPE HTML><p>Not found"), "it is a web page");
        assert!(reason(b"BM\x01\x00\x01\x00").contains("Bmp"));
        assert_eq!(reason(b"{}"), "it is none of JPEG, PNG, WebP and GIF");
    }
}
