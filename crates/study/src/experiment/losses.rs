//! Figure 3: test loss against training loss.

use mp4sr_artifact::{FINETUNE, Layout};
use mp4sr_figure::{Chart, Figure, Point, Series};
use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::mean_and_deviation;

use super::comparisons::log;
use super::rows::row;
use super::{FinishedRows, Study};
use crate::runner::Until;

impl Study<'_> {
    /// Builds Figure 3: the test loss of fine-tuning against its training loss, epoch by epoch.
    pub(super) fn losses(&mut self) -> anyhow::Result<String> {
        let title = "Figure 3: log test loss against log training loss";
        let mut rows = Vec::new();
        for layers in LAYERS {
            let key = format!("model.transformer.layers={layers}");
            for pretrains in [false, true] {
                let enabled = format!("pretrain.enabled={pretrains}");
                let slug = format!("losses.{layers}-layers.{}", if pretrains { "mp4sr" } else { "no-pretrain" });
                let label = format!("{layers}: {}", start(pretrains));
                rows.push(row(&label, &slug, &[&key, &enabled, "finetune.log_test_loss=true"]));
            }
        }
        let made = self.make(&rows, Until::Trained)?;
        let mut table = TextTable::new(["layers", "pre-training", "seed", "epoch", "training loss", "test loss"]);
        let mut charts: Vec<Chart> = LAYERS
            .map(|layers| Chart {
                title: format!("{layers} layer{}", if layers == 1 { "" } else { "s" }),
                x: "log training loss".to_owned(),
                y: "log test loss".to_owned(),
                categories: Vec::new(),
                series: Vec::new(),
            })
            .collect();
        for (_, runs) in &made {
            for run in runs {
                let layers = &run.config.model.section("transformer")["layers"];
                let pretrains = run.config.pretrain.enabled;
                let losses = test_losses(&run.layout)?;
                let at = |&(_, train, test): &(usize, f64, f64)| Point {
                    x: train.ln(),
                    y: test.ln(),
                    range: (test.ln(), test.ln()),
                };
                let series = Series { name: start(pretrains).to_owned(), points: losses.iter().map(at).collect() };
                if let Some((chart, _)) = charts.iter_mut().zip(LAYERS).find(|(_, own)| *layers == *own) {
                    chart.series.push(series);
                }
                for (epoch, train, test) in losses {
                    let seed = run.config.run.seed;
                    let row = [layers.to_string(), if pretrains { "with" } else { "without" }.to_owned()];
                    let numbers = [seed.to_string(), epoch.to_string(), train.to_string(), test.to_string()];
                    table.rows.push(row.into_iter().chain(numbers).collect());
                }
            }
        }
        let mut text = format!("# {title}\n\n{}\n\n", self.settings());
        text += &lowest(&made)?.markdown();
        let figure = Figure { title: format!("{title} ({})", self.config.dataset.name), charts };
        self.finish(text, None, &table, Some(figure))
    }
}

/// The numbers of layers that are compared.
const LAYERS: std::ops::RangeInclusive<usize> = 1..=3;

fn start(pretrains: bool) -> &'static str {
    if pretrains { "with pre-training" } else { "without pre-training" }
}

/// The lowest test loss of each row's runs, and when it was reached.
fn lowest(made: &FinishedRows) -> anyhow::Result<TextTable> {
    let mut table = TextTable::new(["layers: start", "lowest test loss", "± over seeds", "epochs until then"]);
    for (row, runs) in made {
        let (mut losses, mut epochs) = (Vec::new(), Vec::new());
        for run in runs {
            let found = test_losses(&run.layout)?;
            if let Some(least) = found.iter().min_by(|a, b| a.2.total_cmp(&b.2)) {
                losses.push(least.2);
                epochs.push(least.0 as f64);
            }
        }
        let (loss, deviation) = mean_and_deviation(&losses);
        table.rows.push(vec![
            row.label.clone(),
            format!("{loss:.4}"),
            deviation.map_or(String::new(), |d| format!("{d:.4}")),
            format!("{:.1}", mean_and_deviation(&epochs).0),
        ]);
    }
    Ok(table)
}

/// Reads epochs, training losses and test losses.
fn test_losses(layout: &Layout) -> anyhow::Result<Vec<(usize, f64, f64)>> {
    let lines = log(layout)?.into_iter().filter(|line| line.phase == FINETUNE);
    let found: Vec<_> = lines.filter_map(|line| Some((line.epoch, line.loss, line.test_loss?))).collect();
    anyhow::ensure!(
        !found.is_empty(),
        "`{}` has no test losses; delete the run's folder and run the study again",
        layout.metrics_log().display()
    );
    Ok(found)
}
