//! One chart, as SVG or in pixels.

use std::sync::Once;

use anyhow::{Context, Result, anyhow};
use image::RgbImage;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

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

/// Lines over frames or frequencies.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    pub title: String,
    pub x_label: String,
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
    /// Where vertical lines are drawn.
    pub marks: Vec<f64>,
    /// Whether the lines' names are below, for lines that are high.
    pub names_below: bool,
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
        self.draw(&area, WHITE, BLACK)?;
        drop(area);
        Ok(svg)
    }

    /// On paper.
    pub fn pixels(&self, paper: RGBColor, ink: RGBColor) -> Result<RgbImage> {
        font();
        let (width, height) = SIZE;
        let mut levels = vec![0; (3 * width * height) as usize];
        let area = BitMapBackend::with_buffer(&mut levels, SIZE).into_drawing_area();
        area.fill(&paper).map_err(failed)?;
        self.draw(&area, paper, ink)?;
        drop(area);
        RgbImage::from_raw(width, height, levels).context("a chart has a size of its own")
    }

    fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
        paper: RGBColor,
        ink: RGBColor,
    ) -> Result<()> {
        let text = |size: u32| ("sans-serif", size).into_font().color(&ink);
        let (x, y) = self.ranges();
        let mut builder = ChartBuilder::on(area);
        builder
            .margin(6)
            .caption(&self.title, text(15))
            .x_label_area_size(30)
            .y_label_area_size(46);
        let mut chart = builder.build_cartesian_2d(x, y.clone()).map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(ink.mix(0.15))
            .axis_style(ink.mix(0.6))
            .label_style(text(11))
            .x_desc(&self.x_label)
            .axis_desc_style(text(11))
            .x_labels(6)
            .y_labels(5)
            .x_label_formatter(&|x| number(*x))
            .y_label_formatter(&|y| number(*y))
            .draw()
            .map_err(failed)?;
        for &mark in &self.marks {
            let points = [(mark, y.start), (mark, y.end)];
            let line = LineSeries::new(points, MARK.mix(0.8));
            chart.draw_series(line).map_err(failed)?;
        }
        for ((name, points), colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let line =
                LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(0);
            let drawn = chart.draw_series(line).map_err(failed)?;
            drawn.label(name).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 12, y)], colour.stroke_width(2))
            });
        }
        if self.lines.len() > 1 {
            chart
                .configure_series_labels()
                .position(match self.names_below {
                    true => SeriesLabelPosition::LowerRight,
                    false => SeriesLabelPosition::UpperRight,
                })
                .label_font(text(11))
                .background_style(paper.mix(0.75))
                .legend_area_size(16)
                .margin(4)
                .draw()
                .map_err(failed)?;
        }
        area.present().map_err(failed)
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

/// A label without needless decimals.
fn number(value: f64) -> String {
    let text = match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Makes the font known that text is measured with, and drawn with in pixels: Hack, which is part of
/// the program, so that no machine's fonts matter.
pub fn font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // It is a font: a test draws with it.
        let _ = register_font(
            "sans-serif",
            FontStyle::Normal,
            epaint_default_fonts::HACK_REGULAR,
        );
    });
}

pub fn failed<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow!("cannot draw a chart: {error}")
}
