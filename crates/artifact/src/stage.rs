//! The records of stages, which show whether a stage has anything to do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Fingerprint, Result, files};

/// One file as a manifest records it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileRecord {
    /// The path of the file.
    pub path: PathBuf,
    /// The hash of the content.
    pub fingerprint: Fingerprint,
    /// The length in bytes. If path, length and modification time are the same, the content counts as unchanged and is not hashed again.
    pub bytes: u64,
    /// The modification time, in nanoseconds since 1970.
    pub modified: u64,
}

impl FileRecord {
    fn of(path: &Path, earlier: Option<&Self>) -> Result<Self> {
        let (bytes, modified) = size_and_time(path)?;
        let known = earlier.filter(|e| e.bytes == bytes && e.modified == modified && e.path == path);
        let fingerprint = match known {
            Some(record) => record.fingerprint.clone(),
            None => Fingerprint::of_file(path)?,
        };
        Ok(Self { path: path.to_owned(), fingerprint, bytes, modified })
    }
}

impl FileRecord {
    /// Whether the file at `path` has the content that was recorded, even if it was at another path then.
    pub fn is_of(&self, path: &Path) -> Result<bool> {
        let there = Self { path: path.to_owned(), ..self.clone() };
        Ok(Self::of(path, Some(&there))?.fingerprint == self.fingerprint)
    }
}

fn size_and_time(path: &Path) -> Result<(u64, u64)> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
    let modified = meta.modified().map_err(|e| Error::io("inspect", path, e))?;
    Ok((meta.len(), modified.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)))
}

/// The manifest that a finished stage writes beside its outputs (`<stage>.manifest.json`): its inputs, settings and outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name of the stage.
    pub stage: String,
    /// The version of the format of its outputs.
    pub version: u32,
    /// Its resolved settings.
    pub settings: Value,
    /// The files that it read, by role.
    pub inputs: BTreeMap<String, FileRecord>,
    /// The files that it wrote, by file name.
    pub outputs: BTreeMap<String, FileRecord>,
}

impl Manifest {
    /// The path of the manifest of a stage in the folder that it writes to.
    pub fn path(folder: &Path, stage: &str) -> PathBuf {
        folder.join(format!("{stage}.manifest.json"))
    }

    /// The path at which a stage that runs again keeps the manifest of its last run, until it has replaced the outputs.
    fn earlier_path(folder: &Path, stage: &str) -> PathBuf {
        folder.join(format!("{stage}.manifest.earlier.json"))
    }

    /// Reads the manifest of a stage from the folder that it wrote to; `None` if it is missing or damaged, because the stage then runs again.
    /// While a stage runs again, or if it was killed then, its last run counts as long as none of the outputs has been replaced.
    pub fn read(folder: &Path, stage: &str) -> Result<Option<Self>> {
        if let Some(bytes) = read_if_present(&Self::path(folder, stage))? {
            return Ok(serde_json::from_slice(&bytes).ok());
        }
        let bytes = read_if_present(&Self::earlier_path(folder, stage))?;
        let Some(earlier) = bytes.and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok()) else {
            return Ok(None);
        };
        // Without outputs, nothing shows whether the stage has replaced them.
        let is_kept = !earlier.outputs.is_empty() && earlier.changed_output(folder)?.is_none();
        Ok(is_kept.then_some(earlier))
    }

    /// What happened to an output in `folder` since the manifest was written; `None` if all outputs are unchanged.
    fn changed_output(&self, folder: &Path) -> Result<Option<String>> {
        for (name, record) in &self.outputs {
            let path = folder.join(name);
            if !path.exists() {
                return Ok(Some(format!("output `{name}` is missing")));
            }
            if !record.is_of(&path)? {
                return Ok(Some(format!("output `{name}` was changed after it was written")));
            }
        }
        Ok(None)
    }

    /// The manifest of a stage, if it can be read; for uses in which a missing one only costs work or a message.
    pub fn find(folder: &Path, stage: &str) -> Option<Self> {
        Self::read(folder, stage).ok().flatten()
    }
}

/// The content of a file; `None` if it does not exist.
fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    match files::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Refuses an output that differs from what the manifest beside it records. An output without a manifest is accepted, because another
/// program may have written it.
pub fn expect_recorded(path: &Path, stage: &str, remedy: &str) -> Result<()> {
    let record = Manifest::path(path.parent().unwrap_or(Path::new("")), stage);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if !record.exists() {
        return Ok(());
    }
    let manifest: Manifest =
        serde_json::from_slice(&files::read(&record)?).map_err(|e| Error::unreadable(&record, "it", &e, remedy))?;
    match manifest.outputs.get(&name) {
        Some(written) if written.fingerprint != Fingerprint::of_file(path)? => {
            Err(Error::damaged(path, "its content does not match the manifest of its stage", remedy))
        }
        _ => Ok(()),
    }
}

/// Whether a stage has anything to do.
#[derive(Debug, PartialEq)]
pub enum Status {
    /// Inputs, settings, version and outputs are as recorded.
    UpToDate,
    /// One of these differs; the text says which.
    Stale(String),
}

/// The settings that decide what a stage writes, and how they are compared with those of an earlier run.
pub struct StageSettings {
    values: Value,
    defaults: Value,
    with_present_names: Box<dyn Fn(Value) -> Value>,
    shown_as: &'static [(&'static str, &'static str)],
}

impl std::fmt::Debug for StageSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.values.fmt(f)
    }
}

impl StageSettings {
    /// Creates settings with these values. A key that an earlier run did not record counts as having had its default. In a list, the
    /// defaults of every entry are those of the first entry in `defaults`.
    pub fn new(values: Value, defaults: Value) -> Self {
        Self { values, defaults, with_present_names: Box::new(std::convert::identity), shown_as: &[] }
    }

    /// Settings without defaults: an earlier run must have recorded every key.
    pub fn of(values: impl Into<Value>) -> Self {
        Self::new(values.into(), Value::Null)
    }

    /// Sets the function that gives the keys of an earlier release's settings their present names.
    #[must_use]
    pub fn with_earlier_names(self, with_present_names: impl Fn(Value) -> Value + 'static) -> Self {
        Self { with_present_names: Box::new(with_present_names), ..self }
    }

    /// Sets the names by which messages call keys that are not named as in the configuration.
    #[must_use]
    pub fn shown_as(self, names: &'static [(&'static str, &'static str)]) -> Self {
        Self { shown_as: names, ..self }
    }

    /// The values.
    pub fn values(&self) -> &Value {
        &self.values
    }

    /// The first key whose value differs from the recorded one. Keys that were not recorded come last, because they may count only together
    /// with another one. A recorded key that is no longer a setting is ignored.
    pub fn changed_since(&self, recorded: &Value) -> Option<String> {
        let recorded = (self.with_present_names)(recorded.clone());
        let key = changed("", Some(&recorded), &self.values, Some(&self.defaults))?;
        let shown = self.shown_as.iter().find(|(own, _)| *own == key);
        Some(shown.map_or(key, |(_, shown)| (*shown).to_owned()))
    }
}

/// The path of the first difference; if `recorded` is `None`, the default is compared.
fn changed(path: &str, recorded: Option<&Value>, now: &Value, default: Option<&Value>) -> Option<String> {
    let recorded = recorded.or(default);
    match (recorded, now) {
        (Some(Value::Object(recorded)), Value::Object(now)) => {
            let (known, new): (Vec<_>, Vec<_>) = now.iter().partition(|(key, _)| recorded.contains_key(*key));
            known.into_iter().chain(new).find_map(|(key, value)| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                changed(&path, recorded.get(key), value, default.and_then(|default| default.get(key)))
            })
        }
        (Some(Value::Array(recorded)), Value::Array(now)) if recorded.len() == now.len() => {
            let template = default.and_then(|default| default.get(0));
            let entries = recorded.iter().zip(now).enumerate();
            entries
                .into_iter()
                .find_map(|(at, (recorded, now))| changed(&format!("{path}[{at}]"), Some(recorded), now, template))
        }
        (Some(recorded), now) => (recorded != now).then(|| path.to_owned()),
        (None, now) => (!now.is_null()).then(|| path.to_owned()),
    }
}

/// A stage about to run, with everything that decides whether it is up to date.
///
/// ```
/// use mp4sr_artifact::{Stage, StageSettings, Status, files};
///
/// # let folder = tempfile::tempdir()?;
/// # let (input, out) = (folder.path().join("events.csv"), folder.path().join("out"));
/// files::write_bytes(&input, b"ann,cup\nbob,pot\n")?;
/// let inputs = [("events".to_owned(), input.clone())];
/// let prepare = || Stage::new("count", 1, &out, StageSettings::of("by line"), &inputs);
///
/// let stage = prepare()?;
/// assert_eq!(stage.status()?, Status::Stale("not run yet".to_owned()));
/// stage.begin()?;
/// files::write_bytes(&out.join("count.txt"), b"2")?;
/// stage.finish(&[out.join("count.txt")])?;
/// assert_eq!(prepare()?.status()?, Status::UpToDate);
///
/// files::write_bytes(&input, b"ann,cup\n")?;
/// assert_eq!(prepare()?.status()?, Status::Stale("input `events` changed".to_owned()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Stage {
    name: String,
    version: u32,
    folder: PathBuf,
    settings: StageSettings,
    inputs: BTreeMap<String, FileRecord>,
    before: Option<Manifest>,
    /// Why the stage is not up to date although its inputs and settings are.
    outdated: Option<String>,
}

impl Stage {
    /// Creates the stage `name`, which writes format `version` into `folder` from `inputs` (role, path). Inputs that changed since the last
    /// run are hashed.
    pub fn new(
        name: &str,
        version: u32,
        folder: &Path,
        settings: StageSettings,
        inputs: &[(String, PathBuf)],
    ) -> Result<Self> {
        let before = Manifest::read(folder, name)?;
        let mut records = BTreeMap::new();
        for (role, path) in inputs {
            let earlier = before.as_ref().and_then(|m| m.inputs.get(role));
            records.insert(role.clone(), FileRecord::of(path, earlier)?);
        }
        Ok(Self {
            name: name.to_owned(),
            version,
            folder: folder.to_owned(),
            settings,
            inputs: records,
            before,
            outdated: None,
        })
    }

    /// The settings of the stage.
    pub fn settings(&self) -> &StageSettings {
        &self.settings
    }

    /// Fingerprints of the inputs by role, for the headers of outputs.
    pub fn input_fingerprints(&self) -> BTreeMap<String, Fingerprint> {
        self.inputs.iter().map(|(role, record)| (role.clone(), record.fingerprint.clone())).collect()
    }

    /// The stage, which is not up to date if a reason is given that neither its inputs nor its settings show.
    #[must_use]
    pub fn outdated_because(self, why: Option<String>) -> Self {
        Self { outdated: why, ..self }
    }

    /// Compares the inputs, settings and outputs with the manifest of the last run.
    pub fn status(&self) -> Result<Status> {
        let Some(before) = &self.before else {
            return Ok(Status::Stale("not run yet".to_owned()));
        };
        let changed = match self.changed_since(before) {
            Some(why) => Some(why),
            None => before.changed_output(&self.folder)?.or_else(|| self.outdated.clone()),
        };
        Ok(changed.map_or(Status::UpToDate, Status::Stale))
    }

    /// Whether the last run had the same inputs and settings, even if its outputs were changed or removed since.
    pub fn is_of_last_run(&self) -> bool {
        self.before.as_ref().is_some_and(|before| self.changed_since(before).is_none())
    }

    /// The first difference between the inputs and settings of `before` and the present ones.
    fn changed_since(&self, before: &Manifest) -> Option<String> {
        if before.version != self.version {
            return Some(format!("format version changed from {} to {}", before.version, self.version));
        }
        if let Some(key) = self.settings.changed_since(&before.settings) {
            // What is recorded beside the settings has a name of several words.
            return Some(if key.contains(' ') { format!("{key} changed") } else { format!("setting `{key}` changed") });
        }
        for (role, record) in &self.inputs {
            match before.inputs.get(role) {
                Some(earlier) if earlier.fingerprint == record.fingerprint => {}
                Some(_) => return Some(format!("input `{role}` changed")),
                None => return Some(format!("input `{role}` is new")),
            }
        }
        let unused = before.inputs.keys().find(|role| !self.inputs.contains_key(*role))?;
        Some(format!("input `{unused}` is not used now"))
    }

    /// Sets the manifest of the last run aside, so that a stage that is killed while it replaces its outputs never counts as finished. One
    /// that is killed before that remains finished ([`Manifest::read`]).
    pub fn begin(&self) -> Result<()> {
        files::create_dir_all(&self.folder)?;
        if self.manifest_path().exists() {
            files::rename(&self.manifest_path(), &self.earlier_path())?;
        }
        Ok(())
    }

    /// Puts the manifest of the last run back if the stage failed before it replaced an output, so that a refused command leaves a finished
    /// stage finished. Returns whether the stage is finished.
    pub fn give_up(&self) -> Result<bool> {
        let is_kept = self.outputs_are_unchanged()?;
        if is_kept {
            self.keep()?;
        }
        Ok(is_kept)
    }

    /// Puts the manifest of the last run in its place if a run that was killed had set it aside. The outputs must be unchanged.
    pub fn keep(&self) -> Result<()> {
        // On a disk that is mounted read-only, removing a missing file is an error, too.
        match (self.earlier_path().exists(), self.manifest_path().exists()) {
            (false, _) => Ok(()),
            (true, true) => files::remove_if_present(&self.earlier_path()),
            (true, false) => files::rename(&self.earlier_path(), &self.manifest_path()),
        }
    }

    /// Whether the stage has finished before, and its outputs are still those of that time.
    pub fn outputs_are_unchanged(&self) -> Result<bool> {
        Ok(match &self.before {
            Some(before) => before.changed_output(&self.folder)?.is_none(),
            None => false,
        })
    }

    /// Fails if an input has other content than when the stage was made, because the outputs may then be of either content. A stage calls
    /// this when it has read its inputs.
    pub fn expect_unchanged_inputs(&self) -> Result<()> {
        for (role, record) in &self.inputs {
            if !record.is_of(&record.path)? {
                return Err(self.changed_while_read(role, record));
            }
        }
        Ok(())
    }

    /// Fails if an input that was read before the stage was made had other content then. `then` is the fingerprint from before the reading.
    pub fn expect_input_as_before(&self, role: &str, then: &Fingerprint) -> Result<()> {
        match self.inputs.get(role) {
            Some(record) if record.fingerprint != *then => Err(self.changed_while_read(role, record)),
            _ => Ok(()),
        }
    }

    fn changed_while_read(&self, role: &str, record: &FileRecord) -> Error {
        let reason = format!("it changed while it was read as the input `{role}` of the stage `{}`", self.name);
        Error::unusable(&record.path, reason, "run the command again, with a copy if the file changes all the time")
    }

    /// Writes the manifest, after all `outputs` (inside the stage's folder) are complete.
    pub fn finish(&self, outputs: &[PathBuf]) -> Result<()> {
        let mut records = BTreeMap::new();
        for path in outputs {
            let name = path.strip_prefix(&self.folder).unwrap_or(path).to_string_lossy().into_owned();
            records.insert(name, FileRecord::of(path, None)?);
        }
        let manifest = Manifest {
            stage: self.name.clone(),
            version: self.version,
            settings: self.settings.values.clone(),
            inputs: self.inputs.clone(),
            outputs: records,
        };
        files::write_json(&self.manifest_path(), &manifest)?;
        files::remove_if_present(&self.earlier_path())
    }

    /// Removes the outputs of the last run and its manifest.
    pub fn remove(&self) -> Result<()> {
        for name in self.before.iter().flat_map(|before| before.outputs.keys()) {
            files::remove_if_present(&self.folder.join(name))?;
        }
        files::remove_if_present(&self.earlier_path())?;
        files::remove_if_present(&self.manifest_path())
    }

    fn earlier_path(&self) -> PathBuf {
        Manifest::earlier_path(&self.folder, &self.name)
    }

    fn manifest_path(&self) -> PathBuf {
        Manifest::path(&self.folder, &self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct World {
        folder: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            files::write_bytes(&folder.path().join("in"), b"raw").unwrap();
            Self { folder }
        }
        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }
        fn stage(&self, version: u32, settings: &Value) -> Stage {
            let inputs = [("in".to_owned(), self.path("in"))];
            let settings = StageSettings::of(settings.clone());
            Stage::new("work", version, &self.path("out"), settings, &inputs).unwrap()
        }
        fn run(&self) {
            let stage = self.stage(1, &json!({"a": {"b": 0.1}}));
            stage.begin().unwrap();
            files::write_bytes(&self.path("out/result"), b"made").unwrap();
            stage.finish(&[self.path("out/result")]).unwrap();
        }
        fn manifest(&self) -> PathBuf {
            Manifest::path(&self.path("out"), "work")
        }
        fn why_stale(&self, version: u32, settings: &Value) -> String {
            match self.stage(version, settings).status().unwrap() {
                Status::UpToDate => "up to date".to_owned(),
                Status::Stale(why) => why,
            }
        }
    }

    #[test]
    fn a_manifest_that_is_damaged_is_missing_and_one_that_cannot_be_read_is_an_error() {
        let world = World::new();
        world.run();
        files::write_bytes(&world.manifest(), b"{\"stage\": ").unwrap();
        assert_eq!(world.why_stale(1, &json!({"a": {"b": 0.1}})), "not run yet");
        files::remove_if_present(&world.manifest()).unwrap();
        std::fs::create_dir(world.manifest()).unwrap();
        assert!(Manifest::read(&world.path("out"), "work").is_err());
    }

    #[test]
    fn an_input_that_changes_while_the_stage_runs_is_noticed() {
        let world = World::new();
        let stage = world.stage(1, &json!({}));
        for (role, now) in &stage.input_fingerprints() {
            stage.expect_input_as_before(role, now).unwrap();
            let error = stage.expect_input_as_before(role, &Fingerprint::of_bytes(b"another")).unwrap_err();
            assert!(error.to_string().contains("it changed while it was read"), "{error}");
        }
        files::write_bytes(&world.path("in"), b"raw").unwrap();
        stage.expect_unchanged_inputs().unwrap();
        files::write_bytes(&world.path("in"), b"other").unwrap();
        let error = stage.expect_unchanged_inputs().unwrap_err().to_string();
        assert!(error.contains("it changed while it was read as the input `in` of the stage `work`"), "{error}");
    }

    #[test]
    fn a_finished_stage_is_up_to_date_until_something_it_depends_on_changes() {
        let world = World::new();
        let settings = json!({"a": {"b": 0.1}});
        assert_eq!(world.why_stale(1, &settings), "not run yet");
        world.run();
        assert_eq!(world.why_stale(1, &settings), "up to date");
        assert_eq!(world.why_stale(2, &settings), "format version changed from 1 to 2");
        assert_eq!(world.why_stale(1, &json!({"a": {"b": 0.2}})), "setting `a.b` changed");
        files::write_bytes(&world.path("in"), b"raw").unwrap();
        assert_eq!(world.why_stale(1, &settings), "up to date", "same content, written again");
        files::write_bytes(&world.path("in"), b"new").unwrap();
        assert_eq!(world.why_stale(1, &settings), "input `in` changed");
    }

    #[test]
    fn a_key_that_was_not_recorded_had_its_default_and_one_that_is_not_read_is_ignored() {
        let defaults = json!({"a": {"old": 1, "new": 2}, "list": [{"x": 0, "y": 7}]});
        let changed = |now: Value, recorded: Value| StageSettings::new(now, defaults.clone()).changed_since(&recorded);
        let recorded = json!({"a": {"old": 5, "gone": true}, "list": [{"x": 1}, {"x": 2}]});
        let now = |new: u32, y: u32| json!({"a": {"old": 5, "new": new}, "list": [{"x": 1, "y": 7}, {"x": 2, "y": y}]});
        assert_eq!(changed(now(2, 7), recorded.clone()), None);
        assert_eq!(changed(now(3, 7), recorded.clone()).unwrap(), "a.new");
        assert_eq!(changed(now(2, 8), recorded.clone()).unwrap(), "list[1].y");
        assert_eq!(changed(json!({"a": {"old": 1}}), recorded.clone()).unwrap(), "a.old", "recorded, so no default");
        assert_eq!(changed(json!({"list": [{"x": 1}]}), recorded.clone()).unwrap(), "list");
        assert_eq!(changed(json!({"b": null}), recorded.clone()), None);
        assert_eq!(changed(json!({"b": 1}), recorded.clone()).unwrap(), "b", "neither recorded nor a default");
        let both = json!({"a": {"beside": 1, "old": 6}});
        assert_eq!(changed(both.clone(), recorded.clone()).unwrap(), "a.old", "what was recorded comes first");
        let shown = StageSettings::of(both).shown_as(&[("a", "all"), ("a.old", "section.old")]);
        assert_eq!(shown.changed_since(&recorded).unwrap(), "section.old");
        let renamed = StageSettings::new(json!({"a": {"now": 5}}), Value::Null)
            .with_earlier_names(|recorded| json!({"a": {"now": recorded["a"]["old"]}}));
        assert_eq!(renamed.changed_since(&recorded), None);
    }

    #[test]
    fn missing_and_changed_outputs_are_noticed() {
        let world = World::new();
        let settings = json!({"a": {"b": 0.1}});
        world.run();
        files::write_bytes(&world.path("out/result"), b"mAde").unwrap();
        assert_eq!(world.why_stale(1, &settings), "output `result` was changed after it was written");
        files::remove_if_present(&world.path("out/result")).unwrap();
        assert_eq!(world.why_stale(1, &settings), "output `result` is missing");
    }

    #[test]
    fn a_recorded_output_is_compared_with_its_record() {
        let world = World::new();
        world.run();
        let result = world.path("out/result");
        let check = || expect_recorded(&result, "work", "make it again").map_err(|e| e.to_string());
        assert_eq!(check(), Ok(()));
        files::write_bytes(&result, b"mAde").unwrap();
        assert!(
            check().unwrap_err().ends_with("does not match the manifest of its stage; delete it, and make it again")
        );
        files::write_bytes(&world.path("out/work.manifest.json"), b"{").unwrap();
        assert!(check().unwrap_err().contains("work.manifest.json"), "a record that cannot be read does not count");
        files::remove_if_present(&world.path("out/work.manifest.json")).unwrap();
        assert_eq!(check(), Ok(()), "another program leaves none");
    }

    #[test]
    fn a_stage_that_was_killed_is_finished_until_it_replaces_an_output() {
        let world = World::new();
        let (old, new) = (json!({"a": {"b": 0.1}}), json!({"a": {"b": 0.2}}));
        world.run();
        let before = files::read(&world.manifest()).unwrap();
        // A second run that is killed, too, must not lose what the first one set aside.
        for _ in 0..2 {
            world.stage(1, &new).begin().unwrap();
            assert!(!world.manifest().exists());
            assert_eq!(world.why_stale(1, &old), "up to date");
            assert_eq!(world.why_stale(1, &new), "setting `a.b` changed");
        }
        world.stage(1, &old).keep().unwrap();
        assert_eq!(files::read(&world.manifest()).unwrap(), before);
        assert_eq!(files::list(&world.path("out")).unwrap().len(), 2, "the output and its manifest");
        let stage = world.stage(1, &new);
        stage.begin().unwrap();
        files::write_bytes(&world.path("out/result"), b"other").unwrap();
        assert_eq!(world.why_stale(1, &old), "not run yet");
        stage.finish(&[world.path("out/result")]).unwrap();
        assert_eq!(world.why_stale(1, &new), "up to date");
        assert_eq!(files::list(&world.path("out")).unwrap().len(), 2, "the output and its manifest");
    }

    #[test]
    fn a_stage_without_outputs_that_was_killed_is_not_finished() {
        let world = World::new();
        let settings = json!({});
        world.stage(1, &settings).begin().unwrap();
        world.stage(1, &settings).finish(&[]).unwrap();
        assert_eq!(world.why_stale(1, &settings), "up to date");
        world.stage(1, &settings).begin().unwrap();
        assert_eq!(world.why_stale(1, &settings), "not run yet");
    }
}
