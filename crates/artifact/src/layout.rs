use std::path::{Path, PathBuf};

/// Where everything of one dataset lies: `artifacts/<dataset>/{dataset,features,runs/<run>}`.
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

    /// `artifacts/<dataset>`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `artifacts/.cache/vectors`: what encoders computed, for all datasets.
    pub fn vectors(&self) -> PathBuf {
        self.cache.join("vectors")
    }

    /// `artifacts/.cache/encoders`: the encoders that the program carries, where a pipeline asks for them.
    pub fn encoders(&self) -> PathBuf {
        self.cache.join("encoders")
    }

    /// The name of the run.
    pub fn run_name(&self) -> &str {
        &self.run
    }

    /// The same dataset, another run.
    #[must_use]
    pub fn with_run(&self, run: &str) -> Self {
        Self { run: run.to_owned(), ..self.clone() }
    }

    /// Another run, of another dataset or the same, beside this one.
    #[must_use]
    pub fn of(&self, dataset: &str, run: &str) -> Self {
        Self { root: self.root.with_file_name(dataset), run: run.to_owned(), cache: self.cache.clone() }
    }

    /// The folder of the items that were added to the run after training.
    pub fn new_items(&self) -> PathBuf {
        self.run().join("new-items")
    }

    /// The file that names the generation of new items in use. Generations never change: another one takes the place of the last.
    pub fn new_items_pointer(&self) -> PathBuf {
        self.new_items().join("current.json")
    }

    /// A generation of new items, laid out as a dataset of its own that shares the cache.
    #[must_use]
    pub fn new_items_generation(&self, generation: &str) -> Self {
        self.at(&self.new_items().join(generation))
    }

    /// The same run over a dataset in another folder; the cache stays.
    #[must_use]
    pub fn at(&self, root: &Path) -> Self {
        Self { root: root.to_owned(), run: self.run.clone(), cache: self.cache.clone() }
    }

    /// What preprocess writes.
    pub fn dataset(&self) -> PathBuf {
        self.root.join("dataset")
    }

    /// Users' events in time order.
    pub fn sequences(&self) -> PathBuf {
        self.dataset().join("sequences.safetensors")
    }

    /// Items' ids, titles, sentences, images.
    pub fn items(&self) -> PathBuf {
        self.dataset().join("items.parquet")
    }

    /// Users' ids.
    pub fn users(&self) -> PathBuf {
        self.dataset().join("users.parquet")
    }

    /// Counts in and out of every filter.
    pub fn statistics(&self) -> PathBuf {
        self.dataset().join("report.json")
    }

    /// What extract writes.
    pub fn features(&self) -> PathBuf {
        self.root.join("features")
    }

    /// The features of one modality from one encoder.
    pub fn feature_file(&self, modality: &str, encoder: &str) -> PathBuf {
        self.features().join(format!("{modality}.{encoder}.safetensors"))
    }

    /// What extract could and could not use.
    pub fn extract_report(&self) -> PathBuf {
        self.features().join("report.json")
    }

    /// The words CLIP chose for each image.
    pub fn words_file(&self, modality: &str, encoder: &str) -> PathBuf {
        self.features().join(format!("{modality}.{encoder}.words.parquet"))
    }

    /// What the stages from train on write.
    pub fn run(&self) -> PathBuf {
        self.root.join("runs").join(&self.run)
    }

    /// The resolved configuration of the run.
    pub fn run_config(&self) -> PathBuf {
        self.run().join("config.toml")
    }

    /// One JSON object per epoch.
    pub fn metrics_log(&self) -> PathBuf {
        self.run().join("metrics.jsonl")
    }

    /// The best weights of a training phase.
    pub fn checkpoint(&self, phase: &str) -> PathBuf {
        self.run().join(format!("{phase}.safetensors"))
    }

    /// One rank per user.
    pub fn ranks(&self, split: &str) -> PathBuf {
        self.run().join(format!("ranks.{split}.safetensors"))
    }

    /// Top-K lists.
    pub fn recommendations(&self) -> PathBuf {
        self.run().join("recommendations.parquet")
    }

    /// The page, tables and plots of the run.
    pub fn report(&self) -> PathBuf {
        self.run().join("report")
    }
}
