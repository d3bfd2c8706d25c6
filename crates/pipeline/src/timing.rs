//! Measures the time and memory that a stage takes.

use std::path::Path;
use std::time::Duration;

use mp4sr_artifact::{Timing, files};

/// Resets the peak of memory for the stage that starts now, because one process may run several stages.
pub fn start() {
    // Only Linux has this file; on other systems the peak is unknown. If it cannot be written, the peak is that of the whole process.
    #[expect(clippy::disallowed_methods, reason = "this file is a switch of the system")]
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The timing of `stage`, which this process has just finished, with tensors on `device`.
pub fn finished(stage: &str, took: Duration, device: &str) -> Timing {
    // Only Linux has this file; on other systems the peak is unknown.
    let status = files::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
    Timing {
        stage: stage.to_owned(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        seconds: (took.as_secs_f64() * 1000.0).round() / 1000.0,
        peak_memory_bytes: peak_memory(&status),
        threads: rayon::current_num_threads(),
        device: device.to_owned(),
        finished: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
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
    fn a_timing_is_in_milliseconds_with_the_memory_of_this_process() {
        let timing = finished("work", Duration::from_micros(1_500_400), "cpu");
        assert!((timing.seconds - 1.5).abs() < 1e-9 && timing.threads > 0 && timing.finished.ends_with(" UTC"));
        assert!(timing.peak_memory_bytes.is_none_or(|bytes| bytes > 100_000));
    }
}
