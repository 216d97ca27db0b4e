//! Frames of an animated GIF.

use std::io::{BufRead, Seek};

use anyhow::{Context, Result};
use image::codecs::gif::GifDecoder;
use image::{AnimationDecoder, DynamicImage, ImageDecoder, Limits};

use super::{Frame, check_size};

/// As they are shown, each laid over the ones before.
pub fn read(file: impl BufRead + Seek, each: &mut dyn FnMut(Frame) -> Result<()>) -> Result<()> {
    let damaged = "the GIF data is damaged";
    let mut decoder = GifDecoder::new(file).context(damaged)?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    // A frame can claim to be larger than the picture that it is a part of.
    let mut limits = Limits::default();
    limits.max_alloc = Some(16 * u64::from(width) * u64::from(height) + (1 << 20));
    decoder.set_limits(limits).context(damaged)?;
    for (index, frame) in decoder.into_frames().enumerate() {
        let frame = frame
            .with_context(|| format!("the GIF data is damaged or cut off after {index} frames"))?;
        let pixels = DynamicImage::from(frame.into_buffer()).into_rgb8();
        each(pixels.into())?;
    }
    Ok(())
}

/// The mean rate, which a GIF keeps in hundredths of a second a frame; `None` when it tells none.
pub fn fps(file: impl BufRead) -> Result<Option<f64>> {
    let damaged = "the GIF data is damaged";
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let mut decoder = options.read_info(file).context(damaged)?;
    let (mut count, mut hundredths) = (0.0, 0.0);
    while let Some(frame) = decoder.next_frame_info().context(damaged)? {
        count += 1.0;
        hundredths += f64::from(frame.delay);
    }
    let fps = 100.0 * count / hundredths;
    Ok(Some(fps).filter(|fps| fps.is_finite() && *fps > 0.0))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn a_frame_larger_than_its_picture_is_refused_before_it_is_made_room_for() {
        // A screen of 16 x 16 without colours, and a frame of 65,535 x 65,535 on it.
        let mut file = b"GIF89a\x10\0\x10\0\0\0\0".to_vec();
        file.extend(b",\0\0\0\0\xff\xff\xff\xff\x80\0\0\0\xff\xff\xff");
        file.extend(b"\x02\x02\x4c\x01\0;");
        let error = read(Cursor::new(file), &mut |_| panic!("there is no frame"));
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("cut off after 0 frames"), "{error}");
    }
}
