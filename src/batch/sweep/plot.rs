//! A sweep's figures as one SVG.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Axis, Done, Outcome};
use crate::diagnose::analyze::page::{CHART_SIZE, Chart};

/// A plot: its title, and its value for an outcome.
type Plot = (&'static str, fn(&Outcome) -> Option<f64>);

const PLOTS: [Plot; 6] = [
    ("time, s", |o| Some(o.seconds)),
    ("peak memory, MB", |o| Some(o.peak_bytes as f64 / 1e6)),
    ("first frame against the picture, dB", |o| {
        o.metrics.first_psnr
    }),
    ("contrast of the last frame over the picture's", |o| {
        Some(o.metrics.contrast_kept)
    }),
    ("difference from frame to frame, levels", |o| {
        Some(o.metrics.motion)
    }),
    ("sharpness over the picture's", |o| {
        Some(o.metrics.sharpness)
    }),
];
/// Plots side by side.
const COLUMNS: u32 = 3;

/// The plots over the last axis of numbers, a line for each combination of the others; over the
/// runs' numbers where no axis has numbers alone.
///
/// # Errors
/// When they cannot be drawn.
pub fn svg(axes: &[Axis], done: &[Done]) -> Result<String> {
    let numbers = |axis: &Axis| axis.values.iter().all(|v| v.parse::<f64>().is_ok());
    let across = axes.iter().rposition(numbers);
    let (width, height) = CHART_SIZE;
    let rows = (PLOTS.len() as u32).div_ceil(COLUMNS);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        COLUMNS * width,
        rows * height
    );
    for ((title, value), place) in PLOTS.into_iter().zip(0..) {
        let mut chart = Chart {
            title: title.into(),
            x_label: across.map_or("run".into(), |axis| axes[axis].flag.clone()),
            ..Chart::default()
        };
        for (name, points) in lines(across, done, value) {
            chart = chart.line(&name, points);
        }
        let (x, y) = (place % COLUMNS * width, place / COLUMNS * height);
        let drawn = chart.svg()?;
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">{drawn}</g>");
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

type Lines = Vec<(String, Vec<(f64, f64)>)>;

/// The points of each line.
fn lines(across: Option<usize>, done: &[Done], value: fn(&Outcome) -> Option<f64>) -> Lines {
    let mut lines = Lines::new();
    for (Done { run, result }, number) in done.iter().zip(1..) {
        let Some(y) = result.as_ref().ok().and_then(value) else {
            continue;
        };
        let (x, name) = match across {
            None => (f64::from(number), String::new()),
            Some(across) => {
                let x = run.settings[across].1.parse().unwrap_or_default();
                let others = run.settings.iter().enumerate();
                let others = others.filter(|(axis, _)| *axis != across);
                let others: Vec<String> = others.map(|(_, (f, v))| format!("{f} {v}")).collect();
                (x, super::table::shortened(&others.join(", ")))
            }
        };
        match lines.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push((x, y)),
            None => lines.push((name, vec![(x, y)])),
        }
    }
    for (_, points) in &mut lines {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}
