//! Line styles that can be distinguished even in greyscale.

use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;

/// The result of drawing on a backend.
pub type DrawResult<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// The style of a line and its points.
#[derive(Clone, Copy, Debug)]
pub struct SeriesStyle {
    /// The colour of line and marker.
    pub color: RGBColor,
    /// The lengths of dash and gap in pixels; `None` for a solid line.
    pub dash: Option<(u32, u32)>,
    marker: Marker,
}

#[derive(Clone, Copy, Debug)]
enum Marker {
    Disc,
    Triangle,
    Cross,
    Square,
}

const COLORS: [RGBColor; 6] = [
    RGBColor(16, 42, 96),
    RGBColor(201, 82, 16),
    RGBColor(0, 130, 110),
    RGBColor(132, 60, 150),
    RGBColor(110, 110, 110),
    RGBColor(190, 30, 70),
];
const DASHES: [Option<(u32, u32)>; 6] = [None, Some((9, 4)), Some((3, 3)), Some((16, 5)), Some((6, 7)), Some((2, 6))];
const MARKERS: [Marker; 4] = [Marker::Disc, Marker::Triangle, Marker::Cross, Marker::Square];

/// The left end of the legend's first column, in pixels.
pub const LEGEND_LEFT: i32 = 82;
/// The height of a row of the legend, in pixels.
pub const LEGEND_ROW: u32 = 24;

impl SeriesStyle {
    /// The style of series `at`, 0-based. The colours repeat after six series, each time with another dash and another marker.
    pub fn of(at: usize) -> Self {
        let round = at / COLORS.len();
        let dash = (at + round) % DASHES.len();
        Self { color: COLORS[at % COLORS.len()], dash: DASHES[dash], marker: MARKERS[(dash + round) % MARKERS.len()] }
    }

    /// The stroke of the line.
    pub fn stroke(self) -> ShapeStyle {
        self.color.stroke_width(2)
    }

    /// Draws a marker at a pixel of the whole figure.
    pub fn draw_mark<B: DrawingBackend>(self, area: &DrawingArea<B, Shift>, (x, y): (i32, i32)) -> DrawResult<B> {
        let (x, y) = (x - area.get_pixel_range().0.start, y - area.get_pixel_range().1.start);
        let fill = self.color.filled();
        match self.marker {
            Marker::Disc => area.draw(&Circle::new((x, y), 4, fill)),
            Marker::Triangle => area.draw(&TriangleMarker::new((x, y), 6, fill)),
            Marker::Cross => area.draw(&Cross::new((x, y), 4, self.stroke())),
            Marker::Square => area.draw(&Rectangle::new([(x - 4, y - 4), (x + 4, y + 4)], fill)),
        }
    }

    /// Draws a line and its name at a position in the legend: the left end of its column in pixels, and its row, 0-based.
    pub fn draw_legend<B: DrawingBackend>(
        self,
        area: &DrawingArea<B, Shift>,
        (left, row): (i32, usize),
        name: &str,
    ) -> DrawResult<B> {
        let y = LEGEND_ROW as i32 * row as i32 + 10;
        let ends = [(left, y), (left + 60, y)];
        match self.dash {
            None => area.draw(&PathElement::new(ends, self.stroke()))?,
            Some((dash, gap)) => area.draw(&DashedPathElement::new(ends, dash, gap, self.stroke()))?,
        }
        let corner = (area.get_pixel_range().0.start, area.get_pixel_range().1.start);
        self.draw_mark(area, (left + 30 + corner.0, y + corner.1))?;
        area.draw(&Text::new(name.to_owned(), (left + 72, y - 8), ("sans-serif", 15).into_font()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn as_many_series_as_there_are_models_can_be_distinguished_in_greyscale() {
        let styles: BTreeSet<String> =
            (0..24).map(SeriesStyle::of).map(|s| format!("{:?} {:?}", s.dash, s.marker)).collect();
        assert_eq!(styles.len(), 24);
    }
}
