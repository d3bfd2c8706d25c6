//! The sizes and modification times of the files of a run, by which changes are noticed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use mp4sr_pipeline::Context;
use mp4sr_run::TrainedModel;

/// The size and the modification time of a file; `None` if it does not exist.
pub type FileState = Option<(u64, Option<SystemTime>)>;
/// The states of files by their paths.
pub type FileStates = BTreeMap<PathBuf, FileState>;

/// The present state of a file.
pub fn file_state(path: &Path) -> FileState {
    std::fs::metadata(path).ok().map(|about| (about.len(), about.modified().ok()))
}

/// The states of the weights, the configuration, the dataset, the features and the added items of a run.
pub fn file_states(context: &Context) -> FileStates {
    let (layout, config) = (&context.layout, &context.config);
    let own = [layout.items(), layout.users(), layout.new_items_pointer(), layout.run().join("config.toml")];
    let model = TrainedModel::files(layout, config).into_iter().map(|(_, path)| path);
    model.chain(own).map(|path| (path.clone(), file_state(&path))).collect()
}
