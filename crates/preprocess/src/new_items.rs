//! Reads items on their own, for a run that was trained without them: the formats, texts and images are those of a dataset.

use std::path::{Path, PathBuf};

use mp4sr_artifact::{Items, ItemsRead};
use mp4sr_pipeline::{Config, Progress};

use crate::Result;
use crate::images::{EmbeddedImages, ImageFolder, ImagePattern};
use crate::junk::Junk;
use crate::source::{Budget, ItemCatalogue, NumberedIds, Reading, SourceFormat};

/// Reads files of items in the format of `[source]`, in the order of the first line of each item. Images are named relative to the file or
/// to the data folder, or are found in the folder of `source.images` by the item's id.
pub fn read_items(config: &Config, paths: &[PathBuf], progress: &Progress) -> Result<(Items, ItemsRead)> {
    let format = SourceFormat::new(&config.source)?;
    let preprocess = &config.preprocess;
    let (data, junk) = (Path::new(&config.dataset.data), Junk::new(&preprocess.placeholders));
    let nobody = NumberedIds::default();
    let first = Reading {
        format: &format,
        data,
        item_ids: &nobody,
        needed: &[],
        folder: &ImageFolder::default(),
        junk: &junk,
        embedded: EmbeddedImages::Refused,
        max_sentences: preprocess.max_sentences,
        max_images: preprocess.max_images,
        keep_others: true,
        may_lack_fields: true,
        limit: None,
    };
    let read = |reading: &Reading<'_>, progress: &Progress| {
        ItemCatalogue::read(
            paths,
            reading,
            &mut Budget::new(preprocess.max_bad_lines, preprocess.max_bad_share),
            progress,
        )
    };
    // Images in a folder are found by the ids of items, so these come first.
    let (found, ..) = read(&first, &Progress::new(true))?;
    let ids: NumberedIds = found.others.into_keys().collect();
    let folder = image_folder(config, data, &ids, progress)?;
    let needed = vec![true; ids.len()];
    let second = Reading { item_ids: &ids, needed: &needed, folder: &folder, keep_others: false, ..first };
    let (mut catalogue, items_read, warnings) = read(&second, progress)?;
    warnings.iter().for_each(|warning| progress.warn("items", warning));
    let mut items = Items { ids: ids.names_of(&needed)?, ..Items::default() };
    for item in 0..items.ids.len() as u32 {
        let record = catalogue.records.remove(&item).unwrap_or_default();
        items.titles.push(record.title);
        items.sentences.push(record.sentences);
        items.images.push(record.images);
        items.categories.push(record.categories);
        items.sounds.push(record.sounds);
    }
    Ok((items, items_read))
}

/// The folder of the images that no column names. The log says if it does not exist.
fn image_folder(config: &Config, data: &Path, ids: &NumberedIds, progress: &Progress) -> Result<ImageFolder> {
    let pattern = config.source.images.as_str();
    if pattern.is_empty() {
        return Ok(ImageFolder::default());
    }
    if ImagePattern::is_in(pattern) {
        return Ok(ImageFolder::by_pattern(ImagePattern::parse(data, pattern)?));
    }
    let folder = data.join(pattern);
    if folder.is_dir() {
        return ImageFolder::read(&folder, ids);
    }
    progress.warn("items", format!(
        "`{}` does not exist, so no item has an image from it; name the data folder with `--data`, or correct `source.images`",
        folder.display()
    ));
    Ok(ImageFolder::default())
}
