//! Any bytes as a tensor file: an error or whole tensors, never a panic or a huge allocation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mp4sr_artifact::{MappedFeatures, Sequences, TensorFile, hash_ids};

fuzz_target!(|bytes: &[u8]| {
    let path = std::path::PathBuf::from(format!("/dev/shm/mp4sr-fuzz-{}.safetensors", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    for format in ["sequences", "features", "ranks"] {
        if let Ok(mut file) = TensorFile::read(&path, format, 1, "make it again") {
            for name in file.names() {
                let _ = file.take(&name);
            }
        }
    }
    let _ = Sequences::read(&path);
    let _ = MappedFeatures::open(&path, &hash_ids(["a", "b"]), 2);
});
