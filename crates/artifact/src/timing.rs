//! The time and memory that a finished stage took (`<stage>.timing.json`). No manifest records this file, because it differs each time.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, files};

/// The time and memory that the process that finished a stage used for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The name of the stage.
    pub stage: String,
    /// The version of the program.
    pub program: String,
    /// The seconds since the stage's work started in this process, without the time of earlier processes that were killed.
    pub seconds: f64,
    /// The peak of the process's memory while the stage ran; null if the system does not report it.
    #[serde(deserialize_with = "Option::deserialize")]
    pub peak_memory_bytes: Option<u64>,
    /// The number of threads that the stage could use.
    pub threads: usize,
    /// The device that `run.device` names. Records of earlier releases lack it; they are from the CPU.
    #[serde(default = "cpu")]
    pub device: String,
    /// The time at which the stage finished, in UTC.
    pub finished: String,
}

fn cpu() -> String {
    "cpu".to_owned()
}

impl Timing {
    /// The path of the timing of a stage.
    pub fn path(folder: &Path, stage: &str) -> PathBuf {
        folder.join(format!("{stage}.timing.json"))
    }

    /// The path at which a stage that runs again keeps the timing of its last run, until it is finished.
    fn earlier_path(folder: &Path, stage: &str) -> PathBuf {
        folder.join(format!("{stage}.timing.earlier.json"))
    }

    /// Sets the timing of the last run aside, so that it does not stay beside new outputs.
    pub fn set_aside(folder: &Path, stage: &str) -> Result<()> {
        let path = Self::path(folder, stage);
        if path.exists() { files::rename(&path, &Self::earlier_path(folder, stage)) } else { Ok(()) }
    }

    /// Puts a timing that was set aside back, because the outputs are those of the last run.
    pub fn put_back(folder: &Path, stage: &str) -> Result<()> {
        let earlier = Self::earlier_path(folder, stage);
        if earlier.exists() { files::rename(&earlier, &Self::path(folder, stage)) } else { Ok(()) }
    }

    /// Writes the timing of a run that has replaced the outputs, and removes one that was set aside.
    pub fn write(&self, folder: &Path) -> Result<()> {
        files::write_json(&Self::path(folder, &self.stage), self)?;
        files::remove_if_present(&Self::earlier_path(folder, &self.stage))
    }

    /// Removes the timing of a stage.
    pub fn remove(folder: &Path, stage: &str) -> Result<()> {
        files::remove_if_present(&Self::earlier_path(folder, stage))?;
        files::remove_if_present(&Self::path(folder, stage))
    }

    /// Reads a timing; `None` if the file does not exist.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        serde_json::from_slice(&files::read(path)?)
            .map(Some)
            .map_err(|e| Error::unreadable(path, "it", &e, "delete it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_field_of_a_timing_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = Timing::path(folder.path(), "work");
        assert_eq!(Timing::read(&path).unwrap(), None);
        let timing = Timing {
            stage: "work".to_owned(),
            program: "1.0.0".to_owned(),
            seconds: 1.5,
            peak_memory_bytes: None,
            threads: 2,
            device: "cuda:0".to_owned(),
            finished: "2025-01-02 03:04:05 UTC".to_owned(),
        };
        files::write_json(&path, &timing).unwrap();
        assert_eq!(Timing::read(&path).unwrap(), Some(timing.clone()));
        let whole = serde_json::to_value(&timing).unwrap();
        for field in ["stage", "program", "seconds", "peak_memory_bytes", "threads", "finished"] {
            let mut cut = whole.clone();
            cut.as_object_mut().unwrap().remove(field);
            files::write_json(&path, &cut).unwrap();
            let message = Timing::read(&path).unwrap_err().to_string();
            assert!(message.contains("work.timing.json") && message.contains(&format!("`{field}`")), "{message}");
            assert!(message.contains("line ") && message.ends_with("delete it"), "{message}");
        }
    }
}
