//! One chart, as SVG or in pixels.

use anyhow::{Context, Result, anyhow};
use image::RgbImage;
use image::imageops::{self, FilterType};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::media::lettering::{font, shortened, width};

/// Width and height of a chart in pixels.
pub const SIZE: (u32, u32) = (396, 210);

/// Of the lines of a chart: readable on light and on dark paper.
const COLOURS: [RGBColor; 6] = [
    RGBColor(38, 120, 200),
    RGBColor(214, 106, 24),
    RGBColor(38, 150, 90),
    RGBColor(150, 90, 190),
    RGBColor(190, 80, 130),
    RGBColor(130, 120, 60),
];
const MARK: RGBColor = RGBColor(205, 60, 60);
/// Pixels of a title's line and of its letters, and the same of the lines' names beneath it.
const TITLE: (u32, u32) = (24, 14);
const NAMES: (u32, u32) = (15, 11);
/// Pixels of the dash before a name, with what is around it.
const DASH: u32 = 18;
/// The most rows of names; the plot needs the rest.
const ROWS: usize = 3;
/// How many times as large the pixels are drawn before they are shrunk: that gives slanted lines the
/// width of the others.
const FINER: u32 = 3;

/// Lines over frames or frequencies.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    pub title: String,
    pub x_label: String,
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
    /// Where vertical lines are drawn.
    pub marks: Vec<f64>,
}

impl Chart {
    pub fn by_frame(title: &str) -> Self {
        Self {
            title: title.into(),
            x_label: "frame".into(),
            ..Self::default()
        }
    }

    pub fn line(mut self, name: &str, points: Vec<(f64, f64)>) -> Self {
        self.lines.push((name.into(), points));
        self
    }

    /// As an SVG element without paper, in ink for light paper.
    pub fn svg(&self) -> Result<String> {
        font();
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        self.draw(&area, BLACK, 1)?;
        drop(area);
        Ok(svg)
    }

    /// On paper.
    pub fn pixels(&self, paper: RGBColor, ink: RGBColor) -> Result<RgbImage> {
        font();
        let size = (FINER * SIZE.0, FINER * SIZE.1);
        let mut levels = vec![0; (3 * size.0 * size.1) as usize];
        let area = BitMapBackend::with_buffer(&mut levels, size).into_drawing_area();
        area.fill(&paper).map_err(failed)?;
        self.draw(&area, ink, FINER)?;
        drop(area);
        let finer = RgbImage::from_raw(size.0, size.1, levels);
        let finer = finer.context("a chart has a size of its own")?;
        Ok(imageops::resize(
            &finer,
            SIZE.0,
            SIZE.1,
            FilterType::Triangle,
        ))
    }

    /// `scale` is the pixels to draw for one of [`SIZE`].
    fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
        ink: RGBColor,
        scale: u32,
    ) -> Result<()> {
        let text = |size: u32| ("sans-serif", size * scale).into_font().color(&ink);
        let margin = 6 * scale;
        let (head, area) = area.split_vertically(self.head() * scale);
        head.draw_text(
            &shortened(&self.title, TITLE.1, SIZE.0 - 12),
            &text(TITLE.1),
            (margin as i32, (8 * scale) as i32),
        )
        .map_err(failed)?;
        for (name, (x, y), colour) in self.names() {
            let place = |x: u32, y: u32| ((x * scale) as i32, (y * scale) as i32);
            let dash = [place(x, y + 5), place(x + DASH - 6, y + 5)];
            let dash = PathElement::new(dash, colour.stroke_width(2 * scale));
            head.draw(&dash).map_err(failed)?;
            let name = head.draw_text(&name, &text(NAMES.1), place(x + DASH, y + 3));
            name.map_err(failed)?;
        }
        let (x, y) = self.ranges();
        let mut builder = ChartBuilder::on(&area);
        builder
            .margin_left(margin)
            .margin_right(2 * margin)
            .margin_bottom(margin)
            .margin_top(scale)
            .x_label_area_size(30 * scale)
            .y_label_area_size(46 * scale);
        let mut chart = builder
            .build_cartesian_2d(x.clone(), y.clone())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(ink.mix(0.15).stroke_width(scale))
            .axis_style(ink.mix(0.6).stroke_width(scale))
            .set_all_tick_mark_size(4 * scale)
            .label_style(text(11))
            .x_desc(&self.x_label)
            .axis_desc_style(text(11))
            .x_labels(6)
            .y_labels(5)
            .x_label_formatter(&|at| number(*at, x.end - x.start))
            .y_label_formatter(&|at| number(*at, y.end - y.start))
            .draw()
            .map_err(failed)?;
        for &mark in &self.marks {
            let points = [(mark, y.start), (mark, y.end)];
            let line = LineSeries::new(points, MARK.mix(0.8).stroke_width(scale));
            chart.draw_series(line).map_err(failed)?;
        }
        for ((_, points), colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2 * scale));
            chart.draw_series(line.point_size(0)).map_err(failed)?;
            // A point by itself is no line.
            if let [point] = points.as_slice() {
                let dot = Circle::new(*point, 3 * scale, colour.filled());
                chart.draw_series([dot]).map_err(failed)?;
            }
        }
        area.present().map_err(failed)
    }

    /// Pixels above the plot: its title and the lines' names.
    fn head(&self) -> u32 {
        let last = self.names().last().map(|(_, (_, y), _)| y + NAMES.0);
        last.unwrap_or(TITLE.0)
    }

    /// The names of several lines, each with its place and colour, in rows beneath the title.
    fn names(&self) -> Vec<(String, (u32, u32), RGBColor)> {
        let (mut names, mut x, mut row) = (Vec::new(), 6, 0);
        if self.lines.len() < 2 {
            return names;
        }
        let right = SIZE.0 - 12;
        for ((name, _), colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let name = shortened(name, NAMES.1, right / 2);
            let across = DASH + width(&name, NAMES.1) + 10;
            if x + across > right && x > 6 {
                (x, row) = (6, row + 1);
            }
            if row == ROWS {
                // Names make room for how many have none.
                let more = |count: usize| format!("  (and {} more)", self.lines.len() - count);
                while let Some((name, (x, y), colour)) = names.pop() {
                    let name: String = name + &more(names.len() + 1);
                    if x + DASH + width(&name, NAMES.1) <= right {
                        names.push((name, (x, y), colour));
                        break;
                    }
                }
                break;
            }
            let y = TITLE.0 + row as u32 * NAMES.0;
            names.push((name, (x, y), *colour));
            x += across;
        }
        names
    }

    /// What the axes span: everything, and something.
    fn ranges(&self) -> (std::ops::Range<f64>, std::ops::Range<f64>) {
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let span = |value: fn(&(f64, f64)) -> f64| {
            let values = || points().map(value).filter(|value| value.is_finite());
            let (low, high) = (
                values().fold(f64::MAX, f64::min),
                values().fold(f64::MIN, f64::max),
            );
            if low > high { (0.0, 1.0) } else { (low, high) }
        };
        let (left, right) = span(|point| point.0);
        let (low, high) = span(|point| point.1);
        // From zero unless values are below it; never a span of nothing.
        let low = low.min(0.0);
        let high = high.max(low + 1e-3) + 0.08 * (high - low).max(1e-3);
        (left..right.max(left + 1e-3), low..high)
    }
}

/// A label with the decimals that tell it from its neighbours on an axis of this span, and no more.
fn number(value: f64, span: f64) -> String {
    // A step is about a fifth of the span.
    let decimals = (1.0 - span.log10().floor()).clamp(0.0, 6.0) as usize;
    let text = format!("{value:.decimals$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    match text {
        "-0" => "0".into(),
        text => grouped(text),
    }
}

/// Thousands apart: `1,200,000`.
fn grouped(text: &str) -> String {
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        let left = whole.len() - place;
        if place > 0 && left.is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

pub fn failed<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow!("cannot draw a chart: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_the_decimals_that_are_needed() {
        for (value, span, expected) in [
            (0.000_001_23, 1.0, "0"),
            (0.123_456_789_012, 1.0, "0.1"),
            (0.25, 0.6, "0.25"),
            (0.002, 0.004, "0.002"),
            (-0.0001, 10.0, "0"),
            (20.0, 60.0, "20"),
            (255.0, 275.0, "255"),
            (-1_250_000.0, 3e6, "-1,250,000"),
            (125_000.0, 3e6, "125,000"),
        ] {
            assert_eq!(number(value, span), expected, "{value} of {span}");
        }
    }

    /// Names are above the plot, one beside the other, and none runs out of the chart.
    #[test]
    fn names_cover_no_line() {
        let mut chart = Chart::by_frame("levels");
        for number in 0..30 {
            chart = chart.line(&format!("guide-scale {number}, steps 12"), vec![(0.0, 1.0)]);
        }
        let names = chart.names();
        assert!(names.last().unwrap().0.contains("more)"), "{names:?}");
        for (name, (x, y), _) in &names {
            assert!(x + DASH + width(name, NAMES.1) <= SIZE.0, "{name}");
            assert!(y + NAMES.0 <= chart.head() && *y >= TITLE.0, "{name}");
        }
        assert!(chart.head() <= SIZE.1 / 2);
        assert!(
            Chart::by_frame("noise")
                .line("sigma", vec![])
                .names()
                .is_empty()
        );
    }
}
