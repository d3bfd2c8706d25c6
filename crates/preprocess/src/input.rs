//! The raw files by role, checked before any of them is opened, and a cheap fingerprint of folders of images.

use std::fs;
use std::path::{Path, PathBuf};

use mp4sr_artifact::{Fingerprint, Layout, files};
use mp4sr_pipeline::config::{Config, Format};
use serde::Serialize;

use crate::images::{ImagePattern, images_in, images_of_pattern, is_image_name, is_sound_name};
use crate::{Error, Result};

/// The raw files of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PreprocessInputs {
    /// The data folder.
    pub data: PathBuf,
    /// Files of interactions, in the order of the pipeline.
    pub interactions: Vec<PathBuf>,
    /// Files of items, in the order of the pipeline.
    pub items: Vec<PathBuf>,
    /// The folder of images named by item id, or in which a pattern finds them.
    pub images: Option<PathBuf>,
}

impl PreprocessInputs {
    /// Resolves the paths of `[source]` and checks that each is a file that is not empty.
    pub fn resolve(config: &Config) -> Result<Self> {
        let data = PathBuf::from(&config.dataset.data);
        let source = &config.source;
        if source.interactions.is_empty() {
            return Err(Error::Setting(
                "`source.interactions` names no file; name at least one, relative to the data folder".to_owned(),
            ));
        }
        let join = |names: &[String]| names.iter().map(|name| data.join(name)).collect::<Vec<_>>();
        let inputs = Self {
            interactions: join(&source.interactions),
            items: join(&source.items),
            images: match source.images.as_str() {
                "" => None,
                pattern if ImagePattern::is_in(pattern) => Some(ImagePattern::base(&data, pattern)),
                folder => Some(data.join(folder)),
            },
            data,
        };
        inputs.interactions.iter().chain(&inputs.items).try_for_each(|path| check_file(path))?;
        expect_distinct("interactions", &inputs.interactions)?;
        expect_distinct("items", &inputs.items)?;
        if let Some(folder) = inputs.images.as_deref().filter(|folder| folder.exists() && !folder.is_dir()) {
            return Err(Error::raw(
                folder,
                "is not a folder; set `source.images` to the folder that contains the images",
            ));
        }
        Ok(inputs)
    }

    /// The files by role, for the manifest.
    pub fn by_role(&self) -> Vec<(String, PathBuf)> {
        let roles = |role: &str, paths: &[PathBuf]| {
            paths.iter().enumerate().map(|(at, path)| (format!("{role}[{at}]"), path.clone())).collect::<Vec<_>>()
        };
        [roles("interactions", &self.interactions), roles("items", &self.items)].concat()
    }

    /// The first file that the last run has missed and that exists now, if any.
    pub fn found_since(config: &Config, layout: &Layout) -> Result<Option<PathBuf>> {
        let record = match files::read(&layout.missing_files()) {
            Err(error) if error.is_not_found() => return Ok(None),
            record => record?,
        };
        // A damaged record is an output that has changed, so the stage runs again anyway.
        let missing: Vec<PathBuf> = serde_json::from_slice(&record).unwrap_or_default();
        let data = Path::new(&config.dataset.data);
        Ok(missing.into_iter().map(|path| data.join(path)).find(|path| path.is_file()))
    }

    /// The fingerprint of the names of the image and sound files that the dataset may refer to, so that new files make the stage run again.
    /// Their content does not count, because only the stages that read it depend on it.
    pub fn image_names(&self, config: &Config) -> Result<Option<Fingerprint>> {
        let mut names = Vec::new();
        if let Some(folder) = self.images.as_deref().filter(|folder| folder.is_dir()) {
            let pattern = &config.source.images;
            let found =
                if ImagePattern::is_in(pattern) { images_of_pattern(folder, pattern)? } else { images_in(folder)? };
            names.extend(found.into_iter().map(|path| path.to_string_lossy().into_owned()));
        }
        let by_column = matches!(config.source.format, Format::Tabular | Format::RecBole);
        let columns = &config.source.columns;
        if by_column && !(columns.images.is_empty() && columns.sounds.is_empty()) {
            // Paths in a column lead into folders that are only known once the file is read. These are most often directly beside it; files
            // that appear elsewhere are among those that the last run has missed.
            let mut folders: Vec<&Path> = self.items.iter().filter_map(|path| path.parent()).collect();
            folders.dedup();
            for folder in folders {
                list_names(folder, 1, &mut names)?;
            }
        }
        if names.is_empty() {
            return Ok(None);
        }
        names.sort_unstable();
        Ok(Some(Fingerprint::of_bytes(names.join("\n").as_bytes())))
    }
}

/// Refuses a file that a key names twice, because its rows would count twice.
fn expect_distinct(key: &str, paths: &[PathBuf]) -> Result<()> {
    let twice = paths.iter().enumerate().find(|(at, path)| paths[..*at].contains(path));
    twice.map_or(Ok(()), |(_, path)| {
        Err(Error::Setting(format!("`source.{key}` names `{}` twice; name each file once", path.display())))
    })
}

fn list_names(folder: &Path, depth: usize, names: &mut Vec<String>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for path in files::list(folder)? {
        if depth > 0 && path.is_dir() {
            list_names(&path, depth - 1, names)?;
        } else if is_image_name(&path) || is_sound_name(&path) {
            names.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// Checks a raw file before it is opened, because reading from a pipe would block forever.
pub fn check_file(path: &Path) -> Result<()> {
    let about = match fs::metadata(path) {
        Ok(about) => about,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::raw(
                path,
                "does not exist; put the raw file there, or name the folder that contains it with `--data`",
            ));
        }
        Err(e) => return Err(mp4sr_artifact::Error::io("read", path, e).into()),
    };
    let problem = if about.is_dir() {
        "is a folder, expected a file; correct `[source]` or `--data`"
    } else if !about.is_file() {
        "is not a regular file; copy its content into one"
    } else if about.len() == 0 {
        "is empty; fetch it again"
    } else {
        return Ok(());
    };
    Err(Error::raw(path, problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp4sr_pipeline::config::ModelCatalog;

    fn config(folder: &Path, file: &str) -> Config {
        let text = format!("[source]\nformat = 'tabular'\ninteractions = ['{file}']\nimages = 'images'\n");
        let (mut config, _) =
            Config::parse(&format!("[dataset]\nname = 'x'\n{text}"), "test", &[], &ModelCatalog::unchecked()).unwrap();
        config.dataset.data = folder.display().to_string();
        config
    }

    #[test]
    fn a_path_that_is_not_a_file_is_refused_without_opening_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("empty.tsv"), "").unwrap();
        fs::create_dir(folder.path().join("folder.tsv")).unwrap();
        let fifo = folder.path().join("pipe.tsv");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for (name, expected) in [
            ("absent.tsv", "does not exist; put the raw file"),
            ("empty.tsv", "is empty; fetch it again"),
            ("folder.tsv", "is a folder, expected a file"),
            ("pipe.tsv", "is not a regular file"),
        ] {
            let message = PreprocessInputs::resolve(&config(folder.path(), name)).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_new_image_changes_the_fingerprint_and_another_file_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        fs::write(folder.path().join("a.tsv"), "x").unwrap();
        let config = config(folder.path(), "a.tsv");
        let fingerprint = || PreprocessInputs::resolve(&config).unwrap().image_names(&config).unwrap();
        assert_eq!(fingerprint(), None, "no folder yet");
        fs::create_dir(&images).unwrap();
        fs::write(images.join("1.jpg"), "x").unwrap();
        let one = fingerprint();
        fs::write(images.join("note.txt"), "x").unwrap();
        assert_eq!(fingerprint(), one);
        fs::write(images.join("2.png"), "x").unwrap();
        let two = fingerprint();
        assert_ne!(two, one);
        fs::create_dir_all(images.join("a/b")).unwrap();
        fs::write(images.join("a/b/3.jpg"), "x").unwrap();
        assert_ne!(fingerprint(), two);
    }
}
