//! Compares the values of one key, and draws figures of them.

use mp4sr_figure::Figure;
use mp4sr_pipeline::config::Modality;
use mp4sr_protocol::{Comparison, Reference};

use super::Study;
use super::comparisons::groups;
use super::figure::{StudyCurve, curve};
use super::rows::{StudyRow, modality, own_key, row};
use super::write::{DEFAULTS, PaperTable};
use crate::comparison_text::{details, markdown};
use crate::runner::Until;

impl Study<'_> {
    /// Compares the values of one key, and draws R@20 and N@20 over them.
    pub(super) fn sweep(&mut self, title: &str, name: &str, key: &str, values: &[&str]) -> anyhow::Result<String> {
        let rows: Vec<StudyRow> = values
            .iter()
            .map(|value| row(&format!("{name} = {value}"), &format!("{name}-{value}"), &[&format!("{key}={value}")]))
            .collect();
        let made = self.make(&rows, Until::Evaluated)?;
        let groups = groups(&made, &self.sequences()?, None)?;
        let categories: Vec<String> =
            made.iter().map(|(row, _)| row.label.rsplit(' ').next().unwrap_or("").to_owned()).collect();
        let comparison = Comparison::new(&groups, &self.metrics(), Reference::Best);
        let line = curve("MP4SR", comparison.rows.iter().enumerate());
        let figure = self.figure(title, name, &categories, &[line]);
        self.finish_sweep(title, &comparison, Some(DEFAULTS), figure)
    }

    pub(super) fn finish_sweep(
        &mut self,
        title: &str,
        comparison: &Comparison,
        paper: Option<PaperTable>,
        figure: Figure,
    ) -> anyhow::Result<String> {
        let text = self.head(title, comparison.users) + &markdown(comparison, "setting");
        self.finish(text, paper, &details(comparison), Some(figure))
    }

    pub(super) fn mixup(&mut self) -> anyhow::Result<String> {
        anyhow::ensure!(self.config.model.modalities.len() > 1, "mixup needs two modalities; use a pipeline with two");
        let title = "Mixup with a fixed swap probability";
        let mut rows: Vec<StudyRow> = (0..10)
            .map(|tenth| {
                let p = format!("0.{tenth}");
                let keys = [format!("model.mp4sr.mixup_min={p}"), format!("model.mp4sr.mixup_max={p}")];
                row(&format!("p = {p}"), &format!("mixup-{p}"), &[&keys[0], &keys[1]])
            })
            .collect();
        let [least, most] = ["mixup_min", "mixup_max"].map(|key| own_key(&self.config, key));
        let drawn = format!("U({}, {})", number(least), number(most));
        rows.push(row(&format!("p from {drawn}"), "mp4sr", &[]));
        let made = self.make(&rows, Until::Evaluated)?;
        let comparison = Comparison::new(&groups(&made, &self.sequences()?, None)?, &self.metrics(), Reference::Best);
        let (references, fixed): (Vec<_>, Vec<_>) =
            comparison.rows.iter().partition(|(name, _)| name.starts_with("p from"));
        let categories: Vec<String> =
            fixed.iter().map(|(name, _)| name.trim_start_matches("p = ").to_owned()).collect();
        let mut lines = vec![curve("fixed", fixed.iter().copied().enumerate())];
        if let Some(reference) = references.first() {
            lines.push(curve(&format!("drawn from {drawn}"), (0..categories.len()).map(|index| (index, *reference))));
        }
        let figure = self.figure(title, "p", &categories, &lines);
        self.finish_sweep(title, &comparison, None, figure)
    }

    pub(super) fn noise(&mut self) -> anyhow::Result<String> {
        let title = "Noise: items that lose their features, or get those of other items";
        const SHARES: [f64; 4] = [0.1, 0.2, 0.4, 0.8];
        let names: Vec<String> = self.config.model.modalities.iter().map(|m| m.name.clone()).collect();
        let (mut rows, mut kinds) = (vec![row("no noise", "mp4sr", &[])], Vec::new());
        for name in &names {
            for (kind, word) in [("lost", "lost"), ("swapped", "of another item")] {
                kinds.push(format!("{name} {word}"));
                for share in SHARES {
                    let share_of = |m: &Modality, noise: &str, own: f64| {
                        if m.name == *name && kind == noise { share } else { own }
                    };
                    let noisy =
                        |m: &Modality| modality(m, share_of(m, "lost", m.lost), share_of(m, "swapped", m.swapped));
                    let modalities: Vec<String> = self.config.model.modalities.iter().map(noisy).collect();
                    let key = format!("model.modalities=[{}]", modalities.join(","));
                    rows.push(row(&format!("{name} {word}: {share}"), &format!("{kind}-{name}-{share}"), &[&key]));
                }
            }
        }
        let made = self.make(&rows, Until::Evaluated)?;
        let comparison = Comparison::new(&groups(&made, &self.sequences()?, None)?, &self.metrics(), Reference::Best);
        let clean = comparison.rows.iter().find(|(name, _)| name == "no noise");
        let lines: Vec<StudyCurve> = kinds
            .iter()
            .map(|kind| {
                let of = |share: f64| comparison.rows.iter().find(|(name, _)| *name == format!("{kind}: {share}"));
                let noisy = (1..).zip(SHARES).filter_map(|(index, share)| Some((index, of(share)?)));
                curve(kind, clean.map(|row| (0, row)).into_iter().chain(noisy))
            })
            .collect();
        let categories: Vec<String> = [0.0].iter().chain(&SHARES).map(f64::to_string).collect();
        let figure = self.figure(title, "share of items", &categories, &lines);
        self.finish_sweep(title, &comparison, None, figure)
    }
}

/// The value as a number, which formats without a fraction if it is whole.
fn number(value: &serde_json::Value) -> f64 {
    value.as_f64().unwrap_or_default()
}
