//! Lines of fields between separators, under a header line.

use std::borrow::Cow;
use std::collections::VecDeque;

use super::lines::{self, Lines};
use super::{RawCell, Row};
use crate::rejects::Fault;
use crate::{Error, Result};

/// Lines that one quoted record may span. A quotation mark that is never closed would otherwise swallow the file.
const SPAN: usize = 256;
/// Types in the header of `RecBole`'s atomic files.
const TYPES: [&str; 4] = ["token", "token_seq", "float", "float_seq"];

/// Where the wanted fields stand.
struct Header {
    width: usize,
    places: Vec<Option<usize>>,
}

impl Header {
    /// Every wanted field must be there; an empty name is a field that is not wanted.
    fn new(lines: &Lines<'_>, names: &[&str], fields: &[&str], typed: bool) -> Result<Self> {
        let names = plain_names(names, typed);
        let place = |field: &&str| {
            let found = names.iter().position(|name| name == field);
            if found.is_none() && !field.is_empty() {
                let known = crate::rejects::excerpt(&names.join(", "));
                return Err(Error::raw(
                    lines.path(),
                    format!("has no column `{field}`; it has {known}; mend `[source.columns]`"),
                ));
            }
            Ok(found)
        };
        let places = fields.iter().map(place).collect::<Result<_>>()?;
        Ok(Self { width: names.len(), places })
    }

    fn cells<'a>(&self, values: &[&'a str], line: &str) -> std::result::Result<Vec<RawCell<'a>>, Fault> {
        if values.len() != self.width {
            let reason = if values.len() < self.width { "too few columns" } else { "too many columns" };
            return Err(Fault::new(format!("{reason}, expected {}", self.width), line));
        }
        let cell =
            |place: &Option<usize>| place.map_or(RawCell::Missing, |at| RawCell::Text(Cow::Borrowed(values[at])));
        Ok(self.places.iter().map(cell).collect())
    }
}

/// Names of columns without what a header may add to them.
fn plain_names(names: &[&str], typed: bool) -> Vec<String> {
    let plain = |name: &&str| match name.rsplit_once(':') {
        Some((name, kind)) if typed && TYPES.contains(&kind) => name.to_owned(),
        _ => name.trim().to_owned(),
    };
    names.iter().map(plain).collect()
}

/// The names in the header of a file whose columns tabs separate.
pub fn columns_plain(lines: &mut Lines<'_>, typed: bool) -> Result<Vec<String>> {
    let mut line = Vec::new();
    let header = header_line(lines, &mut line)?;
    Ok(plain_names(&header.split('\t').collect::<Vec<_>>(), typed))
}

/// The names in the header of a file whose columns commas separate.
pub fn columns_quoted(lines: &mut Lines<'_>) -> Result<Vec<String>> {
    let mut record = QuotedRecord::new();
    Ok(plain_names(&quoted_header(lines, &mut record)?, false))
}

/// Separated by tabs; nothing quotes, so that ids with quotation marks stay as they are.
pub fn for_each_plain(
    lines: &mut Lines<'_>,
    fields: &[&str],
    typed: bool,
    visit: &mut dyn FnMut(Row<'_, '_>) -> Result<()>,
) -> Result<()> {
    let mut line = Vec::new();
    let first = header_line(lines, &mut line)?;
    let header = Header::new(lines, &first.split('\t').collect::<Vec<_>>(), fields, typed)?;
    while let Some((number, outcome)) = lines.next(&mut line)? {
        let text = outcome.and_then(|()| lines::text(&line));
        let cells = text.and_then(|text| {
            if text.is_empty() {
                return Err(Fault::new("blank line", ""));
            }
            let mut values = Vec::with_capacity(header.width);
            values.extend(text.split('\t'));
            header.cells(&values, text)
        });
        match cells {
            Ok(cells) => visit((number, Ok(&cells)))?,
            Err(fault) => visit((number, Err(fault)))?,
        }
    }
    Ok(())
}

/// Separated by commas; `"` quotes, and a quoted field may go on over several lines.
pub fn for_each_quoted(
    lines: &mut Lines<'_>,
    fields: &[&str],
    visit: &mut dyn FnMut(Row<'_, '_>) -> Result<()>,
) -> Result<()> {
    let mut record = QuotedRecord::new();
    let names = quoted_header(lines, &mut record)?;
    let header = Header::new(lines, &names, fields, false)?;
    let mut pending = VecDeque::new();
    loop {
        let Some((number, outcome)) = next_line(lines, &mut pending)? else { return Ok(()) };
        let line = match outcome {
            Ok(line) => line,
            Err(fault) => {
                visit((number, Err(fault)))?;
                continue;
            }
        };
        if line.is_empty() {
            visit((number, Err(Fault::new("blank line", ""))))?;
            continue;
        }
        let shown = String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
        if !record.feed(&line, true) && !complete(lines, &mut pending, &mut record, line.len())? {
            visit((number, Err(Fault::new("quotation mark that is never closed", shown))))?;
            continue;
        }
        match record.fields().and_then(|values| header.cells(&values, &shown)) {
            Ok(cells) => visit((number, Ok(&cells)))?,
            Err(fault) => visit((number, Err(fault)))?,
        }
    }
}

fn quoted_header<'r>(lines: &mut Lines<'_>, record: &'r mut QuotedRecord) -> Result<Vec<&'r str>> {
    let mut first = Vec::new();
    header_line(lines, &mut first)?;
    if !record.feed(&first, true) {
        return Err(Error::raw(
            lines.path(),
            "has a quotation mark in its header that is never closed; mend the header",
        ));
    }
    record
        .fields()
        .map_err(|fault| Error::raw(lines.path(), format!("has a header of {}; mend the header", fault.reason)))
}

type Pending = (u64, std::result::Result<Vec<u8>, Fault>);

fn next_line(lines: &mut Lines<'_>, pending: &mut VecDeque<Pending>) -> Result<Option<Pending>> {
    if let Some(line) = pending.pop_front() {
        return Ok(Some(line));
    }
    let mut line = Vec::new();
    Ok(lines.next(&mut line)?.map(|(number, outcome)| (number, outcome.map(|()| line))))
}

/// Adds lines until the record's quotation is closed. Where it never is, the lines are given back to be read on their own.
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

fn header_line<'l>(lines: &mut Lines<'_>, line: &'l mut Vec<u8>) -> Result<&'l str> {
    let text = match lines.next(line)? {
        None => return Err(Error::raw(lines.path(), "holds no data; fetch it again")),
        Some((_, outcome)) => outcome.and_then(|()| lines::text(line)),
    };
    if text.as_ref().is_ok_and(|text| text.trim().is_empty()) {
        return Err(Error::raw(lines.path(), "has a blank line where its header belongs; mend the header"));
    }
    text.map_err(|fault| {
        Error::raw(lines.path(), format!("has no readable header line: {}; mend the header", fault.reason))
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
    fn new() -> Self {
        // Lines arrive one by one; by default a lone carriage return would end a record inside of one.
        let parser = csv_core::ReaderBuilder::new().terminator(csv_core::Terminator::Any(b'\n')).build();
        Self { parser, text: Vec::new(), ends: Vec::new(), written: 0, count: 0 }
    }

    /// Adds a line, as a new record where `first`; whether the record is complete.
    fn feed(&mut self, line: &[u8], first: bool) -> bool {
        if first {
            self.parser.reset();
            (self.written, self.count) = (0, 0);
        }
        self.text.resize((self.written + line.len() + 2).max(self.text.len()), 0);
        self.ends.resize((self.count + line.len() + 2).max(self.ends.len()), 0);
        // An empty part would be the end of the file.
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

    use super::super::testing::rows_of;

    #[test]
    fn tabs_separate_and_nothing_quotes() {
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
    fn a_quote_that_is_never_closed_costs_only_its_own_line() {
        let rest: Vec<String> = (2..2000).map(|n| format!("{n},x\n")).collect();
        let file = format!("id,title\n1,\"open\n{}", rest.concat());
        let rows = rows_of("x.csv", file.as_bytes(), &["id"]).unwrap();
        assert_eq!(rows.len(), 1999);
        assert_eq!((rows[0].as_str(), rows[1].as_str()), ("2: quotation mark that is never closed (1,\"open)", "3: 2"));
    }

    #[test]
    fn a_column_that_is_not_there_is_named_with_those_that_are() {
        let message = rows_of("x.csv", b"user,item\n1,2\n", &["user", "time"]).unwrap_err().to_string();
        assert!(message.contains("x.csv") && message.contains("no column `time`; it has user, item"), "{message}");
    }

    proptest! {
        #[test]
        fn any_bytes_give_rows_or_a_sentence(bytes in proptest::collection::vec(
            prop_oneof![Just(b'"'), Just(b','), Just(b'\n'), Just(b'\t'), Just(b'a'), any::<u8>()], 1..200)
        ) {
            for name in ["x.csv", "x.tsv"] {
                let _ = rows_of(name, &[b"a,b\n", bytes.as_slice()].concat(), &[""]);
            }
        }

        #[test]
        fn quoted_fields_come_back(fields in proptest::collection::vec("[a-z\",\n ]{0,9}", 2..3)) {
            let quoted: Vec<String> = fields.iter().map(|f| format!("\"{}\"", f.replace('"', "\"\""))).collect();
            let rows = rows_of("x.csv", format!("a,b\n{}\n", quoted.join(",")).as_bytes(), &["a", "b"]).unwrap();
            prop_assert_eq!(&rows[0], &format!("2: {}", fields.join("|")));
        }
    }
}
