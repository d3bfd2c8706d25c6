//! Product images: a silhouette per kind, a body per shape, a pattern over the body, soft light and a shadow.

use image::RgbImage;
use tiny_skia::{
    Color, FillRule, GradientStop, LinearGradient, Mask, Paint, Path, PathBuilder, Pixmap, Point, RadialGradient, Rect,
    Shader, SpreadMode, Stroke, Transform,
};

use crate::random::Rng;
use crate::vocabulary::COLOURS;
use crate::world::Item;

/// Width and height of every image, in pixels.
pub(crate) const SIDE: u32 = 128;

type Rgb = [f64; 3];

const BLACK: Rgb = [20.0, 20.0, 24.0];
const WHITE: Rgb = [255.0, 255.0, 255.0];
const STEEL: Rgb = [118.0, 122.0, 130.0];
const OAK: Rgb = [158.0, 122.0, 84.0];

fn blend(a: Rgb, b: Rgb, share: f64) -> Rgb {
    std::array::from_fn(|i| a[i] + (b[i] - a[i]) * share)
}

fn colour(rgb: Rgb, alpha: f64) -> Color {
    let byte = |value: f64| value.clamp(0.0, 255.0) as u8;
    Color::from_rgba8(byte(rgb[0]), byte(rgb[1]), byte(rgb[2]), byte(alpha * 255.0))
}

fn paint<'a>(rgb: Rgb, alpha: f64) -> Paint<'a> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color(colour(rgb, alpha));
    paint
}

/// The half width and half height of the body in units of the object's radius, per shape.
const EXTENT: [[f32; 2]; 5] = [[0.92, 0.92], [0.86, 0.86], [0.56, 1.08], [1.16, 0.56], [0.98, 0.88]];

fn rounded(cx: f32, cy: f32, half_width: f32, half_height: f32, corner: f32) -> Option<Path> {
    trapezoid(cx, cy, half_width, half_width, half_height, corner)
}

/// A trapezoid with rounded corners, centred at (cx, cy).
fn trapezoid(cx: f32, cy: f32, top: f32, bottom: f32, half_height: f32, corner: f32) -> Option<Path> {
    let corners = [
        (cx - top, cy - half_height),
        (cx + top, cy - half_height),
        (cx + bottom, cy + half_height),
        (cx - bottom, cy + half_height),
    ];
    let towards = |(ax, ay): (f32, f32), (bx, by): (f32, f32)| {
        let share = corner / (bx - ax).hypot(by - ay).max(1e-3);
        (ax + (bx - ax) * share, ay + (by - ay) * share)
    };
    let mut builder = PathBuilder::new();
    for i in 0..4 {
        let (before, here, after) = (corners[(i + 3) % 4], corners[i], corners[(i + 1) % 4]);
        let (enter, leave) = (towards(here, before), towards(here, after));
        if i == 0 {
            builder.move_to(enter.0, enter.1);
        } else {
            builder.line_to(enter.0, enter.1);
        }
        builder.quad_to(here.0, here.1, leave.0, leave.1);
    }
    builder.close();
    builder.finish()
}

fn ellipse(cx: f32, cy: f32, rx: f32, ry: f32) -> Option<Path> {
    PathBuilder::from_oval(Rect::from_xywh(cx - rx, cy - ry, 2.0 * rx, 2.0 * ry)?)
}

/// A closed polygon with corners `at` (angle in turns, radius) around a centre.
fn polygon(cx: f32, cy: f32, at: impl Iterator<Item = (f32, f32)>) -> Option<Path> {
    let mut builder = PathBuilder::new();
    for (i, (turn, radius)) in at.enumerate() {
        let (sin, cos) = (turn * std::f32::consts::TAU).sin_cos();
        let (x, y) = (cx + radius * sin, cy - radius * cos);
        if i == 0 { builder.move_to(x, y) } else { builder.line_to(x, y) }
    }
    builder.close();
    builder.finish()
}

fn line(points: &[(f32, f32)]) -> Option<Path> {
    let mut builder = PathBuilder::new();
    for (i, &(x, y)) in points.iter().enumerate() {
        if i == 0 { builder.move_to(x, y) } else { builder.line_to(x, y) }
    }
    builder.finish()
}

fn arch(x0: f32, x1: f32, y: f32, height: f32) -> Option<Path> {
    let mut builder = PathBuilder::new();
    builder.move_to(x0, y);
    builder.cubic_to(x0, y - height * 1.3, x1, y - height * 1.3, x1, y);
    builder.finish()
}

/// The surface to draw on: its pixels, and the tilt of the object.
struct Canvas {
    pixels: Pixmap,
    tilt: Transform,
}

impl Canvas {
    fn fill(&mut self, path: Option<Path>, rgb: Rgb, alpha: f64, mask: Option<&Mask>) {
        if let Some(path) = path {
            self.pixels.fill_path(&path, &paint(rgb, alpha), FillRule::Winding, self.tilt, mask);
        }
    }

    fn stroke(&mut self, path: Option<Path>, rgb: Rgb, alpha: f64, width: f32, mask: Option<&Mask>) {
        if let Some(path) = path {
            let stroke = Stroke { width, line_cap: tiny_skia::LineCap::Round, ..Stroke::default() };
            self.pixels.stroke_path(&path, &paint(rgb, alpha), &stroke, self.tilt, mask);
        }
    }

    fn shade(&mut self, path: Option<&Path>, shader: Option<Shader<'_>>, mask: Option<&Mask>) {
        if let (Some(path), Some(shader)) = (path, shader) {
            let paint = Paint { shader, anti_alias: true, ..Paint::default() };
            self.pixels.fill_path(path, &paint, FillRule::Winding, self.tilt, mask);
        }
    }
}

fn linear<'a>(from: (f32, f32), to: (f32, f32), stops: &[(f32, Rgb, f64)]) -> Option<Shader<'a>> {
    let stops = stops.iter().map(|&(at, rgb, alpha)| GradientStop::new(at, colour(rgb, alpha))).collect();
    let (from, to) = (Point::from_xy(from.0, from.1), Point::from_xy(to.0, to.1));
    LinearGradient::new(from, to, stops, SpreadMode::Pad, Transform::identity())
}

/// The position of the body.
#[derive(Clone, Copy)]
struct Body {
    cx: f32,
    cy: f32,
    /// Half width and half height.
    w: f32,
    h: f32,
    shape: usize,
    /// A lamp's shade tapers upwards, all else downwards.
    upwards: bool,
}

impl Body {
    fn path(self) -> Option<Path> {
        let corner = 0.14 * self.w.min(self.h);
        match self.shape {
            0 => ellipse(self.cx, self.cy, self.w, self.h),
            1 => rounded(self.cx, self.cy, self.w, self.h, corner),
            2 | 3 => rounded(self.cx, self.cy, self.w, self.h, 2.0 * corner),
            _ => {
                let (top, bottom) = if self.upwards { (0.5, 1.0) } else { (1.0, 0.5) };
                trapezoid(self.cx, self.cy, top * self.w, bottom * self.w, self.h, corner)
            }
        }
    }

    /// Half width at the top or bottom edge, where parts are attached.
    fn edge(self, top: bool) -> f32 {
        match self.shape {
            0 => 0.45 * self.w,
            4 if top == self.upwards => 0.5 * self.w,
            _ => 0.9 * self.w,
        }
    }
}

fn draw_pattern(canvas: &mut Canvas, body: Body, pattern: usize, accent: Rgb, mask: &Mask, rng: &mut Rng) {
    let mask = Some(mask);
    let reach = 1.25 * body.w.max(body.h);
    let cell = rng.range(9.0, 12.5) as f32;
    let steps = (reach / cell).ceil() as i32;
    let slant = rng.below(3);
    for row in -steps..=steps {
        let y = body.cy + row as f32 * cell;
        if pattern == 1 {
            let offset = row as f32 * cell;
            let (from, to) = match slant {
                0 => ((body.cx - reach, body.cy + offset), (body.cx + reach, body.cy + offset)),
                1 => ((body.cx + offset, body.cy - reach), (body.cx + offset, body.cy + reach)),
                _ => {
                    let wide = 1.4 * offset;
                    ((body.cx + wide - reach, body.cy - reach), (body.cx + wide + reach, body.cy + reach))
                }
            };
            canvas.stroke(line(&[from, to]), accent, 1.0, 0.42 * cell, mask);
            continue;
        }
        if pattern == 5 {
            let points: Vec<_> = (-2 * steps..=2 * steps)
                .map(|i| (body.cx + i as f32 * 0.5 * cell, y + if i % 2 == 0 { 0.28 * cell } else { -0.28 * cell }))
                .collect();
            canvas.stroke(line(&points), accent, 1.0, 0.24 * cell, mask);
            continue;
        }
        for column in -steps..=steps {
            let odd = (row + column) % 2 != 0;
            let stagger = if row % 2 == 0 { 0.0 } else { 0.5 * cell };
            let x = body.cx + column as f32 * cell;
            match pattern {
                2 => canvas.fill(ellipse(x + stagger, y, 0.27 * cell, 0.27 * cell), accent, 1.0, mask),
                3 if odd => {
                    let square =
                        Rect::from_xywh(x - 0.5 * cell, y - 0.5 * cell, cell, cell).map(PathBuilder::from_rect);
                    canvas.fill(square, accent, 1.0, mask);
                }
                4 if !odd => {
                    for petal in 0..5 {
                        let (sin, cos) = (petal as f32 / 5.0 * std::f32::consts::TAU).sin_cos();
                        let (px, py) = (x + 0.36 * cell * sin, y - 0.36 * cell * cos);
                        canvas.fill(ellipse(px, py, 0.26 * cell, 0.26 * cell), accent, 1.0, mask);
                    }
                    canvas.fill(ellipse(x, y, 0.2 * cell, 0.2 * cell), [250.0, 196.0, 70.0], 1.0, mask);
                }
                6 if !odd => {
                    let points = (0..10).map(|i| (i as f32 / 10.0, if i % 2 == 0 { 0.62 * cell } else { 0.25 * cell }));
                    canvas.fill(polygon(x, y, points), accent, 1.0, mask);
                }
                7 => {
                    let turn = if odd { 0.0 } else { 0.5 };
                    let points = (0..3).map(|i| (turn + i as f32 / 3.0, 0.5 * cell));
                    canvas.fill(polygon(x, y, points), accent, 1.0, mask);
                }
                _ => {}
            }
        }
    }
}

/// Draws the parts behind the body.
fn draw_behind(canvas: &mut Canvas, kind: usize, body: Body, base: Rgb) {
    let Body { cx, cy, w, h, .. } = body;
    let dark = blend(base, BLACK, 0.3);
    let (top, bottom, left, right) = (cy - h, cy + h, cx - w, cx + w);
    match kind {
        0 => canvas.stroke(ellipse(right - 1.0, cy, 11.0, 0.52 * h), dark, 1.0, 5.0, None),
        1 => {
            canvas.stroke(line(&[(cx, bottom - 4.0), (cx, 112.0)]), STEEL, 1.0, 4.0, None);
            canvas.fill(ellipse(cx, 112.0, 18.0, 5.0), STEEL, 1.0, None);
        }
        2 => {
            for side in [-1.0_f32, 1.0] {
                let shoulder = cx + side * 0.72 * w;
                let points = [
                    (shoulder - side * 8.0, top + 1.0),
                    (shoulder + side * 15.0, top + 10.0),
                    (cx + side * (w + 17.0), top + 32.0),
                    (cx + side * (w + 4.0), top + 40.0),
                    (shoulder, top + 26.0),
                ];
                canvas.fill(line(&points), dark, 1.0, None);
            }
        }
        3 => {
            for (x, y) in [(left, top), (right, top), (left, bottom), (right, bottom)] {
                // Tassels are at the corners of the shape.
                let pull = match (body.shape, y > cy) {
                    (0, _) => 0.3,
                    (4, true) => 0.45,
                    _ => 0.06,
                };
                let rise = if body.shape == 4 { 0.06 } else { pull };
                canvas.fill(ellipse(x + (cx - x) * pull, y + (cy - y) * rise, 4.0, 4.0), dark, 1.0, None);
            }
        }
        4 => {
            let half = 0.6 * body.edge(true);
            canvas.stroke(arch(cx - half, cx + half, top + 6.0, 26.0), blend(dark, OAK, 0.5), 1.0, 3.6, None);
        }
        5 => {
            for i in 0..15 {
                let along = i as f32 / 7.0 - 1.0;
                // The edge of a round rug bends away from the fringe's line.
                let bend = if body.shape == 0 { h * (1.0 - (1.0 - (0.45 * along).powi(2)).sqrt()) } else { 0.0 };
                for (y, out, half) in [(top + bend, -6.0, body.edge(true)), (bottom - bend, 6.0, body.edge(false))] {
                    let x = cx + half * along;
                    canvas.stroke(line(&[(x, y - out), (x, y + out)]), [206.0, 194.0, 170.0], 1.0, 1.6, None);
                }
            }
        }
        6 => {
            for (dx, dy) in [(-14.0, -30.0), (-4.0, -36.0), (8.0, -33.0), (17.0, -26.0)] {
                let tip = (cx + dx, top + dy + 8.0);
                canvas.stroke(line(&[(cx, top), tip]), [126.0, 112.0, 84.0], 1.0, 1.5, None);
                canvas.fill(ellipse(tip.0, tip.1, 2.6, 4.2), [186.0, 172.0, 132.0], 1.0, None);
            }
            canvas.fill(rounded(cx, top - 1.0, 0.3 * w, 8.0, 2.0), dark, 1.0, None);
        }
        7 => canvas.fill(Body { cx: cx + 3.5, cy: cy + 3.0, ..body }.path(), [240.0, 236.0, 224.0], 1.0, None),
        8 => {
            for side in [-1.0_f32, 1.0] {
                canvas.fill(ellipse(cx + side * 0.45 * w, bottom + 1.0, 4.0, 6.0), OAK, 1.0, None);
            }
            canvas.fill(ellipse(cx, top - 4.0, 7.0, 5.0), STEEL, 1.0, None);
        }
        9 => {
            canvas.stroke(line(&[(cx, top + 2.0), (cx, top - 7.0)]), BLACK, 1.0, 1.8, None);
            canvas.fill(ellipse(cx, top - 13.0, 4.6, 8.6), [252.0, 176.0, 60.0], 1.0, None);
            canvas.fill(ellipse(cx, top - 11.0, 2.2, 4.6), [255.0, 240.0, 170.0], 1.0, None);
        }
        10 => {
            canvas.fill(rounded(cx, top - 5.0, 0.26 * w.min(36.0) + 3.0, 9.0, 3.0), dark, 1.0, None);
            canvas.fill(rounded(cx, top - 15.0, 0.26 * w.min(36.0) + 5.0, 5.0, 2.0), STEEL, 1.0, None);
        }
        _ => {
            for side in [-1.0_f32, 1.0] {
                let x = cx + side * if body.shape == 4 { 0.76 * w } else { w };
                canvas.stroke(ellipse(x, cy, 8.0, 0.34 * h), OAK, 1.0, 4.0, None);
            }
        }
    }
}

/// Draws the parts on the body.
fn draw_front(canvas: &mut Canvas, kind: usize, body: Body, base: Rgb, mask: &Mask, rng: &mut Rng) {
    let Body { cx, cy, w, h, .. } = body;
    let (dark, light) = (blend(base, BLACK, 0.45), blend(base, WHITE, 0.5));
    let (top, bottom) = (cy - h, cy + h);
    match kind {
        0 => {
            let rim = if body.shape == 0 { 0.62 * w } else { 0.94 * body.edge(true) };
            let y = if body.shape == 0 { top + 6.0 } else { top + 1.5 };
            canvas.fill(ellipse(cx, y, rim, 5.5), dark, 1.0, None);
            canvas.stroke(ellipse(cx, y, rim, 5.5), light, 1.0, 1.6, None);
        }
        1 => {
            canvas.fill(
                ellipse(cx, bottom - 2.0, 0.7 * body.edge(false), 3.5),
                [255.0, 244.0, 190.0],
                0.85,
                Some(mask),
            );
        }
        2 => {
            canvas.fill(ellipse(cx, top, 0.3 * w.max(26.0), 9.0), [226.0, 224.0, 220.0], 1.0, Some(mask));
            canvas.stroke(ellipse(cx, top, 0.3 * w.max(26.0), 9.0), dark, 1.0, 2.0, Some(mask));
        }
        3 => canvas.stroke(body.path(), light, 0.9, 2.4, None),
        4 => canvas.fill(rounded(cx, cy - 0.1 * h, 7.0, 5.0, 2.0), OAK, 1.0, None),
        5 => {
            let inner = Body { w: w - 6.0, h: h - 6.0, ..body };
            canvas.stroke(inner.path(), dark, 0.8, 1.6, None);
        }
        6 => canvas.fill(ellipse(cx, top - 8.0, 0.34 * w, 3.0), dark, 1.0, None),
        7 => {
            let rings = 7;
            for i in 0..rings {
                let y = cy + h * 0.78 * (2.0 * i as f32 / (rings - 1) as f32 - 1.0);
                let lean = if body.shape == 4 { 0.25 * w * (y - top) / h } else { 0.0 };
                let lean = if body.shape == 0 { w - (w * w * (1.0 - ((y - cy) / h).powi(2))).sqrt() } else { lean };
                canvas.stroke(ellipse(cx - w + lean, y, 4.2, 2.0), STEEL, 1.0, 1.6, None);
            }
        }
        8 => {
            let face = 0.62 * w.min(h);
            canvas.fill(ellipse(cx, cy, face, face), [252.0, 250.0, 244.0], 1.0, None);
            canvas.stroke(ellipse(cx, cy, face, face), dark, 1.0, 2.0, None);
            for hand in [0.52_f32, 0.76] {
                let (sin, cos) = (rng.unit() as f32 * std::f32::consts::TAU).sin_cos();
                canvas.stroke(
                    line(&[(cx, cy), (cx + hand * face * sin, cy - hand * face * cos)]),
                    BLACK,
                    1.0,
                    2.2,
                    None,
                );
            }
        }
        9 => canvas.fill(ellipse(cx, top + 2.5, 0.8 * body.edge(true), 3.0), light, 0.8, Some(mask)),
        10 => {}
        _ => {
            let inner = Body { w: w - 5.0, h: h - 5.0, ..body };
            canvas.stroke(inner.path(), dark, 0.9, 2.2, None);
        }
    }
}

/// Draws the image of `item`; `index` selects its random numbers. `None` is impossible for a non-empty canvas.
pub(crate) fn render(seed: u64, index: usize, item: &Item) -> Option<RgbImage> {
    let mut rng = Rng::new(seed, "picture", index);
    let side = SIDE as f32;
    let mut canvas = Canvas { pixels: Pixmap::new(SIDE, SIDE)?, tilt: Transform::identity() };

    // The wall and the floor are neutral and pale, so that white goods stand out and the background does not reveal a colour.
    let warm = rng.range(-7.0, 7.0);
    let level = rng.range(206.0, 232.0);
    let wall = [level + warm, level, level - warm];
    let whole = Rect::from_xywh(0.0, 0.0, side, side).map(PathBuilder::from_rect);
    let horizon = rng.range(0.68, 0.8) as f32;
    let backdrop = linear(
        (0.0, 0.0),
        (0.0, side),
        &[
            (0.0, blend(wall, WHITE, 0.25), 1.0),
            (horizon, wall, 1.0),
            ((horizon + 0.06).min(1.0), blend(wall, BLACK, 0.09), 1.0),
            (1.0, blend(wall, WHITE, 0.1), 1.0),
        ],
    );
    canvas.shade(whole.as_ref(), backdrop, None);

    let standing = !matches!(item.kind, 5 | 11);
    let scale = rng.range(0.92, 1.1) as f32
        * match item.kind {
            0 => 33.0,
            1 | 6 | 9 => 30.0,
            2 => 35.0,
            10 => 31.0,
            5 => 47.0,
            _ => 38.0,
        };
    let [w, h] = EXTENT[item.shape].map(|extent| extent * scale);
    let (dx, dy) = (rng.range(-4.0, 4.0) as f32, rng.range(-3.0, 3.0) as f32);
    let cx = 64.0 + dx - if item.kind == 0 { 6.0 } else { 0.0 };
    let cy = match item.kind {
        1 => 52.0,
        6 | 9 | 10 => 76.0,
        4 => 72.0,
        _ => 66.0,
    } + dy;
    let body = Body { cx, cy, w, h, shape: item.shape, upwards: item.kind == 1 };

    let ground = if item.kind == 1 { 114.0 } else { cy + h };
    let reach = if item.kind == 1 { 24.0 } else { 1.15 * w };
    let stops = vec![
        GradientStop::new(0.0, colour(BLACK, if standing { 0.42 } else { 0.3 })),
        GradientStop::new(1.0, colour(BLACK, 0.0)),
    ];
    let squash = Transform::from_row(1.0, 0.0, 0.0, 0.24, 0.0, ground * 0.76);
    let shadow = RadialGradient::new(
        Point::from_xy(cx, ground),
        0.0,
        Point::from_xy(cx, ground),
        reach,
        stops,
        SpreadMode::Pad,
        squash,
    );
    canvas.shade(ellipse(cx, ground, reach, 0.24 * reach).as_ref(), shadow, None);

    canvas.tilt = Transform::from_rotate_at(rng.range(-5.0, 5.0) as f32, cx, cy);
    let jitter: Rgb = std::array::from_fn(|_| rng.range(-11.0, 11.0));
    let base: Rgb = std::array::from_fn(|i| (f64::from(COLOURS[item.colour].1[i]) + jitter[i]).clamp(0.0, 255.0));
    let luma = 0.3 * base[0] + 0.59 * base[1] + 0.11 * base[2];
    // The accent is a shade of the same colour: a red striped mug has nothing blue about it.
    let accent =
        if luma > 150.0 { blend(base, BLACK, rng.range(0.5, 0.66)) } else { blend(base, WHITE, rng.range(0.66, 0.84)) };

    draw_behind(&mut canvas, item.kind, body, base);
    let path = body.path()?;
    let mut mask = Mask::new(SIDE, SIDE)?;
    mask.fill_path(&path, FillRule::Winding, true, canvas.tilt);
    canvas.fill(Some(path.clone()), base, 1.0, None);
    draw_pattern(&mut canvas, body, item.pattern, accent, &mask, &mut rng);
    draw_front(&mut canvas, item.kind, body, base, &mask, &mut rng);
    let light = linear(
        (cx - w, cy - 0.4 * h),
        (cx + w, cy + 0.4 * h),
        &[(0.0, WHITE, 0.16), (0.3, WHITE, 0.05), (0.6, BLACK, 0.02), (1.0, BLACK, 0.26)],
    );
    canvas.shade(Some(&path), light, None);
    canvas.stroke(Some(path), blend(base, BLACK, 0.5), 0.6, 1.0, None);

    let rgb = canvas.pixels.data().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
    RgbImage::from_raw(SIDE, SIDE, rgb)
}
