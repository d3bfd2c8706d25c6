//! Removes the files of added items that nothing names any more.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::Path;

use mp4sr_artifact::{Layout, files};
use mp4sr_pipeline::Context;
use mp4sr_run::CurrentItems;
use mp4sr_store::ItemStore;

/// Removes what a killed process left: temporary files, and generations that are not in use.
pub fn remove_stale(layout: &Layout, current: &CurrentItems) -> anyhow::Result<()> {
    let folder = layout.new_items();
    if !folder.exists() {
        return Ok(());
    }
    files::remove_leftovers(&folder)?;
    for path in files::list(&folder)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_generation = name.len() >= 6 && name.bytes().all(|byte| byte.is_ascii_digit());
        if is_generation && current.generation.as_deref() != Some(name) {
            files::remove_dir_if_present(&path)?;
        }
    }
    Ok(())
}

/// Removes the images that no added item names: those of a change that was refused, and, before the next change, those of items that the
/// last one removed, because a service may show them until it has loaded the run again.
pub fn remove_unused_images(context: &Context) -> anyhow::Result<()> {
    let folder = context.layout.new_items_images();
    if !folder.exists() {
        return Ok(());
    }
    let items = ItemStore::Folder.items(&context.layout)?;
    // The names are hashes of the images.
    let used: HashSet<&OsStr> = items.images.iter().flatten().filter_map(|name| Path::new(name).file_name()).collect();
    for path in files::list(&folder)? {
        if path.file_name().is_none_or(|name| !used.contains(name)) {
            files::remove_if_present(&path)?;
        }
    }
    Ok(())
}
