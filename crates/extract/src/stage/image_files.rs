//! The image files of items.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use mp4sr_artifact::{Downloads, Fingerprint, Items};

/// The distinct images of items and their files.
pub(super) struct ImageFiles {
    /// Names as they stand in `items.parquet`, ascending.
    pub names: Vec<String>,
    /// The path of each name's file.
    pub paths: Vec<PathBuf>,
    index: HashMap<String, usize>,
}

impl ImageFiles {
    pub fn of(items: &Items, data: &Path) -> Self {
        let downloads = Downloads::new(data);
        let mut names: Vec<String> = items.images.iter().flatten().cloned().collect();
        names.sort_unstable();
        names.dedup();
        let paths = names.iter().map(|name| downloads.file(name)).collect();
        let index = names.iter().cloned().enumerate().map(|(index, name)| (name, index)).collect();
        Self { names, paths, index }
    }

    /// Which of the files has this name. The name must be one of the items'.
    pub fn index(&self, name: &str) -> usize {
        self.index[name]
    }

    /// Fingerprint of the files' names, sizes and modification times. Hashing their content would cost too much for finding
    /// out whether there is anything to do.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut text = String::new();
        for (name, path) in self.names.iter().zip(&self.paths) {
            let meta = std::fs::metadata(path).ok();
            let modified = meta.as_ref().and_then(|meta| meta.modified().ok());
            let _ = writeln!(text, "{name:?} {:?} {modified:?}", meta.map(|meta| meta.len()));
        }
        Fingerprint::of_bytes(text.as_bytes())
    }
}
