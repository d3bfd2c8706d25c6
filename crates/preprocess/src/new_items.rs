//! Items by themselves, for a run that was trained without them: the same forms, texts and images as in a dataset.

use std::path::{Path, PathBuf};

use mp4sr_artifact::{Items, ItemsRead};
use mp4sr_pipeline::{Config, Progress};

use crate::Result;
use crate::images::ImageFolder;
use crate::source::{Budget, Catalogue, Ids, Reading, SourceForm, item_ids};

/// Reads files of items in the form of `[source]`, in the order of the first line of each item. Images are named relative to the file or
/// to the data folder, or lie in the folder of `source.images` by the item's id.
pub fn read_items(config: &Config, paths: &[PathBuf], progress: &Progress) -> Result<(Items, ItemsRead)> {
    let form = SourceForm::new(&config.source)?;
    let preprocess = &config.preprocess;
    let data = Path::new(&config.dataset.data);
    let mut ids = Ids::default();
    for path in paths {
        item_ids(path, &form, &mut Budget::new(preprocess.max_bad_lines), progress, &mut ids)?;
    }
    let folder = data.join(&config.source.images);
    let has_folder = !config.source.images.is_empty() && folder.is_dir();
    let folder = if has_folder { ImageFolder::read(&folder, &ids)? } else { ImageFolder::default() };
    let reading = Reading {
        form: &form,
        data,
        item_ids: &ids,
        needed: &vec![true; ids.len()],
        folder: &folder,
        max_sentences: preprocess.max_sentences,
        max_images: preprocess.max_images,
    };
    let budget = &mut Budget::new(preprocess.max_bad_lines);
    let (mut catalogue, read) = Catalogue::read(paths, &reading, budget, progress)?;
    let mut items = Items { ids: ids.iter().map(ToString::to_string).collect(), ..Items::default() };
    for item in 0..ids.len() as u32 {
        let record = catalogue.records.remove(&item).unwrap_or_default();
        items.titles.push(record.title);
        items.sentences.push(record.sentences);
        items.images.push(record.images);
        items.categories.push(record.categories);
        items.sounds.push(record.sounds);
    }
    Ok((items, read))
}
