//! What was not used, and why: counts by reason, with the first three examples of each.

use std::borrow::Cow;
use std::path::Path;

use mp4sr_artifact::{RejectExample, Rejects};

/// The number of examples that are kept per reason.
const EXAMPLES: usize = 3;
/// The number of characters that are shown of a text.
const SHOWN: usize = 60;

/// The reason under which blank lines are counted.
pub const BLANK_LINE: &str = "blank line";

/// A problem with one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The reason under which it is counted.
    pub reason: Cow<'static, str>,
    /// The text that was found there.
    pub found: String,
}

impl Fault {
    /// A fault that is counted under `reason`, with an excerpt of the text that was found.
    pub fn new(reason: impl Into<Cow<'static, str>>, found: impl AsRef<str>) -> Self {
        Self { reason: reason.into(), found: excerpt(found.as_ref()) }
    }
}

/// Counts a fault, and keeps it as an example unless there are enough.
pub fn reject(rejects: &mut Rejects, file: &Path, line: u64, fault: Fault) {
    let rejected = match rejects.0.get_mut(fault.reason.as_ref()) {
        Some(known) => known,
        None => rejects.0.entry(fault.reason.into_owned()).or_default(),
    };
    rejected.count += 1;
    if rejected.examples.len() < EXAMPLES {
        rejected.examples.push(RejectExample { file: file.to_owned(), line, found: fault.found });
    }
}

/// The beginning of a text, on one line and fit for a terminal.
pub fn excerpt(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_the_first_three_shown() {
        let mut rejects = Rejects::default();
        for line in 1..=5 {
            reject(&mut rejects, Path::new("a.json"), line, Fault::new("broken JSON", format!("{{\u{1b}[{line}")));
        }
        reject(&mut rejects, Path::new("a.json"), 9, Fault::new("blank line", ""));
        assert_eq!(rejects.total(), 6);
        assert_eq!(rejects.most_frequent(), Some(("broken JSON", 5)));
        let broken = &rejects.0["broken JSON"];
        assert_eq!(broken.examples.iter().map(|e| e.line).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(broken.examples[0].found, "{\u{fffd}[1", "control characters never reach the terminal");
    }

    #[test]
    fn excerpts_are_cut_between_characters() {
        assert_eq!(excerpt(&"\u{1f600}".repeat(61)), format!("{}...", "\u{1f600}".repeat(60)));
    }
}
