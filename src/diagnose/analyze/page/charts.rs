//! Which charts a report has.

use super::super::frames::FrameStats;
use super::super::latents::LatentStats;
use super::super::report::Report;
use super::chart::Chart;
use super::pictures::Pictures;

/// Of the figures by frame, then of the spectra by frequency.
pub fn of(report: &Report, pictures: &Pictures) -> Vec<Chart> {
    let mut charts = match report.frames.is_empty() {
        false => of_frames(&report.frames),
        true => of_latents(&report.latents),
    };
    let alarms = report.findings().filter_map(|verdict| verdict.first);
    let marks: Vec<f64> = alarms.map(|frame| frame as f64).collect();
    for chart in &mut charts {
        chart.marks.clone_from(&marks);
    }
    charts.extend(of_spectra(pictures));
    charts
}

fn of_frames(frames: &[FrameStats]) -> Vec<Chart> {
    let line = |value: fn(&FrameStats) -> Option<f64>| line(frames, value);
    vec![
        Chart::by_frame("levels of all pixels, 0 to 255")
            .line("mean", line(|f| Some(f.mean)))
            .line("min", line(|f| Some(f.min.into())))
            .line("max", line(|f| Some(f.max.into()))),
        Chart::by_frame("contrast, levels")
            .line("within channels", line(|f| Some(f.contrast)))
            .line("of all values", line(|f| Some(f.std))),
        Chart::by_frame("mean difference, levels")
            .line("from the frame before", line(|f| f.difference))
            .line("from the first", line(|f| f.from_first)),
        Chart::by_frame("coherence with 4 frames before, at most 1")
            .line("with 4 before", line(|f| f.coherence)),
        Chart::by_frame("sharpness, levels squared").line("Laplacian", line(|f| Some(f.sharpness))),
        Chart::by_frame("noise, levels").line("sigma", line(|f| Some(f.noise))),
        Chart::by_frame("checkerboard, levels")
            .line("every 2 px", line(|f| Some(f.checkerboard.px2)))
            .line("8 px", line(|f| Some(f.checkerboard.px8)))
            .line("16 px", line(|f| Some(f.checkerboard.px16))),
        Chart::by_frame("power at 8 px over its neighbours'")
            .line("over neighbours", line(|f| f.grid_power)),
    ]
}

fn of_latents(frames: &[LatentStats]) -> Vec<Chart> {
    let line = |value: fn(&LatentStats) -> Option<f64>| line(frames, value);
    vec![
        Chart::by_frame("latent values")
            .line("mean", line(|f| Some(f.mean)))
            .line("min", line(|f| Some(f.min.into())))
            .line("max", line(|f| Some(f.max.into()))),
        Chart::by_frame("contrast")
            .line("contrast", line(|f| Some(f.contrast)))
            .line("std", line(|f| Some(f.std))),
        Chart::by_frame("difference").line("from before", line(|f| f.difference)),
        Chart::by_frame("correlation of neighbours, at most 1")
            .line("of neighbours", line(|f| f.correlation)),
    ]
}

/// The values that there are, by (latent) frame.
fn line<T>(frames: &[T], value: fn(&T) -> Option<f64>) -> Vec<(f64, f64)> {
    let points = frames.iter().enumerate();
    let points = points.map(|(frame, stats)| Some((frame as f64, value(stats)?)));
    points.flatten().collect()
}

/// Power in decibels by cycles per pixel.
fn of_spectra(pictures: &Pictures) -> Vec<Chart> {
    let axis = |power: Vec<f64>| -> Vec<(f64, f64)> {
        let most = power.len().saturating_sub(1).max(1) as f64;
        let decibels = |power: f64| 10.0 * power.max(1e-3).log10();
        let points = power.into_iter().enumerate().skip(1);
        points
            .map(|(i, power)| (0.5 * i as f64 / most, decibels(power)))
            .collect()
    };
    let chart = |(frame, spectrum): &(usize, super::super::Spectrum)| {
        let mut chart = Chart {
            title: format!("spectrum of frame {frame}, dB"),
            x_label: "cycles per pixel".into(),
            ..Chart::default()
        }
        .line("across", axis(spectrum.horizontal()))
        .line("down", axis(spectrum.vertical()));
        chart.marks.push(1.0 / super::super::GRID as f64);
        chart
    };
    pictures.spectra.iter().map(chart).collect()
}
