//! Reads image files of limited size.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::error::{ImageError, Result};

/// The largest file that is read, in bytes. An image of [`crate::MAX_PIXELS`] pixels is smaller, even as uncompressed 8-bit RGB.
pub const MAX_BYTES: u64 = 256 << 20;

/// Reads the bytes of an image file; a file of more than [`MAX_BYTES`] is never held in memory.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    // Opening a pipe would wait forever.
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(ImageError::NotAFile);
    }
    let too_large = ImageError::TooManyBytes { limit: MAX_BYTES };
    if metadata.len() > MAX_BYTES {
        return Err(too_large);
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    // The file may grow while it is read.
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES { Err(too_large) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_too_large_or_not_regular_are_refused_before_they_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("huge.png");
        // The file is sparse: it takes no space on the disk.
        File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert_eq!(read(&path).unwrap_err().to_string(), "it has more than 268435456 bytes");
        fs::write(&path, b"small").unwrap();
        assert_eq!(read(&path).unwrap(), b"small");
        assert_eq!(read(folder.path()).unwrap_err().to_string(), "it is not a file");
        assert!(read(&folder.path().join("gone.png")).unwrap_err().to_string().contains("No such file"));
    }
}
