//! Compares encoders of texts and images.

use std::path::Path;

use mp4sr_artifact::{EncoderAbout, Layout, files};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::config::ImageFeatures;
use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::{Comparison, Reference};

use super::comparisons::groups;
use super::rows::{StudyRow, full, row};
use super::{FinishedRows, Study};
use crate::comparison_text::{details, markdown};
use crate::runner::Until;

impl Study<'_> {
    /// Compares the pipeline's own encoders with rows in which a named encoder replaces one of them.
    pub(super) fn encoders(&mut self) -> anyhow::Result<String> {
        let rows = self.encoder_rows()?;
        self.expect_own_files(&rows)?;
        let rows = self.without_repeats(rows)?;
        let made = self.make(&rows, Until::Evaluated)?;
        let groups = groups(&made, &self.sequences()?, None)?;
        let comparison = Comparison::new(&groups, &self.metrics(), Reference::Best);
        let mut text = self.head("Encoders of texts and images", comparison.users);
        text += &markdown(&comparison, "encoders");
        text += "\nThe encoders' vectors, and the time to compute them in all runs that share the cache:\n\n";
        text += &encoder_table(&made)?.markdown();
        self.finish(text, None, &details(&comparison), None)
    }

    fn encoder_rows(&self) -> anyhow::Result<Vec<StudyRow>> {
        let (texts, images) = (&self.options.text_encoders, &self.options.image_encoders);
        let reads = |name: &str| self.config.model.modalities.iter().any(|m| m.name == name && m.features.is_empty());
        anyhow::ensure!(
            !(texts.is_empty() && images.is_empty()),
            "no encoders are given in addition to the pipeline's own; name them with `--text-encoder` and `--image-encoder`"
        );
        anyhow::ensure!(
            texts.is_empty() || reads("text"),
            "the pipeline does not extract a modality `text`; use a pipeline that does, or leave out `--text-encoder`"
        );
        anyhow::ensure!(
            images.is_empty() || reads("image"),
            "the pipeline does not extract a modality `image`; use a pipeline that does, or leave out `--image-encoder`"
        );
        let mut rows = vec![StudyRow { label: "the pipeline's own".to_owned(), ..full() }];
        for model in texts {
            let key = format!("extract.text.model={model:?}");
            rows.push(row(&format!("text: {model}"), &format!("text-{}", slug(model)), &[&key]));
        }
        for model in images {
            let key = format!("extract.image.model={model:?}");
            let embedding = "extract.image.features=\"embedding\"";
            rows.push(row(&format!("image: {model}"), &format!("image-{}", slug(model)), &[embedding, &key]));
        }
        for (at, row) in rows.iter().enumerate() {
            anyhow::ensure!(
                rows[..at].iter().all(|other| other.slug != row.slug),
                "the runs of two encoders would have the same name, `{}`; rename the folder of one encoder, or \
                 download one of them to a folder of another name",
                row.slug
            );
        }
        Ok(rows)
    }

    /// Refuses rows whose encoders would write the same feature file one after the other, because all of these rows would be trained on the
    /// last one.
    fn expect_own_files(&self, rows: &[StudyRow]) -> anyhow::Result<()> {
        let pipeline = self.runner.args().pipeline.clone();
        let config = |row| Ok(self.study_run(&pipeline, &self.common, row, 0)?.config);
        let configs = rows.iter().map(config).collect::<anyhow::Result<Vec<Config>>>()?;
        for (at, own) in configs.iter().enumerate() {
            for modality in own.model.modalities.iter().filter(|modality| modality.features.is_empty()) {
                let (name, encoders) = (own.feature_name(modality), encoders_of(own, &modality.name));
                let has_same_file = |other: &&Config| {
                    other.feature_name(modality) == name && encoders_of(other, &modality.name) != encoders
                };
                let Some(other) = configs[..at].iter().find(has_same_file) else { continue };
                let named = |config| encoders_of(config, &modality.name).join("` with `");
                anyhow::bail!(
                    "the features of `{}` and of `{}` would have the same file, `{}.{name}.safetensors`; rename the folder of one encoder",
                    named(other),
                    named(own),
                    modality.name
                );
            }
        }
        Ok(())
    }
}

/// The encoders that determine the features of a modality.
fn encoders_of<'c>(config: &'c Config, modality: &str) -> Vec<&'c str> {
    let (text, image) = (&config.extract.text.model, &config.extract.image);
    match modality {
        "text" => vec![text],
        "image" if image.features == ImageFeatures::Words => vec![&image.model, text],
        "image" => vec![&image.model],
        _ => Vec::new(),
    }
}

/// The last part of a model's name, in the form for a run name.
fn slug(model: &str) -> String {
    let name = Path::new(model).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = name.rsplit(':').next().unwrap_or_default();
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}

/// Lists the encoders of the rows, each once, with the dimension of its vectors and the time of extraction.
fn encoder_table(made: &FinishedRows) -> anyhow::Result<TextTable> {
    let mut table =
        TextTable::new(["encoder", "content", "dimension", "vectors", "seconds of extraction", "seconds per 1,000"]);
    for (_, runs) in made {
        for run in runs.iter().take(1) {
            let shares = shares(&run.layout)?;
            for (model, content) in used(&run.config) {
                for about in shares.iter().filter(|about| about.model == model && about.content == content) {
                    let pace = 1000.0 * about.seconds / (about.computed.max(1) as f64);
                    let line = vec![
                        about.model.clone(),
                        about.content.clone(),
                        about.width.to_string(),
                        about.computed.to_string(),
                        format!("{:.1}", about.seconds),
                        format!("{pace:.2}"),
                    ];
                    if !table.rows.contains(&line) {
                        table.rows.push(line);
                    }
                }
            }
        }
    }
    Ok(table)
}

/// The models that a configuration extracts with, and what each encodes.
fn used(config: &Config) -> Vec<(String, &'static str)> {
    let extracted = config.extracted();
    let reads_words = extracted.image && config.extract.image.features == ImageFeatures::Words;
    let text = (extracted.text || reads_words).then(|| (config.extract.text.model.clone(), "sentences"));
    let image = extracted.image.then(|| (config.extract.image.model.clone(), "images"));
    text.into_iter().chain(image).collect()
}

/// The descriptions in the folders of the cache.
fn shares(layout: &Layout) -> anyhow::Result<Vec<EncoderAbout>> {
    let root = layout.vectors();
    let folders = if root.is_dir() { files::list(&root)? } else { Vec::new() };
    let about = |folder: &std::path::PathBuf| {
        let bytes = files::read(&folder.join(EncoderAbout::FILE)).ok()?;
        serde_json::from_slice::<EncoderAbout>(&bytes).ok()
    };
    Ok(folders.iter().filter_map(about).collect())
}
