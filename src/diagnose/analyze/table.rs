//! A report's figures as rows of text.

use super::frames::FrameStats;
use super::latents::LatentStats;
use super::report::Report;

/// A header and a row for each (latent) frame.
pub(super) fn rows(report: &Report) -> Vec<Vec<String>> {
    let header = match report.frames.is_empty() {
        false => [
            "frame", "mean", "std", "min", "max", "contrast", "diff", "first", "coher", "sharp",
            "noise", "cb2", "cb8", "cb16", "fft8",
        ]
        .as_slice(),
        true => &[
            "frame",
            "mean",
            "std",
            "min",
            "max",
            "contrast",
            "diff",
            "corr",
            "not finite",
        ],
    };
    let mut rows = vec![header.iter().map(|&name| name.to_owned()).collect()];
    rows.extend(report.frames.iter().map(of_frame));
    rows.extend(report.latents.iter().map(of_latent));
    rows
}

fn of_frame(f: &FrameStats) -> Vec<String> {
    let mut cells = vec![
        f.frame.to_string(),
        format!("{:.1}", f.mean),
        format!("{:.1}", f.std),
        f.min.to_string(),
        f.max.to_string(),
        format!("{:.1}", f.contrast),
        maybe(f.difference),
        maybe(f.from_first),
        maybe(f.coherence),
        format!("{:.1}", f.sharpness),
        format!("{:.2}", f.noise),
    ];
    let amplitudes = f.checkerboard.by_period();
    cells.extend(amplitudes.map(|(_, amplitude)| format!("{amplitude:.2}")));
    cells.push(maybe(f.grid_power));
    cells
}

fn of_latent(f: &LatentStats) -> Vec<String> {
    vec![
        f.frame.to_string(),
        format!("{:.3}", f.mean),
        format!("{:.3}", f.std),
        format!("{:.2}", f.min),
        format!("{:.2}", f.max),
        format!("{:.3}", f.contrast),
        maybe(f.difference),
        maybe(f.correlation),
        f.non_finite.to_string(),
    ]
}

fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.2}"))
}
