//! Telling a truncated picture file, where its decoder would fill in grey.

use image::ImageFormat;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::picture::MAX_PIXELS;

/// Whether the end of a JPEG or WebP file is missing. Other formats' decoders tell by themselves.
pub(super) fn is_truncated(format: ImageFormat, file: &[u8]) -> bool {
    match format {
        ImageFormat::Jpeg => !jpeg_ends(file) && !jpeg_is_whole(file),
        ImageFormat::WebP => !riff_ends(file),
        _ => false,
    }
}

/// Whether a JPEG reaches its end-of-image marker (ITU-T T.81, B.1.1).
///
/// Segments are skipped by their length: a thumbnail inside one has an end marker of its own.
fn jpeg_ends(file: &[u8]) -> bool {
    const END_OF_IMAGE: u8 = 0xd9;
    let mut rest = file;
    // Between segments, and within the entropy-coded data after a start of scan, the next marker is
    // the next 0xff that no 0x00 (a stuffed byte) or 0xff (fill) follows.
    while let Some(at) = rest
        .windows(2)
        .position(|w| w[0] == 0xff && !matches!(w[1], 0 | 0xff))
    {
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        match marker {
            END_OF_IMAGE => return true,
            // These stand alone: start of image, restarts, TEM.
            0xd8 | 0xd0..=0xd7 | 0x01 => {}
            _ => {
                let Some((length, _)) = rest.split_first_chunk::<2>() else {
                    return false;
                };
                let Some(tail) = rest.get(usize::from(u16::from_be_bytes(*length))..) else {
                    return false;
                };
                rest = tail;
            }
        }
    }
    false
}

/// Whether a JPEG without an end marker has all its pixels: some cameras write their own data in the
/// marker's place (Samsung's panoramas). What is missing would be taken from whatever follows, so that the
/// pixels must not depend on it.
fn jpeg_is_whole(file: &[u8]) -> bool {
    // A progressive one may lack whole scans, and the beginning of a marker is no data.
    if is_progressive(file) || file.last() == Some(&0xff) {
        return false;
    }
    let decoded = |filler: u8| {
        let longer = [file, &[filler; 64], &[0xff, 0xd9]].concat();
        let options = DecoderOptions::default()
            .set_strict_mode(true)
            .set_max_width(usize::MAX)
            .set_max_height(usize::MAX);
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&longer), options);
        decoder.decode_headers().ok()?;
        let (width, height) = decoder.dimensions()?;
        (width as u64 * height as u64 <= MAX_PIXELS).then(|| decoder.decode().ok())?
    };
    decoded(0x55).is_some_and(|pixels| decoded(0xaa) == Some(pixels))
}

fn is_progressive(file: &[u8]) -> bool {
    const PROGRESSIVE: [u8; 4] = [0xc2, 0xc6, 0xca, 0xce];
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = file.get(at..at + 4) {
        if PROGRESSIVE.contains(&marker) {
            return true;
        }
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
    }
    false
}

/// Whether a WebP file is as long as its RIFF header says, and as each chunk in it does: its decoder
/// makes room for a chunk before it looks for its bytes.
fn riff_ends(file: &[u8]) -> bool {
    let size = |at: usize| {
        let bytes = file.get(at..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map(|&size| u32::from_le_bytes(size) as usize)
    };
    let Some(end) = size(4).map(|size| size.saturating_add(8)) else {
        return false;
    };
    if file.len() < end {
        return false;
    }
    let mut at = 12;
    while at + 8 <= end {
        let Some(size) = size(at + 4) else {
            return false;
        };
        // Chunks of an odd size are followed by a byte, which some writers leave out at the end.
        at = match at.checked_add(8).and_then(|data| data.checked_add(size)) {
            Some(after) if after <= end => after + size % 2,
            _ => return false,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webp(chunks: &[(&[u8; 4], u32, usize)]) -> Vec<u8> {
        let body: Vec<u8> = chunks
            .iter()
            .flat_map(|(name, told, real)| {
                [name.as_slice(), &told.to_le_bytes(), &vec![0; *real]].concat()
            })
            .collect();
        let size = (body.len() as u32 + 4).to_le_bytes();
        [b"RIFF", &size[..], b"WEBP", &body].concat()
    }

    #[test]
    fn a_chunk_that_is_longer_than_the_file_is_missing() {
        assert!(riff_ends(&webp(&[(b"VP8L", 6, 6), (b"EXIF", 5, 6)])));
        // Without the byte that an odd size asks for.
        assert!(riff_ends(&webp(&[(b"VP8L", 6, 6), (b"EXIF", 5, 5)])));
        assert!(!riff_ends(&webp(&[
            (b"VP8L", 6, 6),
            (b"EXIF", u32::MAX, 8)
        ])));
        assert!(!riff_ends(&webp(&[(b"VP8L", 6, 4)])));
        let whole = webp(&[(b"VP8L", 6, 6)]);
        assert!(!riff_ends(&whole[..whole.len() - 1]));
    }
}
