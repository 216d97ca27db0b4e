//! Draws clips as film strips, one a row, from what `--dump` wrote:
//! `cargo run --example film-strip -- STRIP.png DUMP...`.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::{Rgb, RgbImage, imageops};
use npyz::NpyFile;
use wan_i2v::media::frames::to_rgb8;

/// Frames shown of each clip, spread evenly from the first to the last.
const SHOWN: usize = 9;
/// Pixels between frames.
const GAP: u32 = 2;
/// Small frames are enlarged to about this height.
const HEIGHT: u32 = 96;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let target = arguments
        .next()
        .context("usage: film-strip STRIP.png DUMP...")?;
    let rows = arguments
        .map(|dump| row(Path::new(&dump)))
        .collect::<Result<Vec<_>>>()?;
    let width = rows.iter().map(RgbImage::width).max().unwrap_or(1);
    let height = rows
        .iter()
        .map(|row| row.height() + GAP)
        .sum::<u32>()
        .max(1);
    let mut strip = RgbImage::from_pixel(width, height, Rgb([255; 3]));
    let mut top = 0;
    for row in rows {
        imageops::replace(&mut strip, &row, 0, i64::from(top));
        top += row.height() + GAP;
    }
    strip.save(&target)?;
    Ok(())
}

/// A clip's frames side by side, from `frames.npy` `[frames, height, width, 3]` in a dump.
fn row(dump: &Path) -> Result<RgbImage> {
    let path = dump.join("frames.npy");
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let npy = NpyFile::new(BufReader::new(file))?;
    let shape: Vec<usize> = npy.shape().iter().map(|&d| d as usize).collect();
    ensure!(
        shape.len() == 4 && shape[0] > 0 && shape[3] == 3,
        "{}: shape {shape:?}; expected [frames, height, width, 3]",
        path.display()
    );
    let values = npy.into_vec::<f32>()?;
    let frames = ndarray::Array4::from_shape_vec((shape[0], shape[1], shape[2], 3), values)?;
    let shown = SHOWN.min(shape[0]);
    let scale = (HEIGHT / shape[1] as u32).max(1);
    let (width, height) = (shape[2] as u32 * scale, shape[1] as u32 * scale);
    let mut row = RgbImage::from_pixel(shown as u32 * (width + GAP), height, Rgb([255; 3]));
    for i in 0..shown {
        let index = i * (shape[0] - 1) / (shown - 1).max(1);
        let frame = to_rgb8(frames.index_axis(ndarray::Axis(0), index))?;
        let frame = imageops::resize(&frame, width, height, imageops::FilterType::Nearest);
        imageops::replace(&mut row, &frame, i as i64 * i64::from(width + GAP), 0);
    }
    Ok(row)
}
