//! Writes a folder as a whole: on an error, the previous folder is kept, and files that this program did not write are never replaced.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

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
/// The key of the list of files that were written, relative to the folder.
const FILES: &str = "files";

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
    let own = || {
        let text = files::read_to_string(&out.join(record)).ok()?;
        serde_json::from_str::<Value>(&text).ok().filter(|content| content.get(MARK).is_some())
    };
    if files::list(out)?.is_empty() {
        return Ok(());
    }
    let Some(content) = own() else {
        bail!(
            "`{}` contains files, and no `{record}` shows that this command wrote them: they would be lost; name another folder in `--out`",
            out.display()
        );
    };
    // Records of earlier releases may not list the files.
    let Some(written) = content.get(FILES).and_then(Value::as_array) else { return Ok(()) };
    let mut expected: HashSet<PathBuf> = written.iter().filter_map(Value::as_str).map(|name| out.join(name)).collect();
    expected.insert(out.join(record));
    if let Some(other) = files_in(out)?.into_iter().find(|path| !expected.contains(path)) {
        bail!(
            "`{}` was not written by this command and would be lost; move it, or name another folder in `--out`",
            other.display()
        );
    }
    Ok(())
}

/// The files in a folder and in the folders below it.
fn files_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in files::list(folder)? {
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_in(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// Fills the folder, and writes the record that `fill` returns. The previous folder is kept until the new one is complete.
pub fn write(out: &Path, record: &str, fill: impl FnOnce(&Path) -> anyhow::Result<Value>) -> anyhow::Result<()> {
    check(out, record)?;
    let whole = |made: &Path| {
        let mut content = fill(made)?;
        if content.get(FILES).is_none() {
            let relative = |path: &PathBuf| path.strip_prefix(made).map(|path| path.display().to_string());
            let names: Vec<String> = files_in(made)?.iter().map(relative).collect::<Result<_, _>>()?;
            content[FILES] = names.into();
        }
        content[MARK] = VERSION.into();
        files::write_json(&made.join(record), &content)?;
        // Filling takes a while, in which other files may have been put into the folder.
        check(out, record)
    };
    files::replace_folder(out, |made| whole(made).map_err(Failed)).map_err(|Failed(error)| error)
}

struct Failed(anyhow::Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error.into())
    }
}
