//! Reads files of items, and finds those that are new.

use std::collections::HashSet;
use std::path::{Path, PathBuf, absolute};

use mp4sr_artifact::{Downloads, Items, Rejects};
use mp4sr_extract::encoder_device;
use mp4sr_pipeline::Context;
use mp4sr_pipeline::text::quoted;
use mp4sr_preprocess::{BLANK_LINE, read_items};
use mp4sr_store::ItemStore;

use crate::checks::{expect_addable, refuse_empty};

/// Reads the items of files that are not in the dataset, with notes on what is left out.
pub fn read_new(context: &Context, paths: &[PathBuf]) -> anyhow::Result<(Items, Vec<String>)> {
    expect_addable(&context.config)?;
    let (mut items, mut read) = read_items(&context.config, paths, &context.progress)?;
    // A blank line, such as the last one of many editors, is not an item that is lost.
    read.rejected.0.remove(BLANK_LINE);
    name_outside_files(&mut items, Path::new(&context.config.dataset.data))?;
    let mut notes = Vec::new();
    if read.repeated > 0 {
        notes.push(format!("lines that repeat the id of an earlier line and are ignored: {}", read.repeated));
    }
    notes.extend(unread(&read.rejected, "lines could not be read and are not added"));
    notes.extend(unread(&read.refused_images, "images cannot be used"));
    notes.extend(unread(&read.refused_sounds, "sounds cannot be used"));
    let in_dataset: HashSet<String> = Items::read(&context.layout.items())?.ids.into_iter().collect();
    let new: Vec<usize> = (0..items.len()).filter(|&row| !in_dataset.contains(&items.ids[row])).collect();
    let known = items.len() - new.len();
    if new.is_empty() {
        notes.push(format!(
            "all {known} items are already in the dataset, so nothing was added; new items need other ids"
        ));
    } else if known > 0 {
        notes.push(format!("{known} items are already in the dataset and are not changed"));
    }
    Ok((items.select(&new), notes))
}

/// The note on lines or images that were not read, with the first of each reason; `None` if all were read.
fn unread(rejected: &Rejects, what: &str) -> Option<String> {
    let reasons = rejected.0.iter().map(|(reason, rejected)| {
        let first = rejected.examples.first();
        let place = first.map_or(String::new(), |first| match first.line {
            // A file of a folder has no line.
            0 => format!(", first {} in `{}`", quoted(&first.found), first.file.display()),
            line => format!(", first in line {line} of `{}`", first.file.display()),
        });
        format!("{} for: {reason}{place}", rejected.count)
    });
    (!rejected.is_empty()).then(|| format!("{} {what}: {}", rejected.total(), reasons.collect::<Vec<_>>().join("; ")))
}

/// Gives files that are outside of the data folder their absolute paths, because tables name all other files relative to that folder.
fn name_outside_files(items: &mut Items, data: &Path) -> anyhow::Result<()> {
    for name in items.images.iter_mut().chain(&mut items.sounds).flatten() {
        if !Downloads::is_url(name) && !Path::new(name).starts_with(data) {
            *name = absolute(&*name)?.to_string_lossy().into_owned();
        }
    }
    Ok(())
}

/// Reads the files of items without adding them, and returns the number of items and sentences on what would be done. Whether images can be
/// decoded is not checked.
pub fn check_files(context: &Context, paths: &[PathBuf]) -> anyhow::Result<(usize, Vec<String>)> {
    encoder_device(context)?;
    let (items, notes) = read_new(context, paths)?;
    let count = items.len();
    if count == 0 {
        return Ok((0, notes));
    }
    let modalities: Vec<&str> = context.config.model.modalities.iter().map(|own| own.name.as_str()).collect();
    let has = |modality: &str, row: usize| match modality {
        "text" => !items.sentences[row].is_empty(),
        "image" => !items.images[row].is_empty(),
        _ => !items.sounds[row].is_empty(),
    };
    let empty = (0..count).filter(|&row| !modalities.iter().any(|modality| has(modality, row)));
    refuse_empty(&empty.map(|row| items.ids[row].as_str()).collect::<Vec<_>>(), &modalities)?;
    if !ItemStore::is_folder_of(context) {
        return Ok((count, [vec![format!("add {count} items to PostgreSQL")], notes].concat()));
    }
    let earlier: HashSet<String> = ItemStore::Folder.items(&context.layout)?.ids.into_iter().collect();
    let replaced = items.ids.iter().filter(|id| earlier.contains(*id)).count();
    Ok((count, [vec![format!("add {} items, and replace {replaced}", count - replaced)], notes].concat()))
}
