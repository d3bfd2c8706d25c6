//! The order of the stages, and what each needs: one table for the program, studies and tests.

use std::path::PathBuf;

use mp4sr_artifact::Layout;

use crate::Config;
use crate::config::{ModelCatalog, ModelType};

/// A stage between raw files and the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum StageName {
    /// Converts raw files to a dataset.
    Preprocess,
    /// Computes features from sentences, images and sounds.
    Extract,
    /// Pre-trains the model.
    Pretrain,
    /// Fine-tunes the model.
    Finetune,
    /// Ranks every user's next item and computes the metrics.
    Evaluate,
    /// Lists the best items for every user.
    Recommend,
    /// Writes one page with tables, curves and lists.
    Report,
}

/// One row of [`STAGES`].
#[derive(Debug)]
pub struct StageRow {
    /// The stage.
    pub stage: StageName,
    /// Its name in messages, records and make targets.
    pub name: &'static str,
    /// The words that start it on the command line, after `mp4sr`.
    pub words: &'static [&'static str],
    /// The stages whose files it reads, without those that these need in turn.
    pub needs: &'static [StageName],
}

/// Every stage, each after those that it needs.
pub const STAGES: [StageRow; 7] = [
    StageRow { stage: StageName::Preprocess, name: "preprocess", words: &["preprocess"], needs: &[] },
    StageRow { stage: StageName::Extract, name: "extract", words: &["extract"], needs: &[StageName::Preprocess] },
    StageRow {
        stage: StageName::Pretrain,
        name: "pretrain",
        words: &["train", "pretrain"],
        needs: &[StageName::Extract],
    },
    StageRow {
        stage: StageName::Finetune,
        name: "finetune",
        words: &["train", "finetune"],
        needs: &[StageName::Pretrain],
    },
    StageRow { stage: StageName::Evaluate, name: "evaluate", words: &["evaluate"], needs: &[StageName::Finetune] },
    StageRow { stage: StageName::Recommend, name: "recommend", words: &["recommend"], needs: &[StageName::Finetune] },
    StageRow {
        stage: StageName::Report,
        name: "report",
        words: &["report"],
        needs: &[StageName::Evaluate, StageName::Recommend],
    },
];

impl StageName {
    /// Its row in [`STAGES`].
    pub fn row(self) -> &'static StageRow {
        &STAGES[self as usize]
    }

    /// Its name in messages, records and make targets.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The words that start it on the command line, after `mp4sr`.
    pub fn words(self) -> &'static [&'static str] {
        self.row().words
    }

    /// The folder with the stage's manifest and timing.
    pub fn folder(self, layout: &Layout) -> PathBuf {
        match self {
            Self::Preprocess => layout.dataset(),
            Self::Extract => layout.features(),
            Self::Pretrain | Self::Finetune | Self::Evaluate | Self::Recommend => layout.run(),
            Self::Report => layout.report(),
        }
    }

    /// All stages that bring a pipeline to this one, itself included, in the order in which they run.
    pub fn path(self) -> Vec<Self> {
        let mut needed = vec![self];
        for row in STAGES.iter().rev() {
            if needed.contains(&row.stage) {
                needed.extend(row.needs.iter().filter(|stage| !needed.contains(stage)).copied().collect::<Vec<_>>());
            }
        }
        STAGES.iter().map(|row| row.stage).filter(|stage| needed.contains(stage)).collect()
    }
}

impl StageName {
    /// The stages that bring a pipeline to this one, without extraction if neither the model nor the report reads features.
    pub fn path_for(self, config: &Config, models: &ModelCatalog) -> Vec<Self> {
        let reads_features = models.model(&config.model.name).is_none_or(ModelType::reads_features);
        // The report shows the words of images, whatever the model reads.
        let extracts = reads_features || matches!(self, Self::Extract | Self::Report);
        self.path().into_iter().filter(|stage| extracts || *stage != Self::Extract).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_the_index_of_its_stage_and_follows_the_stages_it_needs() {
        for (at, row) in STAGES.iter().enumerate() {
            assert_eq!((row.stage as usize, row.stage.name()), (at, row.name));
            assert!(row.needs.iter().all(|stage| (*stage as usize) < at), "{}", row.name);
            assert_eq!(row.words.last(), Some(&row.name));
        }
    }

    #[test]
    fn a_path_holds_what_a_stage_needs_and_nothing_else() {
        use StageName::{Evaluate, Extract, Finetune, Preprocess, Pretrain, Recommend};
        assert_eq!(Preprocess.path(), [Preprocess]);
        assert_eq!(Evaluate.path(), [Preprocess, Extract, Pretrain, Finetune, Evaluate]);
        assert_eq!(Recommend.path(), [Preprocess, Extract, Pretrain, Finetune, Recommend]);
        assert_eq!(StageName::Report.path().len(), STAGES.len());
    }
}
