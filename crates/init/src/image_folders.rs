//! Folders beside the files whose images are named by the ids of items.

use std::path::{Path, PathBuf};

use mp4sr_artifact::files;
use mp4sr_pipeline::Config;
use mp4sr_pipeline::text::count;
use mp4sr_preprocess::{RowLimits, is_image_name, trial};

use crate::found::Doubt;

/// The number of entries of a folder that are looked at.
const ENTRIES: usize = 1000;
/// The number of folders that are tried.
const FOLDERS: usize = 3;

/// Reports the first folder in the data folder of `config` from which items would have images, if the pipeline named it.
pub fn unused(config: &Config, limits: RowLimits) -> Option<Doubt> {
    let root = Path::new(&config.dataset.data);
    folders_of_images(root).into_iter().take(FOLDERS).find_map(|folder| {
        let mut config = config.clone();
        folder.strip_prefix(root).ok()?.to_str()?.clone_into(&mut config.source.images);
        let statistics = trial(&config, limits).ok()?.statistics;
        let with_image =
            statistics.items.saturating_sub(statistics.items_without_image + statistics.items_with_urls_only);
        (with_image > 0).then(|| {
            let what = format!(
                "`{}` has images that are named by {} of {} items, and they are not used",
                folder.display(),
                count(with_image),
                count(statistics.items)
            );
            Doubt::new(what, format!("`--images {}`, `source.images`", folder.display()))
        })
    })
}

/// The folders directly in `root` that have an image among their first entries.
fn folders_of_images(root: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| files::list(folder).unwrap_or_default().into_iter().take(ENTRIES);
    entries(root).filter(|folder| folder.is_dir() && entries(folder).any(|file| is_image_name(&file))).collect()
}
