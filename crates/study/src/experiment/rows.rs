//! The models that studies compare.

use mp4sr_artifact::{MappedFeatures, Sequences};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::config::{ImageFeatures, Modality};

use super::study::Study;
use crate::runner::Until;

/// The settings of all rows that do not override them, whatever the pipeline sets.
pub(super) const ALL: [&str; 2] = ["model.name=\"mp4sr\"", "pretrain.enabled=true"];

/// One model of a study.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StudyRow {
    /// The name of the row in tables.
    pub(super) label: String,
    /// The name of the row within the names of its runs.
    pub(super) slug: String,
    pub(super) overrides: Vec<String>,
}

pub(super) fn row(label: &str, slug: &str, overrides: &[&str]) -> StudyRow {
    let overrides = overrides.iter().map(|&assignment| assignment.to_owned()).collect();
    StudyRow { label: label.to_owned(), slug: slug.to_owned(), overrides }
}

pub(super) fn full() -> StudyRow {
    row("MP4SR", "mp4sr", &[])
}

pub(super) fn without_pretraining() -> StudyRow {
    row("MP4SR w/o Pre-train", "no-pretrain", &["pretrain.enabled=false"])
}

/// A modality as in `model.modalities`, with other noise settings.
pub(super) fn modality(modality: &Modality, lost: f64, swapped: f64) -> String {
    let (name, features) = (&modality.name, &modality.features);
    format!("{{name=\"{name}\",features=\"{features}\",lost={lost},swapped={swapped}}}")
}

/// The value of a key of the model's section; null if the key does not exist.
pub(super) fn own_key<'a>(config: &'a Config, key: &str) -> &'a serde_json::Value {
    &config.model.own()[key]
}

impl Study<'_> {
    /// All models in the order of the catalogue, followed by the paper's model without and with pre-training.
    pub(super) fn all_models(&self) -> Vec<StudyRow> {
        self.baselines().into_iter().chain([without_pretraining(), full()]).collect()
    }

    /// All models except the paper's.
    pub(super) fn baselines(&self) -> Vec<StudyRow> {
        let models = self.runner.models().models().skip(1);
        models.map(|model| row(model.title(), model.name(), &[&format!("model.name={:?}", model.name())])).collect()
    }

    /// The rows of Table 4.
    pub(super) fn variants(&mut self) -> anyhow::Result<Vec<StudyRow>> {
        let several = self.config.model.modalities.len() > 1;
        let mut rows = vec![full(), row("w/o NIP", "no-nip", &["model.mp4sr.nip_weight=0"])];
        if several {
            rows.push(row("w/o CMCL", "no-cmcl", &["model.mp4sr.lambda=0"]));
            rows.push(row("w/o C-Mixup", "no-mixup", &["model.mp4sr.mixup_max=0"]));
        }
        rows.push(row("w/o Pre-train", "no-pretrain", &["pretrain.enabled=false"]));
        rows.push(row("w/o Proj", "no-projection", &["model.mp4sr.projection=\"off\""]));
        rows.push(row("E2E", "e2e", &["model.mp4sr.end_to_end=true"]));
        if several {
            if self.has_one_width()? {
                rows.push(row("Shared", "shared", &["model.mp4sr.shared_encoder=true"]));
            } else {
                self.notes.push("Shared is left out: the modalities' features are of different widths".to_owned());
            }
            rows.extend(self.resnet("ResNet"));
        } else {
            // With one modality, NIP is the only pre-training loss, so the row would equal `w/o Pre-train`.
            rows.remove(1);
            self.notes.push(
                "the pipeline has one modality: w/o NIP, w/o CMCL, w/o C-Mixup, Shared and ResNet are left out"
                    .to_owned(),
            );
        }
        Ok(rows)
    }

    /// Whether the features of all modalities have one width, which lets them share an encoder. If features cannot be computed, the rows
    /// that need them report it.
    fn has_one_width(&self) -> anyhow::Result<bool> {
        let pipeline = self.runner.args().pipeline.clone();
        self.copy_features(&pipeline, &self.common)?;
        let run = self.study_run(&pipeline, &self.common, &full(), 0)?;
        if self.runner.run(std::slice::from_ref(&run), Until::Features).swap_remove(0).is_some() {
            return Ok(true);
        }
        let sequences = Sequences::read(&run.layout.sequences())?;
        let mut widths = Vec::new();
        for modality in &run.config.model.modalities {
            let path = run.layout.feature_file(&modality.name, &run.config.feature_name(modality));
            if path.exists() {
                widths.push(MappedFeatures::open(&path, &sequences.item_hash, sequences.item_count)?.width);
            }
        }
        widths.dedup();
        Ok(widths.len() <= 1)
    }

    /// Drops rows whose configuration equals that of an earlier row, such as a row that disables what the pipeline does not use.
    pub(super) fn without_repeats(&mut self, rows: Vec<StudyRow>) -> anyhow::Result<Vec<StudyRow>> {
        let pipeline = self.runner.args().pipeline.clone();
        let mut kept: Vec<(StudyRow, Config)> = Vec::new();
        for row in rows {
            let unnamed = StudyRow { slug: "row".to_owned(), ..row.clone() };
            let config = self.study_run(&pipeline, &self.common, &unnamed, 0)?.config;
            if kept.iter().any(|(_, other)| *other == config) {
                self.notes.push(format!("the pipeline itself is {}, so this row is left out", row.label));
            } else {
                kept.push((row, config));
            }
        }
        Ok(kept.into_iter().map(|(row, _)| row).collect())
    }

    /// The row with image vectors of a ResNet, if a ResNet was named and the pipeline has images.
    fn resnet(&mut self, label: &str) -> Option<StudyRow> {
        let model = &self.options.resnet;
        if model.is_empty() || !self.has_images() {
            self.notes.push(format!(
                "{label} is left out: no ResNet was named, or the pipeline extracts no features from images"
            ));
            return None;
        }
        let model = format!("extract.image.model={model:?}");
        Some(row(label, "resnet", &["extract.image.features=\"embedding\"", &model]))
    }

    pub(super) fn has_images(&self) -> bool {
        self.config.model.modalities.iter().any(|m| m.name == "image" && m.features.is_empty())
    }

    /// Rejects a pipeline whose images are not described in words.
    pub(super) fn expect_words(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.has_images() && self.config.extract.image.features == ImageFeatures::Words,
            "`model.modalities` has no `image` that is described in words; use a pipeline with one"
        );
        Ok(())
    }

    /// The rows of Table 6.
    pub(super) fn modalities(&mut self) -> Vec<StudyRow> {
        let names: Vec<&str> = self.config.model.modalities.iter().map(|m| m.name.as_str()).collect();
        let mut rows = Vec::new();
        for name in names.iter().filter(|_| names.len() > 1) {
            let letter = match *name {
                "text" => "T",
                "image" => "V",
                other => other,
            };
            let key = format!("model.mp4sr.logit_modalities=[\"{name}\"]");
            rows.push(row(&format!("MP4SR-{letter}"), &format!("only-{name}"), &[&key]));
        }
        if rows.is_empty() {
            self.notes.push("the pipeline has only one modality".to_owned());
        }
        let has_all = own_key(&self.config, "logit_modalities").as_array().is_none_or(Vec::is_empty);
        rows.push(if has_all { full() } else { row("MP4SR", "all-modalities", &["model.mp4sr.logit_modalities=[]"]) });
        rows
    }

    /// The rows with different features for images.
    pub(super) fn image_features(&mut self) -> anyhow::Result<Vec<StudyRow>> {
        self.expect_words()?;
        let others: Vec<String> = self
            .config
            .model
            .modalities
            .iter()
            .filter(|m| m.name != "image")
            .map(|m| modality(m, m.lost, m.swapped))
            .collect();
        anyhow::ensure!(!others.is_empty(), "`model.modalities` has only `image`; use a pipeline with another one");
        let none = format!("model.modalities=[{}]", others.join(","));
        let mut rows = vec![
            row("words of CLIP", "mp4sr", &[]),
            row("vectors of CLIP", "clip-vectors", &["extract.image.features=\"embedding\""]),
        ];
        rows.extend(self.resnet("vectors of ResNet"));
        rows.push(row("none", "no-image", &[&none]));
        Ok(rows)
    }
}
