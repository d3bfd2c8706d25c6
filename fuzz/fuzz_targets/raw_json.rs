//! Any bytes as raw data: rows and rejected lines, or an error, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mp4sr_preprocess::count_rows;

fuzz_target!(|bytes: &[u8]| {
    for end in ["jsonl"] {
        let path = std::path::PathBuf::from(format!("/dev/shm/mp4sr-fuzz-{}.{end}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        let _ = count_rows(&path, "json", &["user_id", "item_id", "timestamp"]);
    }
});
