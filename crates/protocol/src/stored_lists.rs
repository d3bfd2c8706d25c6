//! Reads the lists of a run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use mp4sr_artifact::{Error, FINETUNE, Fingerprint, Items, Layout, Result, Table, files, role};
use serde_json::Value;

const REMEDY: &str = "run `mp4sr recommend` again";

/// Rejects lists that were computed with sequences, weights or features other than those that the run has now, as far as the lists
/// name these. `source` holds the inputs and settings of the lists; lists of other programs have none.
pub fn expect_inputs_of_lists(source: Option<&Value>, layout: &Layout, path: &Path) -> Result<()> {
    let Some(source) = source else { return Ok(()) };
    for (role, input) in [(role::SEQUENCES, layout.sequences()), (role::WEIGHTS, layout.checkpoint(FINETUNE))] {
        let then = source["inputs"][role].as_str().filter(|_| input.exists());
        if let Some(then) = then
            && Fingerprint::of_file(&input)?.as_str() != then
        {
            let reason = format!("`{}` has changed since the lists were computed", input.display());
            return Err(Error::damaged(path, reason, REMEDY));
        }
    }
    for (role, then) in source["inputs"].as_object().into_iter().flatten() {
        let Some(modality) = role::modality(role) else { continue };
        let now = features_of(layout, modality)?;
        if !now.is_empty() && !now.iter().any(|now| then.as_str() == Some(now.as_str())) {
            let reason = format!("the {role} have changed since the lists were computed");
            return Err(Error::damaged(path, reason, REMEDY));
        }
    }
    Ok(())
}

/// The fingerprints of all files with features of a modality.
fn features_of(layout: &Layout, modality: &str) -> Result<Vec<Fingerprint>> {
    let files = match files::list(&layout.features()) {
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        files => files?,
    };
    let start = format!("{modality}.");
    let is_own = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with(&start) && name.ends_with(".safetensors")
    };
    files.iter().filter(|path| is_own(path)).map(|path| Fingerprint::of_file(path)).collect()
}

/// The lists of a run, and how they were computed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredLists {
    /// Item numbers, 1-based: one list for each user, empty if a user has none.
    pub lists: Vec<Vec<u32>>,
    /// Whether the history of a list ends before the user's test item.
    pub before_test_item: bool,
    /// Whether a list has an item of its history other than the test item.
    pub repeat_history: bool,
    /// The configuration with which the lists were computed; null if they do not record it.
    pub config: Value,
}

impl StoredLists {
    /// The seed of the run; `None` if the lists do not record it.
    pub fn seed(&self) -> Option<u64> {
        self.config["run"]["seed"].as_u64()
    }
}

/// Reads the lists of a run (`recommendations.parquet`) over `users` users. Lists of other sequences, weights or features than the run's are
/// rejected.
pub fn read_lists(layout: &Layout, items: &Items, users: usize) -> Result<StoredLists> {
    let path = layout.recommendations();
    if !path.exists() {
        let remedy = format!("run `mp4sr recommend --run {}` with the run's own settings", layout.run_name());
        return Err(Error::unusable(&path, "it is missing", remedy));
    }
    let mut table = Table::read(&path, REMEDY)?;
    expect_inputs_of_lists(table.source(), layout, &path)?;
    let numbers: HashMap<&str, u32> = items.ids.iter().map(String::as_str).zip(1..).collect();
    let number = |id: &String| {
        let reason = || Error::unusable(&path, format!("item {id:?} is not in the dataset"), REMEDY);
        numbers.get(id.as_str()).copied().ok_or_else(reason)
    };
    let config = table.source().map_or(Value::Null, |source| source["config"].clone());
    let mut read = StoredLists { lists: vec![Vec::new(); users], config, ..StoredLists::default() };
    let (users, listed) = (table.take_u32("user")?, table.take_texts("items")?);
    for (user, ids) in users.into_iter().zip(&listed) {
        let row = (user as usize).checked_sub(1).and_then(|row| read.lists.get_mut(row));
        let row = row.ok_or_else(|| Error::unusable(&path, format!("user {user} is not in the dataset"), REMEDY))?;
        *row = ids.iter().map(number).collect::<Result<_>>()?;
    }
    // Lists of another program may lack these columns.
    if table.has("history") && table.has("target") {
        let (histories, targets) = (table.take_texts("history")?, table.take_text("target")?);
        for ((ids, history), target) in listed.iter().zip(&histories).zip(&targets) {
            read.before_test_item |= !target.is_empty();
            read.repeat_history |= history.iter().any(|item| item != target && ids.contains(item));
        }
    }
    Ok(read)
}
