//! Reads the texts and images of the items that occur in interactions.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use indexmap::IndexSet;
use mp4sr_artifact::{ItemsRead, Rejects};
use mp4sr_pipeline::Progress;

use super::events::{Budget, FileReading, read_file};
use super::ids::UnusedIds;
use super::{NumberedIds, SourceFormat, values};
use crate::images::{EmbeddedImages, ImageFolder, Resolver};
use crate::junk::Junk;
use crate::read::{FileFormat, RawCell, columns};
use crate::rejects::{Fault, reject};
use crate::text::{self, Markup};
use crate::{Error, Result};

/// The content of an item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawItem {
    pub title: String,
    pub sentences: Vec<String>,
    pub images: Vec<String>,
    pub categories: Vec<String>,
    pub sounds: Vec<String>,
}

/// What is known about the items of interactions, by their number there.
#[derive(Debug, Default)]
pub struct ItemCatalogue {
    /// The records of the items that are kept.
    pub records: HashMap<u32, RawItem>,
    /// Whether an item has both text and image.
    pub is_complete: Vec<bool>,
    /// Whether an item has a line.
    pub has_line: Vec<bool>,
    /// The items that have a line, in the order of their first lines.
    pub line_order: Vec<u32>,
    /// Items without interactions, by id, if they are kept, in the order of their first lines.
    pub others: indexmap::IndexMap<compact_str::CompactString, RawItem>,
    /// How many items of `line_order` have their first line before that of each of `others`.
    pub before_others: Vec<usize>,
    /// The first ids of lines of items without interactions.
    pub unused: UnusedIds,
    /// The first [`MISSING_FILES`] paths at which images and sounds were looked for and not found.
    pub missing_files: BTreeSet<PathBuf>,
}

/// The number of missing files that are remembered, because each is looked for whenever the stage is checked.
const MISSING_FILES: usize = 100_000;

impl ItemCatalogue {
    fn note_missing(&mut self, paths: Vec<PathBuf>) {
        let room = MISSING_FILES.saturating_sub(self.missing_files.len());
        self.missing_files.extend(paths.into_iter().take(room));
    }
}

/// What to read and how much of it to keep.
pub struct Reading<'a> {
    pub format: &'a SourceFormat,
    pub data: &'a Path,
    pub item_ids: &'a NumberedIds,
    /// The items whose records are kept; for the others, only whether they have text and image is recorded.
    pub needed: &'a [bool],
    pub folder: &'a ImageFolder,
    pub junk: &'a Junk,
    pub embedded: EmbeddedImages<'a>,
    pub max_sentences: usize,
    pub max_images: usize,
    /// Whether items without interactions are kept.
    pub keep_others: bool,
    /// Whether files may lack fields that are named, which is then a warning: all new items may be without an image, for example.
    pub may_lack_fields: bool,
    /// The number of rows that are read of each file; `None` means all.
    pub limit: Option<u64>,
}

/// Counts the lines of a file of items, and those that are items, without keeping any. This is for the fuzz targets.
pub fn count(path: &Path, format: &SourceFormat) -> Result<(u64, u64)> {
    let ids = NumberedIds::default();
    let (folder, junk) = (ImageFolder::default(), Junk::default());
    let data = path.parent().unwrap_or(Path::new("."));
    let reading = Reading {
        format,
        data,
        item_ids: &ids,
        needed: &[],
        folder: &folder,
        junk: &junk,
        embedded: EmbeddedImages::Refused,
        max_sentences: 1,
        max_images: 1,
        keep_others: true,
        may_lack_fields: true,
        limit: None,
    };
    let budget = &mut Budget::new(u64::MAX, 1.0);
    let (_, read, _) = ItemCatalogue::read(&[path.to_owned()], &reading, budget, &Progress::new(true))?;
    Ok((read.files[0].lines, read.files[0].accepted))
}

/// The fields that are read, and the number of lines in which each has a value.
struct Fields<'f> {
    names: Vec<&'f str>,
    filled: Vec<u64>,
}

impl ItemCatalogue {
    /// Drops the records of items without text or image.
    pub fn drop_incomplete(&mut self) {
        let is_complete = |record: &RawItem| !record.sentences.is_empty() && !record.images.is_empty();
        let mut kept = self.others.values().map(&is_complete);
        self.before_others.retain(|_| kept.next().unwrap_or(false));
        self.others.retain(|_, record| is_complete(record));
        self.records.retain(|_, record| is_complete(record));
    }

    /// Reads the files of items, one after the other. Also returns counts and warnings.
    pub fn read(
        paths: &[PathBuf],
        reading: &Reading<'_>,
        budget: &mut Budget,
        progress: &Progress,
    ) -> Result<(Self, ItemsRead, Vec<String>)> {
        let count = reading.item_ids.len();
        let mut catalogue = Self { is_complete: vec![false; count], has_line: vec![false; count], ..Self::default() };
        let mut read = ItemsRead { refused_images: reading.folder.refused().clone(), ..ItemsRead::default() };
        let mut warnings = Vec::new();
        let format = reading.format;
        let names = ItemCells::names(format);
        for path in paths {
            let file_format = super::events::resolved(path, &format.file(path, true)?, &names, progress)?;
            let mut fields = Fields { filled: vec![0; names.len()], names: names.clone() };
            let before = read.rejected.clone();
            // Rejected lines are counted in a separate variable, because `items` borrows `read`.
            let mut rejected = std::mem::take(&mut read.rejected);
            let mut items = ItemLines {
                reading,
                resolver: Resolver::new(path, reading.data, reading.folder, reading.embedded),
                path,
                catalogue: &mut catalogue,
                read: &mut read,
                fields: &mut fields,
            };
            let file = FileReading { path, format: &file_format, fields: &names, limit: reading.limit };
            let counted = read_file(file, &mut rejected, budget, progress, &mut |line, cells| items.line(line, cells))?;
            read.rejected = rejected;
            if counted.accepted == 0 {
                return Err(none_usable(path, counted.lines, &before, &read.rejected));
            }
            warnings.extend(fields.never_filled(path, &file_format, reading)?);
            read.files.push(counted);
        }
        budget.check_share(&read.files, &read.rejected)?;
        let without_line: Vec<bool> = catalogue.has_line.iter().map(|has_line| !has_line).collect();
        read.without_line = without_line.iter().filter(|without| **without).count() as u64;
        let mut looked_up = Ok(());
        reading.item_ids.visit(&without_line, |item, id| {
            match reading.folder.of(id, reading.item_ids, &mut read.refused_images) {
                Ok(images) => {
                    let images = images.unwrap_or_default();
                    catalogue.keep(item, RawItem { images, ..RawItem::default() }, reading);
                }
                Err(error) if looked_up.is_ok() => looked_up = Err(error),
                Err(_) => {}
            }
        })?;
        looked_up?;
        Ok((catalogue, read, warnings))
    }

    fn keep(&mut self, item: usize, mut record: RawItem, reading: &Reading<'_>) {
        record.images.truncate(reading.max_images);
        self.is_complete[item] = !record.sentences.is_empty() && !record.images.is_empty();
        // The filters may leave any item without events, which makes it one of the others.
        if reading.needed[item] || (reading.keep_others && self.has_line[item]) {
            self.records.insert(item as u32, record);
        }
    }
}

/// The error of a file that gave no item.
fn none_usable(path: &Path, lines: u64, before: &Rejects, after: &Rejects) -> Error {
    let new = |reason: &String, count: u64| count - before.0.get(reason).map_or(0, |rejected| rejected.count);
    let most = after.0.iter().map(|(reason, rejected)| (reason, new(reason, rejected.count))).max_by_key(|(_, n)| *n);
    let why = match most.filter(|_| lines > 0) {
        Some((reason, count)) => {
            format!("contains no item: {lines} lines were read and none could be used, {count} for: {reason}")
        }
        None => "contains no item: it has no line after its header".to_owned(),
    };
    Error::raw(path, format!("{why}; correct the file, or name another one in `source.items`"))
}

impl Fields<'_> {
    fn inspect(&mut self, cells: &[RawCell<'_>]) {
        for (filled, cell) in self.filled.iter_mut().zip(cells) {
            *filled += u64::from(!cell.is_blank());
        }
    }

    /// Returns warnings about named fields that no line fills. A field that no line of JSON has is an error, like a column that a table
    /// does not have.
    fn never_filled(&self, path: &Path, file_format: &FileFormat, reading: &Reading<'_>) -> Result<Vec<String>> {
        let mut never: Vec<&str> =
            self.names.iter().zip(&self.filled).filter(|(_, filled)| **filled == 0).map(|(n, _)| *n).collect();
        never.retain(|name| !name.is_empty());
        never.dedup();
        if never.is_empty() || !reading.format.has_named_columns() {
            return Ok(Vec::new());
        }
        let known = columns(path, file_format)?;
        let absent: Vec<&str> = never.iter().copied().filter(|name| !known.iter().any(|known| known == name)).collect();
        // The title has a name by default, even if the user names none.
        let asked = |name: &&&str| **name != mp4sr_pipeline::config::Columns::default().title;
        if let Some(field) = absent.iter().find(asked).filter(|_| !reading.may_lack_fields) {
            let names: Vec<&str> = known.iter().map(String::as_str).collect();
            let near = mp4sr_pipeline::nearest(field, &names)
                .map_or(String::new(), |near| format!(" (did you mean `{near}`?)"));
            let known = crate::rejects::excerpt(&known.join(", "));
            return Err(Error::raw(
                path,
                format!("has no field `{field}` in any line{near}; it has {known}; correct `[source.columns]`"),
            ));
        }
        let describe = |name: &str| {
            if absent.contains(&name) {
                format!(
                    "`{}` has no field `{name}`; it has {}",
                    path.display(),
                    crate::rejects::excerpt(&known.join(", "))
                )
            } else {
                format!("`{name}` of `{}` is empty in every line", path.display())
            }
        };
        Ok(never.into_iter().map(describe).collect())
    }
}

/// Collects the lines of one file.
struct ItemLines<'a, 'r> {
    reading: &'a Reading<'r>,
    resolver: Resolver<'a>,
    path: &'a Path,
    catalogue: &'a mut ItemCatalogue,
    read: &'a mut ItemsRead,
    fields: &'a mut Fields<'r>,
}

/// The cells of a line, by what they hold.
#[derive(Clone, Copy)]
struct ItemCells<'c, 'v> {
    ids: &'c [RawCell<'v>],
    title: &'c RawCell<'v>,
    texts: &'c [RawCell<'v>],
    images: &'c [RawCell<'v>],
    categories: &'c [RawCell<'v>],
    sounds: &'c [RawCell<'v>],
    sentences: &'c [RawCell<'v>],
}

impl<'c, 'v> ItemCells<'c, 'v> {
    /// The fields that are read, in the order in which [`Self::of`] expects their cells.
    fn names(format: &SourceFormat) -> Vec<&str> {
        let title = std::slice::from_ref(&format.title);
        let SourceFormat { item_id, texts, images, categories, sounds, sentences, .. } = format;
        let fields = [item_id.as_slice(), title, texts, images, categories, sounds, sentences];
        fields.into_iter().flatten().map(String::as_str).collect()
    }

    fn of(format: &SourceFormat, cells: &'c [RawCell<'v>]) -> Self {
        let mut rest = cells;
        let mut take = |count: usize| {
            let (own, others) = rest.split_at(count);
            rest = others;
            own
        };
        Self {
            ids: take(format.item_id.len()),
            title: &take(1)[0],
            texts: take(format.texts.len()),
            images: take(format.images.len()),
            categories: take(format.categories.len()),
            sounds: take(format.sounds.len()),
            sentences: take(format.sentences.len()),
        }
    }
}

impl ItemLines<'_, '_> {
    fn line(&mut self, line: u64, all: &[RawCell<'_>]) -> Result<std::result::Result<(), Fault>> {
        let cells = ItemCells::of(self.reading.format, all);
        let id = match values::id(&self.reading.format.item_id, cells.ids) {
            Ok(id) => id,
            Err(fault) => return Ok(Err(fault)),
        };
        self.fields.inspect(all);
        match self.reading.item_ids.find(id.as_ref()).map(|item| item as usize) {
            Some(item) if std::mem::replace(&mut self.catalogue.has_line[item], true) => self.read.repeated += 1,
            Some(item) => {
                self.catalogue.line_order.push(item as u32);
                let record = self.record(&id, line, cells)?;
                self.catalogue.keep(item, record, self.reading);
            }
            None if !self.reading.keep_others => {
                self.read.without_events += 1;
                self.catalogue.unused.push(&id, line);
            }
            None if self.catalogue.others.contains_key(id.as_ref()) => {
                self.read.without_events += 1;
                self.read.repeated += 1;
            }
            None => {
                self.read.without_events += 1;
                self.catalogue.unused.push(&id, line);
                let mut record = self.record(&id, line, cells)?;
                record.images.truncate(self.reading.max_images);
                self.catalogue.before_others.push(self.catalogue.line_order.len());
                self.catalogue.others.insert(id.as_ref().into(), record);
            }
        }
        Ok(Ok(()))
    }

    fn record(&mut self, id: &str, line: u64, cells: ItemCells<'_, '_>) -> Result<RawItem> {
        let reading = self.reading;
        let (path, resolver) = (self.path, &self.resolver);
        let mut junk = Vec::new();
        let (mut record, title, further) = reading.texts(cells, &mut junk);
        junk.into_iter().for_each(|fault| reject(&mut self.read.dropped_texts, path, line, fault));
        self.read.cleaned_titles += u64::from(title);
        self.read.cleaned_texts += u64::from(further);
        let names = reading.image_names(cells.images);
        // Files that are named by the item's id are those that its URLs refer to. They may also be those of another item that has this number
        // elsewhere, so a file of another name that the line names comes first.
        let own = reading.folder.of(id, reading.item_ids, &mut self.read.refused_images)?;
        record.images = match own.filter(|own| !resolver.has_other_file(&names, own)) {
            Some(images) => images,
            None => {
                let mut images = Vec::new();
                for name in names {
                    match resolver.resolve(&name)? {
                        Ok(image) => images.push(image),
                        Err(fault) => {
                            reject(&mut self.read.refused_images, path, line, fault);
                            self.catalogue.note_missing(resolver.missing(&name));
                        }
                    }
                }
                images
            }
        };
        record.categories = reading.categories(cells.categories);
        for name in reading.sound_names(cells.sounds) {
            match resolver.resolve_file(&name, "sound") {
                Ok(sound) => record.sounds.push(sound),
                Err(fault) => {
                    reject(&mut self.read.refused_sounds, path, line, fault);
                    self.catalogue.note_missing(resolver.missing(&name));
                }
            }
        }
        Ok(record)
    }
}

/// Joins the entries of a list.
fn enumeration(mut entries: Vec<String>, markup: Markup) -> String {
    if entries.len() > 1 {
        // An entry of markup alone would leave its comma.
        entries.retain(|entry| text::has_content(&markup.line(entry)));
    }
    values::join(&entries)
}

impl Reading<'_> {
    fn markup(&self, field: &str) -> Markup {
        let is_html = self.format.html.as_ref().is_none_or(|html| html.iter().any(|name| name == field));
        match is_html {
            true if self.format.has_named_columns() => Markup::Html,
            true => Markup::WrappedHtml,
            false => Markup::None,
        }
    }

    /// The texts of a field that have content; the others are added to `junk`.
    fn entries(&self, what: &str, cell: &RawCell<'_>, separator: &str, junk: &mut Vec<Fault>) -> Vec<String> {
        let mut entries = values::entries(cell, separator);
        entries.retain(|text| match self.junk.reason(text) {
            Some(reason) => {
                junk.push(Fault::new(format!("{what}: {reason}"), text));
                false
            }
            None => true,
        });
        entries
    }

    /// The title and the sentences, and whether markup was removed from the title and from the other texts.
    fn texts(&self, cells: ItemCells<'_, '_>, junk: &mut Vec<Fault>) -> (RawItem, bool, bool) {
        let mut record = RawItem::default();
        let markup = self.markup(&self.format.title);
        let titles = self.entries("title", cells.title, "", junk);
        let in_title = titles.iter().any(|title| markup.is_in(title));
        record.title = markup.line(&enumeration(titles, markup));
        let mut in_texts = false;
        // A title is one sentence, even if it contains full stops.
        record.sentences.extend(Some(record.title.clone()).filter(|title| text::has_content(title)));
        for cell in cells.sentences {
            record.sentences.extend(values::entries(cell, "").into_iter().filter(|text| text::has_content(text)));
        }
        for (field, cell) in self.format.texts.iter().zip(cells.texts) {
            let mut entries = self.entries("text", cell, &self.format.text_separator, junk);
            let markup = self.markup(field);
            if !self.format.lists_are_texts && entries.len() > 1 {
                in_texts |= entries.iter().any(|entry| markup.is_in(entry));
                entries = vec![enumeration(entries, markup)];
            }
            for part in entries {
                if record.sentences.len() >= self.max_sentences {
                    in_texts = in_texts || markup.is_in(&part);
                    continue;
                }
                let (sentences, removed) = markup.sentences(&part);
                record.sentences.extend(sentences);
                in_texts |= removed;
            }
        }
        record.sentences.truncate(self.max_sentences);
        (record, in_title, in_texts)
    }

    fn image_names(&self, fields: &[RawCell<'_>]) -> Vec<String> {
        let names = |cell| {
            let mut names = values::images(cell, &self.format.image_separator);
            names.retain(|name| self.junk.reason(name).is_none());
            names
        };
        fields.iter().map(names).find(|names| !names.is_empty()).unwrap_or_default()
    }

    fn categories(&self, cells: &[RawCell<'_>]) -> Vec<String> {
        let fields = self.format.categories.iter().zip(cells);
        let names: IndexSet<String> = fields
            .flat_map(|(field, cell)| {
                let clean = |name: &str| self.markup(field).line(name);
                values::categories(cell, &self.format.category_separator, &clean)
            })
            .filter(|name| self.junk.reason(name).is_none())
            .collect();
        names.into_iter().collect()
    }

    fn sound_names(&self, fields: &[RawCell<'_>]) -> Vec<String> {
        let names = fields.iter().flat_map(|cell| values::images(cell, &self.format.image_separator));
        names.filter(|name| self.junk.reason(name).is_none()).collect()
    }
}

#[cfg(test)]
mod tests {
    use mp4sr_pipeline::config::{Columns, Format, Source};

    use super::*;

    fn read(source: &Source, name: &str, content: &str, ids: &[&str]) -> (Vec<RawItem>, ItemCatalogue, ItemsRead) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let format = SourceFormat::new(source).unwrap();
        let item_ids: NumberedIds = ids.iter().map(|&id| id.into()).collect();
        let reading = Reading {
            format: &format,
            data: folder.path(),
            item_ids: &item_ids,
            needed: &vec![true; ids.len()],
            folder: &ImageFolder::default(),
            junk: &Junk::default(),
            embedded: EmbeddedImages::Refused,
            max_sentences: 4,
            max_images: 2,
            keep_others: false,
            may_lack_fields: false,
            limit: None,
        };
        let (mut catalogue, read, _) =
            ItemCatalogue::read(&[path], &reading, &mut Budget::new(9, 1.0), &Progress::new(true)).unwrap();
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
        assert_eq!((records[1].sentences.len(), &records[2]), (0, &RawItem::default()));
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
        assert_eq!(reasons, ["image file is missing", "image path leaves the data folder"]);
        assert!(records.iter().all(|record| record.images.is_empty()));
    }

    #[test]
    fn sounds_are_files_beside_the_table_and_other_names_are_refused_with_the_reason() {
        let columns = Columns { sounds: "preview".into(), ..Columns::default() };
        let source = Source { format: Format::Tabular, columns, ..Source::default() };
        // The table itself serves as an existing file: only the stage that decodes it reads its content.
        let lines = "{\"item_id\": 1, \"preview\": [\"items.jsonl\", \"https://a/b.flac\"]}\n\
                     {\"item_id\": 2, \"preview\": \"gone.wav\"}\n{\"item_id\": 3, \"preview\": \"../up.wav\"}\n";
        let (records, _, read) = read(&source, "items.jsonl", lines, &["1", "2", "3"]);
        assert_eq!(records.iter().map(|record| record.sounds.len()).collect::<Vec<_>>(), [1, 0, 0]);
        assert!(records[0].sounds[0].ends_with("items.jsonl"));
        let reasons: Vec<&str> = read.refused_sounds.0.keys().map(String::as_str).collect();
        let expected =
            ["sound file is missing", "sound is a URL, expected a local file", "sound path leaves the data folder"];
        assert_eq!(reasons, expected);
        assert!(read.refused_images.0.is_empty());
    }

    #[test]
    fn links_out_of_the_folder_of_images_are_counted_with_the_names_that_were_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("1.jpg"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("2.jpg")).unwrap();
        let item_ids: NumberedIds = ["1", "2"].into_iter().map(Into::into).collect();
        let reading = Reading {
            format: &SourceFormat::new(&of(Format::Amazon2018)).unwrap(),
            data: folder.path(),
            item_ids: &item_ids,
            needed: &[true, true],
            folder: &ImageFolder::read(folder.path(), &item_ids).unwrap(),
            junk: &Junk::default(),
            embedded: EmbeddedImages::Refused,
            max_sentences: 4,
            max_images: 2,
            keep_others: false,
            may_lack_fields: false,
            limit: None,
        };
        let (catalogue, read, _) =
            ItemCatalogue::read(&[], &reading, &mut Budget::new(9, 1.0), &Progress::new(true)).unwrap();
        assert_eq!((catalogue.records[&0].images.len(), catalogue.records[&1].images.len()), (1, 0));
        assert_eq!(read.refused_images.most_frequent(), Some(("image is a link that leads out of its folder", 1)));
    }
}
