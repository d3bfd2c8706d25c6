//! Draws figures of compared rows.

use mp4sr_figure::{Chart, Figure, Point, Series};
use mp4sr_protocol::{ComparedModel, ComparedValue, Metric};

use super::Study;

/// One value per metric, each with its range.
pub(super) type Values = Vec<(f64, (f64, f64))>;

/// One line of a figure.
pub(super) struct StudyCurve {
    /// The name in the legend.
    pub(super) name: String,
    /// The values by position on the horizontal axis.
    pub(super) entries: Vec<(usize, Values)>,
}

/// Builds the line of compared rows, each with its position on the horizontal axis.
pub(super) fn curve<'r>(name: &str, rows: impl Iterator<Item = (usize, &'r ComparedModel)>) -> StudyCurve {
    StudyCurve { name: name.to_owned(), entries: rows.map(|(index, row)| (index, values(row))).collect() }
}

pub(super) fn values((_, entries): &ComparedModel) -> Values {
    let value = |entry: &ComparedValue| {
        let mean = entry.interval.mean;
        (mean, entry.deviation.map_or((entry.interval.low, entry.interval.high), |d| (mean - d, mean + d)))
    };
    entries.iter().map(value).collect()
}

impl Study<'_> {
    /// R@20 and N@20; if K = 20 is not evaluated, R@K and N@K of the largest K.
    pub(super) fn shown(&self) -> [Metric; 2] {
        let ks = &self.config.evaluate.k;
        let k = if ks.contains(&20) { 20 } else { ks.iter().copied().max().unwrap_or(20) };
        [Metric::Recall(k), Metric::Ndcg(k)]
    }

    /// Draws one chart of R@20 and one of N@20.
    pub(super) fn figure(&self, title: &str, x: &str, categories: &[String], lines: &[StudyCurve]) -> Figure {
        let shown = self.shown();
        let charts = shown.iter().filter_map(|metric| self.chart(metric, &metric.to_string(), x, categories, lines));
        self.figure_of(title, charts.collect())
    }

    /// Draws charts below a title that names the dataset.
    pub(super) fn figure_of(&self, title: &str, charts: Vec<Chart>) -> Figure {
        Figure { title: format!("{title} ({})", self.config.dataset.name), charts }
    }

    /// Draws a chart of one metric, if the study computes it. Ranges are one standard deviation over seeds, or the 95 % bootstrap interval
    /// of a single seed.
    pub(super) fn chart(
        &self,
        metric: &Metric,
        title: &str,
        x: &str,
        categories: &[String],
        lines: &[StudyCurve],
    ) -> Option<Chart> {
        let column = self.metrics().iter().position(|m| m == metric)?;
        let series = lines.iter().map(|line| {
            let point = |(index, values): &(usize, Values)| {
                let (y, range) = values[column];
                Point { x: *index as f64, y, range }
            };
            Series { name: line.name.clone(), points: line.entries.iter().map(point).collect() }
        });
        Some(Chart {
            title: title.to_owned(),
            x: x.to_owned(),
            y: format!("{metric}, {}", self.range()),
            categories: categories.to_vec(),
            series: series.collect(),
        })
    }

    fn range(&self) -> String {
        match self.options.seeds {
            1 => "with 95 % interval".to_owned(),
            seeds => format!("± 1 standard deviation over {seeds} seeds"),
        }
    }
}
