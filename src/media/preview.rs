//! A clip's colours while it is still being denoised: latents as small pictures, without the VAE.
//!
//! Every latent pixel becomes one pixel, by a linear map from its channels to red, green and blue.
//! What that shows and what it leaves out is measured in `docs/media.md`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::imageops::FilterType;
use image::{Rgb, RgbImage};
use mlx_rs::Array;
use serde::{Deserialize, Serialize};

use crate::media::clip::{ClipSpec, ClipWriter, OutputKind};
use crate::media::strip::{self, Tile, Title, titled};
use crate::model::vae::TEMPORAL_STRIDE;
use crate::runtime::to_host;

/// A linear map from latents, normalised as the transformer sees them, to RGB in [-1, 1].
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LatentRgb {
    /// What each latent channel adds to red, green and blue.
    pub factors: Vec<[f32; 3]>,
    /// Red, green and blue of latents that are zero.
    pub bias: [f32; 3],
}

/// That of the published Wan2.1 VAE, which Wan2.2 I2V-A14B uses: the figures of
/// Comfy-Org/ComfyUI, `comfy/latent_formats.py`, `Wan21`, which are for normalised latents too
/// (`latent_preview.py` shows what the sampler sees).
impl Default for LatentRgb {
    fn default() -> Self {
        Self {
            factors: vec![
                [-0.1299, -0.1692, 0.2932],
                [0.0671, 0.0406, 0.0442],
                [0.3568, 0.2548, 0.1747],
                [0.0372, 0.2344, 0.1420],
                [0.0313, 0.0189, -0.0328],
                [0.0296, -0.0956, -0.0665],
                [-0.3477, -0.4059, -0.2925],
                [0.0166, 0.1902, 0.1975],
                [-0.0412, 0.0267, -0.1364],
                [-0.1293, 0.0740, 0.1636],
                [0.0680, 0.3019, 0.1128],
                [0.0032, 0.0581, 0.0639],
                [-0.1251, 0.0927, 0.1699],
                [0.0060, -0.0633, 0.0005],
                [0.3477, 0.2275, 0.2950],
                [0.1984, 0.0913, 0.1861],
            ],
            bias: [-0.1835, -0.0868, -0.3360],
        }
    }
}

impl LatentRgb {
    /// That of the VAE of Wan2.2 TI2V-5B, from the same place, `Wan22`.
    pub fn wan22() -> Self {
        Self {
            factors: vec![
                [0.0119, 0.0103, 0.0046],
                [-0.1062, -0.0504, 0.0165],
                [0.0140, 0.0409, 0.0491],
                [-0.0813, -0.0677, 0.0607],
                [0.0656, 0.0851, 0.0808],
                [0.0264, 0.0463, 0.0912],
                [0.0295, 0.0326, 0.0590],
                [-0.0244, -0.0270, 0.0025],
                [0.0443, -0.0102, 0.0288],
                [-0.0465, -0.0090, -0.0205],
                [0.0359, 0.0236, 0.0082],
                [-0.0776, 0.0854, 0.1048],
                [0.0564, 0.0264, 0.0561],
                [0.0006, 0.0594, 0.0418],
                [-0.0319, -0.0542, -0.0637],
                [-0.0268, 0.0024, 0.0260],
                [0.0539, 0.0265, 0.0358],
                [-0.0359, -0.0312, -0.0287],
                [-0.0285, -0.1032, -0.1237],
                [0.1041, 0.0537, 0.0622],
                [-0.0086, -0.0374, -0.0051],
                [0.0390, 0.0670, 0.2863],
                [0.0069, 0.0144, 0.0082],
                [0.0006, -0.0167, 0.0079],
                [0.0313, -0.0574, -0.0232],
                [-0.1454, -0.0902, -0.0481],
                [0.0714, 0.0827, 0.0447],
                [-0.0304, -0.0574, -0.0196],
                [0.0401, 0.0384, 0.0204],
                [-0.0758, -0.0297, -0.0014],
                [0.0568, 0.1307, 0.1372],
                [-0.0055, -0.0310, -0.0380],
                [0.0239, -0.0305, 0.0325],
                [-0.0663, -0.0673, -0.0140],
                [-0.0416, -0.0047, -0.0023],
                [0.0166, 0.0112, -0.0093],
                [-0.0211, 0.0011, 0.0331],
                [0.1833, 0.1466, 0.2250],
                [-0.0368, 0.0370, 0.0295],
                [-0.3441, -0.3543, -0.2008],
                [-0.0479, -0.0489, -0.0420],
                [-0.0660, -0.0153, 0.0800],
                [-0.0101, 0.0068, 0.0156],
                [-0.0690, -0.0452, -0.0927],
                [-0.0145, 0.0041, 0.0015],
                [0.0421, 0.0451, 0.0373],
                [0.0504, -0.0483, -0.0356],
                [-0.0837, 0.0168, 0.0055],
            ],
            bias: [0.0317, -0.0878, -0.1388],
        }
    }

    /// The latents `[channels, frames, height, width]` as a picture per frame. Evaluates them.
    ///
    /// # Errors
    /// When they have other channels, or cannot be evaluated.
    pub fn pictures(&self, latents: &Array) -> Result<Vec<RgbImage>> {
        let &[channels, frames, height, width] = latents.shape() else {
            anyhow::bail!(
                "latents of the shape {:?}; expected four axes",
                latents.shape()
            );
        };
        self.check_channels(channels)?;
        let values = to_host(latents)?;
        let (width, height) = (u32::try_from(width)?, u32::try_from(height)?);
        let area = width as usize * height as usize;
        let plane = area * usize::try_from(frames)?;
        let picture = |frame: usize| {
            RgbImage::from_fn(width, height, |x, y| {
                let at = frame * area + (y * width + x) as usize;
                let channels = values.iter().skip(at).step_by(plane.max(1));
                let mut colour = self.bias;
                for (value, factors) in channels.zip(&self.factors) {
                    for (sum, factor) in colour.iter_mut().zip(factors) {
                        *sum += value * factor;
                    }
                }
                // A cast takes what is out of range, or no number, to the nearest level or to 0.
                Rgb(colour.map(|value| ((value + 1.0) * 127.5).round() as u8))
            })
        };
        Ok((0..plane / area.max(1)).map(picture).collect())
    }

    /// Refuses latents of another number of channels.
    ///
    /// # Errors
    /// Says both numbers.
    pub fn check_channels(&self, channels: i32) -> Result<()> {
        ensure!(
            i32::try_from(self.factors.len()) == Ok(channels),
            "there are colours for {} latent channels; the model has {channels}",
            self.factors.len()
        );
        Ok(())
    }

    pub(crate) fn check_finite(&self) -> Result<()> {
        let mut values = self.factors.iter().chain([&self.bias]).flatten();
        ensure!(
            values.all(|value| value.is_finite()),
            "a factor is not finite"
        );
        Ok(())
    }
}

/// Checks that a preview can be put at `path`, a PNG or a GIF, without leaving a trace.
///
/// # Errors
/// When its name ends in something else, or nothing can be created there.
pub fn check(path: &Path) -> Result<()> {
    match OutputKind::from_path(path) {
        Ok(OutputKind::Gif) => crate::media::clip::check_writable(path),
        _ => strip::check(path).context("a preview is a .png or .gif file, or - for the terminal"),
    }
}

/// Writes pictures of a clip's latent frames to `path`, which then holds either what was there or
/// these, below a title: an animated GIF at the clip's pace, or a PNG with all of them side by side.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, pictures: &[RgbImage], fps: f64, title: &Title) -> Result<()> {
    if OutputKind::from_path(path).ok() != Some(OutputKind::Gif) {
        return strip::write_png(path, &titled(&page(pictures, u32::MAX), title), None);
    }
    let pictures: Vec<RgbImage> = pictures
        .iter()
        .map(|picture| titled(&enlarged(picture), title))
        .collect();
    let (width, height) = pictures.first().map_or((1, 1), RgbImage::dimensions);
    // The slowest rate that a clip can have.
    let fps = (fps / f64::from(TEMPORAL_STRIDE)).max(0.1);
    let mut writer = ClipWriter::create(path, &ClipSpec { width, height, fps }, None)?;
    for picture in &pictures {
        writer.push(picture)?;
    }
    writer.finish()
}

/// Pictures of latent frames side by side, as many as a film strip shows and `most`; each has the
/// number of the last frame of the clip that it stands for.
pub fn page(pictures: &[RgbImage], most: u32) -> RgbImage {
    let count = pictures.len() as u32;
    let tiles: Vec<Tile> = pictures
        .iter()
        .zip(0..)
        .filter(|&(_, index)| strip::shows(index, count, most))
        .map(|(picture, index)| Tile {
            number: index * TEMPORAL_STRIDE as u32,
            picture: enlarged(picture),
        })
        .collect();
    strip::page(&tiles)
}

/// Smoothly: a latent pixel's edges are of no picture.
fn enlarged(picture: &RgbImage) -> RgbImage {
    strip::fit(picture, FilterType::CatmullRom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> LatentRgb {
        LatentRgb {
            factors: vec![[1.0, 0.0, 0.5], [0.0, -1.0, 0.5]],
            bias: [0.0, 0.2, -0.5],
        }
    }

    #[test]
    fn channels_become_colours() {
        // Two channels, two frames, one row of three.
        let values = [
            [-1.0, 0.0, 1.0, 0.5, -9.0, 9.0],
            [0.2, 0.2, 0.2, -0.8, 0.0, f32::NAN],
        ];
        let latents = Array::from_slice(values.as_flattened(), &[2, 2, 1, 3]);
        let pictures = map().pictures(&latents).unwrap();
        let levels: Vec<&[u8]> = pictures.iter().map(|p| p.as_raw().as_slice()).collect();
        // Red is the first channel, green 0.2 less the second, blue half their sum less 0.5; what is
        // no number is black.
        let expected: [&[u8]; 2] = [
            &[0, 128, 13, 128, 128, 77, 255, 128, 140],
            &[191, 255, 45, 0, 153, 0, 0, 0, 0],
        ];
        assert_eq!(levels, expected);
        assert_eq!(pictures[0].dimensions(), (3, 1));
        for shape in [&[1, 4, 1, 3][..], &[2, 6]] {
            let latents = Array::from_slice(values.as_flattened(), shape);
            assert!(map().pictures(&latents).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn a_page_shows_the_first_and_the_last_frame() {
        let pictures = vec![RgbImage::new(120, 60); 21];
        let columns = |most| (page(&pictures, most).width() - 4) / 244;
        assert_eq!(columns(5), 5);
        assert_eq!(columns(2), 2);
        // Rows of six at most.
        assert_eq!(columns(u32::MAX), 6);
        assert_eq!(page(&pictures[..1], 5).width(), 248);
    }
}
