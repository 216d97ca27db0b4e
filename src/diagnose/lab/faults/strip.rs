//! A small strip of clips, for a table.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};
use color_quant::NeuQuant;
use image::{Rgb, RgbImage, imageops};

use super::Clip;
use crate::util::show::Show;

/// The frames that are shown: of the first latent frame, of the second one, and later ones.
const FRAMES: [usize; 5] = [0, 1, 4, 8, 16];
/// Pixels between frames and between clips.
const GAP: u32 = 2;
const BETWEEN: u32 = 10;
const COLOURS: usize = 48;

/// Writes frames of some clips of one size side by side, as a PNG with a palette.
pub fn write(path: &Path, clips: &[Clip]) -> Result<()> {
    let first = clips.first().and_then(|clip| clip.frames.first());
    let (width, height) = first.context("a strip needs a clip")?.dimensions();
    let pitch = FRAMES.len() as u32 * (width + GAP) - GAP + BETWEEN;
    let total = clips.len() as u32 * pitch - BETWEEN;
    let mut sheet = RgbImage::from_pixel(total, height, Rgb([255; 3]));
    for (clip, number) in clips.iter().zip(0..) {
        for (frame, place) in FRAMES.into_iter().zip(0..) {
            let frame = clip.frames.get(frame).context("the clip is too short")?;
            let left = number * pitch + place * (width + GAP);
            imageops::replace(&mut sheet, frame, left.into(), 0);
        }
    }
    let rgba: Vec<u8> = sheet
        .pixels()
        .flat_map(|p| [p[0], p[1], p[2], 255])
        .collect();
    let palette = NeuQuant::new(1, COLOURS, &rgba);
    let indices: Vec<u8> = rgba
        .chunks_exact(4)
        .map(|p| palette.index_of(p) as u8)
        .collect();
    let cannot = || format!("cannot write {}", path.shown());
    let file = BufWriter::new(File::create(path).with_context(cannot)?);
    let mut encoder = png::Encoder::new(file, sheet.width(), sheet.height());
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    encoder.set_palette(palette.color_map_rgb());
    encoder
        .write_header()?
        .write_image_data(&indices)
        .with_context(cannot)
}
