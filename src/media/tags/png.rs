//! Text chunks of PNG files (PNG specification, 11.3.3).

use std::io::{BufRead, Seek, Write};

use anyhow::{Context, Result};
use image::RgbImage;
use png::{BitDepth, ColorType, Compression, Decoder, Encoder, Filter, Limits};

use super::{MAX_TEXT, Tags};

/// What chunks before the pixels may take in memory, in bytes.
const MAX_CHUNKS: usize = 4 * MAX_TEXT as usize;

/// The keyword of the text that is read back.
const COMMENT: &str = "Comment";

/// Writes a picture as PNG.
pub fn write(file: impl Write, picture: &RgbImage, tags: Option<&Tags>) -> Result<()> {
    let mut encoder = Encoder::new(file, picture.width(), picture.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Fast);
    encoder.set_filter(Filter::Adaptive);
    if let Some(tags) = tags {
        encoder.add_text_chunk("Software".into(), tags.software.clone())?;
        // A prompt can be in any script, which the older kind of chunk does not hold.
        encoder.add_itxt_chunk("Description".into(), tags.description.clone())?;
        encoder.add_text_chunk(COMMENT.into(), tags.comment.clone())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture)?;
    Ok(writer.finish()?)
}

/// The comment before the pixels.
pub fn read(file: impl BufRead + Seek) -> Result<Option<String>> {
    let decoder = Decoder::new_with_limits(file, Limits { bytes: MAX_CHUNKS });
    let reader = decoder.read_info().context("the PNG data is damaged")?;
    let info = reader.info();
    let latin = info.uncompressed_latin1_text.iter();
    if let Some(chunk) = latin.clone().find(|chunk| chunk.keyword == COMMENT) {
        return Ok(Some(chunk.text.clone()));
    }
    let mut utf8 = info.utf8_text.iter();
    utf8.find(|chunk| chunk.keyword == COMMENT)
        .map(|chunk| {
            let mut chunk = chunk.clone();
            chunk.decompress_text_with_limit(MAX_TEXT as usize)?;
            Ok(chunk.get_text()?)
        })
        .transpose()
}
