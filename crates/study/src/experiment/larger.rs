//! Table 5: pre-training on several datasets.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use mp4sr_artifact::Sequences;
use mp4sr_pipeline::Assignments;
use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::{Comparison, Reference};

use super::comparisons::{add_details, groups};
use super::rows::{full, row};
use super::write::PaperTable;
use super::{FinishedRows, Study, common};
use crate::comparison_text::markdown;
use crate::merge::{MergeSource, merge};
use crate::runner::{ResolvedRun, Until};

impl Study<'_> {
    /// Builds Table 5: pre-training on the union of several datasets.
    pub(super) fn larger(&mut self) -> anyhow::Result<String> {
        anyhow::ensure!(
            !self.options.with.is_empty(),
            "pre-training on several datasets needs further pipelines; name them with `--with`"
        );
        let own = self.runner.args().pipeline.clone();
        let seen: Vec<PathBuf> = [own].into_iter().chain(self.options.with.clone()).collect();
        self.expect_each_once(&seen)?;
        let mut sources = Vec::new();
        for pipeline in &seen {
            let common = common(self.runner, pipeline, self.options)?;
            self.copy_features(pipeline, &common)?;
            let run = self.study_run(pipeline, &common, &full(), 0)?;
            if let Some(error) = self.runner.run(std::slice::from_ref(&run), Until::Features).swap_remove(0) {
                return Err(error.into_error());
            }
            let config = &run.config;
            let names = config.model.modalities.iter().map(|m| (m.name.clone(), config.feature_name(m)));
            sources.push(MergeSource {
                name: config.dataset.name.clone(),
                layout: run.layout.clone(),
                features: names.collect(),
            });
        }
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        let union = names.join("_");
        if !self.runner.is_planning() {
            merge(&sources, &self.layout.of(&union, "study")).context("failed to merge the datasets")?;
        }
        let mut text = self.head("Table 5: pre-training on several datasets", 0);
        let _ = writeln!(
            text,
            "Pre-trained on {} together. All datasets use the model of {}; runs of the other datasets are called `alike.*`.",
            names.join(", "),
            names[0]
        );
        let mut details = TextTable::default();
        for pipeline in seen.iter().chain(&self.options.unseen.clone()) {
            self.larger_on(pipeline, &union, &mut text, &mut details)?;
        }
        self.finish(text, Some(PaperTable::whole(5)), &details, None)
    }

    /// Rejects a dataset that is named twice: pre-training would use it twice, or the table would call it unseen.
    fn expect_each_once(&self, seen: &[PathBuf]) -> anyhow::Result<()> {
        let mut names = Vec::new();
        for pipeline in seen.iter().chain(&self.options.unseen) {
            let name = self.study_run(pipeline, &[], &full(), 0)?.config.dataset.name;
            anyhow::ensure!(
                !names.contains(&name),
                "`{}` names the dataset `{name}` a second time; name each dataset only once in the pipeline, `--with` and `--unseen`",
                pipeline.display()
            );
            names.push(name);
        }
        Ok(())
    }

    /// Fine-tunes on one dataset, from its own pre-training and from that of the union, whose runs are named `mp4sr.s<seed>`.
    fn larger_on(
        &mut self,
        pipeline: &Path,
        union: &str,
        text: &mut String,
        details: &mut TextTable,
    ) -> anyhow::Result<()> {
        let mut made = FinishedRows::new();
        for (row, runs) in self.rows_on(pipeline, union)? {
            if let Some(error) = self.runner.run(&runs, Until::Evaluated).into_iter().flatten().next() {
                self.failures += 1;
                self.notes.push(format!("not run: {} on {} ({error})", row.label, pipeline.display()));
                continue;
            }
            made.push((row, runs));
        }
        let Some(run) = made.first().map(|(_, runs)| &runs[0]) else { return Ok(()) };
        let name = run.config.dataset.name.clone();
        let sequences = Sequences::read(&run.layout.sequences())?;
        let comparison = Comparison::new(&groups(&made, &sequences, None)?, &self.metrics(), Reference::Best);
        let seen =
            if self.options.unseen.iter().any(|path| path == pipeline) { ", not seen in pre-training" } else { "" };
        let _ = write!(text, "\n{name}{seen}, {} users\n\n", comparison.users);
        *text += &markdown(&comparison, "model");
        add_details(details, &name, &comparison);
        let before = self.notes.len();
        self.note_finished(&made, &sequences)?;
        self.notes[before..].iter_mut().for_each(|note| *note = format!("{name}: {note}"));
        Ok(())
    }

    /// The rows on one dataset, with runs that may still have to be made.
    fn rows_on(&self, pipeline: &Path, union: &str) -> anyhow::Result<FinishedRows> {
        let mut common = common(self.runner, pipeline, self.options)?;
        self.copy_features(pipeline, &common)?;
        // Weights only fit their own model, so all datasets use the model of the study's own pipeline, and their runs have their own names.
        let is_own = *pipeline == self.runner.args().pipeline;
        if !is_own {
            let model = toml::Table::try_from(&self.config.model).context("failed to read `[model]`")?;
            common.extend(model.iter().map(|(key, value)| format!("model.{key}={value}")));
        }
        let prefix = if is_own { "" } else { "alike." };
        let pretrained = self.pretrained_on(union)?;
        let rows = [("w/o Pre-train", "no-pretrain"), ("MP4SR", "mp4sr"), ("MP4SR, larger", "larger")];
        let row_of = |(label, slug): (&str, &str)| {
            let run_of = |(seed, source): (usize, &ResolvedRun)| {
                let from = format!("pretrain.from=\"{union}/{}\"", source.spec().name);
                let keys: &[&str] = match slug {
                    "larger" => &[&from],
                    "no-pretrain" => &["pretrain.enabled=false"],
                    _ => &[],
                };
                self.study_run(pipeline, &common, &row(label, &format!("{prefix}{slug}"), keys), seed)
            };
            let runs = pretrained.iter().enumerate().map(run_of).collect::<anyhow::Result<_>>()?;
            Ok((row(label, slug, &[]), runs))
        };
        rows.into_iter().map(row_of).collect()
    }

    /// The runs of the union, which are pre-trained first if necessary, with the study's own pipeline, whichever dataset is fine-tuned on.
    fn pretrained_on(&self, union: &str) -> anyhow::Result<Vec<ResolvedRun>> {
        let mut overrides = self.common.clone();
        overrides.retain(|assignment| Assignments::key_of(assignment) != "dataset.name");
        overrides.push(format!("dataset.name=\"{union}\""));
        let own = &self.runner.args().pipeline;
        let runs = (0..self.options.seeds).map(|seed| self.study_run(own, &overrides, &full(), seed));
        let runs = runs.collect::<anyhow::Result<Vec<_>>>()?;
        match self.runner.pretrain_as_is(&runs).into_iter().flatten().next() {
            Some(error) => Err(error.into_error()),
            None => Ok(runs),
        }
    }
}
