//! The image and sound files of items.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};

use mp4sr_artifact::{Downloads, Fingerprint, Items};

/// The distinct images of items and their files.
pub(super) struct ImageFiles {
    /// Names as in `items.parquet`, ascending.
    pub names: Vec<String>,
    /// The path of each name's file.
    pub paths: Vec<PathBuf>,
    index: HashMap<String, usize>,
    /// The distinct sound files of items.
    sounds: Vec<PathBuf>,
}

impl ImageFiles {
    pub fn of(items: &Items, data: &Path) -> Self {
        let downloads = Downloads::new(data);
        let mut names: Vec<String> = items.images.iter().flatten().cloned().collect();
        names.sort_unstable();
        names.dedup();
        let paths = names.iter().map(|name| downloads.file(name)).collect();
        let index = names.iter().cloned().enumerate().map(|(index, name)| (name, index)).collect();
        let mut sounds: Vec<PathBuf> = items.sounds.iter().flatten().map(PathBuf::from).collect();
        sounds.sort_unstable();
        sounds.dedup();
        Self { names, paths, index, sounds }
    }

    /// The index of the file with this name, which must be one of the items' names.
    pub fn index(&self, name: &str) -> usize {
        self.index[name]
    }

    /// The fingerprint of the files' names, sizes and modification times. Hashing their content would cost too much only to find out
    /// whether there is anything to do.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(self.names.iter().map(String::as_str).zip(self.paths.iter().map(PathBuf::as_path)))
    }

    /// The same fingerprint of the sound files.
    pub fn sounds(&self) -> Fingerprint {
        fingerprint(self.sounds.iter().filter_map(|path| Some((path.to_str()?, path.as_path()))))
    }
}

fn fingerprint<'f>(files: impl Iterator<Item = (&'f str, &'f Path)>) -> Fingerprint {
    let mut text = String::new();
    for (name, path) in files {
        // A file that could not be opened counts as missing, so that it is read once it can be.
        let can_be_read = |meta: &Metadata| !meta.is_file() || File::open(path).is_ok();
        let meta = std::fs::metadata(path).ok().filter(can_be_read);
        let modified = meta.as_ref().and_then(|meta| meta.modified().ok());
        let _ = writeln!(text, "{name:?} {:?} {modified:?}", meta.map(|meta| meta.len()));
    }
    Fingerprint::of_bytes(text.as_bytes())
}
