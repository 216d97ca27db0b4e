//! A sweep's results as a table for people and as CSV.

use anyhow::Result;

use super::{Axis, Done, Outcome};
use crate::util::show::visible;

/// A column of figures: its heading, and its text for an outcome.
type Column = (&'static str, fn(&Outcome) -> String);

/// What the table for people shows beside the settings.
const SHORT: [Column; 9] = [
    ("size", |o| format!("{}x{}", o.width, o.height)),
    ("frames", |o| o.frames.to_string()),
    ("passes", |o| o.passes.0.to_string()),
    ("time, s", |o| format!("{:.2}", o.seconds)),
    ("memory, MB", |o| {
        format!("{:.1}", o.peak_bytes as f64 / 1e6)
    }),
    ("first frame, dB", |o| decibels(o, 1)),
    ("contrast", |o| {
        format!("{:.0}%", o.metrics.contrast_kept * 100.0)
    }),
    ("motion", |o| format!("{:.2}", o.metrics.motion)),
    ("sharpness", |o| {
        format!("{:.0}%", o.metrics.sharpness * 100.0)
    }),
];

/// What the CSV has beside the settings.
const LONG: [Column; 17] = [
    ("clip", |o| o.clip.clone()),
    ("width", |o| o.width.to_string()),
    ("height", |o| o.height.to_string()),
    ("frames", |o| o.frames.to_string()),
    ("fps", |o| o.fps.to_string()),
    ("passes", |o| o.passes.0.to_string()),
    ("reused_passes", |o| o.passes.1.to_string()),
    ("seconds", |o| format!("{:.3}", o.seconds)),
    ("peak_bytes", |o| o.peak_bytes.to_string()),
    ("first_frame_psnr", |o| decibels(o, 3)),
    ("first_frame_ssim", |o| {
        o.metrics
            .first_ssim
            .map_or(String::new(), |s| format!("{s:.5}"))
    }),
    ("contrast_kept", |o| {
        format!("{:.4}", o.metrics.contrast_kept)
    }),
    ("motion", |o| format!("{:.4}", o.metrics.motion)),
    ("sharpness", |o| format!("{:.4}", o.metrics.sharpness)),
    ("noise", |o| format!("{:.4}", o.metrics.noise)),
    ("checkerboard", |o| format!("{:.4}", o.metrics.checkerboard)),
    ("alarms", |o| o.metrics.alarms.join("; ")),
];

fn decibels(outcome: &Outcome, places: usize) -> String {
    let psnr = outcome.metrics.first_psnr;
    psnr.map_or("inf".into(), |psnr| format!("{psnr:.places$}"))
}

/// A heading and a row for each run; failed ones have their settings alone.
pub fn rows(axes: &[Axis], done: &[Done]) -> Vec<Vec<String>> {
    let flags = axes.iter().map(|axis| axis.flag.clone());
    let figures = SHORT.iter().map(|(heading, _)| (*heading).to_owned());
    let mut rows: Vec<Vec<String>> = vec![flags.chain(figures).collect()];
    for Done { run, result } in done {
        let settings = run.settings.iter().map(|(_, value)| shortened(value));
        let figures = SHORT.iter().map(|(_, figure)| match result {
            Ok(outcome) => figure(outcome),
            Err(_) => String::new(),
        });
        rows.push(settings.chain(figures).collect());
    }
    rows
}

/// A value that leaves room for others.
pub(super) fn shortened(value: &str) -> String {
    const SHOWN: usize = 28;
    match value.char_indices().nth(SHOWN) {
        None => value.to_owned(),
        Some((end, _)) => format!("{}…", &value[..end]),
    }
}

/// Comma-separated values (RFC 4180) with a header; all runs, the last column says why one failed.
///
/// # Errors
/// When a row cannot be written.
pub fn csv(axes: &[Axis], done: &[Done]) -> Result<String> {
    let flags = axes.iter().map(|axis| axis.flag.as_str());
    let figures = LONG.iter().map(|(heading, _)| *heading);
    let mut rows = ::csv::Writer::from_writer(Vec::new());
    rows.write_record(flags.chain(figures).chain(["error"]))?;
    for Done { run, result } in done {
        let settings = run.settings.iter().map(|(_, value)| cell(value));
        let figures = LONG.iter().map(|(_, figure)| match result {
            Ok(outcome) => figure(outcome),
            Err(_) => String::new(),
        });
        let error = result.as_ref().err().map(|error| cell(error));
        let error = error.unwrap_or_default();
        rows.write_record(settings.chain(figures).chain([error]))?;
    }
    Ok(String::from_utf8(rows.into_inner()?)?)
}

/// A text that neither commands a terminal nor is a formula to a spreadsheet.
fn cell(text: &str) -> String {
    let text = visible(text, " ");
    match text.starts_with(['=', '+', '-', '@']) && text.parse::<f64>().is_err() {
        true => format!("'{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_commands_nothing() {
        assert_eq!(cell("=HYPERLINK(1)\u{1b}[2J"), "'=HYPERLINK(1)\\u{1b}[2J");
        assert_eq!(cell("-1.5"), "-1.5");
    }

    #[test]
    fn long_values_are_shortened_at_characters() {
        assert_eq!(shortened("steps"), "steps");
        assert_eq!(shortened(&"ä".repeat(40)), "ä".repeat(28) + "…");
    }
}
