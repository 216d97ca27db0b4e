//! For the programs in `scripts/` that measure and fit, and for tests: clips of the built-in
//! miniature's world, made with or without faults.

pub mod faults;
pub mod linear;
pub mod scenes;

use anyhow::{Context, Result};
use image::RgbImage;
use mlx_rs::Array;
use ndarray::ArrayView4;

use super::analyze::{Report, latents};
use crate::media::clip::{ClipSpec, ClipWriter};
use crate::media::read;
use crate::runtime::to_host;

/// Analyzes latents `[channels, frames, height, width]`.
///
/// # Errors
/// When MLX fails.
pub fn report_of(array: &Array) -> Result<Report> {
    let shape: Vec<usize> = array.shape().iter().map(|&side| side as usize).collect();
    let shape: [usize; 4] = shape.try_into().ok().context("latents have four axes")?;
    latents::analyze(ArrayView4::from_shape(shape, &to_host(array)?)?)
}

/// Returns the frames as a file of the kind of `name` holds them.
///
/// # Errors
/// When the file cannot be written or read.
pub fn through(name: &str, frames: &[RgbImage]) -> Result<Vec<RgbImage>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(name);
    let (width, height) = frames.first().context("no frames")?.dimensions();
    let fps = 16.0;
    let mut writer = ClipWriter::create(&path, &ClipSpec { width, height, fps }, None)?;
    for frame in frames {
        writer.push(frame)?;
    }
    writer.finish()?;
    let mut found = Vec::new();
    read::frames(&path, &mut |frame| {
        found.push(frame.pixels);
        Ok(())
    })?;
    Ok(found)
}
