//! Any bytes as the record of a stage: the stage runs again or is up to date, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mp4sr_artifact::Stage;

fuzz_target!(|bytes: &[u8]| {
    let folder = std::path::PathBuf::from(format!("/dev/shm/mp4sr-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("work.manifest.json"), bytes).unwrap();
    let input = folder.join("in");
    std::fs::write(&input, b"in").unwrap();
    if let Ok(stage) = Stage::new("work", 1, &folder, &1, &[("in".to_owned(), input)]) {
        let _ = stage.status();
    }
});
