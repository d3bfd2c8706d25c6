//! What a finished stage took (`<stage>.timing.json`). No manifest records it, as it is another one each time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mp4sr_artifact::{Error, Result, files};
use serde::{Deserialize, Serialize};

/// What the process that finished a stage took for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The stage.
    pub stage: String,
    /// The version of the program.
    pub program: String,
    /// From the start of its work; what a process that was killed did before is not in it.
    pub seconds: f64,
    /// The most memory that the process held while the stage ran; none where the system does not tell.
    pub peak_memory_bytes: Option<u64>,
    /// How many threads it could use.
    pub threads: usize,
    /// In UTC.
    pub finished: String,
}

impl Timing {
    /// Lets the peak of memory be that of the stage that starts now: one process may run several.
    pub(crate) fn start() {
        // Linux alone has this file; elsewhere no peak is known. Where it cannot be written, the peak is that of the process.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
    }

    /// Of this process, which has just finished `stage`.
    pub(crate) fn now(stage: &str, took: Duration) -> Self {
        // Linux alone has this file; elsewhere there is nothing to tell.
        let status = files::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
        Self {
            stage: stage.to_owned(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            seconds: (took.as_secs_f64() * 1000.0).round() / 1000.0,
            peak_memory_bytes: peak_memory(&status),
            threads: rayon::current_num_threads(),
            finished: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        }
    }

    /// Where the timing of a stage lies.
    pub fn path(folder: &Path, stage: &str) -> PathBuf {
        folder.join(format!("{stage}.timing.json"))
    }

    /// Reads one; none where there is none.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        serde_json::from_slice(&files::read(path)?)
            .map(Some)
            .map_err(|e| Error::unreadable(path, "it", &e, "delete it"))
    }
}

/// `VmHWM` of `/proc/self/status`, in bytes.
fn peak_memory(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_from_the_line_that_linux_writes() {
        assert_eq!(peak_memory("Name:\tx\nVmPeak:\t   900 kB\nVmHWM:\t  123456 kB\n"), Some(126_418_944));
        for unknown in ["", "VmHWM:\t12 MB\n", "VmHWM:\t-1 kB\n", "VmHWM:\n"] {
            assert_eq!(peak_memory(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn a_timing_round_trips_and_a_damaged_one_names_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = Timing::path(folder.path(), "work");
        assert_eq!(Timing::read(&path).unwrap(), None);
        let timing = Timing::now("work", Duration::from_millis(1500));
        assert!((timing.seconds - 1.5).abs() < 1e-9 && timing.threads > 0 && timing.finished.ends_with(" UTC"));
        assert!(timing.peak_memory_bytes.is_none_or(|bytes| bytes > 100_000));
        files::write_json(&path, &timing).unwrap();
        assert_eq!(Timing::read(&path).unwrap(), Some(timing));
        files::write_bytes(&path, b"{\"stage\":").unwrap();
        let message = Timing::read(&path).unwrap_err().to_string();
        assert!(message.contains("work.timing.json") && message.ends_with("delete it"), "{message}");
    }
}
