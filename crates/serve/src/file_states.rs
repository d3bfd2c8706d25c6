//! The sizes and modification times of the files of a run, by which changes are noticed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use mp4sr_pipeline::Context;
use mp4sr_run::TrainedModel;

/// The size and the modification time of each file; `None` for one that does not exist.
pub type FileStates = BTreeMap<PathBuf, Option<(u64, Option<SystemTime>)>>;

/// The states of the weights, the configuration, the dataset, the features and the added items of a run.
pub fn file_states(context: &Context) -> FileStates {
    let (layout, config) = (&context.layout, &context.config);
    let own = [layout.items(), layout.users(), layout.new_items_pointer(), layout.run().join("config.toml")];
    let model = TrainedModel::files(layout, config).into_iter().map(|(_, path)| path);
    let about = |path: PathBuf| {
        let about = std::fs::metadata(&path).ok().map(|about| (about.len(), about.modified().ok()));
        (path, about)
    };
    model.chain(own).map(about).collect()
}
