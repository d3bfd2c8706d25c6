use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use crate::rejects::Fault;
use crate::{Error, Result};

/// The longest line that is read; a longer one is skipped without being held. Real metadata lines reach a few hundred
/// thousand bytes.
const LIMIT: usize = 16 << 20;

/// The lines of a text file, numbered from 1, without their ends and without a byte order mark.
pub struct Lines<'b> {
    path: PathBuf,
    reader: Box<dyn BufRead + 'b>,
    number: u64,
    limit: usize,
}

impl<'b> Lines<'b> {
    pub fn new(path: &Path, reader: Box<dyn BufRead + 'b>) -> Self {
        Self { path: path.to_owned(), reader, number: 0, limit: LIMIT }
    }

    #[cfg(test)]
    fn with_limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The longest line, and the longest record made of several.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Reads the next line into `line`; its number, or `None` at the end.
    pub fn next(&mut self, line: &mut Vec<u8>) -> Result<Option<(u64, std::result::Result<(), Fault>)>> {
        line.clear();
        let room = self.limit as u64 + 2;
        let read = self.reader.by_ref().take(room).read_until(b'\n', line).map_err(|e| self.failed(&e))?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if read as u64 == room {
            self.reader.skip_until(b'\n').map_err(|e| self.failed(&e))?;
        }
        if line.last() == Some(&b'\r') {
            line.pop();
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
        Ok(Some((self.number, Ok(()))))
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        Error::raw(&self.path, failure(error, self.number))
    }
}

/// What a failed read says about the file.
pub fn failure(error: &std::io::Error, lines: u64) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            format!("is cut short: its gzip data ends in the middle, after {lines} whole lines; fetch it again")
        }
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
            format!("is damaged: its gzip data can't be decoded after line {lines} ({error}); fetch it again")
        }
        _ => format!("can't be read after line {lines}: {error}"),
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
    fn ends_of_lines_and_the_byte_order_mark_are_no_content() {
        assert_eq!(read(b"\xef\xbb\xbfa\r\nb\n\nc", 9), ["1 a", "2 b", "3 ", "4 c"]);
        assert_eq!(read(b"", 9), Vec::<String>::new());
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
