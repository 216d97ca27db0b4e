//! H.264 decoding: access units to RGB frames.

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use mp4_atom::Avcc;
use openh264::OpenH264API;
use openh264::decoder::{DecodedYUV, Decoder, DecoderConfig, Flush};
use openh264::formats::YUVSource;
use yuv::{YuvPlanarImage, YuvRange, YuvStandardMatrix};

use super::Frame;

/// How RGB became what is encoded.
#[derive(Clone, Copy, Debug)]
pub struct Colours {
    pub matrix: YuvStandardMatrix,
    pub range: YuvRange,
}

pub struct H264Decoder {
    decoder: Decoder,
    colours: Colours,
    /// Bytes of the length in front of each NAL unit.
    length_size: usize,
    /// Parameter sets, as part of a stream.
    start: Vec<u8>,
    decoded: usize,
}

impl H264Decoder {
    pub fn new(parameters: &Avcc, colours: Colours) -> Result<Self> {
        // Frames may be encoded in another order than shown; the decoder gives them when it is their
        // turn, and the last ones at the end.
        let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
        let decoder = Decoder::with_api_config(OpenH264API::from_source(), config)
            .context("cannot start the H.264 decoder")?;
        let sets = [
            &parameters.sequence_parameter_sets,
            &parameters.picture_parameter_sets,
        ];
        let mut start = Vec::new();
        for unit in sets.into_iter().flatten() {
            push(&mut start, unit);
        }
        Ok(Self {
            decoder,
            colours,
            length_size: parameters.length_size.into(),
            start,
            decoded: 0,
        })
    }

    /// Decodes an access unit: NAL units, each after its length.
    pub fn decode(
        &mut self,
        mut data: &[u8],
        each: &mut dyn FnMut(Frame) -> Result<()>,
    ) -> Result<()> {
        let mut stream = std::mem::take(&mut self.start);
        while !data.is_empty() {
            let lengths = data.split_at_checked(self.length_size);
            let (length, rest) = lengths.with_context(|| self.damaged())?;
            let length = length
                .iter()
                .fold(0, |sum, &byte| sum << 8 | usize::from(byte));
            let (unit, rest) = rest
                .split_at_checked(length)
                .with_context(|| self.damaged())?;
            push(&mut stream, unit);
            data = rest;
        }
        let decoded = self.decoded;
        let damaged = || {
            format!(
                "frame {decoded} cannot be decoded; the video is damaged or of a \
                                  kind that OpenH264 does not read (it reads 8 bits, 4:2:0, whole frames)"
            )
        };
        if let Some(picture) = self.decoder.decode(&stream).with_context(damaged)? {
            let frame = to_rgb(&picture, self.colours)?;
            self.decoded += 1;
            each(frame.into())?;
        }
        Ok(())
    }

    /// Gives the frames that wait for their turn, and says how many there were in all.
    pub fn finish(mut self, each: &mut dyn FnMut(Frame) -> Result<()>) -> Result<usize> {
        let rest = self.decoder.flush_remaining();
        for picture in rest.context("the video's last frames cannot be decoded")? {
            let frame = to_rgb(&picture, self.colours)?;
            self.decoded += 1;
            each(frame.into())?;
        }
        Ok(self.decoded)
    }

    fn damaged(&self) -> String {
        format!("the data of frame {} is damaged", self.decoded)
    }
}

/// Appends a NAL unit with its start code.
fn push(stream: &mut Vec<u8>, unit: &[u8]) {
    stream.extend_from_slice(&[0, 0, 0, 1]);
    stream.extend_from_slice(unit);
}

fn to_rgb(picture: &DecodedYUV<'_>, colours: Colours) -> Result<RgbImage> {
    let (width, height) = picture.dimensions();
    let (width, height) = (u32::try_from(width)?, u32::try_from(height)?);
    ensure!(
        width.is_multiple_of(2) && height.is_multiple_of(2),
        "frames of {width}x{height} pixels cannot be read; expected even sides"
    );
    let (y, u, v) = picture.strides();
    let planes = YuvPlanarImage {
        y_plane: picture.y(),
        y_stride: u32::try_from(y)?,
        u_plane: picture.u(),
        u_stride: u32::try_from(u)?,
        v_plane: picture.v(),
        v_stride: u32::try_from(v)?,
        width,
        height,
    };
    let mut rgb = RgbImage::new(width, height);
    // Each colour sample for the four pixels that it is the mean of. The crate's bilinear kind moves
    // colours by a pixel.
    yuv::yuv420_to_rgb(&planes, &mut rgb, width * 3, colours.range, colours.matrix)
        .context("cannot convert a frame to RGB")?;
    Ok(rgb)
}
