//! A clip as an animated GIF.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use ::gif::{Encoder, Frame, Repeat};
use anyhow::{Context, Result, ensure};
use color_quant::NeuQuant;
use image::buffer::ConvertBuffer;
use image::{RgbImage, RgbaImage, imageops};
use tempfile::NamedTempFile;

use super::ClipSpec;
use super::timing::FrameRate;
use crate::media::tags::{Tags, write_gif};
use crate::util::show::Show;
use crate::util::temporary;

/// Viewers play frames shorter than two hundredths of a second at a tenth.
const MAX_FPS: f64 = 50.0;

/// NeuQuant learns from every n-th pixel. From every pixel takes three times as long for half a
/// decibel.
const SAMPLING: i32 = 10;

/// A GIF that loops for ever, each frame with its own 256 colours and error diffusion.
pub(super) struct GifWriter {
    target: PathBuf,
    encoder: Encoder<BufWriter<NamedTempFile>>,
    rate: FrameRate,
    frames: u32,
}

/// Whether a GIF can hold such frames.
pub(super) fn check(width: u32, height: u32, fps: f64) -> Result<()> {
    gif_size(width, height)?;
    ensure!(
        fps <= MAX_FPS,
        "a GIF shows at most {MAX_FPS} frames a second, not {fps}; lower the frame rate or write \
         an .mp4"
    );
    Ok(())
}

fn gif_size(width: u32, height: u32) -> Result<(u16, u16)> {
    width
        .try_into()
        .ok()
        .zip(height.try_into().ok())
        .with_context(|| format!("a GIF holds at most 65535 pixels a side, not {width}x{height}"))
}

impl GifWriter {
    pub fn create(
        target: &Path,
        spec: &ClipSpec,
        rate: FrameRate,
        tags: Option<&Tags>,
    ) -> Result<Self> {
        let (width, height) = gif_size(spec.width, spec.height)?;
        let file = BufWriter::new(temporary::file(target)?);
        let mut encoder = Encoder::new(file, width, height, &[])?;
        encoder.set_repeat(Repeat::Infinite)?;
        if let Some(tags) = tags {
            write_gif(&mut encoder, tags)?;
        }
        Ok(Self {
            target: target.to_owned(),
            encoder,
            rate,
            frames: 0,
        })
    }

    pub fn push(&mut self, image: &RgbImage) -> Result<()> {
        let (width, height) = gif_size(image.width(), image.height())?;
        let mut pixels: RgbaImage = image.convert();
        let palette = NeuQuant::new(SAMPLING, 256, &pixels);
        imageops::dither(&mut pixels, &palette);
        let indices = imageops::index_colors(&pixels, &palette).into_raw();
        let mut frame =
            Frame::from_palette_pixels(width, height, indices, palette.color_map_rgb(), None);
        // A delay is whole hundredths of a second. Rounding when a frame starts, not how long it
        // lasts, keeps the clip's duration right at any rate.
        let delay = self.rate.centiseconds(self.frames + 1) - self.rate.centiseconds(self.frames);
        frame.delay = delay.try_into()?;
        self.encoder.write_frame(&frame)?;
        self.frames += 1;
        Ok(())
    }

    pub fn finish(self) -> Result<()> {
        let context = || format!("cannot write {}", self.target.shown());
        let file = self.encoder.into_inner().with_context(context)?;
        let file = file.into_inner().with_context(context)?;
        file.as_file().sync_all().with_context(context)?;
        file.persist(&self.target).with_context(context)?;
        Ok(())
    }
}
