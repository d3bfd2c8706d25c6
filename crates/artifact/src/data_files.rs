//! Tables name the files of the data folder relative to that folder, so that what is read depends neither on the working directory nor on
//! the location of the data folder.

use std::path::Path;

use serde_json::{Value, json};

use crate::Downloads;

/// The key of a table's source that states which folder file names are relative to.
const FILES: &str = "files";
/// The value for file names that are relative to the data folder. In earlier releases, they were relative to the working directory.
const IN_DATA: &str = "data folder";

/// The source of a table whose file names are relative to the data folder.
pub(crate) fn source() -> Value {
    json!({ FILES: IN_DATA })
}

/// Whether the file names of a table with this source are relative to the data folder.
pub(crate) fn start_in_data(source: Option<&Value>) -> bool {
    source.is_some_and(|source| source[FILES] == IN_DATA)
}

/// The name of a file relative to the data folder. URLs and the names of files outside that folder stay the same.
pub(crate) fn below(data: &Path, name: &str) -> String {
    match Path::new(name).strip_prefix(data) {
        Ok(below) if !Downloads::is_url(name) => below.to_string_lossy().into_owned(),
        _ => name.to_owned(),
    }
}

/// The path of a file that is named relative to the data folder.
pub(crate) fn within(data: &Path, name: &str) -> String {
    if Downloads::is_url(name) { name.to_owned() } else { data.join(name).to_string_lossy().into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_in_any_data_folder() {
        for data in [".", "data", "./data/x", "/abs/data"] {
            let data = Path::new(data);
            let path = data.join("images/a b.png").to_string_lossy().into_owned();
            let name = below(data, &path);
            assert_eq!(name, "images/a b.png");
            assert_eq!(within(data, &name), path);
        }
        let url = "https://example.org/1.png";
        assert_eq!((below(Path::new("."), url), within(Path::new("x"), url)), (url.to_owned(), url.to_owned()));
        assert_eq!(within(Path::new("x"), &below(Path::new("x"), "/elsewhere/1.png")), "/elsewhere/1.png");
    }
}
