//! Reads raw files as rows of the wanted fields, one row at a time, so that memory does not grow with the file.

mod cell;
mod decode;
mod delimited;
mod dialect;
mod file_format;
mod gunzip;
mod json;
mod lines;
mod literal;
mod open;
mod parquet_events;
mod parquet_rows;

use std::io::Read as _;
use std::path::Path;

use mp4sr_pipeline::Bar;

pub use cell::{RawCell, RawRow};
pub use delimited::{TYPES, count_columns, guess_separator, names_separator};
pub use dialect::{Dialect, shown as shown_separator};
pub use file_format::{FileFormat, Shape};
pub use literal::{of_cell as literal_of, replace_halves};
pub use open::unmarked_utf_16;
pub use parquet_events::{
    EventColumns, TimeType, for_each as for_each_event_rows, is_known as polars_knows, time_type,
};
pub use parquet_rows::{holds_times, unreadable_columns};

use crate::Result;

impl Shape {
    /// The shape that the file's extension implies or, if it implies none, that its first bytes show. `encoding` is the encoding of its
    /// text, if it is given.
    pub fn of(path: &Path, encoding: Option<&'static encoding_rs::Encoding>) -> Result<Self> {
        if let Some(shape) = Self::of_name(path) {
            return Ok(shape);
        }
        let mut start = [0; 4];
        let mut file = mp4sr_artifact::files::open(path)?;
        let read = file.read(&mut start).map_err(|e| mp4sr_artifact::Error::io("read", path, e))?;
        if start[..read] == *b"PAR1" {
            return Ok(Self::Parquet);
        }
        let bar = mp4sr_pipeline::Progress::new(true).bytes("", 0);
        let mut format = FileFormat::of(Self::Tsv);
        format.dialect.encoding = encoding;
        let mut lines = open::open(path, &format, &bar)?;
        if lines.holds_elements()? {
            return Ok(Self::JsonLines);
        }
        let mut line = Vec::new();
        let first = lines.next(&mut line)?.map(|_| line.trim_ascii_start().first().copied());
        Ok(if first == Some(Some(b'{')) { Self::JsonLines } else { Self::Tsv })
    }
}

impl FileFormat {
    #[cfg(test)]
    pub(crate) fn of_name(path: &Path) -> Result<Self> {
        Shape::of(path, None).map(Self::of)
    }

    /// The format with the dialect that the file's first lines show, and a message if that is not what the name of the file implies.
    pub fn resolved(&self, path: &Path, fields: &[&str]) -> Result<(Self, Option<String>)> {
        if !self.is_table() {
            return Ok((self.clone(), None));
        }
        let bar = mp4sr_pipeline::Progress::new(true).bytes("", 0);
        let mut lines = open::open(path, self, &bar)?;
        let dialect = delimited::resolve(&mut lines, self, fields)?;
        let is_other = self.dialect.separator.is_empty() && dialect.separator != self.shape.separator();
        let notice = is_other.then(|| {
            format!("the columns of `{}` are separated by {}", path.display(), shown_separator(&dialect.separator))
        });
        Ok((Self { dialect, ..self.clone() }, notice))
    }
}

/// Passes every row of a file, or the first `limit`, to `visit`; the header is not a row, and a row may take several lines. `bar` advances
/// with the bytes that are read.
pub fn for_each_row(
    path: &Path,
    format: &FileFormat,
    fields: &[&str],
    limit: Option<u64>,
    bar: &Bar,
    visit: &mut dyn FnMut(RawRow<'_, '_>) -> Result<()>,
) -> Result<()> {
    if format.shape == Shape::Parquet {
        return parquet_rows::for_each(path, format.optional, fields, limit, bar, visit);
    }
    let mut lines = open::open(path, format, bar)?;
    if let Some(limit) = limit {
        lines.stop_after_records(limit);
    }
    match format.shape {
        Shape::JsonLines => json::for_each(&mut lines, fields, visit)?,
        _ => delimited::for_each(&mut lines, format, fields, visit)?,
    }
    if limit.is_some() { Ok(()) } else { lines.check_encoding() }
}

/// Counts the rows of a text file as [`for_each_row`] passes them, up to the row that contains byte `bytes` of the text, and returns
/// whether these are all.
pub fn count_first_rows(path: &Path, format: &FileFormat, bytes: u64, bar: &Bar) -> Result<(u64, bool)> {
    let (format, _) = format.resolved(path, &[])?;
    let mut lines = open::open(path, &format, bar)?;
    lines.stop_after_bytes(bytes);
    let mut rows = 0;
    let mut count = |_: RawRow<'_, '_>| {
        rows += 1;
        Ok(())
    };
    match format.shape {
        Shape::JsonLines => json::for_each(&mut lines, &[], &mut count)?,
        _ => delimited::for_each(&mut lines, &format, &[], &mut count)?,
    }
    Ok((rows, !lines.is_stopped()))
}

/// What the first lines of a text file show before its dialect is known.
#[derive(Debug, Default)]
pub struct FirstLines {
    /// The first lines that are not blank.
    pub lines: Vec<String>,
    /// The first lines with a backslash before a quotation mark.
    pub escapes: Vec<String>,
    /// The encoding, if it is neither UTF-8 nor UTF-16 with a byte order mark.
    pub encoding: Option<&'static encoding_rs::Encoding>,
}

/// The number of lines that are kept.
const FIRST: usize = 200;
/// The number of bytes that are inspected to recognise an encoding.
const LOOKED_AT: usize = 64 << 20;

/// Inspects the first lines of a text file.
pub fn first_lines(path: &Path, format: &FileFormat) -> Result<FirstLines> {
    let mut found = FirstLines { encoding: open::unmarked_utf_16(path)?, ..FirstLines::default() };
    let mut format = format.clone();
    format.dialect.encoding = format.dialect.encoding.or(found.encoding);
    let knows_encoding = format.dialect.encoding.is_some();
    let bar = mp4sr_pipeline::Progress::new(true).bytes("", 0);
    let mut lines = open::open(path, &format, &bar)?;
    let mut detector = chardetng::EncodingDetector::new(chardetng::Iso2022JpDetection::Allow);
    let (mut line, mut bytes) = (Vec::new(), 0);
    while let Some((_, outcome)) = lines.next(&mut line)? {
        bytes += line.len();
        if bytes > LOOKED_AT {
            break;
        }
        if outcome.is_err() || line.trim_ascii().is_empty() {
            continue;
        }
        if !line.is_ascii() {
            detector.feed(&line, false);
        }
        let shown = || String::from_utf8_lossy(&line).into_owned();
        if found.lines.len() < FIRST {
            found.lines.push(shown());
        }
        if found.escapes.len() < FIRST && line.windows(2).any(|pair| pair == b"\\\"") {
            found.escapes.push(shown());
        }
    }
    if !knows_encoding && lines.check_encoding().is_err() {
        detector.feed(b"", true);
        found.encoding = Some(detector.guess(None, chardetng::Utf8Detection::Deny));
    }
    Ok(found)
}

/// The cells of one field in the first rows of a file.
pub fn sample(path: &Path, format: &FileFormat, field: &str, count: u64) -> Result<Vec<RawCell<'static>>> {
    let bar = mp4sr_pipeline::Progress::new(true).bytes("", 0);
    let mut cells = Vec::new();
    for_each_row(path, format, &[field], Some(count), &bar, &mut |(_, row)| {
        if let Ok([cell]) = row {
            cells.push(cell.clone().into_owned());
        }
        Ok(())
    })?;
    Ok(cells)
}

/// The number of JSON objects that are inspected for the names of their fields.
const SAMPLED: u64 = 1000;

/// The names of the columns of a file; for JSON, those of its first objects.
pub fn columns(path: &Path, format: &FileFormat) -> Result<Vec<String>> {
    if format.shape == Shape::Parquet {
        return parquet_events::columns(path);
    }
    let bar = mp4sr_pipeline::Progress::new(true).bytes("", 0);
    let mut lines = open::open(path, format, &bar)?;
    match format.shape {
        Shape::JsonLines => json::columns(&mut lines, SAMPLED),
        _ => delimited::columns(&mut lines, format),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Every row of a file as text: `line: field|field` or `line: reason (found)`.
    pub(crate) fn rows(path: &Path, format: &FileFormat, fields: &[&str]) -> Result<Vec<String>> {
        let bar = mp4sr_pipeline::Progress::new(true).bytes("test", 0);
        let mut rows = Vec::new();
        let (format, _) = format.resolved(path, fields)?;
        for_each_row(path, &format, fields, None, &bar, &mut |(line, row)| {
            rows.push(match row {
                Ok(cells) => {
                    let cells: Vec<String> =
                        cells.iter().map(|cell| cell.text().unwrap_or("-".into()).into()).collect();
                    format!("{line}: {}", cells.join("|"))
                }
                Err(fault) => format!("{line}: {} ({})", fault.reason, fault.found),
            });
            Ok(())
        })?;
        Ok(rows)
    }

    /// The rows of a file with this content.
    pub(crate) fn rows_of(name: &str, content: &[u8], fields: &[&str]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        rows(&path, &FileFormat::of_name(&path)?, fields)
    }

    pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }
}

#[cfg(test)]
mod tests {
    use mp4sr_pipeline::Progress;

    use super::*;

    /// The titles in the first `limit` rows of a file, and how many rows its first bytes hold.
    fn first(name: &str, content: &str, limit: u64) -> (Vec<String>, (u64, bool)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let (format, _) = FileFormat::of_name(&path).unwrap().resolved(&path, &["title"]).unwrap();
        let bar = Progress::new(true).bytes("", 0);
        let mut titles = Vec::new();
        for_each_row(&path, &format, &["title"], Some(limit), &bar, &mut |(_, row)| {
            let Ok([cell]) = row else { panic!("{name}: every row has a title") };
            titles.push(cell.text().unwrap().trim().to_owned());
            Ok(())
        })
        .unwrap();
        (titles, count_first_rows(&path, &format, content.len() as u64 / 2, &bar).unwrap())
    }

    #[test]
    fn limits_count_rows_however_many_lines_they_take() {
        let rows = |row: &dyn Fn(usize) -> String, between: &str| (0..9).map(row).collect::<Vec<_>>().join(between);
        let files = [
            ("lines.jsonl", rows(&|i| format!("{{\"title\": \"t{i}\"}}"), "\n")),
            ("array.json", format!("[{}]", rows(&|i| format!("{{\"title\": \"t{i}\"}}"), ", "))),
            ("pretty.json", format!("[\n{}\n]\n", rows(&|i| format!("  {{\n    \"title\": \"t{i}\"\n  }}"), ",\n"))),
            ("breaks.csv", format!("id,title\n{}\n", rows(&|i| format!("{i},\"t{i}\n\n\""), "\n"))),
            ("breaks.tsv", format!("id\ttitle\n{}\n", rows(&|i| format!("{i}\t\"t{i}\n\n\""), "\n"))),
        ];
        for (name, content) in files {
            for limit in [0, 1, 4, 9, 20] {
                let (titles, (counted, is_all)) = first(name, &content, limit);
                let expected: Vec<String> = (0..limit.min(9)).map(|i| format!("t{i}")).collect();
                assert_eq!(titles, expected, "{name}");
                assert!((4..=6).contains(&counted) && !is_all, "{name}: {counted} rows in half of the bytes");
            }
        }
    }
}
