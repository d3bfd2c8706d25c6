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

const STYLES: [SeriesStyle; 6] = [
    SeriesStyle { color: RGBColor(16, 42, 96), dash: None, marker: Marker::Disc },
    SeriesStyle { color: RGBColor(201, 82, 16), dash: Some((9, 4)), marker: Marker::Triangle },
    SeriesStyle { color: RGBColor(0, 130, 110), dash: Some((3, 3)), marker: Marker::Cross },
    SeriesStyle { color: RGBColor(132, 60, 150), dash: Some((16, 5)), marker: Marker::Square },
    SeriesStyle { color: RGBColor(110, 110, 110), dash: Some((6, 7)), marker: Marker::Disc },
    SeriesStyle { color: RGBColor(190, 30, 70), dash: Some((2, 6)), marker: Marker::Triangle },
];

/// The height of a row of the legend, in pixels.
pub const LEGEND_ROW: u32 = 24;

impl SeriesStyle {
    /// The style of series `at`, 0-based; after six series the styles repeat.
    pub fn of(at: usize) -> Self {
        STYLES[at % STYLES.len()]
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

    /// Draws row `row` of the legend, 0-based: the line and its name.
    pub fn draw_legend<B: DrawingBackend>(self, area: &DrawingArea<B, Shift>, row: usize, name: &str) -> DrawResult<B> {
        let y = LEGEND_ROW as i32 * row as i32 + 10;
        let ends = [(82, y), (142, y)];
        match self.dash {
            None => area.draw(&PathElement::new(ends, self.stroke()))?,
            Some((dash, gap)) => area.draw(&DashedPathElement::new(ends, dash, gap, self.stroke()))?,
        }
        let corner = (area.get_pixel_range().0.start, area.get_pixel_range().1.start);
        self.draw_mark(area, (112 + corner.0, y + corner.1))?;
        area.draw(&Text::new(name.to_owned(), (154, y - 8), ("sans-serif", 15).into_font()))
    }
}

#[cfg(test)]
pub(crate) fn colors() -> [RGBColor; 6] {
    STYLES.map(|style| style.color)
}
