//! Draws loss and validation metrics by epoch. The lines differ in dash, marker and colour, so that they can be distinguished in greyscale.

use std::fmt::Write as _;
use std::path::Path;

use mp4sr_artifact::{EpochLine, Error as FileError, PRETRAIN, recorded_settings};
use mp4sr_figure::{LEGEND_LEFT, LEGEND_ROW, SeriesStyle};
use plotters::prelude::*;

use crate::{Error, Result};

const WIDTH: u32 = 460;
const PLOT_HEIGHT: u32 = 290;
/// The approximate maximum number of markers on a line.
const MARKERS: usize = 12;

/// What to do about a log that is missing or damaged. Training writes it again only if it has to train again.
pub(crate) const RESTORE_LOG: &str = "restore it, or delete the folder of the run and train it again";

/// The training log of a run.
///
/// ```
/// use mp4sr_report::{TrainingLog, panels};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("metrics.jsonl");
/// let line = r#"{"phase":"finetune","epoch":1,"loss":3.2,"gradient_norm":1.0,"validation":{"R@20":0.2},"best":true,"seconds":[1.0,0.1]}"#;
/// # #[allow(clippy::disallowed_methods)]
/// std::fs::write(&path, format!("{line}\n"))?;
/// let log = TrainingLog::read("mp4sr", &path)?;
/// assert_eq!(log.lines[0].epoch, 1);
/// assert!(panels(&[log])?.iter().any(|panel| panel.what.contains("training loss")));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingLog {
    /// The name of the run.
    pub run: String,
    /// The lines of the epochs; empty if the model is not trained in epochs.
    pub lines: Vec<EpochLine>,
}

impl TrainingLog {
    /// Reads `metrics.jsonl` of a run; a file that does not exist holds no epochs.
    pub fn read(run: &str, path: &Path) -> Result<Self> {
        let wrong = |reason: String| Err(FileError::unusable(path, reason, RESTORE_LOG).into());
        let mut lines: Vec<EpochLine> = Vec::new();
        if !path.exists() {
            return Ok(Self { run: run.to_owned(), lines });
        }
        for (at, read) in EpochLine::read(path, RESTORE_LOG)?.into_iter().enumerate() {
            let before = lines.iter().rfind(|line| line.phase == read.phase).map_or(0, |line| line.epoch);
            if read.epoch != before + 1 {
                return wrong(format!("line {} is of epoch {}, expected {}", at + 1, read.epoch, before + 1));
            }
            lines.push(read);
        }
        if lines.is_empty() {
            return wrong("it contains no epochs".to_owned());
        }
        Ok(Self { run: run.to_owned(), lines })
    }

    /// Rejects a log that does not belong to the weights at `weights`, which record their epoch and its validation R@20. Weights of other
    /// programs may lack this record and are accepted.
    pub fn expect_weights(&self, log: &Path, weights: &Path) -> Result<()> {
        let Some(settings) = recorded_settings(weights) else { return Ok(()) };
        let mut of_phase = self.lines.iter().filter(|line| Some(line.phase.as_str()) == settings["phase"].as_str());
        let Some(best) = of_phase.rfind(|line| line.best) else { return Ok(()) };
        let recorded = (settings["epoch"].as_u64(), settings["validation_recall_20"].as_f64());
        let recall = best.validation.get("R@20").copied();
        match recorded {
            (Some(epoch), Some(value))
                if epoch > 0
                    && (epoch != best.epoch as u64
                        || recall.is_some_and(|recall| recall.to_bits() != value.to_bits())) =>
            {
                let reason = format!(
                    "its best epoch is {}, but `{}` contains the weights of epoch {epoch} of another training run",
                    best.epoch,
                    weights.display()
                );
                Err(FileError::unusable(log, reason, RESTORE_LOG).into())
            }
            _ => Ok(()),
        }
    }
}

/// One chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// The phase that the chart shows.
    pub phase: String,
    /// What the vertical axis shows.
    pub what: String,
    /// The height in pixels.
    pub height: u32,
    /// The chart as SVG.
    pub svg: String,
}

struct Curve {
    run: String,
    style: SeriesStyle,
    points: Vec<(i32, f64)>,
    kept: Option<(i32, f64)>,
}

/// Draws one chart for each phase and each of loss, R@K and N@K; for a phase without validation, only one of the loss. The first log is the
/// run's own. Pre-training comes first.
pub fn panels(logs: &[TrainingLog]) -> Result<Vec<Panel>> {
    mp4sr_figure::embed_font();
    let mut phases: Vec<&str> = Vec::new();
    for line in logs.iter().flat_map(|log| &log.lines) {
        if !phases.contains(&line.phase.as_str()) {
            phases.push(&line.phase);
        }
    }
    // Another run may have phases that this one lacks; pre-training comes first in any case.
    phases.sort_by_key(|phase| *phase != PRETRAIN);
    let mut panels = Vec::new();
    for phase in phases {
        let of_phase = || logs.iter().flat_map(|log| &log.lines).filter(|line| line.phase == phase);
        panels.extend(panel(logs, phase, "training loss", |line| Some(line.loss))?);
        for kind in ["R", "N"] {
            let ks = of_phase().flat_map(|line| line.validation.keys()).filter_map(|name| k_of(name, kind));
            // The default metric of early stopping has K = 20.
            let Some(k) = ks.min_by_key(|&k| (k.abs_diff(20), k)) else { continue };
            let name = format!("{kind}@{k}");
            let what = format!("validation {name}");
            panels.extend(panel(logs, phase, &what, |line| line.validation.get(&name).copied())?);
        }
    }
    Ok(panels)
}

fn k_of(name: &str, kind: &str) -> Option<u32> {
    name.strip_prefix(kind)?.strip_prefix('@')?.parse().ok()
}

fn panel(
    logs: &[TrainingLog],
    phase: &str,
    what: &str,
    value: impl Fn(&EpochLine) -> Option<f64>,
) -> Result<Option<Panel>> {
    let mut curves = Vec::new();
    for (at, log) in logs.iter().filter(|log| !log.lines.is_empty()).enumerate() {
        let point = |line: &EpochLine| value(line).filter(|v| v.is_finite()).map(|value| (line.epoch as i32, value));
        let lines = || log.lines.iter().filter(|line| line.phase == phase);
        let points: Vec<(i32, f64)> = lines().filter_map(point).collect();
        if !points.is_empty() {
            let kept = lines().rfind(|line| line.best).and_then(point);
            curves.push(Curve { run: log.run.clone(), style: SeriesStyle::of(at), points, kept });
        }
    }
    if curves.is_empty() {
        return Ok(None);
    }
    let height = PLOT_HEIGHT + LEGEND_ROW * curves.len() as u32 + 6;
    let mut svg = String::new();
    draw(&mut svg, height, phase, what, &curves).map_err(|e| Error::Chart(e.to_string()))?;
    Ok(Some(Panel { phase: phase.to_owned(), what: what.to_owned(), height, svg }))
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw(svg: &mut String, height: u32, phase: &str, what: &str, curves: &[Curve]) -> Drawn {
    let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (plot, legend) = root.split_vertically(PLOT_HEIGHT);
    let epochs = curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.0));
    let (first, last) = epochs.fold((i32::MAX, i32::MIN), |(low, high), epoch| (low.min(epoch), high.max(epoch)));
    let values = curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.1));
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    let room = if high > low { 0.06 * (high - low) } else { 0.1 * high.abs().max(0.1) };
    // Counts and shares are never negative, so the axis does not go below zero.
    let floor = if low >= 0.0 { (low - room).max(0.0) } else { low - room };
    let span = high + room - floor;
    let decimals = (1.0 - span.log10().floor()).clamp(0.0, 6.0) as usize;
    let mut chart = ChartBuilder::on(&plot)
        .margin(6)
        .margin_right(18)
        .caption(format!("{phase}: {what}"), ("sans-serif", 18).into_font())
        .x_label_area_size(44)
        .y_label_area_size(68)
        .build_cartesian_2d(first..last.max(first.saturating_add(1)), floor..high + room)?;
    chart
        .configure_mesh()
        .x_desc("epoch")
        .y_desc(what)
        .x_labels(8)
        .y_labels(6)
        .axis_desc_style(("sans-serif", 16))
        .label_style(("sans-serif", 14))
        .bold_line_style(RGBColor(215, 215, 215))
        .light_line_style(TRANSPARENT)
        .y_label_formatter(&|value| format!("{value:.decimals$}"))
        .draw()?;
    for curve in curves {
        let points = curve.points.iter().copied();
        let stroke = curve.style.stroke();
        match curve.style.dash {
            None => chart.draw_series(LineSeries::new(points, stroke))?,
            Some((dash, gap)) => chart.draw_series(DashedLineSeries::new(points, dash, gap, stroke))?,
        };
        let step = curve.points.len().div_ceil(MARKERS);
        for point in curve.points.iter().step_by(step) {
            curve.style.draw_mark(&plot, chart.backend_coord(point))?;
        }
        chart.draw_series(curve.kept.map(|point| Circle::new(point, 8, stroke)))?;
    }
    for (row, curve) in curves.iter().enumerate() {
        curve.style.draw_legend(&legend, (LEGEND_LEFT, row), &curve.run)?;
    }
    root.present()?;
    Ok(())
}

/// Arranges all charts on one sheet, with one row per phase.
pub fn sheet(panels: &[Panel]) -> String {
    let (mut x, mut y, mut width, mut tallest) = (0, 0, 0, 0);
    let mut phase = panels.first().map(|panel| panel.phase.as_str());
    let mut body = String::new();
    for panel in panels {
        if phase != Some(panel.phase.as_str()) {
            phase = Some(&panel.phase);
            (x, y, tallest) = (0, y + tallest, 0);
        }
        let _ = writeln!(body, "<g transform=\"translate({x} {y})\">\n{}</g>", panel.svg);
        x += WIDTH;
        width = width.max(x);
        tallest = tallest.max(panel.height);
    }
    let height = y + tallest;
    format!(
        "<svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         xmlns=\"http://www.w3.org/2000/svg\">\n{body}</svg>\n"
    )
}

#[cfg(test)]
mod tests {
    use mp4sr_artifact::files;

    use super::*;

    /// A log line of a phase without validation.
    fn epoch(phase: &str, epoch: usize, loss: &str) -> String {
        format!(
            r#"{{"phase":"{phase}","epoch":{epoch},"loss":{loss},"gradient_norm":1,"validation":{{}},"best":true,"seconds":[1,0]}}"#
        )
    }

    fn log(run: &str, text: &str) -> TrainingLog {
        TrainingLog {
            run: run.to_owned(),
            lines: text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        }
    }

    #[test]
    fn a_panel_for_each_phase_and_metric_and_names_are_escaped() {
        let own = log(
            "a<b>&",
            r#"{"phase":"finetune","epoch":1,"loss":7.5,"gradient_norm":1,"validation":{"R@5":0.1,"R@20":0.2,"N@20":0.1},"best":true,"seconds":[1,1]}
{"phase":"finetune","epoch":2,"loss":7.0,"gradient_norm":1,"validation":{"R@5":0.1,"R@20":0.1,"N@20":0.1},"best":false,"seconds":[1,1]}"#,
        );
        let other = log("b", &epoch("pretrain", 1, "3.0"));
        let panels = panels(&[own, other]).unwrap();
        let names: Vec<String> = panels.iter().map(|p| format!("{} {}", p.phase, p.what)).collect();
        assert_eq!(
            names,
            [
                "pretrain training loss",
                "finetune training loss",
                "finetune validation R@20",
                "finetune validation N@20"
            ]
        );
        assert!(panels[1].svg.contains("a&lt;b&gt;&amp;") && !panels[1].svg.contains("a<b>"));
        assert_eq!(sheet(&panels).matches("<svg").count(), 5);
        assert!(super::panels(&[]).unwrap().is_empty());
    }

    #[test]
    fn flat_and_unusual_values_are_drawn() {
        for loss in ["0.0", "-3.5", "1e-12", "1e12", "5"] {
            assert_eq!(panels(&[log("r", &epoch("x", 3, loss))]).unwrap().len(), 1, "{loss}");
        }
    }

    #[test]
    fn a_damaged_log_names_its_line_and_a_missing_log_is_not_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        assert!(TrainingLog::read("r", &path).unwrap().lines.is_empty());
        files::write_bytes(&path, format!("{}\n{{\"phase\":", epoch("x", 1, "1")).as_bytes()).unwrap();
        let message = TrainingLog::read("r", &path).unwrap_err().to_string();
        assert!(message.contains("metrics.jsonl") && message.contains("line 2"), "{message}");
        let skips = format!("{}\n{}\n", epoch("x", 1, "1"), epoch("x", 3, "1"));
        let cut = format!("{}\n", epoch("x", 1, "1").replace("\"gradient_norm\":1,", ""));
        for (text, reason) in [
            (skips.as_str(), "line 2 is of epoch 3, expected 2"),
            (&cut, "line 1 cannot be read (missing field `gradient_norm`"),
            ("", "it contains no epochs"),
        ] {
            files::write_bytes(&path, text.as_bytes()).unwrap();
            let message = TrainingLog::read("r", &path).unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
    }
}
