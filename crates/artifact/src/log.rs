//! Logs with one JSON object per line.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Fingerprint, Result, files};

/// The start of the checksum, which is the last key of a line.
const CHECK: &str = ",\"check\":\"";
/// The number of hexadecimal digits of the checksum.
const DIGITS: usize = 16;

fn check_of(json: &str) -> String {
    Fingerprint::of_bytes(json.as_bytes()).as_str()[..DIGITS].to_owned()
}

/// Formats a line of a log: a JSON object whose last key is a checksum of the rest.
pub fn log_line(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).unwrap_or_default();
    match json.strip_suffix('}') {
        Some(start) => format!("{start}{CHECK}{}\"}}\n", check_of(&json)),
        None => format!("{json}\n"),
    }
}

/// Reads all lines of a log, each of which is a JSON object. Lines of other programs may lack the checksum. `remedy` tells the user what to
/// do about a line that has changed or cannot be read.
pub fn read_log<T: DeserializeOwned>(path: &Path, remedy: &str) -> Result<Vec<T>> {
    let text = files::read_to_string(path)?;
    let read = |(at, line): (usize, &str)| {
        if let Some((start, end)) = line.rsplit_once(CHECK)
            && end != format!("{}\"}}", check_of(&format!("{start}}}")))
        {
            let reason = format!("line {} does not match its `check`", at + 1);
            return Err(Error::unusable(path, reason, remedy));
        }
        serde_json::from_str(line).map_err(|e| Error::unreadable(path, &format!("line {}", at + 1), &e, remedy))
    };
    text.lines().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Epoch {
        epoch: usize,
        loss: f64,
    }

    #[test]
    fn a_changed_digit_of_a_line_is_detected_and_lines_of_other_programs_need_no_checksum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let read = |text: &[u8]| {
            files::write_bytes(&path, text).unwrap();
            read_log::<Epoch>(&path, "train again").map_err(|e| e.to_string())
        };
        let epochs = [Epoch { epoch: 1, loss: 7.25 }, Epoch { epoch: 2, loss: 0.1 + 0.2 }];
        let whole: String = epochs.iter().map(log_line).collect();
        assert_eq!(read(whole.as_bytes()).unwrap(), epochs);
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                if let Ok(found) = read(&bytes) {
                    assert_eq!(found, epochs, "bit {bit} of byte {at}");
                }
            }
        }
        let other = br#"{"epoch": 1, "loss": 7.25}"#;
        assert_eq!(read(other).unwrap(), epochs[..1]);
        let message = read(whole.replace("7.25", "7.26").as_bytes()).unwrap_err();
        assert!(message.contains("line 1 does not match its `check`") && message.ends_with("train again"), "{message}");
    }
}
