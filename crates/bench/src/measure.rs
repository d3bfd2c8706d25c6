//! Measures threads, processor time and memory in addition to the times of steps, and summarises times.

use std::path::Path;

use mp4sr_artifact::files;

/// The median, minimum and maximum of some times.
pub struct MedianRange {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl MedianRange {
    pub fn of(times: &[f64]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        let round = |time: f64| (time * 100.0).round() / 100.0;
        let at = |at: usize| sorted.get(at).copied().unwrap_or(0.0);
        let (count, half) = (sorted.len(), sorted.len() / 2);
        let median = if count.is_multiple_of(2) { f64::midpoint(at(half.max(1) - 1), at(half)) } else { at(half) };
        Self { median: round(median), least: round(at(0)), most: round(at(count.max(1) - 1)) }
    }
}

/// The number of threads that operators use.
pub fn threads() -> usize {
    mp4sr_ops::threads()
}

/// The processor time of all threads of this process in milliseconds, in steps of ten; `None` if the system does not report it.
pub fn processor_ms() -> Option<f64> {
    let stat = files::read_to_string(Path::new("/proc/self/stat")).ok()?;
    // The name in parentheses may contain spaces. The 14th and 15th fields are the ticks of 10 ms in user and system mode.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) * 10.0)
}

/// The peak memory of this process in MiB; `None` if the system does not report it.
pub fn peak_mib() -> Option<u64> {
    let status = files::read_to_string(Path::new("/proc/self/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}
