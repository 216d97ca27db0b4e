//! The pictures of a report.

use std::path::Path;

use anyhow::Result;
use image::imageops::FilterType;
use image::{Rgb, RgbImage};
use ndarray::{ArrayView4, Axis};

use super::super::plane::Plane;
use super::super::report::Report;
use super::super::spectrum::Spectrum;
use super::super::{PERIODS, clip};
use crate::media::read::{self, npy};
use crate::media::strip::{self, Tile};

/// The most frames on the film strip.
const TILES: u32 = 25;

/// A film strip and the spectra of some frames.
#[derive(Clone, Debug)]
pub struct Pictures {
    /// Frames with their numbers.
    pub strip: RgbImage,
    /// The first frame's, that of the frame with most of a checkerboard, and the last one's, each with
    /// its number.
    pub spectra: Vec<(usize, Spectrum)>,
}

impl Pictures {
    /// Reads the clip or the latents at `path` again, of which `report` tells.
    ///
    /// # Errors
    /// When it cannot be read any more.
    pub fn of(path: &Path, report: &Report) -> Result<Self> {
        if clip::is_latents(path)? {
            return Ok(Self {
                strip: latent_strip(npy::read_latents(path)?.view()),
                spectra: Vec::new(),
            });
        }
        let wanted = wanted(report);
        let count = report.frames.len() as u32;
        let (mut tiles, mut spectra, mut number) = (Vec::new(), Vec::new(), 0);
        read::frames(path, &mut |frame| {
            let index = number as usize;
            if strip::shows(number, count, TILES) {
                let picture = strip::fit(&frame.pixels, FilterType::Nearest);
                tiles.push(Tile { number, picture });
            }
            if wanted.contains(&index) {
                let spectrum = Spectrum::of(&Plane::of(&frame.pixels));
                spectra.extend(spectrum.map(|spectrum| (index, spectrum)));
            }
            number += 1;
            Ok(())
        })?;
        Ok(Self {
            strip: strip::page(&tiles),
            spectra,
        })
    }

    /// What the strip shows.
    pub(super) fn title(&self, report: &Report) -> &'static str {
        match report.frames.is_empty() {
            false => "Frames",
            true => "Latent frames, the mean of their channels",
        }
    }
}

/// Frames whose spectra are shown.
fn wanted(report: &Report) -> Vec<usize> {
    let most = |place: usize| {
        let amplitude = |i: &usize| report.frames[*i].checkerboard.by_period()[place].1;
        let amplitudes = (0..report.frames.len()).map(|i| (amplitude(&i), i));
        amplitudes.max_by(|a, b| a.0.total_cmp(&b.0))
    };
    let worst = (0..PERIODS.len()).filter_map(most);
    let worst = worst
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or(0, |(_, i)| i);
    let mut wanted = vec![0, worst, report.frames.len().saturating_sub(1)];
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

/// The mean over the channels of each latent frame, from black to white over the range of all.
fn latent_strip(latents: ArrayView4<'_, f32>) -> RgbImage {
    let means = latents.mean_axis(Axis(0)).unwrap_or_default();
    let most = means
        .iter()
        .filter(|v| v.is_finite())
        .fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let (frames, height, width) = means.dim();
    let tiles: Vec<Tile> = (0..frames as u32)
        .filter(|&index| strip::shows(index, frames as u32, TILES))
        .map(|number| {
            let frame = means.index_axis(Axis(0), number as usize);
            let picture = RgbImage::from_fn(width as u32, height as u32, |x, y| {
                let value = frame[[y as usize, x as usize]] / most;
                Rgb([((value + 1.0) * 127.5).round() as u8; 3])
            });
            let picture = strip::fit(&picture, FilterType::Nearest);
            Tile { number, picture }
        })
        .collect();
    strip::page(&tiles)
}
