//! From a file to its report.

use std::path::Path;

use anyhow::Result;
use image::RgbImage;

use super::frames::Analyzer;
use super::latents;
use super::report::Report;
use crate::media::frames::to_rgb8;
use crate::media::picture::Picture;
use crate::media::read::{self, npy};
use crate::media::{Fit, Resize};

/// Analyzes the clip, the frames or the latents at `path` (see [`read::frames`] and
/// [`npy::read_latents`]). `picture` is what the clip starts with, and how it was brought into the clip.
///
/// # Errors
/// When it cannot be read or its frames differ in size.
pub fn file(path: &Path, picture: Option<(&Picture, Resize, Fit)>) -> Result<Report> {
    if is_latents(path)? {
        return latents::analyze(npy::read_latents(path)?.view());
    }
    let mut analyzer = Analyzer::new(None);
    read::frames(path, &mut |frame| {
        if let Some(picture) = picture.filter(|_| analyzer.is_empty()) {
            let size = frame.pixels.dimensions();
            analyzer = Analyzer::new(Some(fitted(picture, size)?));
        }
        analyzer.push_with(frame.pixels, frame.non_finite)
    })?;
    analyzer.finish()
}

/// Whether a path is an array of latents rather than frames.
///
/// # Errors
/// When it cannot be read.
pub fn is_latents(path: &Path) -> Result<bool> {
    Ok(!path.is_dir() && npy::kind(path)? == Some(npy::Kind::Latents))
}

/// The picture as the clip starts with it.
fn fitted(
    (picture, resize, fit): (&Picture, Resize, Fit),
    (width, height): (u32, u32),
) -> Result<RgbImage> {
    to_rgb8(
        picture
            .fitted(width as usize, height as usize, resize, fit)?
            .view(),
    )
}
