//! Compares the values of one key, and draws figures of them.

use std::fmt::Write as _;

use mp4sr_figure::Figure;
use mp4sr_pipeline::config::Modality;
use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::{Comparison, Metric, Reference, SeedRuns, probability};

use super::Study;
use super::comparisons::groups;
use super::figure::{StudyCurve, curve};
use super::rows::{StudyRow, full, modality, own_key, row, without_pretraining};
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
        anyhow::ensure!(
            self.config.model.modalities.len() > 1,
            "mixup needs two modalities, and `model.modalities` has one; use a pipeline with two"
        );
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
        let default = format!("p from {drawn}");
        rows.push(row(&default, "mp4sr", &[]));
        let made = self.make(&rows, Until::Evaluated)?;
        let comparison = Comparison::new(&groups(&made, &self.sequences()?, None)?, &self.metrics(), Reference::Best);
        let (references, fixed): (Vec<_>, Vec<_>) = comparison.rows.iter().partition(|(name, _)| *name == default);
        let categories: Vec<String> =
            fixed.iter().map(|(name, _)| name.trim_start_matches("p = ").to_owned()).collect();
        let mut lines = vec![curve("fixed", fixed.iter().copied().enumerate())];
        if let Some(reference) = references.first() {
            lines.push(curve(&format!("drawn from {drawn}"), (0..categories.len()).map(|index| (index, *reference))));
        }
        let figure = self.figure(title, "p", &categories, &lines);
        self.finish_sweep(title, &comparison, None, figure)
    }

    /// Compares shares of items that lose their features of one modality or get those of another item, with and without pre-training.
    /// Each modality has a chart.
    pub(super) fn noise(&mut self) -> anyhow::Result<String> {
        let title = "Noise: items that lose their features, or get those of other items";
        let modalities = self.config.model.modalities.clone();
        let starts = [full(), without_pretraining()];
        let mut rows = Vec::new();
        for start in &starts {
            rows.push(StudyRow { label: noise_label("no noise", start), ..start.clone() });
            for (noised, (kind, words)) in modalities.iter().flat_map(|noised| NOISES.map(|noise| (noised, noise))) {
                for share in SHARES {
                    let share_of =
                        |m: &Modality, of: &str, own: f64| if m == noised && of == kind { share } else { own };
                    let noisy =
                        |m: &Modality| modality(m, share_of(m, "lost", m.lost), share_of(m, "swapped", m.swapped));
                    let all: Vec<String> = modalities.iter().map(noisy).collect();
                    let mut overrides = start.overrides.clone();
                    overrides.push(format!("model.modalities=[{}]", all.join(",")));
                    let label = noise_label(&format!("{} {words}: {share}", noised.name), start);
                    let slug = format!("{}-{kind}-{}-{share}", start.slug, noised.name);
                    rows.push(StudyRow { label, slug, overrides });
                }
            }
        }
        let made = self.make(&rows, Until::Evaluated)?;
        let groups = groups(&made, &self.sequences()?, None)?;
        let comparison = Comparison::new(&groups, &self.metrics(), Reference::Best);
        let find = |label: &str| comparison.rows.iter().find(|(name, _)| name == label);
        let categories: Vec<String> = [0.0].iter().chain(&SHARES).map(f64::to_string).collect();
        let charts = modalities.iter().filter_map(|noised| {
            let lines = NOISES.iter().flat_map(|(_, words)| starts.iter().map(move |start| (words, start)));
            let lines: Vec<StudyCurve> = lines
                .map(|(words, start)| {
                    let noisy = |share: &f64| find(&noise_label(&format!("{} {words}: {share}", noised.name), start));
                    let points = [find(&noise_label("no noise", start))].into_iter().chain(SHARES.iter().map(noisy));
                    curve(&noise_label(words, start), points.enumerate().filter_map(|(at, row)| Some((at, row?))))
                })
                .collect();
            let of = |metric: &Metric| self.chart(metric, &noised.name, "share of items", &categories, &lines);
            self.shown().iter().find_map(of)
        });
        let figure = self.figure_of(title, charts.collect());
        let mut text = self.head(title, comparison.users) + &markdown(&comparison, "setting");
        let _ = write!(text, "\n{}", self.gains(&groups));
        self.finish(text, None, &details(&comparison), Some(figure))
    }

    /// What pre-training gains with each noise, tested over users.
    fn gains(&self, groups: &[SeedRuns]) -> String {
        let metrics = self.shown();
        let header = metrics.iter().flat_map(|metric| [format!("gain in {metric}"), "p".to_owned()]);
        let mut table = TextTable::new(["setting".to_owned()].into_iter().chain(header));
        for with in groups {
            let Some(without) =
                groups.iter().find(|group| group.name == noise_label(&with.name, &without_pretraining()))
            else {
                continue;
            };
            let pair = Comparison::new(&[without.clone(), with.clone()], &metrics, Reference::Last);
            let tests = pair.rows.first().into_iter().flat_map(|(_, values)| values).filter_map(|value| value.tests);
            let cells = tests.flat_map(|tests| [format!("{:+.4}", tests.difference), probability(tests.t.p)]);
            table.rows.push([with.name.clone()].into_iter().chain(cells).collect());
        }
        format!(
            "## The gain of pre-training\n\nMP4SR minus MP4SR w/o Pre-train, with p of a paired t-test over users, not corrected for the \
             number of settings:\n\n{}",
            table.markdown()
        )
    }
}

/// The kinds of noise: the key of a modality, and the words of tables and legends.
const NOISES: [(&str, &str); 2] = [("lost", "lost"), ("swapped", "of another item")];
/// The shares of items that noise affects.
const SHARES: [f64; 3] = [0.2, 0.5, 0.8];

fn noise_label(noise: &str, start: &StudyRow) -> String {
    if *start == full() { noise.to_owned() } else { format!("{noise}, w/o Pre-train") }
}

/// The value as a number, which formats without a fraction if it is whole.
fn number(value: &serde_json::Value) -> f64 {
    value.as_f64().unwrap_or_default()
}
