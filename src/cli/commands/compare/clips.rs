//! Two clips.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::cli::flags::CompareArgs;
use crate::cli::ui::{columns, info, print, print_json};
use crate::diagnose::compare::clips::{self, Clips, FrameRow, Side};
use crate::media::read::ClipKind;
use crate::media::strip;
use crate::util::files::real;
use crate::util::show::{Show, visible};

impl CompareArgs {
    /// Prints how two clips compare; returns whether they agree.
    pub(super) fn compare_clips(&self, kinds: [ClipKind; 2]) -> Result<bool> {
        let paths = [self.a.as_path(), self.b.as_path()];
        if let Some(png) = &self.png {
            let place = real(png);
            let is_input = |path: &&std::path::Path| place.starts_with(real(path));
            ensure!(
                !paths.iter().any(is_input),
                "--png {}: would replace what is compared\nhint: choose another name",
                png.shown()
            );
            strip::check(png)?;
        }
        let mut told = 0;
        let made = clips::compare(paths, kinds, self.tolerance.unwrap_or(0.0), &mut |done| {
            // Large frames take a while.
            if done >= told + 40 {
                told = done;
                info!("{done} frames compared");
            }
        })?;
        if let Some(png) = &self.png {
            let names = paths.map(|path| {
                let name = path.file_name().unwrap_or(path.as_os_str());
                visible(&name.to_string_lossy(), " ")
            });
            let picture = clips::strip(paths, names.each_ref().map(String::as_str), &made)?;
            strip::write_png(png, &picture, None)?;
        }
        if self.json {
            let mut report = serde_json::to_value(&made)?;
            report["what"] = json!("clips");
            report["a"] = json!(self.a);
            report["b"] = json!(self.b);
            print_json(&report)?;
        } else {
            let most = if self.all { usize::MAX } else { self.most };
            print(&self.clip_table(&made, most))?;
        }
        Ok(made.inside)
    }

    fn clip_table(&self, made: &Clips, most: usize) -> String {
        let side = |what: &str, path: &std::path::Path, side: &Side| {
            let fps = side
                .fps
                .map_or_else(|| "-".into(), |fps| format!("{fps:.2}"));
            vec![
                what.to_owned(),
                path.shown().to_string(),
                side.kind.to_string(),
                format!("{}x{}", side.width, side.height),
                side.frames.to_string(),
                fps.trim_end_matches('0').trim_end_matches('.').to_owned(),
            ]
        };
        let [a, b] = &made.sides;
        let head = ["", "clip", "kind", "size", "frames", "fps"].map(str::to_owned);
        let sides = [head.to_vec(), side("A", &self.a, a), side("B", &self.b, b)];
        let mut text = columns(&sides, |column| column > 3) + "\n";

        let mut worst: Vec<&FrameRow> = made.frames.iter().filter(|row| row.largest > 0).collect();
        let differing = worst.len();
        worst.sort_by(|a, b| {
            a.psnr
                .unwrap_or_default()
                .total_cmp(&b.psnr.unwrap_or_default())
        });
        worst.truncate(most);
        worst.sort_by_key(|row| row.frame);
        if !worst.is_empty() {
            let head = ["frame", "PSNR, dB", "SSIM", "largest", "at x, y"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(worst.iter().map(|row| cells(row)));
            text += &columns(&rows, |_| true);
        }
        if differing > worst.len() {
            let _ = writeln!(
                text,
                "and {} more that differ no more (--all)",
                differing - worst.len()
            );
        }
        if differing > 0 {
            let _ = writeln!(text, "\n{}", overall(made));
            text += "PSNR: 20 dB is clearly to be seen, 35 dB hardly; SSIM: 1 is equal;\n\
                     levels are 0 to 255\n\n";
        }
        text += &settings(made);
        let _ = writeln!(text, "{}", made.verdict);
        text
    }
}

fn cells(row: &FrameRow) -> Vec<String> {
    let psnr = row
        .psnr
        .map_or_else(|| "-".into(), |psnr| format!("{psnr:.1}"));
    let ssim = row
        .ssim
        .map_or_else(|| "-".into(), |ssim| format!("{ssim:.3}"));
    let [x, y] = row.at;
    vec![
        row.frame.to_string(),
        psnr,
        ssim,
        row.largest.to_string(),
        format!("{x}, {y}"),
    ]
}

/// All frames in a line.
fn overall(made: &Clips) -> String {
    let mut text = String::from("all frames:");
    if let Some(psnr) = made.psnr {
        let _ = write!(text, " PSNR {psnr:.1} dB");
    }
    if let Some(ssim) = made.ssim {
        let _ = write!(text, ", SSIM {ssim:.3}");
    }
    if let Some(row) = made.largest() {
        let ([x, y], frame) = (row.at, row.frame);
        let _ = write!(
            text,
            "\nlargest difference: {} levels, in frame {frame} at {x}, {y} (from the left, from the top)",
            row.largest
        );
    }
    text
}

/// The settings that differ.
fn settings(made: &Clips) -> String {
    match made.settings.as_deref() {
        None => "settings: not both clips say how they were made\n\n".into(),
        Some([]) => "settings: both clips were made with the same\n\n".into(),
        Some(differing) => {
            let head = ["setting", "A", "B"].map(str::to_owned).to_vec();
            let rows = differing.iter();
            let rows = rows.map(|of| vec![of.name.clone(), of.a.clone(), of.b.clone()]);
            let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
            columns(&rows, |_| false) + "\n"
        }
    }
}
