//! Reads lines and records of limited length, with their numbers.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use crate::rejects::Fault;
use crate::{Error, Result};

/// The longest line that is read; a longer one is skipped without being held. Real metadata lines reach a few hundred
/// thousand bytes.
const LIMIT: usize = 16 << 20;

/// A file in another encoding has at least one line in this many that is not valid UTF-8.
const INVALID: u64 = 1000;

/// The lines of a text file, numbered from 1, without line ends and without a byte order mark.
pub struct Lines<'b> {
    path: PathBuf,
    reader: Box<dyn BufRead + 'b>,
    number: u64,
    limit: usize,
    /// The numbers of lines with characters other than ASCII that are UTF-8, and that are not.
    valid: u64,
    invalid: u64,
    /// The number of the first line that is not UTF-8.
    first_invalid: Option<u64>,
    /// The number of records that are still read.
    records_left: u64,
    /// The numbers of bytes that were read, and after which no further line is read.
    bytes: u64,
    last_byte: u64,
    /// The number of arrays around the next element that were opened and not closed.
    open_arrays: i64,
}

impl<'b> Lines<'b> {
    pub fn new(path: &Path, reader: Box<dyn BufRead + 'b>) -> Self {
        Self {
            path: path.to_owned(),
            reader,
            number: 0,
            limit: LIMIT,
            valid: 0,
            invalid: 0,
            first_invalid: None,
            records_left: u64::MAX,
            bytes: 0,
            last_byte: u64::MAX,
            open_arrays: 0,
        }
    }

    #[cfg(test)]
    fn with_limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Stops after this many records, each of which may take several lines; [`Self::begins_record`] counts them.
    pub fn stop_after_records(&mut self, records: u64) {
        self.records_left = records;
    }

    /// Whether another record is read, which is counted.
    pub fn begins_record(&mut self) -> bool {
        let begins = self.records_left > 0;
        self.records_left = self.records_left.saturating_sub(1);
        begins
    }

    /// Stops after the line, or the object, that contains this byte.
    pub fn stop_after_bytes(&mut self, bytes: u64) {
        self.last_byte = bytes;
    }

    /// Whether [`Self::stop_after_bytes`] stopped the reading.
    pub fn is_stopped(&self) -> bool {
        self.bytes >= self.last_byte
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The maximum length of a line, and of a record made of several lines.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Reads the next line into `line`. Returns its number, or `None` at the end.
    pub fn next(&mut self, line: &mut Vec<u8>) -> Result<Option<(u64, std::result::Result<(), Fault>)>> {
        line.clear();
        if self.is_stopped() {
            return Ok(None);
        }
        let room = self.limit as u64 + 2;
        let read = self.reader.by_ref().take(room).read_until(b'\n', line).map_err(|e| self.failed(&e))?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        self.bytes += read as u64;
        let is_ended = line.last() == Some(&b'\n');
        if is_ended {
            line.pop();
        } else if read as u64 == room {
            self.reader.skip_until(b'\n').map_err(|e| self.failed(&e))?;
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if self.number == 1 && !is_ended && line.contains(&b'\r') {
            return Err(Error::raw(
                &self.path,
                "has lines that end in carriage returns alone, as older programs on the Macintosh write them; save it with other line ends, \
                 or convert it: `tr '\\r' '\\n' < old.csv > new.csv`",
            ));
        }
        if self.number == 1 && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        if line.len() > self.limit {
            let fault = Fault::new(
                format!("line longer than {} bytes", self.limit),
                String::from_utf8_lossy(&line[..100.min(line.len())]),
            );
            return Ok(Some((self.number, Err(fault))));
        }
        self.inspect(line);
        Ok(Some((self.number, Ok(()))))
    }

    fn inspect(&mut self, line: &[u8]) {
        if !line.is_ascii() {
            let is_valid = std::str::from_utf8(line).is_ok();
            *if is_valid { &mut self.valid } else { &mut self.invalid } += 1;
            if !is_valid {
                self.first_invalid.get_or_insert(self.number);
            }
        }
    }

    /// Refuses a file of another encoding after all lines have been read; a few invalid lines are only rejected.
    pub fn check_encoding(&self) -> Result<()> {
        if self.invalid > self.valid && self.invalid * INVALID >= self.number {
            return Err(Error::raw(
                &self.path,
                format!(
                    "is not UTF-8: {} of its {} lines with non-ASCII characters are invalid, the first is line {}; save it as UTF-8, \
                     or name its encoding, as in `source.encoding = \"latin-1\"`",
                    self.invalid,
                    self.invalid + self.valid,
                    self.first_invalid.unwrap_or(self.number)
                ),
            ));
        }
        Ok(())
    }

    /// Whether the file contains JSON objects that span several lines or are in arrays, instead of one per line.
    pub fn holds_elements(&mut self) -> Result<bool> {
        let start = self.reader.fill_buf();
        let start = match start {
            Ok(start) => start,
            Err(e) => return Err(Error::raw(&self.path, failure(&e, self.number))),
        };
        let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
        let Some((first, rest)) = start.split_first() else { return Ok(false) };
        let line = rest.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let next = rest.trim_ascii_start().first();
        Ok(match first {
            b'[' => matches!(next, Some(b'{' | b']')),
            // A line with a single brace may also be a broken one.
            b'{' => line.trim_ascii().is_empty() && matches!(next, Some(b'"' | b'\'')),
            _ => false,
        })
    }

    /// Reads the next object of an array, or of several arrays, into `element`, and returns the number of the line in which it begins.
    pub fn next_element(&mut self, element: &mut Vec<u8>) -> Result<Option<(u64, std::result::Result<(), Fault>)>> {
        element.clear();
        if self.is_stopped() {
            return Ok(None);
        }
        let mut scan = ElementScan::default();
        self.number = self.number.max(1);
        let mut started = self.number;
        loop {
            let bytes = match self.reader.fill_buf() {
                Ok(bytes) => bytes,
                Err(e) => return Err(Error::raw(&self.path, failure(&e, self.number))),
            };
            if bytes.is_empty() {
                break;
            }
            let mut used = 0;
            for &byte in bytes {
                used += 1;
                let was_inside = scan.is_inside;
                let is_part = scan.step(byte);
                self.number += u64::from(byte == b'\n');
                if is_part {
                    if !was_inside {
                        started = self.number;
                    }
                    if element.len() <= self.limit {
                        element.push(byte);
                    }
                }
                if scan.is_over {
                    break;
                }
            }
            self.reader.consume(used);
            self.bytes += used as u64;
            if scan.is_over {
                break;
            }
        }
        self.open_arrays += scan.open_arrays;
        if !scan.is_over && (scan.depth > 0 || scan.quote.is_some() || element.is_empty() && self.open_arrays > 0) {
            let place = if element.is_empty() {
                "its array is not closed".to_owned()
            } else {
                format!("the object that begins in line {started} is not closed")
            };
            return Err(Error::raw(
                &self.path,
                format!("is truncated or damaged: {place}; fetch it again, or correct it"),
            ));
        }
        if element.trim_ascii().is_empty() {
            return Ok(None);
        }
        if element.len() > self.limit {
            return Ok(Some((started, Err(Fault::new(format!("object longer than {} bytes", self.limit), "")))));
        }
        self.inspect(element);
        Ok(Some((started, Ok(()))))
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        Error::raw(&self.path, failure(error, self.number))
    }
}

/// Finds where an element of an array begins and ends.
#[derive(Default)]
struct ElementScan {
    depth: usize,
    is_inside: bool,
    is_over: bool,
    quote: Option<u8>,
    is_escaped: bool,
    /// The number of arrays around the element that were opened, less those that were closed.
    open_arrays: i64,
}

impl ElementScan {
    /// Reads a byte, and returns whether it belongs to the element.
    fn step(&mut self, byte: u8) -> bool {
        if let Some(quote) = self.quote {
            if self.is_escaped {
                self.is_escaped = false;
            } else if byte == b'\\' {
                self.is_escaped = true;
            } else if byte == quote {
                self.quote = None;
            }
            return true;
        }
        let parts =
            byte.is_ascii_whitespace() || matches!(byte, b',' | b'[' | b']') || !byte.is_ascii() && self.depth == 0;
        if self.depth == 0 && parts {
            self.open_arrays += i64::from(byte == b'[') - i64::from(byte == b']');
            // Anything but an object, such as a number, ends here.
            self.is_over = self.is_inside;
            return false;
        }
        self.is_inside = true;
        match byte {
            b'"' | b'\'' => self.quote = Some(byte),
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.is_over = self.depth == 0;
            }
            _ => {}
        }
        true
    }
}

/// Describes what a failed read means for the file.
pub fn failure(error: &std::io::Error, lines: u64) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            format!("is truncated: its gzip data ends in the middle, after {lines} complete lines; fetch it again")
        }
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
            format!("is damaged: its gzip data cannot be decoded after line {lines} ({error}); fetch it again")
        }
        _ => format!("cannot be read after line {lines}: {error}"),
    }
}

/// Text of a line, or what is wrong with its bytes.
pub fn text(line: &[u8]) -> std::result::Result<&str, Fault> {
    std::str::from_utf8(line).map_err(|e| {
        let from = e.valid_up_to().saturating_sub(20);
        Fault::new("invalid UTF-8", String::from_utf8_lossy(&line[from..line.len().min(from + 60)]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &'static [u8], limit: usize) -> Vec<String> {
        let mut lines = Lines::new(Path::new("x"), Box::new(bytes)).with_limit(limit);
        let (mut line, mut all) = (Vec::new(), Vec::new());
        while let Some((number, outcome)) = lines.next(&mut line).unwrap() {
            let shown =
                outcome.map_or_else(|fault| fault.reason.into_owned(), |()| String::from_utf8_lossy(&line).into());
            all.push(format!("{number} {shown}"));
        }
        all
    }

    #[test]
    fn ends_of_lines_and_the_byte_order_mark_are_not_content() {
        assert_eq!(read(b"\xef\xbb\xbfa\r\nb\n\nc", 9), ["1 a", "2 b", "3 ", "4 c"]);
        assert_eq!(read(b"", 9), Vec::<String>::new());
        assert_eq!(read(b"a\r", 9), ["1 a"]);
    }

    #[test]
    fn lines_that_end_in_carriage_returns_alone_are_refused() {
        for (bytes, limit) in [(&b"a,b\r1,2\r"[..], 99), (b"a,b\r1,2\r3,4\r5,6", 9)] {
            let mut lines = Lines::new(Path::new("x"), Box::new(bytes)).with_limit(limit);
            let message = lines.next(&mut Vec::new()).unwrap_err().to_string();
            assert!(message.contains("has lines that end in carriage returns alone"), "{message}");
        }
    }

    #[test]
    fn elements_of_arrays_are_cut_out_of_any_lines() {
        let read = |bytes: &'static [u8]| {
            let mut lines =
                Lines::new(Path::new("x"), Box::new(std::io::BufReader::with_capacity(3, bytes))).with_limit(30);
            let (mut element, mut all) = (Vec::new(), Vec::new());
            while let Some((number, outcome)) = lines.next_element(&mut element).map_err(|e| e.to_string())? {
                let text = String::from_utf8_lossy(&element).into_owned();
                all.push(
                    outcome.map_or_else(|fault| format!("{number} {}", fault.reason), |()| format!("{number} {text}")),
                );
            }
            Ok::<_, String>(all)
        };
        assert_eq!(
            read(b"\xef\xbb\xbf[\n {\"a\": \"}],\\\"\"},\n{\n\"b\": [{}]\n}, 17,\n{'c': '\"'}]\n[{}]").unwrap(),
            ["2 {\"a\": \"}],\\\"\"}", "3 {\n\"b\": [{}]\n}", "5 17", "6 {'c': '\"'}", "7 {}"]
        );
        assert_eq!(read(b"[]\n").unwrap(), Vec::<String>::new());
        let truncated = |bytes| read(bytes).unwrap_err();
        assert!(truncated(b"[{},\n{\"a\": \"cut").contains("the object that begins in line 2 is not closed"));
        assert!(truncated(b"[{},\n{\"a\": [1").contains("the object that begins in line 2 is not closed"));
        assert!(truncated(b"[{\"a\": 1},\n").contains("its array is not closed"));
        assert_eq!(
            read(b"[{\"a\": \"longer than thirty bytes, all in all\"}, {}]").unwrap(),
            ["1 object longer than 30 bytes", "1 {}"]
        );
    }

    #[test]
    fn files_with_arrays_or_objects_over_lines_are_distinguished_from_lines() {
        for (bytes, expected) in [
            (&b"[\n  {\"a\": 1}]"[..], true),
            (b"\xef\xbb\xbf[{\"a\": 1}]", true),
            (b"[]", true),
            (b"{\n\"a\": 1\n}", true),
            (b"{\"a\": 1}\n", false),
            (b"[1, 2]\n", false),
            (b"{\n", false),
            (b"{\n{\"a\": 1}\n", false),
            (b"{", false),
            (b"", false),
        ] {
            let mut lines = Lines::new(Path::new("x"), Box::new(bytes));
            assert_eq!(lines.holds_elements().unwrap(), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_line_past_the_limit_is_skipped_and_the_next_one_read() {
        assert_eq!(
            read(b"1234\n12345\n1\r\n123456789", 4),
            ["1 1234", "2 line longer than 4 bytes", "3 1", "4 line longer than 4 bytes"]
        );
        assert_eq!(read(b"1234\r\nx", 4), ["1 1234", "2 x"]);
    }
}
