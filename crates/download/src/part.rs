//! A file that is not complete yet (`<name>.part`), and the note that decides whether it can be resumed (`<name>.part.json`).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use mp4sr_artifact::{Error, Result, files};
use serde::{Deserialize, Serialize};

/// The URL of the file, and the validator that the server sent with its first byte.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    url: String,
    /// `ETag`, or else `Last-Modified`.
    validator: String,
}

/// The state of an incomplete file: its length, and the validator to send with the request for the rest.
#[derive(Debug, PartialEq, Eq)]
pub struct PartialState {
    pub length: u64,
    pub validator: String,
}

/// The unfinished file beside its final name.
#[derive(Debug)]
pub struct PartialFile {
    path: PathBuf,
    note: PathBuf,
}

impl PartialFile {
    pub fn beside(path: &Path) -> Self {
        let with = |end: &str| {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(end);
            path.with_file_name(name)
        };
        Self { path: with(".part"), note: with(".part.json") }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of bytes downloaded so far.
    pub fn length(&self) -> Result<u64> {
        Ok(files::length(&self.path)?.unwrap_or(0))
    }

    /// What a download can resume from.
    pub fn held(&self, url: &str) -> Result<Option<PartialState>> {
        let length = self.length()?;
        if length == 0 || files::length(&self.note)?.is_none() {
            return Ok(None);
        }
        // A note that a killed process left half written is ignored.
        let note = serde_json::from_slice::<Note>(&files::read(&self.note)?).ok().filter(|note| note.url == url);
        Ok(note.map(|note| PartialState { length, validator: note.validator }))
    }

    /// Starts an empty file. The note is written before the first byte. Without a validator there is no note, and the file cannot be
    /// resumed.
    pub fn begin(&self, url: &str, validator: Option<String>) -> Result<File> {
        self.discard()?;
        let file = files::append(&self.path)?;
        if let Some(validator) = validator {
            let note = serde_json::to_vec(&Note { url: url.to_owned(), validator }).unwrap_or_default();
            files::append(&self.note)?.write_all(&note).map_err(|e| Error::io("write", &self.note, e))?;
        }
        Ok(file)
    }

    /// Opens the file to append to it.
    pub fn resume(&self) -> Result<File> {
        files::append(&self.path)
    }

    /// Gives the complete file its final name.
    pub fn publish(&self, path: &Path) -> Result<()> {
        files::publish(&self.path, path)?;
        files::remove_if_present(&self.note)
    }

    /// Removes the file and its note.
    pub fn discard(&self) -> Result<()> {
        files::remove_if_present(&self.path)?;
        files::remove_if_present(&self.note)
    }
}

/// The first folder between `within` and a file below it that is a symbolic link, which may lead anywhere.
pub fn linked_folder(within: &Path, path: &Path) -> Option<PathBuf> {
    let below = path.strip_prefix(within).ok()?.parent()?;
    let folders = below.components().scan(within.to_owned(), |folder, part| {
        folder.push(part);
        Some(folder.clone())
    });
    folders.into_iter().find(|folder| folder.symlink_metadata().is_ok_and(|about| about.is_symlink()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_linked_folder_below_the_data_folder_is_found_and_the_data_folder_may_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (folder.path().join("data"), folder.path().join("elsewhere"));
        std::fs::create_dir_all(elsewhere.join("inner")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &data).unwrap();
        assert_eq!(linked_folder(&data, &data.join("inner/new/x.csv")), None);
        std::os::unix::fs::symlink(&elsewhere, data.join("inner/out")).unwrap();
        assert_eq!(linked_folder(&data, &data.join("inner/out/x.csv")), Some(data.join("inner/out")));
    }

    #[test]
    fn only_bytes_of_the_same_url_with_a_complete_record_are_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let part = PartialFile::beside(&folder.path().join("a.json.gz"));
        let begin = |validator: Option<&str>| {
            part.begin("http://x/a", validator.map(str::to_owned)).unwrap().write_all(b"12345").unwrap();
        };
        begin(None);
        assert_eq!(part.held("http://x/a").unwrap(), None);
        begin(Some("\"v1\""));
        assert_eq!(part.held("http://x/a").unwrap(), Some(PartialState { length: 5, validator: "\"v1\"".to_owned() }));
        assert_eq!(part.held("http://x/b").unwrap(), None);
        std::fs::write(folder.path().join("a.json.gz.part.json"), "{\"url\": \"http://x/a\", \"vali").unwrap();
        assert_eq!(part.held("http://x/a").unwrap(), None);
    }
}
