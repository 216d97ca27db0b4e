//! Frames of an animated GIF.

use std::io::{BufRead, Seek};

use anyhow::{Context, Result};
use image::codecs::gif::GifDecoder;
use image::{AnimationDecoder, DynamicImage, ImageDecoder};

use super::{Frame, check_size};

/// As they are shown, each laid over the ones before.
pub fn read(file: impl BufRead + Seek, each: &mut dyn FnMut(Frame) -> Result<()>) -> Result<()> {
    let decoder = GifDecoder::new(file).context("the GIF data is damaged")?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    for (index, frame) in decoder.into_frames().enumerate() {
        let frame = frame
            .with_context(|| format!("the GIF data is damaged or cut off after {index} frames"))?;
        let pixels = DynamicImage::from(frame.into_buffer()).into_rgb8();
        each(pixels.into())?;
    }
    Ok(())
}
