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
    if !files::is_dir(&folder)? {
        return Ok(());
    }
    files::remove_leftovers(&folder)?;
    let in_use = current.layout(layout);
    for path in CurrentItems::generations(layout)? {
        if in_use.as_ref().is_none_or(|own| own.root() != path) {
            files::remove_dir_if_present(&path)?;
        }
    }
    Ok(())
}

/// Removes the images that no added item names: those of a change that was refused, and, before the next change, those of items that the
/// last one removed, because a service may show them until it has loaded the run again.
pub fn remove_unused_images(context: &Context) -> anyhow::Result<()> {
    let folder = context.layout.new_items_images();
    if !files::is_dir(&folder)? {
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
