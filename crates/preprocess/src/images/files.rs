//! Finds the files of images, and refuses links out of their folder.

use std::path::{Path, PathBuf};

use mp4sr_artifact::files;

use crate::Result;
use crate::rejects::Fault;

pub(super) const ENDINGS: [&str; 9] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"];
/// The number of levels of nested folders that are searched.
const DEPTH: usize = 8;

/// Whether a file's name is that of a sound.
pub fn is_sound_name(path: &Path) -> bool {
    path.extension().is_some_and(|end| ["flac", "wav"].iter().any(|known| end.eq_ignore_ascii_case(known)))
}

/// Whether a file's name is that of an image.
pub fn is_image_name(path: &Path) -> bool {
    path.extension().is_some_and(|end| ENDINGS.iter().any(|known| end.eq_ignore_ascii_case(known)))
}

pub(super) fn real(folder: &Path) -> Result<PathBuf> {
    Ok(folder.canonicalize().map_err(|e| mp4sr_artifact::Error::io("read", folder, e))?)
}

/// The image files in a folder and in folders below it, in the order of their names.
pub fn images_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    list(folder, DEPTH, false, &mut found)?;
    Ok(found)
}

/// The image files at all depths to which a pattern leads, also through links to folders.
pub fn images_of_pattern(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    list(folder, pattern.matches('/').count(), true, &mut found)?;
    Ok(found)
}

fn list(folder: &Path, depth: usize, follows_links: bool, found: &mut Vec<PathBuf>) -> Result<()> {
    for path in files::list(folder)? {
        if depth > 0 && path.is_dir() && (follows_links || !path.is_symlink()) {
            list(&path, depth - 1, follows_links, found)?;
        } else if is_image_name(&path) && files::is_file(&path)? {
            found.push(path);
        }
    }
    Ok(())
}

/// Refuses a link out of the folder, such as a downloaded archive may contain.
pub(super) fn stays_in(folder: &Path, path: &Path) -> std::result::Result<(), Fault> {
    if path.is_symlink() && !path.canonicalize().is_ok_and(|file| file.starts_with(folder)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        return Err(Fault::new("image is a link that leads out of its folder", name));
    }
    Ok(())
}
