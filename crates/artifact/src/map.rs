//! Memory-mapped files: only the pages that are used are loaded, and the system can drop them again. This is the only module of the crate
//! with `unsafe`: one call that maps a file, which a test compares with reading the file.

#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use crate::{Error, Result, files};

/// The bytes of a memory-mapped file.
///
/// Artifacts are replaced by renaming a new file over the old one and never changed in place, so a mapped file keeps its content.
#[derive(Debug)]
pub struct MappedFile(Option<memmap2::Mmap>);

impl MappedFile {
    /// Maps a whole file; the map of an empty file is empty.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(&files::open(path)?, path)
    }

    /// Maps a whole file that was opened at `path`.
    pub fn of(file: &File, path: &Path) -> Result<Self> {
        let length = file.metadata().map_err(|e| Error::io("inspect", path, e))?.len();
        if length == 0 {
            return Ok(Self(None));
        }
        // SAFETY: no program may write to the file, or cut it, while it is mapped. mp4sr writes files under other names and renames
        // them; that other programs do so, too, cannot be checked, and docs/artifacts.md asks it of them.
        let map = unsafe { memmap2::Mmap::map(file) }.map_err(|e| Error::io("map", path, e))?;
        Ok(Self(Some(map)))
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_equals_a_read_file_and_outlives_a_replacement() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for content in [&b""[..], b"x", &[7; 9_000]] {
            files::write_bytes(&path, content).unwrap();
            let map = MappedFile::open(&path).unwrap();
            assert_eq!(map[..], files::read(&path).unwrap()[..]);
            files::write_bytes(&path, b"another").unwrap();
            assert_eq!(map[..], *content);
        }
        assert!(MappedFile::open(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
