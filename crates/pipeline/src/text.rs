//! Text for people: Markdown and CSV tables, and the notation of numbers, sizes and times in all stages.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use comfy_table::{LineStyle, TableStyle};
use indicatif::{HumanBytes, HumanCount};
use jiff::SignedDuration;
use jiff::fmt::friendly::{FractionalUnit, SpanPrinter};
use mp4sr_artifact::{Error, Result, files};

/// The number of seconds from which a duration is shown in whole seconds. Shorter ones are rounded to tenths, so `60.0s` is never shown.
const WHOLE_SECONDS: f64 = 59.95;

/// The maximum number of names that [`some_of`] lists.
const NAMED: usize = 5;
/// The maximum number of characters of a name that [`quoted`] shows.
const SHOWN: usize = 80;

/// A name that users chose, such as an id, as a message shows it: in backticks, without characters that would break the line, change the
/// terminal or reverse the direction of the text, and shortened if it is very long.
///
/// ```
/// use mp4sr_pipeline::text::quoted;
///
/// assert_eq!(quoted("cup-1"), "`cup-1`");
/// assert_eq!(quoted("cup\n\u{1b}[31m"), r"`cup\n\u{1b}[31m`");
/// assert_eq!(quoted(&"x".repeat(100)).chars().count(), 85);
/// ```
pub fn quoted(name: &str) -> String {
    let mut shown = String::from("`");
    for char in name.chars().take(SHOWN) {
        match char {
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                shown.extend(char.escape_unicode());
            }
            _ if char.is_control() => shown.extend(char.escape_debug()),
            _ => shown.push(char),
        }
    }
    if name.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown.push('`');
    shown
}

/// The first few of the distinct names, [`quoted`], for a message.
pub fn some_of(names: &[&str]) -> String {
    let mut seen = HashSet::new();
    let distinct: Vec<&str> = names.iter().copied().filter(|name| seen.insert(*name)).collect();
    let mut named: Vec<String> = distinct.iter().take(NAMED).map(|name| quoted(name)).collect();
    if distinct.len() > NAMED {
        named.push(format!("and {} more", distinct.len() - NAMED));
    }
    named.join(", ")
}

/// A table of text: a header, and rows with the same number of cells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextTable {
    /// The names of the columns.
    pub header: Vec<String>,
    /// The rows below the header.
    pub rows: Vec<Vec<String>>,
}

impl TextTable {
    /// Creates a table with a header and without rows.
    pub fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self { header: header.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Formats the table as Markdown whose columns also line up in a terminal. The first column is aligned left, and so are
    /// columns of words; numbers are aligned right.
    pub fn markdown(&self) -> String {
        let escape = |cell: &String| cell.replace('|', "\\|").replace(['\r', '\n'], " ");
        let escaped = |row: &Vec<String>| row.iter().map(escape).collect::<Vec<_>>();
        let lines: Vec<Vec<String>> = std::iter::once(&self.header).chain(&self.rows).map(escaped).collect();
        let cell = |line: &[String], column: usize| line.get(column).cloned().unwrap_or_default();
        let columns: Vec<(usize, bool)> = (0..self.header.len())
            .map(|column| {
                let width = lines.iter().map(|line| cell(line, column).chars().count()).max().unwrap_or(0).max(3);
                let is_text = lines[1..].iter().any(|line| cell(line, column).starts_with(char::is_alphabetic));
                (width, column > 0 && !is_text)
            })
            .collect();
        let mut text = String::new();
        for (index, line) in lines.iter().enumerate() {
            for (column, &(width, is_right)) in columns.iter().enumerate() {
                let cell = cell(line, column);
                let _ = if is_right { write!(text, "| {cell:>width$} ") } else { write!(text, "| {cell:width$} ") };
            }
            text.push_str("|\n");
            if index == 0 {
                for &(width, is_right) in &columns {
                    let _ = write!(text, "|{}{}", "-".repeat(width + 1), if is_right { ':' } else { '-' });
                }
                text.push_str("|\n");
            }
        }
        text
    }

    /// Formats the table as CSV.
    pub fn csv(&self) -> csv::Result<String> {
        let mut out = csv::Writer::from_writer(Vec::new());
        std::iter::once(&self.header).chain(&self.rows).try_for_each(|row| out.write_record(row))?;
        let bytes = out.into_inner().map_err(|e| csv::Error::from(e.into_error()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes the table to a CSV file.
    pub fn write_csv(&self, path: &Path) -> Result<()> {
        let text = self.csv().map_err(|e| Error::io("write", path, e.into()))?;
        files::write_bytes(path, text.as_bytes())
    }
}

/// Formats a count with separators for thousands: `1,234,567`.
pub fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

/// A table for a terminal, with this header and a line below it.
pub fn terminal_table<const N: usize>(header: [&str; N]) -> comfy_table::Table {
    let line = LineStyle::new('\u{2500}', '\u{2500}', '\u{2500}', '\u{2500}');
    let mut table = comfy_table::Table::new();
    table.load_style(TableStyle::new().header_separator(line)).set_header(header);
    table
}

/// Formats a number of bytes in a binary unit that fits: `1.50 GiB`.
pub fn bytes(number: u64) -> String {
    HumanBytes(number).to_string()
}

/// Formats a duration: below a minute in tenths of a second (`12.3s`), above in whole seconds (`1h 2m 5s`).
pub fn duration(seconds: f64) -> String {
    let (rounded, precision) =
        if seconds < WHOLE_SECONDS { ((seconds * 10.0).round() / 10.0, 1) } else { (seconds.round(), 0) };
    let printer = SpanPrinter::new().fractional(Some(FractionalUnit::Second)).precision(Some(precision));
    // A number from a file may exceed the longest duration.
    SignedDuration::try_from_secs_f64(rounded)
        .map_or_else(|_| format!("{seconds} s"), |duration| printer.duration_to_string(&duration))
}

/// The words of a name in lower case. `userId`, `User-ID` and `user_id` have the same words.
pub fn tokens(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut before = ' ';
    for c in name.chars() {
        let starts = c.is_uppercase() && before.is_lowercase();
        if !c.is_alphanumeric() {
            words.push(String::new());
        } else if starts || words.is_empty() {
            words.push(c.to_lowercase().collect());
        } else if let Some(last) = words.last_mut() {
            last.extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_same_words_however_they_are_written() {
        for name in ["user_id", "userId", "User-ID", "USER ID", "user.id"] {
            assert_eq!(tokens(name), ["user", "id"], "{name}");
        }
        assert_eq!(tokens("reviewerID"), ["reviewer", "id"]);
        assert_eq!(tokens("t_dat"), ["t", "dat"]);
        assert_eq!(tokens("Image-URL-L"), ["image", "url", "l"]);
    }

    #[test]
    fn columns_line_up_numbers_are_aligned_right_and_bars_are_escaped() {
        let mut table = TextTable::new(["model", "users", "ended", "R@20"]);
        for row in [["a|b", "12", "early", "**0.5000**"], ["5", "1,234", "-", "0.2"]] {
            table.rows.push(row.map(str::to_owned).into());
        }
        assert_eq!(
            table.markdown(),
            "| model | users | ended |       R@20 |\n\
             |-------|------:|-------|-----------:|\n\
             | a\\|b  |    12 | early | **0.5000** |\n\
             | 5     | 1,234 | -     |        0.2 |\n"
        );
        assert_eq!(table.csv().unwrap(), "model,users,ended,R@20\na|b,12,early,**0.5000**\n5,\"1,234\",-,0.2\n");
    }

    #[test]
    fn counts_sizes_and_durations_have_units_that_fit() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([126_418_944, 1 << 30, 1_610_612_736].map(bytes), ["120.56 MiB", "1.00 GiB", "1.50 GiB"]);
        let shown = [0.04, 59.94, 59.96, 75.0, 3599.4, 7325.0].map(duration);
        assert_eq!(shown, ["0.0s", "59.9s", "1m", "1m 15s", "59m 59s", "2h 2m 5s"]);
        assert!(duration(f64::MAX).ends_with(" s"));
    }
}
