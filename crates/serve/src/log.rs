//! The log of the service: JSON lines on standard error, written by a thread of their own, so that a reader of the log that stops reading
//! never stops the service.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The number of lines that wait for standard error. While they wait, further lines are counted and left out.
const WAITING: usize = 10_000;
/// The time between two attempts to end a log that is full.
const PAUSE: Duration = Duration::from_millis(10);

static LINES: LazyLock<SyncSender<Entry>> = LazyLock::new(|| {
    let (lines, entries) = sync_channel(WAITING);
    std::thread::spawn(move || write(&entries));
    lines
});
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

enum Entry {
    Line(String),
    /// Everything before this was written.
    Written(SyncSender<()>),
}

/// Writes one line of the log, a JSON object.
pub fn log(level: &str, fields: &Value) {
    if LINES.try_send(Entry::Line(line(level, fields))).is_err() {
        LEFT_OUT.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits until the log is written, at most for `limit`.
pub fn finish(limit: Duration) {
    let (written, wait) = sync_channel(1);
    let end = Instant::now() + limit;
    while LINES.try_send(Entry::Written(written.clone())).is_err() {
        if Instant::now() >= end {
            return;
        }
        std::thread::sleep(PAUSE);
    }
    let _ = wait.recv_timeout(end.saturating_duration_since(Instant::now()));
}

fn line(level: &str, fields: &Value) -> String {
    let mut line = json!({ "time": jiff::Timestamp::now().to_string(), "level": level });
    if let (Some(line), Some(fields)) = (line.as_object_mut(), fields.as_object()) {
        line.extend(fields.clone());
    }
    format!("{line}\n")
}

fn write(entries: &Receiver<Entry>) {
    // A descriptor of its own does not hold the lock of standard error while it waits for the reader.
    let Ok(own) = std::io::stderr().as_fd().try_clone_to_owned() else { return };
    let mut file = File::from(own);
    // One system call per line keeps lines whole. The service keeps running when standard error is closed.
    let mut write = |line: String| drop(file.write_all(line.as_bytes()));
    for entry in entries {
        match entry {
            Entry::Line(line) => write(line),
            Entry::Written(written) => drop(written.send(())),
        }
        let left_out = LEFT_OUT.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            let fields =
                json!({ "event": "lines of the log were left out, because it was read too slowly", "lines": left_out });
            write(line("error", &fields));
        }
    }
}
