//! The code that the targets in `fuzz_targets/` share.

pub mod targets;

use std::path::Path;
use std::sync::OnceLock;

/// A folder in memory for the files of this process. The first call also installs a panic hook, so that the fuzzer ignores panics of
/// libraries that the code catches and turns into errors.
pub fn scratch() -> &'static Path {
    static FOLDER: OnceLock<std::path::PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !mp4sr_artifact::is_guarded() {
                hook(panic);
            }
        }));
        let folder = std::path::PathBuf::from(format!("/dev/shm/mp4sr-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        folder
    })
}
