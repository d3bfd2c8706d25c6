//! How large a picture may be that anybody may have made: every stage that decodes pictures asks here first.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// A few bytes can claim terabytes.
const MOST_PIXELS: u64 = 64 << 20;
/// No picture of that many pixels needs as much.
const MOST_BYTES: u64 = 256 << 20;

/// Why a picture of this size, which its header claims, is not decoded.
pub fn check_size(width: u32, height: u32) -> Result<(), String> {
    if width == 0 || height == 0 {
        return Err("it has no pixels".to_owned());
    }
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        return Err(format!("it has {width} x {height} pixels, more than {MOST_PIXELS}"));
    }
    Ok(())
}

/// The bytes of a picture's file, or why there are none; one that is too large is never held.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    // Opening a pipe would wait for ever.
    let about = fs::metadata(path).map_err(|e| e.to_string())?;
    if !about.is_file() {
        return Err("it is no file".to_owned());
    }
    let reason = || format!("it has more than {MOST_BYTES} bytes");
    if about.len() > MOST_BYTES {
        return Err(reason());
    }
    let mut bytes = Vec::with_capacity(about.len() as usize);
    let file = File::open(path).map_err(|e| e.to_string())?;
    // It may grow while it is read.
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MOST_BYTES { Err(reason()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_up_to_the_bound_pass() {
        assert_eq!(check_size(8192, 8192), Ok(()));
        assert_eq!(check_size(8192, 8193).unwrap_err(), "it has 8192 x 8193 pixels, more than 67108864");
        assert!(check_size(u32::MAX, u32::MAX).is_err());
        assert_eq!(check_size(0, 3).unwrap_err(), "it has no pixels");
    }

    #[test]
    fn a_file_that_is_too_large_or_none_is_refused_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("huge.png");
        // No block of it lies on the disk.
        File::create(&path).unwrap().set_len(MOST_BYTES + 1).unwrap();
        assert_eq!(read(&path).unwrap_err(), "it has more than 268435456 bytes");
        fs::write(&path, b"small").unwrap();
        assert_eq!(read(&path).unwrap(), b"small");
        assert_eq!(read(folder.path()).unwrap_err(), "it is no file");
        assert!(read(&folder.path().join("gone.png")).unwrap_err().contains("No such file"));
    }
}
