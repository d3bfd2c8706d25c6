//! Reads lines of separated fields, with a header line or with given names.

use std::borrow::Cow;
use std::collections::VecDeque;

use mp4sr_pipeline::config::Quoting;
use smallvec::SmallVec;

use super::dialect::shown;
use super::lines::{self, Lines};
use super::open::NO_DATA;
use super::{Dialect, FileFormat, RawCell, RawRow, Shape};
use crate::rejects::{BLANK_LINE, Fault, excerpt};
use crate::{Error, Result};

/// The number of lines that one quoted record may span. A quotation mark that is never closed would otherwise swallow the file.
const SPAN: usize = 256;
/// Types in the header of `RecBole`'s atomic files.
pub const TYPES: [&str; 4] = ["token", "token_seq", "float", "float_seq"];
/// The number of lines that are inspected to find the separator.
const SAMPLED: usize = 20;
/// Separators that are tried if the one that the file's name implies does not give the columns.
const SEPARATORS: [&str; 6] = ["\t", ",", ";", "::", "|", " "];

/// The positions of the wanted fields.
struct HeaderRow {
    width: usize,
    indices: Vec<Option<usize>>,
}

impl HeaderRow {
    /// Every wanted field must occur exactly once; an optional one may be missing. An empty name is a field that is not wanted.
    fn new(lines: &Lines<'_>, format: &FileFormat, names: &[String], first: &str, fields: &[&str]) -> Result<Self> {
        let index = |field: &&str| {
            if field.is_empty() {
                return Ok(None);
            }
            let mut found = names.iter().enumerate().filter(|(_, name)| name == field).map(|(at, _)| at);
            let index = found.next();
            if found.next().is_some() {
                return Err(Error::raw(
                    lines.path(),
                    format!("has the column `{field}` twice; remove one of them, or name each of them differently"),
                ));
            }
            if index.is_none() && !format.optional {
                return Err(Error::raw(lines.path(), absent(format, names, first, fields, field)));
            }
            Ok(index)
        };
        let indices = fields.iter().map(index).collect::<Result<_>>()?;
        Ok(Self { width: names.len(), indices })
    }

    fn cells<'a>(&self, values: &[Cow<'a, str>], line: &str) -> std::result::Result<Cells<'a>, Fault> {
        self.wanted(values, line, Cow::clone)
    }

    /// Does the same for borrowed fields, of which only the wanted ones are copied.
    fn plain_cells<'a>(&self, values: &[&'a str], line: &str) -> std::result::Result<Cells<'a>, Fault> {
        self.wanted(values, line, |value| Cow::Borrowed(*value))
    }

    fn wanted<'a, V>(
        &self,
        values: &[V],
        line: &str,
        text: impl Fn(&V) -> Cow<'a, str>,
    ) -> std::result::Result<Cells<'a>, Fault> {
        if values.len() != self.width {
            let reason = if values.len() < self.width { "too few columns" } else { "too many columns" };
            return Err(Fault::new(format!("{reason}, expected {}", self.width), line));
        }
        let cell = |index: &Option<usize>| index.map_or(RawCell::Missing, |at| RawCell::Text(text(&values[at])));
        Ok(self.indices.iter().map(cell).collect())
    }
}

/// The wanted fields of a line. They are few and there are many lines, so they are kept on the stack.
type Cells<'a> = SmallVec<[RawCell<'a>; 4]>;

/// Describes why a column is missing.
fn absent(format: &FileFormat, names: &[String], first: &str, fields: &[&str], field: &str) -> String {
    let items = if format.items { "items" } else { "interactions" };
    let has_any = names.iter().any(|name| !name.is_empty() && fields.contains(&name.as_str()));
    let is_value = |name: &String| name.split_whitespace().any(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    if format.dialect.names.is_empty() && !has_any && names.iter().any(is_value) {
        let several = |name: &String| name.split_whitespace().filter(|word| is_value(&(*word).to_owned())).count() > 1;
        let sequences = if !format.items && names.iter().any(several) {
            "; if a line contains a whole sequence of items, `source.columns.item_separator` is the separator of these"
        } else {
            ""
        };
        return format!(
            "has no header: its first line is `{}`; name its columns in order, as in `source.{items}_header = [\"{}\", ...]`, \
             and their separator in `source.separator` if it is not {}{sequences}",
            excerpt(first),
            fields.first().copied().unwrap_or(field),
            in_words(&format.dialect.separator),
        );
    }
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    let near =
        mp4sr_pipeline::nearest(field, &known).map_or(String::new(), |near| format!(" (did you mean `{near}`?)"));
    let what = if format.dialect.names.is_empty() && names.iter().any(|name| name.contains('"')) {
        "set `source.quoting = \"always\"` if its fields are quoted, or correct `[source.columns]`".to_owned()
    } else if format.dialect.names.is_empty() && names.len() == 1 {
        "name what separates its columns in `source.separator`, or correct `[source.columns]`".to_owned()
    } else if format.dialect.names.is_empty() {
        "correct `[source.columns]`".to_owned()
    } else {
        format!("correct `[source.columns]` or `source.{items}_header`")
    };
    format!("has no column `{field}`{near}; it has {}; {what}", excerpt(&names.join(", ")))
}

fn in_words(separator: &str) -> String {
    match shown(separator) {
        words if words == separator => format!("`{separator}`"),
        words => words.to_owned(),
    }
}

/// The names of columns without the types and blanks that a header may add to them.
fn plain_names<'n>(names: impl IntoIterator<Item = &'n str>, typed: bool) -> Vec<String> {
    let plain = |name: &'n str| match name.rsplit_once(':') {
        Some((name, kind)) if typed && TYPES.contains(&kind) => name.to_owned(),
        _ => name.trim().to_owned(),
    };
    names.into_iter().map(plain).collect()
}

/// The names of the columns: those that are given, or those of the header.
pub fn columns(lines: &mut Lines<'_>, format: &FileFormat) -> Result<Vec<String>> {
    if !format.dialect.names.is_empty() {
        return Ok(format.dialect.names.clone());
    }
    let mut line = Vec::new();
    let first = header_line(lines, &mut line)?;
    header_names(lines, format, first)
}

fn header_names(lines: &Lines<'_>, format: &FileFormat, first: &str) -> Result<Vec<String>> {
    let typed = format.shape == Shape::RecBole;
    if format.dialect.quotes() != Quoting::Always {
        return Ok(plain_names(first.split(format.dialect.separator.as_str()), typed));
    }
    let mut record = QuotedRecord::new(&format.dialect);
    if !record.feed(first.as_bytes(), true) {
        return Err(Error::raw(
            lines.path(),
            "has a quotation mark in its header that is never closed; correct the header",
        ));
    }
    let fields = record.fields();
    let fields = fields
        .map_err(|fault| Error::raw(lines.path(), format!("has a header of {}; correct the header", fault.reason)))?;
    Ok(plain_names(fields, typed))
}

/// Finds the separator and the quotation of a table by its first lines: the separator with which the wanted columns exist or, if names are
/// given, with which there are as many columns.
pub fn resolve(lines: &mut Lines<'_>, format: &FileFormat, fields: &[&str]) -> Result<Dialect> {
    let mut dialect = format.dialect.clone();
    let mut sample = Vec::new();
    let mut line = Vec::new();
    while sample.len() < SAMPLED {
        let Some((_, outcome)) = lines.next(&mut line)? else { break };
        let is_separator_line = sample.is_empty() && names_separator(&line);
        if outcome.is_ok() && !line.trim_ascii().is_empty() && !is_separator_line {
            sample.push(String::from_utf8_lossy(&line).into_owned());
        }
    }
    let Some(first) = sample.first() else { return Ok(dialect) };
    if dialect.separator.is_empty() {
        let usual = format.shape.separator();
        let candidates = std::iter::once(usual).chain(SEPARATORS.into_iter().filter(|other| *other != usual));
        let fits = |separator: &&str| {
            let trial = Dialect { separator: (*separator).to_owned(), ..dialect.clone() };
            let widths = || sample.iter().filter_map(|line| width(&trial, line));
            if trial.names.is_empty() {
                let format = FileFormat { dialect: trial.clone(), ..format.clone() };
                let names = header_names(lines, &format, first).unwrap_or_default();
                fields.iter().all(|field| field.is_empty() || names.iter().any(|name| name == field))
            } else {
                widths().any(|width| width == trial.names.len()) && widths().all(|width| width == trial.names.len())
            }
        };
        let mut candidates = candidates.peekable();
        let usual = candidates.peek().copied().unwrap_or(usual);
        candidates.find(fits).unwrap_or(usual).clone_into(&mut dialect.separator);
    }
    if !dialect.names.is_empty() {
        let found = width(&dialect, first).unwrap_or(0);
        if !sample.iter().any(|line| width(&dialect, line) == Some(dialect.names.len())) {
            return Err(Error::raw(
                lines.path(),
                format!(
                    "has {found} columns separated by {} in its first line, `{}`, and `source.{}_header` names {}; correct the names, or \
                     name what separates the columns in `source.separator`",
                    in_words(&dialect.separator),
                    excerpt(first),
                    if format.items { "items" } else { "interactions" },
                    dialect.names.len()
                ),
            ));
        }
    }
    // A program that quotes the names of columns quotes all fields.
    let quoted = |name: &str| name.len() > 1 && name.starts_with('"') && name.ends_with('"');
    let all_quoted = dialect.names.is_empty() && first.split(dialect.separator.as_str()).all(quoted);
    if dialect.quotes() == Quoting::Recognised && all_quoted {
        dialect.quoting = Quoting::Always;
    }
    dialect.decimal_comma = dialect.decimal_comma || dialect.separator == ";";
    Ok(dialect)
}

/// The number of columns of a line.
fn width(dialect: &Dialect, line: &str) -> Option<usize> {
    if dialect.quotes() == Quoting::Always {
        let mut record = QuotedRecord::new(dialect);
        return if record.feed(line.as_bytes(), true) { Some(record.count) } else { None };
    }
    Some(line.split(dialect.separator.as_str()).count())
}

/// The number of columns of a line; `None` if its quotation is not closed.
pub fn count_columns(dialect: &Dialect, line: &str) -> Option<usize> {
    width(dialect, line)
}

/// The number of columns of each record in some lines, and the number of its lines, because a quoted field may span several.
fn record_widths(dialect: &Dialect, lines: &[String]) -> Vec<(usize, usize)> {
    if dialect.quotes() != Quoting::Always {
        return lines.iter().filter_map(|line| Some((width(dialect, line)?, 1))).collect();
    }
    let mut record = QuotedRecord::new(dialect);
    let mut widths = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let further = &lines[at + 1..lines.len().min(at + SPAN)];
        let mut closed = record.feed(lines[at].as_bytes(), true);
        let mut taken = 1;
        while !closed && let Some(line) = further.get(taken - 1) {
            closed = record.feed(line.as_bytes(), false);
            taken += 1;
        }
        if closed {
            widths.push((record.count, taken));
        }
        at += if closed { taken } else { 1 };
    }
    widths
}

/// Guesses the separator of a table of which no column is known: the one with which nearly all lines have the same number of columns,
/// preferably the usual one. Returns it with that number and the number of lines that have it.
pub fn guess_separator(lines: &[String], format: &FileFormat) -> Option<(String, usize, usize)> {
    let usual = format.shape.separator();
    let candidates = std::iter::once(usual).chain(SEPARATORS.into_iter().filter(|other| *other != usual));
    let mut found: Vec<(String, usize, usize)> = Vec::new();
    for separator in candidates {
        let dialect = Dialect { separator: separator.to_owned(), ..format.dialect.clone() };
        let mut counts: std::collections::BTreeMap<usize, usize> = std::collections::BTreeMap::new();
        record_widths(&dialect, lines)
            .into_iter()
            .for_each(|(width, lines)| *counts.entry(width).or_default() += lines);
        // Among widths that are equally frequent, the first line decides.
        let first = lines.first().and_then(|line| width(&dialect, line));
        let most = counts.iter().max_by_key(|(width, count)| (**count, Some(**width) == first));
        // The header has no decimal commas, so a width that differs from the first line's comes from decimal commas and not from a
        // separator.
        if let Some((&width, &count)) = most.filter(|(width, _)| **width > 1 && Some(**width) == first) {
            found.push((separator.to_owned(), width, count));
        }
    }
    // Texts contain blanks, so a blank separates columns only if nothing else does.
    let agrees = |(_, _, count): &&(String, usize, usize)| count * 10 >= lines.len() * 9;
    let by_words = |(separator, ..): &&(String, usize, usize)| separator != " ";
    let best = found.iter().find(|f| agrees(f) && f.0 == usual);
    let widest = || {
        found
            .iter()
            .filter(by_words)
            .filter(agrees)
            .max_by_key(|(separator, width, count)| (*count, *width, separator.len()))
    };
    let blank = || found.iter().filter(agrees).find(|(separator, ..)| separator == " ");
    let loose = || {
        found
            .iter()
            .filter(by_words)
            .filter(|(_, _, count)| count * 2 >= lines.len())
            .max_by_key(|(_, width, count)| (*count, *width))
    };
    best.or_else(widest).or_else(blank).or_else(loose).cloned()
}

/// Passes the rows of a table whose dialect is resolved to `visit`.
pub fn for_each(
    lines: &mut Lines<'_>,
    format: &FileFormat,
    fields: &[&str],
    visit: &mut dyn FnMut(RawRow<'_, '_>) -> Result<()>,
) -> Result<()> {
    let header = if format.dialect.names.is_empty() {
        let mut line = Vec::new();
        let first = header_line(lines, &mut line)?.to_owned();
        let names = header_names(lines, format, &first)?;
        HeaderRow::new(lines, format, &names, &first, fields)?
    } else {
        HeaderRow::new(lines, format, &format.dialect.names, "", fields)?
    };
    match format.dialect.quotes() {
        Quoting::Always => for_each_quoted(lines, &format.dialect, &header, visit),
        quoting => for_each_plain(lines, &format.dialect, &header, quoting == Quoting::Recognised, visit),
    }
}

/// Reads lines in which nothing is quoted, so ids with quotation marks are unchanged. With `as_needed`, fields that contain a separator, a
/// quotation mark or the end of a line are quoted, as pandas writes them.
fn for_each_plain(
    lines: &mut Lines<'_>,
    dialect: &Dialect,
    header: &HeaderRow,
    as_needed: bool,
    visit: &mut dyn FnMut(RawRow<'_, '_>) -> Result<()>,
) -> Result<()> {
    let separator = dialect.separator.as_str();
    let mut line = Vec::new();
    let mut pending = VecDeque::new();
    let mut record = QuotedRecord::new(dialect);
    while lines.begins_record() {
        let (number, outcome) = match pending.pop_front() {
            Some((number, Ok(held))) => {
                line = held;
                (number, Ok(()))
            }
            Some((number, Err(fault))) => (number, Err(fault)),
            None => match lines.next(&mut line)? {
                Some(next) => next,
                None => return Ok(()),
            },
        };
        let has_quotes = as_needed && outcome.is_ok() && memchr::memchr(b'"', &line).is_some();
        if has_quotes {
            complete_field(lines, &mut pending, &mut line, dialect)?;
        }
        let text = outcome.and_then(|()| lines::text(&line));
        let cells = text.and_then(|text| {
            if text.is_empty() {
                return Err(Fault::new(BLANK_LINE, ""));
            }
            if has_quotes {
                return header.cells(&as_quoted(text, separator, header.width, &mut record)?, text);
            }
            let mut values: SmallVec<[&str; 16]> = SmallVec::new();
            match dialect.byte() {
                Some(byte) => values.extend(split_at(text, byte)),
                None => values.extend(text.split(separator)),
            }
            header.plain_cells(&values, text)
        });
        match cells {
            Ok(cells) => visit((number, Ok(&cells[..])))?,
            Err(fault) => visit((number, Err(fault)))?,
        }
    }
    Ok(())
}

/// Splits a text at an ASCII character. This is faster than the standard library, and many texts are split.
fn split_at(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let ends = memchr::memchr_iter(separator, text.as_bytes()).chain([text.len()]);
    let mut start = 0;
    ends.map(move |end| &text[std::mem::replace(&mut start, end + 1)..end])
}

/// The fields of a line with quotation marks.
fn as_quoted<'a>(
    text: &'a str,
    separator: &str,
    width: usize,
    record: &mut QuotedRecord,
) -> std::result::Result<Vec<Cow<'a, str>>, Fault> {
    let plain: Vec<&str> = text.split(separator).collect();
    if (plain.len() != width || text.contains('\n')) && record.feed(text.as_bytes(), true) && record.count == width {
        return Ok(record.fields()?.into_iter().map(|field| Cow::Owned(field.to_owned())).collect());
    }
    Ok(plain.into_iter().map(unquoted).collect())
}

/// Removes the quotation of a field in which quotation marks are doubled. In other fields, quotation marks are text.
fn unquoted(field: &str) -> Cow<'_, str> {
    let inner = field.strip_prefix('"').and_then(|field| field.strip_suffix('"'));
    match inner {
        Some(inner) if inner.contains("\"\"") && !inner.replace("\"\"", "").contains('"') => {
            Cow::Owned(inner.replace("\"\"", "\""))
        }
        _ => Cow::Borrowed(field),
    }
}

/// Adds the lines over which a quoted field at the end of `line` continues. A separator before the closing mark shows that the field is not
/// quoted; then the lines are put back.
fn complete_field(
    lines: &mut Lines<'_>,
    pending: &mut VecDeque<Pending>,
    line: &mut Vec<u8>,
    dialect: &Dialect,
) -> Result<()> {
    let separator = dialect.separator.as_bytes();
    let last = line.windows(separator.len()).rposition(|part| part == separator).map_or(0, |at| at + separator.len());
    let field = &line[last..];
    if field.first() != Some(&b'"') || closing(&field[1..]).is_some() {
        return Ok(());
    }
    let mut taken: Vec<Pending> = Vec::new();
    let mut added = Vec::new();
    let mut is_closed = false;
    while taken.len() < SPAN && line.len() + added.len() <= lines.limit() {
        let Some((number, outcome)) = next_line(lines, pending)? else { break };
        taken.push((number, outcome.clone()));
        let Ok(next) = outcome else { break };
        let end = closing(&next);
        let inside = &next[..end.unwrap_or(next.len())];
        let after = end.map_or(&b""[..], |end| &next[end + 1..]);
        if inside.windows(separator.len()).any(|part| part == separator)
            || !(after.is_empty() || after.starts_with(separator))
        {
            break;
        }
        added.push(b'\n');
        added.extend(&next);
        if end.is_some() {
            is_closed = true;
            break;
        }
    }
    if is_closed {
        line.extend(added);
    } else {
        taken.into_iter().rev().for_each(|line| pending.push_front(line));
    }
    Ok(())
}

/// The position of the first quotation mark that is not doubled.
fn closing(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < text.len() {
        if text[at] == b'"' {
            if text.get(at + 1) != Some(&b'"') {
                return Some(at);
            }
            at += 1;
        }
        at += 1;
    }
    None
}

/// Reads lines in which `"` quotes fields, which may continue over several lines.
fn for_each_quoted(
    lines: &mut Lines<'_>,
    dialect: &Dialect,
    header: &HeaderRow,
    visit: &mut dyn FnMut(RawRow<'_, '_>) -> Result<()>,
) -> Result<()> {
    let mut record = QuotedRecord::new(dialect);
    let mut pending = VecDeque::new();
    while lines.begins_record() {
        let Some((number, outcome)) = next_line(lines, &mut pending)? else { return Ok(()) };
        let line = match outcome {
            Ok(line) => line,
            Err(fault) => {
                visit((number, Err(fault)))?;
                continue;
            }
        };
        if line.is_empty() {
            visit((number, Err(Fault::new(BLANK_LINE, ""))))?;
            continue;
        }
        let shown = String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
        if !record.feed(&line, true) && !complete(lines, &mut pending, &mut record, line.len())? {
            visit((number, Err(Fault::new("quotation mark that is never closed", shown))))?;
            continue;
        }
        match record.fields().and_then(|values| header.plain_cells(&values, &shown)) {
            Ok(cells) => visit((number, Ok(&cells[..])))?,
            Err(fault) => visit((number, Err(fault)))?,
        }
    }
    Ok(())
}

type Pending = (u64, std::result::Result<Vec<u8>, Fault>);

fn next_line(lines: &mut Lines<'_>, pending: &mut VecDeque<Pending>) -> Result<Option<Pending>> {
    if let Some(line) = pending.pop_front() {
        return Ok(Some(line));
    }
    let mut line = Vec::new();
    Ok(lines.next(&mut line)?.map(|(number, outcome)| (number, outcome.map(|()| line))))
}

/// Adds lines until the record's quotation is closed. If it never is, the lines are put back, to be read on their own.
fn complete(
    lines: &mut Lines<'_>,
    pending: &mut VecDeque<Pending>,
    record: &mut QuotedRecord,
    mut bytes: usize,
) -> Result<bool> {
    let mut taken = Vec::new();
    while taken.len() < SPAN && bytes <= lines.limit() {
        let Some((number, outcome)) = next_line(lines, pending)? else { break };
        let closed = match &outcome {
            Ok(line) => {
                bytes += line.len();
                record.feed(line, false)
            }
            Err(_) => false,
        };
        let broken = outcome.is_err();
        taken.push((number, outcome));
        if closed {
            return Ok(true);
        }
        if broken {
            break;
        }
    }
    taken.into_iter().rev().for_each(|line| pending.push_front(line));
    Ok(false)
}

/// Whether a line tells a spreadsheet program the separator, as `sep=;` does. Such a line comes before the header.
pub fn names_separator(line: &[u8]) -> bool {
    line.len() == 5 && line.starts_with(b"sep=")
}

fn header_line<'l>(lines: &mut Lines<'_>, line: &'l mut Vec<u8>) -> Result<&'l str> {
    let mut next = lines.next(line)?;
    if next.is_some() && names_separator(line) {
        next = lines.next(line)?;
    }
    let text = match next {
        None => return Err(Error::raw(lines.path(), NO_DATA)),
        Some((_, outcome)) => outcome.and_then(|()| lines::text(line)),
    };
    if text.as_ref().is_ok_and(|text| text.trim().is_empty()) {
        return Err(Error::raw(lines.path(), "has a blank line where its header belongs; correct the header"));
    }
    text.map_err(|fault| {
        Error::raw(lines.path(), format!("has no readable header line: {}; correct the header", fault.reason))
    })
}

/// A record that grows line by line.
struct QuotedRecord {
    parser: csv_core::Reader,
    text: Vec<u8>,
    ends: Vec<usize>,
    written: usize,
    count: usize,
}

impl QuotedRecord {
    fn new(dialect: &Dialect) -> Self {
        // Lines arrive one by one. By default, a lone carriage return inside a line would end the record.
        let parser = csv_core::ReaderBuilder::new()
            .terminator(csv_core::Terminator::Any(b'\n'))
            .delimiter(dialect.byte().unwrap_or(b','))
            .escape(dialect.escape)
            .build();
        Self { parser, text: Vec::new(), ends: Vec::new(), written: 0, count: 0 }
    }

    /// Adds a line, as a new record if `first` is set. Returns whether the record is complete.
    fn feed(&mut self, line: &[u8], first: bool) -> bool {
        if first {
            self.parser.reset();
            (self.written, self.count) = (0, 0);
        }
        self.text.resize((self.written + line.len() + 2).max(self.text.len()), 0);
        self.ends.resize((self.count + line.len() + 2).max(self.ends.len()), 0);
        // An empty input would mean the end of the file.
        for part in [line, b"\n"].into_iter().filter(|part| !part.is_empty()) {
            let (result, _, written, count) =
                self.parser.read_record(part, &mut self.text[self.written..], &mut self.ends[self.count..]);
            self.written += written;
            self.count += count;
            if matches!(result, csv_core::ReadRecordResult::Record) {
                return true;
            }
        }
        false
    }

    fn fields(&self) -> std::result::Result<Vec<&str>, Fault> {
        let mut from = 0;
        self.ends[..self.count]
            .iter()
            .map(|&end| {
                let field = &self.text[from..end];
                from = end;
                lines::text(field)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{rows, rows_of};
    use super::super::{Dialect, FileFormat};

    #[test]
    fn tabs_separate_fields_and_quotation_marks_are_text() {
        let file =
            b"\xef\xbb\xbfuser\titem\tx\r\n\"a\t007\t1\r\n\n b \t\xf0\x9f\x98\x80\t\r\nc\t1\nc\t1\t2\t3\n\xff\t1\t2\n";
        assert_eq!(
            rows_of("x.tsv", file, &["item", "user"]).unwrap(),
            [
                "2: 007|\"a",
                "3: blank line ()",
                "4: \u{1f600}| b ",
                "5: too few columns, expected 3 (c\u{fffd}1)",
                "6: too many columns, expected 3 (c\u{fffd}1\u{fffd}2\u{fffd}3)",
                "7: invalid UTF-8 (\u{fffd}\u{fffd}1\u{fffd}2)",
            ]
        );
    }

    #[test]
    fn typed_headers_of_atomic_files() {
        let file = b"user_id:token\titem_id:token\ttimestamp:float\n1\t2\t8.8e8\n";
        assert_eq!(rows_of("x.inter", file, &["user_id", "timestamp"]).unwrap(), ["2: 1|8.8e8"]);
    }

    #[test]
    fn commas_quotes_and_fields_over_several_lines() {
        let file =
            b"id,title\n1,\"a \"\"b\"\", c\"\n2,\"one\r\ntwo\n\nthree\"\n3,5\" nails\n\n4,\"never closed\n5,x\n6,a,b\n";
        assert_eq!(
            rows_of("x.csv", file, &["id", "title"]).unwrap(),
            [
                "2: 1|a \"b\", c",
                "3: 2|one\ntwo\n\nthree",
                "7: 3|5\" nails",
                "8: blank line ()",
                "9: quotation mark that is never closed (4,\"never closed)",
                "10: 5|x",
                "11: too many columns, expected 2 (6,a,b)",
            ]
        );
    }

    #[test]
    fn tab_separated_tables_of_pandas_are_unquoted_only_where_quotes_were_needed() {
        let file = b"id\ttitle\n1\t\"The \"\"Big\"\" Kettle\"\n2\t\"Two\n\n\"\"lines\"\"\"\n3\tPlain\n4\t\"a\tb\"\n5\t\"as it stands\"\n\
                     6\t5\" nails\n7\t\"open\n8\tfoo\" bar\n\"9\n\"\tx\n\"10\"\"\t\"\n";
        assert_eq!(
            rows_of("x.tsv", file, &["id", "title"]).unwrap(),
            [
                "2: 1|The \"Big\" Kettle",
                "3: 2|Two\n\n\"lines\"",
                "6: 3|Plain",
                "7: 4|a\tb",
                "8: 5|\"as it stands\"",
                "9: 6|5\" nails",
                "10: 7|\"open",
                "11: 8|foo\" bar",
                "12: 9\n|x",
                "14: \"10\"\"|\"",
            ]
        );
        let all = b"\"id\"\t\"title\"\n\"1\"\t\"x\"\n";
        assert_eq!(rows_of("x.tsv", all, &["id", "title"]).unwrap(), ["2: 1|x"]);
    }

    #[test]
    fn separators_are_chosen_by_the_columns_that_they_give() {
        for (name, file) in [
            ("x.csv", &b"id\ttitle\n1\ta,b\n"[..]),
            ("x.csv", b"id;title\n1;a,b\n"),
            ("x.csv", b"sep=;\nid;title\n1;a,b\n"),
            ("x.tsv", b"id,title\n1,\"a,b\"\n"),
            ("x.dat", b"id::title\n1::a,b\n"),
            ("x.txt", b"id|title\n1|a,b\n"),
            ("x.inter", b"id:token,title:token_seq\n1,\"a,b\"\n"),
            ("x.data", b"{\"id\": 1, \"title\": \"a,b\"}\n"),
        ] {
            let rows = rows_of(name, file, &["id", "title"]).unwrap();
            assert_eq!(rows.last().unwrap().split_once(": ").unwrap().1, "1|a,b", "{name}");
        }
        let twice = rows_of("x.csv", b"id,title,id\n1,x,2\n", &["id"]).unwrap_err().to_string();
        assert!(twice.contains("has the column `id` twice"), "{twice}");
        assert_eq!(rows_of("x.csv", b"id,x,x\n1,x,2\n", &["id"]).unwrap(), ["2: 1"]);
    }

    #[test]
    fn files_without_a_header_take_given_names() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str, file: &[u8], names: &[&str], fields: &[&str]| {
            let path = folder.path().join(name);
            std::fs::write(&path, file).unwrap();
            let names = names.iter().map(|&name| name.to_owned()).collect();
            let mut format = FileFormat::of_name(&path).unwrap();
            format.dialect = Dialect { names, ..Dialect::default() };
            rows(&path, &format, fields).map_err(|e| e.to_string())
        };
        let names = ["user", "item", "rating", "time"];
        for (name, file) in [
            ("u.data", &b"196\t242\t3\t881250949\n186\t302\t3\t891717742\n"[..]),
            ("ratings.dat", b"196::242::3::881250949\n186::302::3::891717742\n"),
            ("ratings.csv", b"196,242,3,881250949\n186,302,3,891717742\n"),
            ("ratings.txt", b"196 242 3 881250949\n186 302 3 891717742\n"),
        ] {
            let rows = read(name, file, &names, &["user", "time"]).unwrap();
            assert_eq!(rows, ["1: 196|881250949", "2: 186|891717742"], "{name}");
        }
        let pairs = read("p.tsv", b"u1\t1 2 3\n", &["user", "items"], &["items"]).unwrap();
        assert_eq!(pairs, ["1: 1 2 3"]);
        let message = read("r.csv", b"1,2,3\n", &["user", "item"], &["user"]).unwrap_err();
        assert!(message.contains("has 3 columns separated by `,` in its first line, `1,2,3`"), "{message}");
        let message = read("r.csv", b"A1,B01,5.0,1600000000\n", &[], &["user_id"]).unwrap_err();
        assert!(message.contains("has no header: its first line is `A1,B01,5.0,1600000000`"), "{message}");
        assert!(message.contains("source.interactions_header"), "{message}");
    }

    #[test]
    fn a_quote_that_is_never_closed_costs_only_its_own_line() {
        let rest: Vec<String> = (2..2000).map(|n| format!("{n},x\n")).collect();
        let file = format!("id,title\n1,\"open\n{}", rest.concat());
        let rows = rows_of("x.csv", file.as_bytes(), &["id"]).unwrap();
        assert_eq!(rows.len(), 1999);
        assert_eq!((rows[0].as_str(), rows[1].as_str()), ("2: quotation mark that is never closed (1,\"open)", "3: 2"));
    }

    #[test]
    fn a_missing_column_is_named_with_the_existing_ones() {
        let message = rows_of("x.csv", b"user,item\n1,2\n", &["user", "time"]).unwrap_err().to_string();
        assert!(message.contains("x.csv") && message.contains("no column `time`"), "{message}");
        assert!(message.contains("; it has user, item; correct"), "{message}");
    }

    proptest! {
        #[test]
        fn any_bytes_give_rows_or_an_error(bytes in proptest::collection::vec(
            prop_oneof![Just(b'"'), Just(b','), Just(b'\n'), Just(b'\t'), Just(b'a'), any::<u8>()], 1..200)
        ) {
            for name in ["x.csv", "x.tsv"] {
                let _ = rows_of(name, &[b"a,b\n", bytes.as_slice()].concat(), &[""]);
            }
        }

        #[test]
        fn quoted_fields_round_trip(fields in proptest::collection::vec("[a-z\",\n ]{0,9}", 2..3)) {
            let quoted: Vec<String> = fields.iter().map(|f| format!("\"{}\"", f.replace('"', "\"\""))).collect();
            let rows = rows_of("x.csv", format!("a,b\n{}\n", quoted.join(",")).as_bytes(), &["a", "b"]).unwrap();
            prop_assert_eq!(&rows[0], &format!("2: {}", fields.join("|")));
        }
    }
}
