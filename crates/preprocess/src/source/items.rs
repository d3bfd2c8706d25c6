//! Texts and images of the items that occur in interactions.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use indexmap::IndexSet;
use mp4sr_artifact::ItemsRead;
use mp4sr_pipeline::Progress;

use super::events::{Budget, read_file};
use super::{Ids, SourceForm, values};
use crate::Result;
use crate::images::{ImageFolder, Resolver};
use crate::read::RawCell;
use crate::rejects::reject;
use crate::text;

/// What is kept of an item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemRecord {
    pub title: String,
    pub sentences: Vec<String>,
    pub images: Vec<String>,
    pub categories: Vec<String>,
    pub sounds: Vec<String>,
}

/// What is known of the items of interactions, by their number there.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// Full records of the items that were asked for.
    pub records: HashMap<u32, ItemRecord>,
    /// Whether an item has both text and image.
    pub is_complete: Vec<bool>,
}

/// What to read and how much of it to keep.
pub struct Reading<'a> {
    pub form: &'a SourceForm,
    pub data: &'a Path,
    pub item_ids: &'a Ids,
    /// Items whose record is kept; of the others only whether they have text and image.
    pub needed: &'a [bool],
    pub folder: &'a ImageFolder,
    pub max_sentences: usize,
    pub max_images: usize,
}

/// Lines of one file of items and how many of them are items, without keeping any: for the fuzz targets.
pub fn count(path: &Path, form: &SourceForm) -> Result<(u64, u64)> {
    let ids = Ids::default();
    let folder = ImageFolder::default();
    let data = path.parent().unwrap_or(Path::new("."));
    let reading = Reading { form, data, item_ids: &ids, needed: &[], folder: &folder, max_sentences: 1, max_images: 1 };
    let budget = &mut Budget::new(u64::MAX);
    let (_, read) = Catalogue::read(&[path.to_owned()], &reading, budget, &Progress::new(true))?;
    Ok((read.files[0].lines, read.files[0].accepted))
}

/// Adds the ids of a file of items to `ids`, in the order of their lines.
pub fn item_ids(path: &Path, form: &SourceForm, budget: &mut Budget, progress: &Progress, ids: &mut Ids) -> Result<()> {
    let fields: Vec<&str> = form.item_id.iter().map(String::as_str).collect();
    let shape = form.shape(path, true)?;
    // The same rows are rejected again, and accounted for, when the items themselves are read.
    let mut rejected = mp4sr_artifact::Rejects::default();
    read_file(path, shape, &fields, &mut rejected, budget, progress, &mut |_, cells| {
        Ok(values::id(&form.item_id, cells).map(|id| {
            ids.insert(id.as_ref().into());
        }))
    })?;
    Ok(())
}

impl Catalogue {
    /// Reads the files of items, one after the other.
    pub fn read(
        paths: &[PathBuf],
        reading: &Reading<'_>,
        budget: &mut Budget,
        progress: &Progress,
    ) -> Result<(Self, ItemsRead)> {
        let count = reading.item_ids.len();
        let mut catalogue = Self { is_complete: vec![false; count], ..Self::default() };
        let mut read = ItemsRead { refused_images: reading.folder.refused().clone(), ..ItemsRead::default() };
        let mut seen = vec![false; count];
        let form = reading.form;
        let mut fields: Vec<&str> = form.item_id.iter().map(String::as_str).collect();
        fields.push(&form.title);
        let others = [&form.images, &form.categories, &form.sounds].into_iter().flatten();
        fields.extend(form.texts.iter().chain(others).map(String::as_str));
        let ids = form.item_id.len();
        for path in paths {
            let resolver = Resolver::new(path, reading.data);
            let shape = form.shape(path, true)?;
            let (mut repeated, mut without_events, mut cleaned_titles, mut cleaned_texts) = (0, 0, 0, 0);
            let mut refused = std::mem::take(&mut read.refused_images);
            let mut refused_sounds = std::mem::take(&mut read.refused_sounds);
            let file = read_file(path, shape, &fields, &mut read.rejected, budget, progress, &mut |line, cells| {
                let id = match values::id(&form.item_id, &cells[..ids]) {
                    Ok(id) => id,
                    Err(fault) => return Ok(Err(fault)),
                };
                match reading.item_ids.get_index_of(id.as_ref()) {
                    None => without_events += 1,
                    Some(item) if std::mem::replace(&mut seen[item], true) => repeated += 1,
                    Some(item) => {
                        let mut record = reading.texts(&cells[ids..]);
                        let (title, further) = reading.has_markup(&cells[ids..]);
                        cleaned_titles += u64::from(title);
                        cleaned_texts += u64::from(further);
                        record.images = match reading.folder.of(item) {
                            // Images in this folder are those that the addresses lead to.
                            Some(images) => images.to_vec(),
                            None => reading
                                .image_names(&cells[ids..])
                                .into_iter()
                                .filter_map(|name| {
                                    resolver
                                        .resolve(&name)
                                        .map_err(|fault| reject(&mut refused, path, line, fault))
                                        .ok()
                                })
                                .collect(),
                        };
                        record.categories = reading.categories(&cells[ids..]);
                        for name in reading.sound_names(&cells[ids..]) {
                            match resolver.resolve_file(&name, "sound") {
                                Ok(sound) => record.sounds.push(sound),
                                Err(fault) => reject(&mut refused_sounds, path, line, fault),
                            }
                        }
                        catalogue.keep(item, record, reading);
                    }
                }
                Ok(Ok(()))
            })?;
            read.files.push(file);
            read.repeated += repeated;
            read.without_events += without_events;
            read.cleaned_titles += cleaned_titles;
            read.cleaned_texts += cleaned_texts;
            read.refused_images = refused;
            read.refused_sounds = refused_sounds;
        }
        for item in (0..count).filter(|&item| !seen[item]) {
            read.without_line += 1;
            let images = reading.folder.of(item).map(<[String]>::to_vec).unwrap_or_default();
            catalogue.keep(item, ItemRecord { images, ..ItemRecord::default() }, reading);
        }
        Ok((catalogue, read))
    }

    fn keep(&mut self, item: usize, mut record: ItemRecord, reading: &Reading<'_>) {
        record.images.truncate(reading.max_images);
        self.is_complete[item] = !record.sentences.is_empty() && !record.images.is_empty();
        if reading.needed[item] {
            self.records.insert(item as u32, record);
        }
    }
}

impl Reading<'_> {
    /// `cells`: title, texts, images, categories, sounds.
    fn texts(&self, cells: &[RawCell<'_>]) -> ItemRecord {
        let mut record = ItemRecord::default();
        let title = values::texts(&cells[0], false);
        record.title = title.first().map(|title| text::line(title)).unwrap_or_default();
        // A title is one sentence, whatever stops it has.
        record.sentences.extend(Some(record.title.clone()).filter(|title| text::says_something(title)));
        for cell in &cells[1..=self.form.texts.len()] {
            for part in values::texts(cell, self.form.lists_are_texts) {
                if record.sentences.len() >= self.max_sentences {
                    break;
                }
                record.sentences.extend(text::sentences(&part));
            }
        }
        record.sentences.truncate(self.max_sentences);
        record
    }

    /// Whether the title, and whether any further text, has tags or entities.
    fn has_markup(&self, cells: &[RawCell<'_>]) -> (bool, bool) {
        let any = |cell: &RawCell<'_>| {
            values::texts(cell, self.form.lists_are_texts).iter().any(|text| text::has_markup(text))
        };
        let title = values::texts(&cells[0], false).first().is_some_and(|title| text::has_markup(title));
        (title, cells[1..=self.form.texts.len()].iter().any(any))
    }

    fn image_names(&self, cells: &[RawCell<'_>]) -> Vec<String> {
        let first = 1 + self.form.texts.len();
        let fields = &cells[first..first + self.form.images.len()];
        fields.iter().map(values::images).find(|names| !names.is_empty()).unwrap_or_default()
    }

    fn categories(&self, cells: &[RawCell<'_>]) -> Vec<String> {
        let first = 1 + self.form.texts.len() + self.form.images.len();
        let fields = &cells[first..first + self.form.categories.len()];
        let names: IndexSet<String> =
            fields.iter().flat_map(|cell| values::categories(cell, &self.form.category_separator)).collect();
        names.into_iter().collect()
    }

    fn sound_names(&self, cells: &[RawCell<'_>]) -> Vec<String> {
        let fields = &cells[1 + self.form.texts.len() + self.form.images.len() + self.form.categories.len()..];
        fields.iter().flat_map(values::images).collect()
    }
}

#[cfg(test)]
mod tests {
    use mp4sr_pipeline::config::{Columns, Format, Source};

    use super::*;

    fn read(source: &Source, name: &str, content: &str, ids: &[&str]) -> (Vec<ItemRecord>, Catalogue, ItemsRead) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let form = SourceForm::new(source).unwrap();
        let item_ids: Ids = ids.iter().map(|&id| id.into()).collect();
        let reading = Reading {
            form: &form,
            data: folder.path(),
            item_ids: &item_ids,
            needed: &vec![true; ids.len()],
            folder: &ImageFolder::default(),
            max_sentences: 4,
            max_images: 2,
        };
        let (mut catalogue, read) =
            Catalogue::read(&[path], &reading, &mut Budget::new(9), &Progress::new(true)).unwrap();
        let records = (0..ids.len()).map(|item| catalogue.records.remove(&(item as u32)).unwrap()).collect();
        (records, catalogue, read)
    }

    fn of(format: Format) -> Source {
        Source { format, ..Source::default() }
    }

    #[test]
    fn amazon_2018_metadata() {
        let lines = "{\"asin\": \"1\", \"title\": \"Cotton &amp; Silk. No. 2\", \"brand\": \"Acme\", \"category\": [\"Home\", \"Kitchen &amp; Bath\"], \"description\": [\"<p>Soft.</p> \
                     Warm.\"], \"feature\": [\"Red\"], \"imageURL\": [\"https://i/a._SS40_.jpg\"], \"imageURLHighRes\": \
                     [\"https://i/a.jpg\", \"https://i/b.jpg\", \"https://i/c.jpg\"]}\n\
                     {\"asin\": \"1\", \"title\": \"later\"}\n{\"asin\": \"9\"}\n{\"title\": \"x\"}\n\
                     {\"asin\": \"2\", \"title\": \"\", \"imageURL\": [\"https://i/z.jpg\"], \"imageURLHighRes\": []}\n";
        let (records, catalogue, read) = read(&of(Format::Amazon2018), "meta.json", lines, &["1", "2", "3"]);
        assert_eq!(records[0].title, "Cotton & Silk. No. 2");
        assert_eq!(records[0].sentences, ["Cotton & Silk. No. 2", "Acme", "Soft.", "Warm."], "at most four");
        assert_eq!(records[0].images, ["https://i/a.jpg", "https://i/b.jpg"], "at most two");
        assert_eq!(records[0].categories, ["Home", "Kitchen & Bath"]);
        assert_eq!(records[1].images, ["https://i/z.jpg"]);
        assert_eq!((records[1].sentences.len(), &records[2]), (0, &ItemRecord::default()));
        assert_eq!(catalogue.is_complete, [true, false, false]);
        assert_eq!((read.repeated, read.without_events, read.without_line), (1, 1, 1));
        assert_eq!((read.cleaned_titles, read.cleaned_texts), (1, 1));
        assert_eq!(read.rejected.most_frequent(), Some(("no `asin`", 1)));
    }

    #[test]
    fn amazon_2014_and_2023_and_goodreads_items() {
        let python = "{'asin': '1', 'title': \"Kids' set\", 'description': 'One. Two.', 'imUrl': 'http://i/1.jpg'}\n";
        let (records, ..) = read(&of(Format::Amazon2014), "meta.json", python, &["1"]);
        assert_eq!(records[0].sentences, ["Kids' set", "One.", "Two."]);
        assert_eq!(records[0].images, ["http://i/1.jpg"]);
        let new = "{\"parent_asin\": \"P\", \"title\": \"T\", \"store\": null, \"features\": [\"F\"], \"description\": [], \
                   \"images\": [{\"thumb\": \"https://t\", \"large\": \"https://l\", \"hi_res\": null}]}\n";
        let (records, ..) = read(&of(Format::Amazon2023), "meta.jsonl", new, &["P"]);
        assert_eq!((records[0].sentences.join("|"), records[0].images.join("|")), ("T|F".into(), "https://l".into()));
        let book = "{\"book_id\": \"7\", \"title\": \"T\", \"description\": \"A.\\n\\nB\", \"image_url\": \
                    \"https://s.gr-assets.com/assets/nophoto/book/1.png\"}\n";
        let (records, ..) = read(&of(Format::GoodReads), "books.json", book, &["7"]);
        assert_eq!((records[0].sentences.join("|"), records[0].images.len()), ("T|A.|B".into(), 0));
    }

    #[test]
    fn tables_join_lists_and_refuse_images_that_are_not_theirs() {
        let columns = Columns {
            texts: vec!["genres".into()],
            images: "image".into(),
            categories: vec!["genres".into(), "country".into()],
            category_separator: "|".into(),
            ..Columns::default()
        };
        let source = Source { format: Format::Tabular, columns, ..Source::default() };
        let lines = "{\"item_id\": 1, \"title\": \"T\", \"genres\": [\"A\", \"B\"], \"country\": \"X|Y\", \"image\": \"../../etc/passwd\"}\n\
                     {\"item_id\": 2, \"title\": null, \"genres\": [], \"image\": \"gone.jpg\"}\n";
        let (records, _, read) = read(&source, "items.jsonl", lines, &["1", "2"]);
        assert_eq!(records[0].sentences, ["T", "A, B"]);
        assert_eq!((records[0].categories.join(","), records[1].categories.len()), ("A,B,X,Y".into(), 0));
        let reasons: Vec<&str> = read.refused_images.0.keys().map(String::as_str).collect();
        assert_eq!(reasons, ["image file is not there", "image path leaves the data folder"]);
        assert!(records.iter().all(|record| record.images.is_empty()));
    }

    #[test]
    fn sounds_are_files_beside_the_table_and_other_names_are_refused_with_the_reason() {
        let columns = Columns { sounds: "preview".into(), ..Columns::default() };
        let source = Source { format: Format::Tabular, columns, ..Source::default() };
        // The table itself is a file that is there; what it holds is the business of the stage that decodes it.
        let lines = "{\"item_id\": 1, \"preview\": [\"items.jsonl\", \"https://a/b.flac\"]}\n\
                     {\"item_id\": 2, \"preview\": \"gone.wav\"}\n{\"item_id\": 3, \"preview\": \"../up.wav\"}\n";
        let (records, _, read) = read(&source, "items.jsonl", lines, &["1", "2", "3"]);
        assert_eq!(records.iter().map(|record| record.sounds.len()).collect::<Vec<_>>(), [1, 0, 0]);
        assert!(records[0].sounds[0].ends_with("items.jsonl"));
        let reasons: Vec<&str> = read.refused_sounds.0.keys().map(String::as_str).collect();
        let expected = [
            "sound file is not there",
            "sound is an address, expected a local file",
            "sound path leaves the data folder",
        ];
        assert_eq!(reasons, expected);
        assert!(read.refused_images.0.is_empty());
    }

    #[test]
    fn links_out_of_the_folder_of_images_are_counted_with_the_names_that_were_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("1.jpg"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("2.jpg")).unwrap();
        let item_ids: Ids = ["1", "2"].into_iter().map(Into::into).collect();
        let reading = Reading {
            form: &SourceForm::new(&of(Format::Amazon2018)).unwrap(),
            data: folder.path(),
            item_ids: &item_ids,
            needed: &[true, true],
            folder: &ImageFolder::read(folder.path(), &item_ids).unwrap(),
            max_sentences: 4,
            max_images: 2,
        };
        let (catalogue, read) = Catalogue::read(&[], &reading, &mut Budget::new(9), &Progress::new(true)).unwrap();
        assert_eq!((catalogue.records[&0].images.len(), catalogue.records[&1].images.len()), (1, 0));
        assert_eq!(read.refused_images.most_frequent(), Some(("image is a link out of its folder", 1)));
    }
}
