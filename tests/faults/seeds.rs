//! Runs the fuzz targets on every stored seed and found case.

use std::path::Path;

use mp4sr_artifact::files;
use mp4sr_tests::root;

#[path = "../../fuzz/src/targets.rs"]
mod targets;

type Target = fn(&Path, &[u8]) -> usize;

const TARGETS: [(&str, Target); 9] = [
    ("tensors", targets::tensors),
    ("parquet", targets::parquet),
    ("manifest", targets::manifest),
    ("configuration", targets::configuration),
    ("raw_json", targets::raw_json),
    ("raw_python", targets::raw_python),
    ("raw_delimited", targets::raw_delimited),
    ("raw_dialects", targets::raw_dialects),
    ("image", targets::image),
];

/// Files named `found-...` once violated a guarantee. All other seeds must be usable, so that the fuzzer starts from valid inputs.
#[test]
fn seeds_and_found_cases_satisfy_the_properties() {
    let seeds = root().join("fuzz/seeds");
    assert_eq!(files::list(&seeds).unwrap().len(), TARGETS.len(), "a folder of seeds has no target here");
    for (name, target) in TARGETS {
        let found = files::list(&seeds.join(name)).unwrap();
        assert!(!found.is_empty(), "{name}: no seeds");
        for path in found {
            let folder = tempfile::tempdir().unwrap();
            let mut bytes = files::read(&path).unwrap();
            let used = target(folder.path(), &bytes);
            if name.starts_with("raw_") {
                // At this length, the target also computes the whole account.
                bytes.resize(bytes.len().next_multiple_of(64), b'\n');
                target(folder.path(), &bytes);
            }
            let is_found = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("found-"));
            assert!(is_found || used > 0, "{}: nothing of it can be used", path.display());
        }
    }
}
