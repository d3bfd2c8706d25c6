//! Writes a folder as a whole: on an error, the previous folder is kept, and files that this program did not write are never replaced.

use std::path::Path;

use anyhow::{bail, ensure};
use mp4sr_artifact::{Error, files};
use serde_json::Value;

/// The file that marks the folder of an export and describes it.
pub const EXPORT: &str = "export.json";
/// The file that marks the folder of an import and describes it.
pub const IMPORT: &str = "import.json";
/// The key that distinguishes the record from any other file of that name.
const MARK: &str = "mp4sr_version_of_folder";
const VERSION: u32 = 1;

/// Rejects a path that exists, unless it is an empty folder or one with the record `record`.
pub fn check(out: &Path, record: &str) -> anyhow::Result<()> {
    ensure!(
        out.file_name().is_some(),
        "`{}` does not name a folder that can be written; name a new one",
        out.display()
    );
    if !out.exists() {
        return Ok(());
    }
    ensure!(out.is_dir(), "`{}` is a file; name a folder in `--out`", out.display());
    let is_own = || {
        let text = files::read_to_string(&out.join(record)).ok()?;
        serde_json::from_str::<Value>(&text).ok()?.get(MARK).map(|_| ())
    };
    if !files::list(out)?.is_empty() && is_own().is_none() {
        bail!(
            "`{}` contains files, and no `{record}` shows that this command wrote them: they would be lost; name another folder in `--out`",
            out.display()
        );
    }
    Ok(())
}

/// Fills the folder, and writes the record that `fill` returns. The previous folder is kept until the new one is complete.
pub fn write(out: &Path, record: &str, fill: impl FnOnce(&Path) -> anyhow::Result<Value>) -> anyhow::Result<()> {
    check(out, record)?;
    let whole = |made: &Path| {
        let mut content = fill(made)?;
        content[MARK] = VERSION.into();
        files::write_json(&made.join(record), &content)?;
        Ok(())
    };
    files::replace_folder(out, |made| whole(made).map_err(Failed)).map_err(|Failed(error)| error)
}

struct Failed(anyhow::Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error.into())
    }
}
