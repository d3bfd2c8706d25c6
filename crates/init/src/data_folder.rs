//! How a pipeline names its files: by a data folder, and by paths relative to it.

use std::path::{Path, PathBuf};

use mp4sr_artifact::Error as FileError;

use crate::{Error, Result};

/// The data folder, and the names of files relative to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFolder {
    /// The path of the data folder: relative to the working directory if it is inside that, otherwise absolute.
    pub path: String,
    root: PathBuf,
}

impl DataFolder {
    /// Chooses the deepest folder that contains all of `files` and `folders`.
    pub fn of(files: &[&Path], folders: &[&Path]) -> Result<Self> {
        let mut root: Option<PathBuf> = None;
        for path in files.iter().chain(folders) {
            let path = real(path)?;
            let folder = path.parent().unwrap_or(Path::new("/"));
            root = Some(root.map_or_else(|| folder.to_owned(), |root| common(&root, folder)));
        }
        Self::at(root.unwrap_or_default())
    }

    fn at(root: PathBuf) -> Result<Self> {
        let here = real(Path::new("."))?;
        let path = match root.strip_prefix(&here) {
            Ok(below) if below == Path::new("") => ".".to_owned(),
            Ok(below) => utf8(below)?,
            Err(_) => utf8(&root)?,
        };
        Ok(Self { path, root })
    }

    /// The name of a file relative to the data folder.
    pub fn name(&self, path: &Path) -> Result<String> {
        let path = real(path)?;
        let below = path.strip_prefix(&self.root).unwrap_or(&path);
        utf8(if below == Path::new("") { Path::new(".") } else { below })
    }

    /// The last component of the data folder's path; `None` if it is too general to name a dataset.
    pub fn title(&self) -> Option<String> {
        let name = self.root.file_name()?.to_string_lossy().into_owned();
        let too_general = ["data", "raw", "tmp", "input", "files", "csv", "downloads", "root", "home"];
        Some(name).filter(|name| !too_general.contains(&name.to_lowercase().as_str()))
    }
}

fn common(a: &Path, b: &Path) -> PathBuf {
    a.components().zip(b.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
}

fn real(path: &Path) -> Result<PathBuf> {
    Ok(path.canonicalize().map_err(|e| FileError::io("read", path, e))?)
}

fn utf8(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::Unknown(format!(
            "the path `{}` is not UTF-8, which a pipeline file cannot express; rename it",
            path.display()
        ))
    })
}

/// Converts any name to a dataset name: lower-case letters, digits, `-` and `_`.
pub fn dataset_name(name: &str) -> String {
    let mut made = String::new();
    for c in name.to_lowercase().chars() {
        let c = if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        if c != '-' || !(made.is_empty() || made.ends_with('-')) {
            made.push(c);
        }
    }
    let made = made.trim_matches('-');
    if made.is_empty() { "shop".to_owned() } else { made.chars().take(60).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_start_in_the_deepest_common_folder() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("shop/images")).unwrap();
        std::fs::create_dir_all(at("other")).unwrap();
        for name in ["shop/x.csv", "shop/y.csv", "other/z.csv"] {
            std::fs::write(at(name), "x").unwrap();
        }
        let data_folder = DataFolder::of(&[&at("shop/x.csv"), &at("shop/y.csv")], &[&at("shop/images")]).unwrap();
        assert!(data_folder.path.ends_with("/shop") && data_folder.title().as_deref() == Some("shop"));
        assert_eq!(data_folder.name(&at("shop/x.csv")).unwrap(), "x.csv");
        assert_eq!(data_folder.name(&at("shop/images")).unwrap(), "images");
        let data_folder = DataFolder::of(&[&at("shop/x.csv"), &at("other/z.csv")], &[]).unwrap();
        assert_eq!(data_folder.name(&at("other/z.csv")).unwrap(), "other/z.csv");
    }

    #[test]
    fn any_name_is_turned_into_a_valid_dataset_name() {
        for (name, expected) in
            [("My Shop (2024)", "my-shop-2024"), ("ml-1m", "ml-1m"), ("\u{8cc7}", "shop"), (".x", "x")]
        {
            assert_eq!(dataset_name(name), expected);
        }
    }
}
