//! The log of training (`metrics.jsonl`): one line per epoch.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Result, read_log};

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochLine {
    /// The name of the phase.
    pub phase: String,
    /// The number of the epoch within its phase, from 1.
    pub epoch: usize,
    /// The mean training loss of the epoch's samples.
    pub loss: f64,
    /// The mean over steps of the joint gradient norm before clipping.
    pub gradient_norm: f64,
    /// The validation metrics after the epoch (`R@K`, `N@K`, `MRR`); empty if the phase has no validation.
    pub validation: BTreeMap<String, f64>,
    /// The mean cross-entropy of the test targets after the epoch, if `finetune.log_test_loss` is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_loss: Option<f64>,
    /// Whether this is the best epoch so far.
    pub best: bool,
    /// The seconds of training and of validation.
    pub seconds: (f64, f64),
}

impl EpochLine {
    /// Reads `metrics.jsonl`. A file that does not exist has no lines: its model is not trained in epochs. `remedy` tells the user what to
    /// do about a line that cannot be read.
    pub fn read(path: &Path, remedy: &str) -> Result<Vec<Self>> {
        if path.exists() { read_log(path, remedy) } else { Ok(Vec::new()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{files, log_line};

    #[test]
    fn a_missing_field_is_an_error_that_names_file_line_and_field() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        assert_eq!(EpochLine::read(&path, "train again").unwrap(), []);
        let epoch = EpochLine {
            phase: "pretrain".to_owned(),
            epoch: 1,
            loss: 0.5,
            gradient_norm: 1.0,
            validation: BTreeMap::new(),
            test_loss: None,
            best: true,
            seconds: (1.0, 0.0),
        };
        files::write_bytes(&path, log_line(&epoch).as_bytes()).unwrap();
        assert_eq!(
            EpochLine::read(&path, "train again").unwrap(),
            std::slice::from_ref(&epoch),
            "a phase may have no validation"
        );
        let whole = serde_json::to_value(&epoch).unwrap();
        for field in ["phase", "epoch", "loss", "gradient_norm", "validation", "best", "seconds"] {
            let mut cut = whole.clone();
            cut.as_object_mut().unwrap().remove(field);
            files::write_bytes(&path, format!("{}{cut}\n", log_line(&epoch)).as_bytes()).unwrap();
            let message = EpochLine::read(&path, "train again").unwrap_err().to_string();
            assert!(message.contains("metrics.jsonl") && message.contains("line 2"), "{message}");
            assert!(message.contains(&format!("missing field `{field}`")), "{message}");
        }
    }
}
