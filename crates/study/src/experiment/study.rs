//! The studies, their options, and a study in progress.

use std::path::PathBuf;

use mp4sr_artifact::Layout;
use mp4sr_pipeline::Config;

use crate::runner::Runner;

/// The studies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Experiment {
    /// Statistics of the dataset.
    Table1,
    /// All models, and MP4SR without pre-training.
    Table2,
    /// Cold items, as in the paper.
    Table3,
    /// Ablations of MP4SR (Table 4).
    Table4,
    /// Pre-training on several datasets.
    Table5,
    /// One modality alone, and all of them.
    Table6,
    /// Test loss against training loss, with and without pre-training.
    Fig3,
    /// The influence of lambda, the weight of CMCL.
    Fig4,
    /// The influence of N, the number of words per image.
    Fig5,
    /// The influence of O, the number of experts.
    Fig6,
    /// The influence of rho, sequence dropout.
    Fig7,
    /// Users grouped by the length of their sequence.
    Fig8,
    /// Cold items, items without a training event, and users with one to three events.
    ColdStart,
    /// Mixup with a fixed swap probability.
    StudyMixup,
    /// Image features: CLIP's words, CLIP's vectors, ResNet's vectors, or none.
    StudyImageFeatures,
    /// Items that lose their features or get those of other items.
    StudyNoise,
    /// Text and image encoders.
    StudyEncoders,
}

/// The options of a study.
#[derive(Clone, Debug)]
pub struct StudyOptions {
    /// The number of runs per row, each with the next seed.
    pub seeds: usize,
    /// Whether this is a smoke run, which uses few events and epochs and takes minutes.
    pub quick: bool,
    /// The pipelines to pre-train on in addition to the study's own (Table 5).
    pub with: Vec<PathBuf>,
    /// The pipelines to fine-tune on that pre-training has not seen (Table 5).
    pub unseen: Vec<PathBuf>,
    /// The ResNet: a folder or a name on the hub. If empty, the rows that need one are left out.
    pub resnet: String,
    /// The text encoders to compare with the pipeline's own: folders or names on the hub (`study-encoders`).
    pub text_encoders: Vec<String>,
    /// The image encoders to compare with the pipeline's own, by their vectors (`study-encoders`).
    pub image_encoders: Vec<String>,
    /// Whether the lists of the runs are computed and compared too.
    pub lists: bool,
    /// A folder with the paper's numbers, in place of the built-in ones.
    pub paper: Option<PathBuf>,
}

/// Every run of a study is also evaluated on short histories, so that studies can share runs.
pub(super) const SHORT: &str = "evaluate.short_histories=[1,2,3]";
/// The number of most recent events of each user that a smoke run keeps.
pub(super) const RECENT: u32 = 12;
/// The number of events that a smoke run requires of a user if the pipeline requires more than [`RECENT`].
pub(super) const SMOKE_CORE: u32 = 5;
/// The settings that limit the events per user and the epochs of a smoke run.
pub(super) const SMOKE: [&str; 5] =
    ["preprocess.recent=12", "pretrain.epochs=3", "finetune.epochs=4", "pretrain.patience=3", "finetune.patience=3"];

/// A study in progress, with its state.
pub(super) struct Study<'a> {
    pub(super) runner: &'a Runner,
    pub(super) experiment: Experiment,
    pub(super) options: &'a StudyOptions,
    /// The pipeline with the changes of the study.
    pub(super) config: Config,
    pub(super) layout: Layout,
    /// The settings that the study changes in all runs.
    pub(super) common: Vec<String>,
    pub(super) notes: Vec<String>,
    pub(super) failures: usize,
}
