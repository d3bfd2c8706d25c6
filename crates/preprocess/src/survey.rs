//! Inspects a file of unknown format: its dialect, its columns, and what their first values look like.
//!
//! The input is a file that no pipeline describes yet; the output is a [`Survey`], from which a pipeline can be guessed. Everything is
//! recognised by the functions that read the file later.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use mp4sr_artifact::Downloads;
use mp4sr_pipeline::Progress;
use mp4sr_pipeline::config::{Quoting, Source};
use serde_json::Value;

use crate::decimal::Decimal;
use crate::images::{DATA, is_image_name};
use crate::input::check_file;
use crate::junk::{Junk, is_missing};
use crate::read::{
    Dialect, FileFormat, FirstLines, RawCell, Shape, TYPES, columns, count_columns, first_lines, for_each_row,
    guess_separator, literal_of, names_separator, shown_separator, unmarked_utf_16, unreadable_columns,
};
use crate::rejects::excerpt;
use crate::source::{Notation, entries, image_names};
use crate::text::Markup;
use crate::{Error, Result};

/// The number of rows to inspect.
pub const ROWS: u64 = 5000;
/// The number of values of a column that are shown.
const EXAMPLES: usize = 3;
/// The longest name of a column.
const LONGEST_NAME: usize = 64;
/// 1989-01-05: a Unix time is unlikely to be another number from here on.
const RECENT: i128 = 600_000_000;
/// The minimum share of values that a notation must be able to read.
const MOST: f64 = 0.9;
/// Possible separators of several values in a cell.
const SEPARATORS: [&str; 6] = ["|", " > ", ";", ", ", ",", " "];

/// What the first rows of a file show.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The path of the file.
    pub path: PathBuf,
    /// A description of the file's format.
    pub format: String,
    /// Whether it is one of `RecBole`'s atomic files.
    pub is_atomic: bool,
    /// Whether it is a table of text, which has a dialect.
    pub is_table: bool,
    /// The separator of the columns of a table of text.
    pub separator: String,
    /// Whether the separator is found without `source.separator`.
    pub separator_is_usual: bool,
    /// Whether the first line has the names of the columns; otherwise they are named by their position.
    pub has_header: bool,
    /// Whether it is uncertain if the first line is a header.
    pub header_doubt: bool,
    /// The encoding, if it is neither UTF-8 nor UTF-16 with a byte order mark.
    pub encoding: Option<String>,
    /// Whether all characters that were seen are ASCII, so any encoding reads them alike.
    pub is_ascii: bool,
    /// Whether quotation marks in quoted fields have a backslash before them.
    pub escapes: bool,
    /// Whether all fields of text are quoted, which only this survey shows.
    pub quotes_all: bool,
    /// The columns, in their order.
    pub columns: Vec<ColumnSurvey>,
    /// The columns that are not read because of their type, with the type.
    pub unread: Vec<(String, String)>,
    /// The number of inspected rows that could be read, without the header.
    pub rows: u64,
    /// The number of inspected rows that could not be read.
    pub unreadable: u64,
    /// The reason why the first unreadable row cannot be read.
    pub first_fault: Option<String>,
    /// Whether these are all rows of the file.
    pub is_whole: bool,
    file: FileFormat,
}

/// What the first values of a column show.
#[derive(Clone, Debug, Default)]
pub struct ColumnSurvey {
    /// The name of the column.
    pub name: String,
    /// The number of rows with a value that has content.
    pub filled: u64,
    /// The number of distinct values among them.
    pub distinct: u64,
    /// The number of values that are numbers.
    pub numbers: u64,
    /// The number of values that are whole numbers.
    pub whole: u64,
    /// The least and the greatest number, in values or in lists of times.
    pub range: Option<(f64, f64)>,
    /// The number of values that are booleans.
    pub truths: u64,
    /// The number of values that are lists, as JSON or as text.
    pub lists: u64,
    /// The number of values that are objects.
    pub objects: u64,
    /// The number of values with a URL or the bytes of an image.
    pub image_urls: u64,
    /// The number of values with the name of an image file.
    pub image_files: u64,
    /// The number of values with any URL.
    pub urls: u64,
    /// The number of values with HTML.
    pub html: u64,
    /// The number of values that mark a missing value, such as `nan`.
    pub marks: u64,
    /// The mean number of characters per value.
    pub characters: f64,
    /// The mean number of words per value.
    pub words: f64,
    /// The notation of time of the values; an error if they may have several.
    pub time: Option<std::result::Result<TimeNotation, String>>,
    /// The share of the values that this notation can read.
    pub time_share: f64,
    /// The first value that it cannot read, shortened.
    pub first_other_time: Option<String>,
    /// The share of the values that are Unix times since 1989 in the unit of the notation; 0 for other notations, and if any of the values is
    /// a time between 1970 and 1989.
    pub recent_share: f64,
    /// The separator of several times in a value; empty if a value is one time or a list.
    pub time_separator: String,
    /// The separator of several short values in a cell, with the share of cells that have it.
    pub separator: Option<(String, f64)>,
    /// Whether all values between this separator are whole numbers, on average at least three in a cell.
    pub separates_numbers: bool,
    /// The first distinct values, shortened.
    pub examples: Vec<String>,
    /// The first image names.
    pub images: Vec<String>,
}

/// A notation of time, as a key of the pipeline and in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeNotation {
    /// The value of `source.time`; empty if the type of the column determines it.
    pub key: String,
    /// The description of the notation in words.
    pub described: String,
    /// Whether it is Unix time, which other numbers may look like.
    pub is_number: bool,
}

/// What a user states about a file before it is inspected.
#[derive(Clone, Copy, Debug, Default)]
pub struct KnownLayout<'k> {
    /// The dialect as far as it is known.
    pub source: Option<&'k Source>,
    /// Whether the first line has the names of the columns.
    pub header: Option<bool>,
}

impl Survey {
    /// Inspects the first rows of a file.
    pub fn of(path: &Path, items: bool, known: KnownLayout<'_>) -> Result<Self> {
        check_file(path)?;
        let usual = Source::default();
        let dialect = Dialect::new(known.source.unwrap_or(&usual), items)?;
        let named = dialect.encoding.map_or_else(|| unmarked_utf_16(path), |named| Ok(Some(named)))?;
        let shape = Shape::of(path, named)?;
        let mut file = FileFormat { shape, dialect, optional: true, items };
        let first = if shape == Shape::Parquet { FirstLines::default() } else { first_lines(path, &file)? };
        let encoding = first.encoding;
        file.dialect.encoding = file.dialect.encoding.or(encoding);
        let (mut usual_separator, mut escapes) = (true, false);
        let mut names = match shape {
            Shape::Parquet | Shape::JsonLines => columns(path, &file)?,
            _ => Vec::new(),
        };
        let unread = if shape == Shape::Parquet { unreadable_columns(path)? } else { Vec::new() };
        names.retain(|name| unread.iter().all(|(other, _)| other != name));
        if file.is_table() {
            usual_separator = find_separator(path, &mut file, &first)?;
            escapes = file.dialect.escape.is_none() && escapes_quotes(&file, &first.escapes);
            if escapes {
                file.dialect.escape = Some(b'\\');
            }
            names.clone_from(&file.dialect.names);
        }
        let mut rows = SurveyRows::read(path, &file, &names, ROWS)?;
        let (mut has_header, mut header_doubt) = (true, false);
        // Other files have the extension `.item` too, such as those of MovieLens.
        let is_atomic = shape == Shape::RecBole && has_types(&rows.cells);
        if file.is_table() {
            (has_header, header_doubt) = match known.header {
                Some(has) => (has, false),
                None if is_atomic => (true, false),
                None => header_of(&rows.cells),
            };
            if has_header {
                names = header_names(path, &file, &rows)?;
                rows.drop_first();
            }
        }
        expect_readable(path, &rows)?;
        // With commas and semicolons, fields are read as quoted anyway, and a header of quoted names shows it.
        let separator = file.dialect.separator.as_str();
        let names_show_it = has_header && first.lines.first().is_some_and(|line| line.split(separator).all(is_quoted));
        let is_usual = names_show_it || [",", ";"].contains(&separator);
        let quotes_all = file.is_table() && !is_usual && file.dialect.quotes() == Quoting::Always;
        let comma = file.dialect.decimal_comma;
        let surveyed =
            names.iter().zip(&rows.cells).map(|(name, cells)| ColumnSurvey::of(name, cells, comma)).collect();
        Ok(Self {
            path: path.to_owned(),
            format: format_of(&file, has_header, is_atomic),
            is_atomic,
            is_table: file.is_table(),
            separator: file.dialect.separator.clone(),
            separator_is_usual: usual_separator,
            has_header,
            header_doubt,
            encoding: encoding.map(|encoding| encoding.name().to_lowercase()),
            is_ascii: first.lines.iter().all(|line| line.is_ascii()) && encoding.is_none(),
            escapes,
            quotes_all,
            columns: surveyed,
            unread,
            rows: rows.count(),
            unreadable: rows.unreadable,
            first_fault: rows.first_fault,
            is_whole: rows.is_whole,
            file,
        })
    }

    /// Whether it is text, which has an encoding.
    pub fn is_text(&self) -> bool {
        self.file.shape != Shape::Parquet
    }

    /// The column called `name`.
    pub fn column(&self, name: &str) -> Option<&ColumnSurvey> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The values of some columns in the first `limit` rows, each with the number of its occurrences, and the number of rows. Several
    /// values in a cell are split at `separator`; a list counts as its entries.
    pub fn values(&self, wanted: &[&str], separator: &str, limit: u64) -> Result<(Vec<HashMap<String, u64>>, u64)> {
        let index_of = |name: &&str| self.columns.iter().position(|column| column.name == *name);
        let names: Vec<&str> = if self.is_table && !self.file.dialect.names.is_empty() {
            wanted.iter().map(|name| index_of(name).map_or("", |at| self.file.dialect.names[at].as_str())).collect()
        } else {
            wanted.to_vec()
        };
        let mut found = vec![HashMap::new(); wanted.len()];
        let (mut rows, mut is_header) = (0, self.is_table && self.has_header);
        let bar = Progress::new(true).bytes("", 0);
        for_each_row(&self.path, &self.file, &names, Some(limit), &bar, &mut |(_, row)| {
            let Ok(cells) = row else { return Ok(()) };
            if std::mem::take(&mut is_header) {
                return Ok(());
            }
            rows += 1;
            for (cell, found) in cells.iter().zip(&mut found) {
                for value in ids_of(cell, separator) {
                    *found.entry(value).or_insert(0) += 1;
                }
            }
            Ok(())
        })?;
        Ok((found, rows))
    }
}

/// Refuses a file without rows, and one of whose first rows most cannot be read.
fn expect_readable(path: &Path, rows: &SurveyRows) -> Result<()> {
    if rows.count() == 0 {
        let why = rows.first_fault.as_ref().map_or("none follows its header".to_owned(), |fault| {
            format!("its first {} lines were rejected, the first for: {fault}", rows.unreadable)
        });
        return Err(Error::raw(
            path,
            format!("has no line that can be read: {why}; correct the file, or name another one"),
        ));
    }
    if let Some(fault) = rows.first_fault.as_ref().filter(|_| rows.unreadable > rows.count()) {
        return Err(Error::raw(
            path,
            format!(
                "has {} lines that cannot be read, of the first {}, the first for: {fault}; write one event or item per line, with the same \
                 number of columns in each line",
                rows.unreadable,
                rows.unreadable + rows.count()
            ),
        ));
    }
    Ok(())
}

/// The ids in a cell: one, those of a list, or those between separators.
fn ids_of(cell: &RawCell<'_>, separator: &str) -> Vec<String> {
    match cell {
        RawCell::Json(Value::Array(_)) => entries(cell, ""),
        RawCell::Text(text) if !separator.is_empty() => {
            text.split(separator).map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        }
        RawCell::Text(text) if text.starts_with('[') && literal_of(text).is_some() => entries(cell, ""),
        _ => {
            let is_present = |id: &str| !id.trim().is_empty() && !is_missing(id.trim());
            cell.text().filter(|id| is_present(id)).map(|id| id.trim().to_owned()).into_iter().collect()
        }
    }
}

/// Finds the separator and names the columns by position. Returns whether the separator is found without `source.separator`.
fn find_separator(path: &Path, file: &mut FileFormat, first: &FirstLines) -> Result<bool> {
    let is_mark = |line: &&String| names_separator(line.as_bytes());
    let lines: Vec<String> = first.lines.iter().filter(|line| !is_mark(line)).cloned().collect();
    let mut usual = true;
    if file.dialect.separator.is_empty() {
        let plain = guess_separator(&lines, file);
        // Quotation marks with a backslash before them hide the separator.
        let mut escaped = file.clone();
        escaped.dialect.escape = escaped.dialect.escape.or(Some(b'\\'));
        let with_escapes = if first.escapes.is_empty() { None } else { guess_separator(&lines, &escaped) };
        let agreeing = |guess: &Option<(String, usize, usize)>| guess.as_ref().map_or(0, |(.., count)| *count);
        let guessed = if agreeing(&with_escapes) > agreeing(&plain) { with_escapes } else { plain };
        let Some((separator, ..)) = guessed else {
            let shown = lines.first().map(|line| excerpt(line)).unwrap_or_default();
            return Err(Error::raw(
                path,
                format!(
                    "has lines that no separator divides into the same number of columns; its first line is `{shown}`; name what \
                     separates them with `--separator`, or write the table as CSV"
                ),
            ));
        };
        usual = separator == file.shape.separator();
        file.dialect.separator = separator;
    }
    let separator = file.dialect.separator.clone();
    if file.dialect.quotes() == Quoting::Recognised && quotes_all(&lines, &separator) {
        file.dialect.quoting = Quoting::Always;
    }
    file.dialect.decimal_comma = file.dialect.decimal_comma || separator == ";";
    let width = lines.first().and_then(|line| count_columns(&file.dialect, line)).unwrap_or(1);
    file.dialect.names = (1..=width).map(|at| format!("column_{at}")).collect();
    Ok(usual)
}

/// Whether the program that wrote the lines quotes all fields, or all those of a column.
fn quotes_all(lines: &[String], separator: &str) -> bool {
    let Some((first, others)) = lines.split_first() else { return false };
    if first.split(separator).all(is_quoted) {
        return true;
    }
    let mut columns = first.split(separator).enumerate().filter(|(_, field)| is_quoted(field));
    columns.any(|(at, _)| {
        let mut fields =
            others.iter().filter_map(|line| line.split(separator).nth(at)).filter(|field| !field.is_empty());
        !others.is_empty() && fields.all(is_quoted)
    })
}

fn is_quoted(field: &str) -> bool {
    field.len() > 1 && field.starts_with('"') && field.ends_with('"')
}

/// Whether quoted fields contain quotation marks after a backslash: marks that neither end the field nor are doubled.
fn escapes_quotes(file: &FileFormat, lines: &[String]) -> bool {
    let separator = file.dialect.separator.as_str();
    file.dialect.quotes() == Quoting::Always
        && lines.iter().any(|line| {
            line.match_indices("\\\"").any(|(at, mark)| {
                let after = &line[at + mark.len()..];
                !(after.is_empty() || after.starts_with(separator) || after.starts_with('"'))
            })
        })
}

/// The first rows, column by column.
struct SurveyRows {
    cells: Vec<Vec<RawCell<'static>>>,
    unreadable: u64,
    first_fault: Option<String>,
    is_whole: bool,
}

impl SurveyRows {
    fn read(path: &Path, file: &FileFormat, names: &[String], limit: u64) -> Result<Self> {
        let mut rows = Self { cells: vec![Vec::new(); names.len()], unreadable: 0, first_fault: None, is_whole: true };
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let bar = Progress::new(true).bytes("", 0);
        let mut read = 0;
        for_each_row(path, file, &names, Some(limit + 1), &bar, &mut |(line, row)| {
            read += 1;
            if read > limit {
                return Ok(());
            }
            match row {
                Ok(cells) => {
                    for (column, cell) in rows.cells.iter_mut().zip(cells) {
                        column.push(cell.clone().into_owned());
                    }
                }
                Err(fault) => {
                    rows.unreadable += 1;
                    rows.first_fault.get_or_insert_with(|| format!("line {line}: {} ({})", fault.reason, fault.found));
                }
            }
            Ok(())
        })?;
        rows.is_whole = read <= limit;
        Ok(rows)
    }

    fn count(&self) -> u64 {
        self.cells.first().map_or(0, Vec::len) as u64
    }

    fn drop_first(&mut self) {
        self.cells.iter_mut().filter(|cells| !cells.is_empty()).for_each(|cells| drop(cells.remove(0)));
    }
}

/// Whether the first row has the names of the columns, and whether that is doubtful.
fn header_of(columns: &[Vec<RawCell<'static>>]) -> (bool, bool) {
    // A spreadsheet may have columns without content after the last one.
    let is_used = |cells: &&Vec<RawCell<'static>>| cells.iter().any(|cell| !cell.is_blank());
    let columns: Vec<&Vec<RawCell<'static>>> = columns.iter().filter(is_used).collect();
    let first: Vec<String> =
        columns.iter().map(|cells| cells.first().map(RawCell::shown).unwrap_or_default()).collect();
    let is_value = |text: &String| {
        let cell = RawCell::Text(text.as_str().into());
        let has_time = matches!(Notation::recognised(std::slice::from_ref(&cell), false), Ok(Some(_)) | Err(_));
        cell.decimal(true).is_some() || has_time || text.contains("://") || text.chars().count() > LONGEST_NAME
    };
    let distinct: HashSet<&String> = first.iter().collect();
    // pandas leaves the name of an index column empty.
    let blank = first.iter().filter(|text| text.trim().is_empty()).count();
    if first.iter().any(is_value) || distinct.len() < first.len() || blank > 1 {
        return (false, false);
    }
    let recurs =
        columns.iter().zip(&first).any(|(cells, first)| cells.iter().skip(1).any(|cell| cell.shown() == *first));
    if recurs {
        return (false, true);
    }
    // Text above numbers is a name.
    let has_numbers = columns.iter().any(|cells| {
        let filled = || cells.iter().skip(1).filter(|cell| !cell.is_blank());
        filled().next().is_some() && filled().all(|cell| cell.decimal(true).is_some())
    });
    let is_word = |text: &&String| text.chars().all(|c| c.is_alphanumeric() || "_-. ()/:#".contains(c));
    (true, !(has_numbers || first.iter().all(|text| is_word(&text) && !text.contains(|c: char| c.is_ascii_digit()))))
}

/// Whether the first row has names with types, as `RecBole` writes them (`user_id:token`).
fn has_types(columns: &[Vec<RawCell<'static>>]) -> bool {
    let is_typed = |cell: &RawCell<'_>| {
        cell.text().is_some_and(|text| text.split_once(':').is_some_and(|(_, kind)| TYPES.contains(&kind)))
    };
    columns.iter().all(|cells| cells.first().is_some_and(is_typed))
}

/// The names in the header.
fn header_names(path: &Path, file: &FileFormat, rows: &SurveyRows) -> Result<Vec<String>> {
    // The reader of headers also knows the types of atomic files.
    let mut dialect = file.dialect.clone();
    dialect.names.clear();
    let names = columns(path, &FileFormat { dialect, ..file.clone() })?;
    if names.len() != rows.cells.len() {
        return Err(Error::raw(
            path,
            format!("has a header of {} columns above lines of {}; correct the header", names.len(), rows.cells.len()),
        ));
    }
    Ok(names)
}

fn format_of(file: &FileFormat, has_header: bool, is_atomic: bool) -> String {
    let encoding = match file.dialect.encoding {
        Some(encoding) => format!(", {} text", encoding.name()),
        None => String::new(),
    };
    let described = match file.shape {
        Shape::Parquet => return "Parquet".to_owned(),
        Shape::JsonLines => "JSON objects".to_owned(),
        Shape::RecBole if is_atomic => "an atomic file of RecBole".to_owned(),
        Shape::RecBole | Shape::Csv | Shape::Tsv => {
            let header = if has_header { "with a header" } else { "without a header" };
            let separator = match file.dialect.separator.as_str() {
                "," => "commas".to_owned(),
                ";" => "semicolons".to_owned(),
                other if shown_separator(other) == other => format!("`{other}`"),
                other => shown_separator(other).to_owned(),
            };
            format!("a table separated by {separator}, {header}")
        }
    };
    format!("{described}{encoding}")
}

impl ColumnSurvey {
    fn of(name: &str, cells: &[RawCell<'static>], comma: bool) -> Self {
        let mut column = Self { name: name.to_owned(), ..Self::default() };
        let junk = Junk::default();
        let mut distinct = HashSet::new();
        let (mut characters, mut words) = (0, 0);
        let mut filled = Vec::with_capacity(cells.len());
        for cell in cells.iter().filter(|cell| !cell.is_blank()) {
            let shown = cell.shown();
            if matches!(cell, RawCell::Text(text) if junk.reason(text).is_some()) {
                column.marks += 1;
                continue;
            }
            filled.push(cell.clone());
            column.inspect(cell, &shown, comma);
            characters += shown.chars().count();
            words += shown.split_whitespace().count();
            if distinct.insert(shown.clone()) && column.examples.len() < EXAMPLES {
                column.examples.push(excerpt(&shown));
            }
        }
        column.filled = filled.len() as u64;
        column.distinct = distinct.len() as u64;
        let mean = |total: usize| if filled.is_empty() { 0.0 } else { total as f64 / filled.len() as f64 };
        (column.characters, column.words) = (mean(characters), mean(words));
        column.find_separator(&filled);
        column.find_time(&filled, comma);
        column
    }

    fn inspect(&mut self, cell: &RawCell<'_>, shown: &str, comma: bool) {
        if let Some(number) = cell.decimal(comma) {
            self.numbers += 1;
            self.whole += u64::from(number.digits == 0);
            self.extend_range(number);
            return;
        }
        let lower = shown.to_lowercase();
        self.truths += u64::from(lower == "true" || lower == "false");
        let literal = match cell {
            RawCell::Json(value) => Some(value.clone()),
            RawCell::Text(text) => literal_of(text),
            _ => None,
        };
        self.lists += u64::from(matches!(literal, Some(Value::Array(_))));
        self.objects += u64::from(matches!(literal, Some(Value::Object(_))));
        let names = image_names(cell, "");
        let path_of = |name: &str| Path::new(name.split(['?', '#']).next().unwrap_or(name)).to_owned();
        let is_image = |name: &String| is_image_name(&path_of(name));
        self.urls += u64::from(names.iter().any(|name| Downloads::is_url(name)));
        let embedded = |name: &String| name.starts_with(DATA);
        if names.iter().any(|name| (Downloads::is_url(name) && is_image(name)) || embedded(name)) {
            self.image_urls += 1;
        } else if names.iter().any(|name| is_image(name) && !name.contains(char::is_whitespace)) {
            self.image_files += 1;
        }
        if self.images.len() < EXAMPLES {
            self.images.extend(names.into_iter().find(is_image));
        }
        if shown.contains(['<', '&']) {
            self.html += u64::from(entries(cell, "").iter().any(|text| Markup::Html.is_in(text)));
        }
    }

    fn extend_range(&mut self, number: Decimal) {
        if let Ok(value) = format!("{}e-{}", number.value, number.digits).parse::<f64>() {
            let (least, most) = self.range.unwrap_or((value, value));
            self.range = Some((least.min(value), most.max(value)));
        }
    }

    /// Finds the notation of the times in the values, in their lists, or, if that reads more of them, between separators.
    fn find_time(&mut self, cells: &[RawCell<'static>], comma: bool) {
        if self.lists * 2 > cells.len() as u64 {
            let lists = cells.iter().filter_map(|cell| match cell {
                RawCell::Json(Value::Array(values)) => Some(values.clone()),
                RawCell::Text(text) => literal_of(text)?.as_array().cloned(),
                _ => None,
            });
            let of_lists: Vec<RawCell<'static>> = lists.flatten().map(RawCell::of_json).collect();
            return self.find_time_of(&of_lists, comma);
        }
        self.find_time_of(cells, comma);
        let Some((separator, _)) = self.separator.clone().filter(|_| self.time_share < MOST) else { return };
        let whole = (self.time.take(), self.time_share, self.first_other_time.take(), self.recent_share);
        let texts = cells.iter().filter_map(RawCell::text);
        let parts = texts.flat_map(|text| {
            text.split(&separator).map(|part| RawCell::Text(Cow::Owned(part.trim().to_owned()))).collect::<Vec<_>>()
        });
        self.find_time_of(&parts.collect::<Vec<RawCell<'static>>>(), comma);
        if self.time.is_some() && self.time_share > whole.1 {
            self.time_separator = separator;
        } else {
            (self.time, self.time_share, self.first_other_time, self.recent_share) = whole;
        }
    }

    fn find_time_of(&mut self, cells: &[RawCell<'static>], comma: bool) {
        let notation = match Notation::recognised(cells, comma) {
            Ok(None) => return,
            Err(problem) => {
                let read = cells.iter().filter(|cell| Notation::Mixed.read("", cell, comma).is_ok()).count();
                self.time_share = read as f64 / cells.len().max(1) as f64;
                // If nearly every value can be read by itself, the column is mixed; otherwise its notation stays ambiguous.
                let mixed =
                    TimeNotation { key: "mixed".to_owned(), described: Notation::Mixed.described(), is_number: false };
                let is_mixed = self.time_share >= MOST;
                self.time = Some(if is_mixed { Ok(mixed) } else { Err(problem) });
                return;
            }
            Ok(Some(notation)) => notation,
        };
        let share = |count: usize| count as f64 / cells.len().max(1) as f64;
        let times: Vec<_> = cells.iter().map(|cell| notation.read("", cell, comma)).collect();
        self.time_share = share(times.iter().flatten().count());
        let other = cells.iter().zip(&times).find(|(_, time)| time.is_err());
        self.first_other_time = other.map(|(cell, _)| excerpt(&cell.shown()));
        if matches!(notation, Notation::Unix(_)) {
            // A column of other numbers also has some in between.
            let is_early = |time: &Decimal| (1..RECENT).contains(&time.floor());
            let recent = times.iter().flatten().filter(|time| time.floor() >= RECENT).count();
            self.recent_share = if times.iter().flatten().any(is_early) { 0.0 } else { share(recent) };
        }
        self.time = Some(Ok(TimeNotation {
            key: notation.key().unwrap_or_default(),
            described: notation.described(),
            is_number: matches!(notation, Notation::Unix(_)),
        }));
        if self.range.is_none() {
            cells.iter().filter_map(|cell| cell.decimal(comma)).for_each(|number| self.extend_range(number));
        }
    }

    /// Finds the separator of several short values in a cell: at least 5 % of the cells contain it, and all parts are short.
    fn find_separator(&mut self, cells: &[RawCell<'static>]) {
        let texts: Vec<&str> = cells
            .iter()
            .filter_map(|cell| match cell {
                RawCell::Text(text) if literal_of(text).is_none() => Some(text.trim()),
                _ => None,
            })
            .collect();
        for separator in SEPARATORS {
            let with: Vec<&&str> = texts.iter().filter(|text| text.contains(separator)).collect();
            if with.is_empty() || with.len() * 20 < texts.len() {
                continue;
            }
            let parts: Vec<&str> = with.iter().flat_map(|text| text.split(separator)).map(str::trim).collect();
            let is_short = |part: &&str| part.chars().count() <= 40 && part.split_whitespace().count() <= 5;
            if parts.iter().all(is_short) {
                self.separator = Some((separator.to_owned(), with.len() as f64 / texts.len() as f64));
                let are_numbers = parts.iter().all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
                self.separates_numbers = are_numbers && parts.len() >= 3 * with.len();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(name: &str, content: &[u8]) -> Result<Survey> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        Survey::of(&path, true, KnownLayout::default())
    }

    fn names(survey: &Survey) -> Vec<&str> {
        survey.columns.iter().map(|column| column.name.as_str()).collect()
    }

    fn utf_16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn separators_headers_and_encodings_are_recognised() {
        let numbers = ["column_1", "column_2", "column_3"];
        let named = ["id", "title", "price"];
        for (name, content, separator, columns, rows) in [
            ("a.csv", "id,title,price\n1,\"Lamp, red\",3\n2,Chair,4\n".as_bytes().to_vec(), ",", named, 2),
            ("a.csv", b"id;title;price\r\n1;Lamp, red;3,5\r\n2;Chair, oak;4,0\r\n".to_vec(), ";", named, 2),
            ("a.csv", b"sep=;\r\nid;title;price\r\n1;Lamp;3,5\r\n".to_vec(), ";", named, 1),
            ("a.tsv", b"id\ttitle\tprice\n1\tLamp, red\t3\n".to_vec(), "\t", named, 1),
            ("a.dat", b"1::Lamp: red::Light|Home\n2::Chair::Home\n".to_vec(), "::", numbers, 2),
            ("a.item", b"1|Lamp (1995)|3\n2|Chair (1996)|4\n".to_vec(), "|", numbers, 2),
            ("a.item", b"id:token\ttitle:token_seq\tprice:float\n1\tLamp\t3\n".to_vec(), "\t", named, 1),
            ("a.txt", b"1 20 3\n2 21 4\n".to_vec(), " ", numbers, 2),
            ("a.txt", utf_16("id\ttitle\tprice\n1\tL\u{e4}mpchen\t3\n"), "\t", named, 1),
            ("a.csv", b"id,title,price\n1,\"Lamp\n\nof oak, red\",3\n2,\"Chair\nof oak\",4\n".to_vec(), ",", named, 2),
            ("a.csv", b"\"id\";\"title\";\"price\"\n\"1\";\"A \\\"red\\\" lamp; old\";\"3\"\n".to_vec(), ";", named, 1),
        ] {
            let found = survey(name, &content).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(
                (found.separator.as_str(), names(&found), found.rows),
                (separator, columns.to_vec(), rows),
                "{name}"
            );
        }
        let latin = survey("a.csv", b"id,title\n1,Caf\xe9 au lait\n2,Th\xe9 noir\n").unwrap();
        assert_eq!(latin.encoding.as_deref(), Some("windows-1252"));
        assert_eq!(latin.columns[1].examples, ["Caf\u{e9} au lait", "Th\u{e9} noir"]);
        assert!(survey("a.csv", b"\"id\";\"t\"\n1;\"A \\\"red\\\" lamp\"\n").unwrap().escapes);
        let without = survey("a.txt", b"one line\nand another that is longer\nthree\n").unwrap_err().to_string();
        assert!(without.contains("no separator divides"), "{without}");
        let archive = survey("a.csv", b"PK\x03\x04").unwrap_err().to_string();
        assert!(archive.contains("is a zip archive or a spreadsheet; unpack it"), "{archive}");
    }

    #[test]
    fn columns_are_described_by_their_values() {
        let content = "id,when,pic,link,tags,text,flag,nothing\n\
                       1,2023-01-02,a.png,https://e.org/1,red|blue,\"<b>Soft</b> &amp; warm\",true,nan\n\
                       2,2023-01-03,b.png,https://e.org/2,blue,Plain,false,\n";
        let found = survey("a.csv", content.as_bytes()).unwrap();
        let of = |name: &str| found.column(name).unwrap();
        assert_eq!((of("id").whole, of("id").range), (2, Some((1.0, 2.0))));
        assert!(matches!(&of("when").time, Some(Ok(time)) if time.key == "iso" && !time.is_number));
        assert_eq!((of("pic").image_files, of("link").urls, of("link").image_urls), (2, 2, 0));
        assert_eq!(of("tags").separator.as_ref().map(|(separator, _)| separator.as_str()), Some("|"));
        assert_eq!((of("text").html, of("flag").truths), (1, 2));
        assert_eq!((of("nothing").filled, of("nothing").marks), (0, 1));
    }

    #[test]
    fn ids_are_read_per_row_and_from_lists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tsv");
        std::fs::write(&path, "user\titems\n1\tp1 p2\n2\tp2\n").unwrap();
        let found = Survey::of(&path, false, KnownLayout::default()).unwrap();
        let (values, rows) = found.values(&["items"], " ", 10).unwrap();
        assert_eq!((rows, values[0]["p1"], values[0]["p2"]), (2, 1, 2));
    }
}
