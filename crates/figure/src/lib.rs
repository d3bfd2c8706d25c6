//! Draws charts as SVG and PNG.
//!
//! The crate takes series of points with ranges of uncertainty, and returns the text of an SVG and the bytes of a PNG. The lines differ in
//! dash, marker and colour, so that they can be distinguished in greyscale. The crate must not know what is measured.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests write damaged files"))]

mod style;

use std::ops::Range;
use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::*;

pub use style::{DrawResult, LEGEND_LEFT, LEGEND_ROW, SeriesStyle};

/// A figure: charts side by side above one legend.
///
/// ```
/// use mp4sr_figure::{Chart, Figure, Point, Series};
///
/// let points = vec![Point { x: 1.0, y: 0.21, range: (0.20, 0.22) }, Point { x: 2.0, y: 0.25, range: (0.24, 0.26) }];
/// let chart = Chart {
///     title: "Arts".to_owned(),
///     x: "epoch".to_owned(),
///     y: "R@20".to_owned(),
///     categories: Vec::new(),
///     series: vec![Series { name: "MP4SR".to_owned(), points }],
/// };
/// let drawn = Figure { title: "Validation".to_owned(), charts: vec![chart] }.draw()?;
/// assert!(drawn.svg.starts_with("<svg") && drawn.png.starts_with(b"\x89PNG"));
/// # Ok::<(), mp4sr_figure::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The title above all charts.
    pub title: String,
    /// The charts from left to right; their series have the same names in the same order.
    pub charts: Vec<Chart>,
}

/// One chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// The title above the chart.
    pub title: String,
    /// The label of the horizontal axis.
    pub x: String,
    /// The label of the vertical axis.
    pub y: String,
    /// The names of the positions 0, 1, ... on the horizontal axis; if empty, the axis shows numbers.
    pub categories: Vec<String>,
    /// The lines.
    pub series: Vec<Series>,
}

/// One line. Lines of the same name share a style and a row of the legend.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The name in the legend.
    pub name: String,
    /// The points from left to right.
    pub points: Vec<Point>,
}

/// A value with its range of uncertainty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The position on the horizontal axis.
    pub x: f64,
    /// The position on the vertical axis.
    pub y: f64,
    /// The range around `y`; `y` itself on both sides if no range is known.
    pub range: (f64, f64),
}

/// A figure in both formats.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The figure as SVG text.
    pub svg: String,
    /// The figure as the bytes of a PNG file.
    pub png: Vec<u8>,
}

/// The figure could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("the figure `{title}` could not be drawn ({reason})")]
pub struct Error {
    title: String,
    reason: String,
}

const CHART: (u32, u32) = (520, 380);
const TITLE: u32 = 40;
/// The distance of the title, and of a legend in columns, from the left edge.
const MARGIN: i32 = 16;
/// The number of names that the legend lists in a single column at most.
const ONE_COLUMN: usize = 6;

/// Makes plotters use the embedded font, whatever fonts the machine has. Must be called before anything is drawn.
pub fn embed_font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Registering fails only for a font that cannot be read, and this one is part of the program.
        let _ = plotters::style::register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
    });
}

impl Figure {
    /// Draws the figure.
    pub fn draw(&self) -> Result<Drawn, Error> {
        embed_font();
        let wrong = |reason: String| Error { title: self.title.clone(), reason };
        let names = self.names();
        let size = (
            CHART.0 * self.charts.len() as u32,
            TITLE + CHART.1 + LEGEND_ROW * names.len().div_ceil(self.legend_columns()) as u32 + 10,
        );
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        self.draw_on(&area, &names).map_err(|e| wrong(e.to_string()))?;
        drop(area);
        let mut pixels = vec![0; 3 * (size.0 * size.1) as usize];
        let area = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
        self.draw_on(&area, &names).map_err(|e| wrong(e.to_string()))?;
        drop(area);
        let image = image::RgbImage::from_raw(size.0, size.1, pixels).ok_or_else(|| wrong("too few pixels".into()))?;
        let mut png = std::io::Cursor::new(Vec::new());
        image.write_to(&mut png, image::ImageFormat::Png).map_err(|e| wrong(e.to_string()))?;
        Ok(Drawn { svg, png: png.into_inner() })
    }

    /// The names of all series, without repeats.
    fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for series in self.charts.iter().flat_map(|chart| &chart.series) {
            if !names.contains(&series.name.as_str()) {
                names.push(series.name.as_str());
            }
        }
        names
    }

    /// The number of columns of the legend: one for few names, and otherwise two below each chart.
    fn legend_columns(&self) -> usize {
        if self.names().len() <= ONE_COLUMN { 1 } else { 2 * self.charts.len() }
    }

    fn draw_on<B: DrawingBackend>(&self, root: &DrawingArea<B, Shift>, names: &[&str]) -> DrawResult<B> {
        root.fill(&WHITE)?;
        let (title, rest) = root.split_vertically(TITLE);
        title.draw(&Text::new(self.title.clone(), (MARGIN, 12), ("sans-serif", 20).into_font()))?;
        let (charts, legend) = rest.split_vertically(CHART.1);
        let areas = charts.split_evenly((1, self.charts.len().max(1)));
        for (chart, area) in self.charts.iter().zip(areas) {
            chart.draw(&area, names)?;
        }
        let columns = self.legend_columns();
        let rows = names.len().div_ceil(columns).max(1);
        let first = if columns == 1 { LEGEND_LEFT } else { MARGIN };
        for (at, name) in names.iter().enumerate() {
            let left = first + (CHART.0 as i32 / 2) * (at / rows) as i32;
            SeriesStyle::of(at).draw_legend(&legend, (left, at % rows), name)?;
        }
        root.present()
    }
}

impl Chart {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, names: &[&str]) -> DrawResult<B> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let (left, right) = if self.categories.is_empty() {
            padded(points().map(|p| p.x), 0.05)
        } else {
            (-0.4, self.categories.len() as f64 - 0.6)
        };
        let (low, high) = padded(points().flat_map(|p| [p.range.0, p.range.1, p.y]), 0.08);
        let decimals = |range: f64| (1.0 - range.log10().floor()).clamp(0.0, 6.0) as usize;
        let (across, decimals) = (decimals(right - left), decimals(high - low));
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_right(18)
            .caption(&self.title, ("sans-serif", 17))
            .x_label_area_size(46)
            .y_label_area_size(74)
            .build_cartesian_2d(left..right, low..high)?;
        let named = |x: &f64| {
            let near = x.round();
            let category =
                self.categories.get(near.max(0.0) as usize).filter(|_| near >= 0.0 && (x - near).abs() < 1e-6);
            category.cloned().unwrap_or_default()
        };
        let numbered = |x: &f64| format!("{x:.across$}");
        let x_label: &dyn Fn(&f64) -> String = if self.categories.is_empty() { &numbered } else { &named };
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(&self.x).y_desc(&self.y).y_labels(6);
        // Twice as many labels as categories make plotters put one on every category; the labels in between are empty.
        mesh.x_labels(if self.categories.is_empty() { 6 } else { 2 * self.categories.len() + 1 });
        mesh.axis_desc_style(("sans-serif", 15)).label_style(("sans-serif", 13));
        mesh.bold_line_style(RGBColor(215, 215, 215)).light_line_style(TRANSPARENT);
        mesh.x_label_formatter(x_label).y_label_formatter(&|y| format!("{y:.decimals$}")).draw()?;
        let side = |at: usize| 0.04 * (at as f64 - (names.len() as f64 - 1.0) / 2.0);
        for series in &self.series {
            let at = names.iter().position(|name| *name == series.name).unwrap_or(0);
            let style = SeriesStyle::of(at);
            let stroke = style.stroke();
            // The lines are shifted so that their ranges are drawn side by side, not on top of each other.
            let shift = if self.categories.is_empty() { 0.0 } else { side(at) };
            let line: Vec<(f64, f64)> = series.points.iter().map(|p| (p.x + shift, p.y)).collect();
            let pixels: Vec<(i32, i32)> = line.iter().map(|point| chart.backend_coord(point)).collect();
            for range in smooth_ranges(&pixels) {
                let part = line[range].iter().copied();
                match style.dash {
                    None => chart.draw_series(LineSeries::new(part, stroke))?,
                    Some((dash, gap)) => chart.draw_series(DashedLineSeries::new(part, dash, gap, stroke))?,
                };
            }
            let ranged = series.points.iter().filter(|p| p.range.0 < p.range.1);
            chart.draw_series(ranged.map(|p| {
                ErrorBar::new_vertical(p.x + shift, p.range.0, p.y, p.range.1, style.color.stroke_width(1), 8)
            }))?;
            for pixel in pixels {
                style.draw_mark(area, pixel)?;
            }
        }
        Ok(())
    }
}

/// Divides a line into ranges without sharp turns; the point of a turn belongs to two of them. In PNG images, plotters extends the corner of
/// a sharp turn to a long spike.
fn smooth_ranges(pixels: &[(i32, i32)]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut start = 0;
    for (at, corner) in (1..).zip(pixels.windows(3)) {
        let [before, after] =
            [0, 1].map(|from| (corner[from + 1].0 - corner[from].0, corner[from + 1].1 - corner[from].1));
        if before.0 * after.0 + before.1 * after.1 <= 0 {
            ranges.push(start..at + 1);
            start = at;
        }
    }
    ranges.push(start..pixels.len());
    ranges
}

/// The range of the values with a margin on both sides. It has a positive length even without values, or if all values are equal.
fn padded(values: impl Iterator<Item = f64>, share: f64) -> (f64, f64) {
    let finite = values.filter(|v| v.is_finite());
    let (low, high) = finite.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let room = if high > low { share * (high - low) } else { 0.1 * high.abs().max(0.1) };
    (low - room, high + room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, ys: &[f64]) -> Series {
        let point = |(x, &y): (usize, &f64)| Point { x: x as f64, y, range: (y - 0.01, y + 0.02) };
        Series { name: name.to_owned(), points: ys.iter().enumerate().map(point).collect() }
    }

    fn figure(charts: usize, categories: &[&str], series: &[Series]) -> Figure {
        let chart = Chart {
            title: "R@20".into(),
            x: "lambda".into(),
            y: "R@20".into(),
            categories: categories.iter().map(|&p| p.to_owned()).collect(),
            series: series.to_vec(),
        };
        Figure { title: "Impact of <lambda>".into(), charts: vec![chart; charts] }
    }

    #[test]
    fn lines_are_divided_at_sharp_turns() {
        let ranges = |pixels: &[(i32, i32)]| -> Vec<(usize, usize)> {
            smooth_ranges(pixels).into_iter().map(|range| (range.start, range.end)).collect()
        };
        assert_eq!(ranges(&[(0, 0), (10, 0), (20, 5), (12, 4), (30, 4)]), [(0, 3), (2, 4), (3, 5)]);
        assert_eq!(ranges(&[(0, 0), (10, 9), (20, 0)]), [(0, 3)]);
        assert_eq!((ranges(&[]), ranges(&[(1, 1)])), (vec![(0, 0)], vec![(0, 1)]));
    }

    #[test]
    fn both_formats_contain_the_data_and_names_are_escaped() {
        let lines = [series("MP4SR", &[0.2, 0.22, 0.21]), series("a<b>&", &[0.1, 0.15, 0.11])];
        let figure = figure(2, &["0.001", "0.01", "0.1"], &lines);
        let drawn = figure.draw().unwrap();
        assert!(drawn.svg.contains("a&lt;b&gt;&amp;") && !drawn.svg.contains("a<b>"));
        for tick in ["0.001", "0.01", "0.1"] {
            assert_eq!(drawn.svg.matches(&format!("\n{tick}\n")).count(), 2, "{tick} under both charts");
        }
        let image = image::load_from_memory(&drawn.png).unwrap().to_rgb8();
        assert_eq!(image.dimensions(), (1040, TITLE + CHART.1 + 2 * LEGEND_ROW + 10));
        let has = |color: RGBColor| image.pixels().filter(|p| p.0 == [color.0, color.1, color.2]).count() > 100;
        let colors = [0, 1, 2].map(|at| SeriesStyle::of(at).color);
        assert!(has(colors[0]) && has(colors[1]) && !has(colors[2]));
        assert_eq!(drawn, figure.draw().unwrap(), "the same figure, the same bytes");
        if let Some(folder) = std::env::var_os("MP4SR_KEEP_FIGURE") {
            std::fs::write(std::path::Path::new(&folder).join("figure.png"), &drawn.png).unwrap();
        }
    }

    #[test]
    fn many_names_are_listed_in_columns() {
        let lines: Vec<Series> = (0..17).map(|at| series(&format!("model {at}"), &[0.1, 0.2])).collect();
        let image = image::load_from_memory(&figure(2, &["a", "b"], &lines).draw().unwrap().png).unwrap();
        assert_eq!((image.width(), image.height()), (1040, TITLE + CHART.1 + 5 * LEGEND_ROW + 10));
    }

    #[test]
    fn empty_single_point_and_non_finite_series_are_drawn() {
        for lines in [vec![], vec![series("a", &[])], vec![series("a", &[0.5])], vec![series("a", &[f64::NAN, 1.0])]] {
            assert!(!figure(1, &[], &lines).draw().unwrap().png.is_empty());
        }
    }
}
