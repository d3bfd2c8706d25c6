//! The paths of all artifacts of a dataset and of a run.

use std::path::{Path, PathBuf};

/// The folder of the dataset with the images that files of items themselves contain.
const EMBEDDED: &str = "embedded";
/// The folder of added items in that of a run, and the folder of their images in it.
const NEW_ITEMS: &str = "new-items";
const IMAGES: &str = "images";

/// The phase of training whose section of the configuration is `[pretrain]`.
pub const PRETRAIN: &str = "pretrain";
/// The phase of training whose section of the configuration is `[finetune]`. Every model has it, and its weights rank the items.
pub const FINETUNE: &str = "finetune";

/// The paths of everything that belongs to one dataset: `artifacts/<dataset>/{dataset,features,runs/<run>}`.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
    run: String,
    cache: PathBuf,
}

impl Layout {
    /// The layout of `dataset` under the folder `artifacts`, with the run called `run`.
    pub fn new(artifacts: &Path, dataset: &str, run: &str) -> Self {
        Self { root: artifacts.join(dataset), run: run.to_owned(), cache: artifacts.join(".cache") }
    }

    /// The same folders by the path of the dataset without symbolic links, so that they stay the same if such a link is changed.
    #[must_use]
    pub fn resolved(&self) -> Self {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Self { root: real(&self.root), run: self.run.clone(), cache: real(&self.cache) }
    }

    /// `artifacts/<dataset>`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `artifacts/.cache/vectors`: the vectors that encoders computed, for all datasets.
    pub fn vectors(&self) -> PathBuf {
        self.cache.join("vectors")
    }

    /// `artifacts/.cache/encoders`: the encoders that are built into the program, once a pipeline uses them.
    pub fn encoders(&self) -> PathBuf {
        self.cache.join("encoders")
    }

    /// The name of the run.
    pub fn run_name(&self) -> &str {
        &self.run
    }

    /// Another run of the same dataset.
    #[must_use]
    pub fn with_run(&self, run: &str) -> Self {
        Self { run: run.to_owned(), ..self.clone() }
    }

    /// Another run in the same folder of artifacts, of this dataset or another.
    #[must_use]
    pub fn of(&self, dataset: &str, run: &str) -> Self {
        Self { root: self.root.with_file_name(dataset), run: run.to_owned(), cache: self.cache.clone() }
    }

    /// The folder of the items that were added to the run after training.
    pub fn new_items(&self) -> PathBuf {
        self.run().join(NEW_ITEMS)
    }

    /// The folder of the images of added items that were sent over HTTP. Their names are hashes of their content.
    pub fn new_items_images(&self) -> PathBuf {
        self.new_items().join(IMAGES)
    }

    /// The folder of the images that files of items themselves contain. Their names are hashes of their content.
    pub fn embedded_images(&self) -> PathBuf {
        self.dataset().join(EMBEDDED)
    }

    /// The absolute path of an image that a table of items names and that preprocessing or a service stored with the artifacts. These may
    /// have been moved or copied since the table was written, and its names may be relative to another folder than the data. `None` if the
    /// image is elsewhere.
    pub(crate) fn stored_image(table: &Path, name: &str) -> Option<PathBuf> {
        let (images, file) = (Path::new(name).parent()?, Path::new(name).file_name()?);
        let path = if images.ends_with(Path::new(NEW_ITEMS).join(IMAGES)) {
            let folder = table.ancestors().find(|folder| folder.file_name().is_some_and(|name| name == NEW_ITEMS))?;
            folder.join(IMAGES).join(file)
        } else if images.ends_with(EMBEDDED) {
            table.parent()?.join(EMBEDDED).join(file)
        } else {
            return None;
        };
        std::path::absolute(path).ok().filter(|path| path.is_file())
    }

    /// The file that names the generation of new items in use. Generations never change: a new one replaces the previous one.
    pub fn new_items_pointer(&self) -> PathBuf {
        self.new_items().join("current.json")
    }

    /// A generation of new items, laid out like a separate dataset that shares the cache.
    #[must_use]
    pub fn new_items_generation(&self, generation: &str) -> Self {
        self.at(&self.new_items().join(generation))
    }

    /// The same run of a dataset in another folder, with the same cache.
    #[must_use]
    pub fn at(&self, root: &Path) -> Self {
        Self { root: root.to_owned(), run: self.run.clone(), cache: self.cache.clone() }
    }

    /// The folder that preprocess writes.
    pub fn dataset(&self) -> PathBuf {
        self.root.join("dataset")
    }

    /// The users' events in time order.
    pub fn sequences(&self) -> PathBuf {
        self.dataset().join("sequences.safetensors")
    }

    /// The items' ids, titles, sentences and images.
    pub fn items(&self) -> PathBuf {
        self.dataset().join("items.parquet")
    }

    /// The users' ids.
    pub fn users(&self) -> PathBuf {
        self.dataset().join("users.parquet")
    }

    /// The counts before and after every filter.
    pub fn statistics(&self) -> PathBuf {
        self.dataset().join("report.json")
    }

    /// The paths, relative to the data folder, at which files of items were looked for and not found; absent if all were found.
    pub fn missing_files(&self) -> PathBuf {
        self.dataset().join("missing_files.json")
    }

    /// The folder that extract writes.
    pub fn features(&self) -> PathBuf {
        self.root.join("features")
    }

    /// The features of one modality from one encoder.
    pub fn feature_file(&self, modality: &str, encoder: &str) -> PathBuf {
        self.features().join(format!("{modality}.{encoder}.safetensors"))
    }

    /// The report of what extract could and could not use.
    pub fn extract_report(&self) -> PathBuf {
        self.features().join("report.json")
    }

    /// The words that CLIP chose for each image.
    pub fn words_file(&self, modality: &str, encoder: &str) -> PathBuf {
        self.features().join(format!("{modality}.{encoder}.words.parquet"))
    }

    /// The folder that the stages from train on write.
    pub fn run(&self) -> PathBuf {
        self.root.join("runs").join(&self.run)
    }

    /// The resolved configuration of the run.
    pub fn run_config(&self) -> PathBuf {
        self.run().join("config.toml")
    }

    /// The log of training, with one JSON object per epoch.
    pub fn metrics_log(&self) -> PathBuf {
        self.run().join("metrics.jsonl")
    }

    /// The log of a training that will replace the weights of the run, as long as these are in use.
    pub fn retraining_log(&self) -> PathBuf {
        self.run().join("metrics.training.jsonl")
    }

    /// The best weights of a training phase, [`PRETRAIN`] or [`FINETUNE`].
    pub fn checkpoint(&self, phase: &str) -> PathBuf {
        self.run().join(format!("{phase}.safetensors"))
    }

    /// The state from which an unfinished training phase resumes.
    pub fn training_state(&self, phase: &str) -> PathBuf {
        self.run().join(format!("state.{phase}.safetensors"))
    }

    /// The ranks of the evaluated set `set`, one per user.
    pub fn ranks(&self, set: &str) -> PathBuf {
        self.run().join(format!("ranks.{set}.safetensors"))
    }

    /// The top-K lists.
    pub fn recommendations(&self) -> PathBuf {
        self.run().join("recommendations.parquet")
    }

    /// The page, tables and plots of the run.
    pub fn report(&self) -> PathBuf {
        self.run().join("report")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_images_are_found_beside_the_table_that_names_them() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path(), "shop", "run");
        let image = layout.embedded_images().join("a.png");
        crate::files::write_bytes(&image, b"image").unwrap();
        // The table was written in a working directory that contained the artifacts, or before they were moved.
        for name in ["artifacts/shop/dataset/embedded/a.png", "/before/shop/dataset/embedded/a.png"] {
            assert_eq!(Layout::stored_image(&layout.items(), name), Some(image.clone()), "{name}");
        }
        for name in ["/before/shop/dataset/embedded/b.png", "images/a.png", "a.png"] {
            assert_eq!(Layout::stored_image(&layout.items(), name), None, "{name}");
        }
    }
}
