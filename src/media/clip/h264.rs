//! H.264 encoding: RGB frames to access units.

use std::ffi::c_int;

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, Complexity, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, QpRange,
    RateControlMode, VuiConfig,
};
use openh264::formats::YUVSlices;
use yuv::{
    YuvChromaSubsampling, YuvConversionMode, YuvPlanarImageMut, YuvRange, YuvStandardMatrix,
};

/// The quantisation of every block, of 0 (finest) to 51: visually lossless.
const QP: u8 = 18;

/// Seconds between key frames, for scrubbing.
const KEY_FRAME_SECONDS: f64 = 2.0;

/// Encodes frames with one constant quality, none dropped, none reordered; the same frames give the
/// same bytes.
pub(super) struct H264Encoder {
    encoder: Encoder,
    /// The frame in work as 4:2:0 planes, kept for the next.
    planes: YuvPlanarImageMut<'static, u8>,
    /// Sequence and picture parameter set, once the first frame is encoded.
    pub parameters: Option<ParameterSets>,
}

/// What a decoder must know before the first frame: NAL units without start code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParameterSets {
    pub sequence: Vec<u8>,
    pub picture: Vec<u8>,
}

/// One encoded frame.
pub(super) struct AccessUnit {
    /// NAL units, each after its length as 32 bits big-endian (ISO/IEC 14496-15, `avc1`).
    pub data: Vec<u8>,
    /// Whether decoding can start here.
    pub key_frame: bool,
}

/// Whether frames of this size can be encoded.
pub(super) fn check_size(width: u32, height: u32) -> Result<()> {
    ensure!(
        width.is_multiple_of(2) && height.is_multiple_of(2),
        "an .mp4 needs an even width and height, not {width}x{height}; \
         change the size, or write a .gif or PNG frames"
    );
    let (longer, shorter) = (width.max(height), width.min(height));
    ensure!(
        shorter >= 16 && longer <= 3840 && shorter <= 2160,
        "an .mp4 can be 16x16 to 3840x2160 pixels (either way up), not {width}x{height}; \
         change the size, or write PNG frames"
    );
    Ok(())
}

impl H264Encoder {
    /// An encoder for frames of a size that [`check_size`] accepts, at `fps` frames a second.
    pub fn new(width: u32, height: u32, fps: f64) -> Result<Self> {
        check_size(width, height)?;
        // This mode takes a picture's QP from the range alone (one or two more where the scene
        // changes) and never drops a frame. The bit rate serves only to choose the level that the
        // stream claims.
        let bits_per_pixel = 0.2;
        let bit_rate = f64::from(width) * f64::from(height) * fps * bits_per_pixel;
        let config = EncoderConfig::new()
            .rate_control_mode(RateControlMode::Bufferbased)
            .qp(QpRange::new(QP, QP))
            .bitrate(BitRate::from_bps(bit_rate.clamp(64e3, 100e6) as u32))
            .max_frame_rate(FrameRate::from_hz(fps as f32))
            .skip_frames(false)
            .adaptive_quantization(false)
            .background_detection(false)
            .complexity(Complexity::High)
            .intra_frame_period(IntraFramePeriod::from_num_frames(
                (fps * KEY_FRAME_SECONDS).ceil() as u32,
            ))
            .max_slice_len(max_slice(width, height))
            // The bytes must not depend on the machine's cores.
            .num_threads(1)
            .vui(VuiConfig::bt709());
        let mut encoder = Encoder::with_api_config(OpenH264API::from_source(), config)
            .context("cannot start the H.264 encoder")?;
        silence(&mut encoder)?;
        Ok(Self {
            encoder,
            planes: YuvPlanarImageMut::alloc(width, height, YuvChromaSubsampling::Yuv420),
            parameters: None,
        })
    }

    /// Encodes the next frame.
    pub fn encode(&mut self, frame: &RgbImage) -> Result<AccessUnit> {
        let (width, height) = frame.dimensions();
        yuv::rgb_to_yuv420(
            &mut self.planes,
            frame,
            width * 3,
            YuvRange::Limited,
            YuvStandardMatrix::Bt709,
            // Rounds to nearest; the default mode is off by up to a level.
            YuvConversionMode::Professional,
        )
        .context("cannot convert a frame to YUV")?;
        let planes = &self.planes;
        let source = YUVSlices::new(
            (
                planes.y_plane.borrow(),
                planes.u_plane.borrow(),
                planes.v_plane.borrow(),
            ),
            (width as usize, height as usize),
            (
                planes.y_stride as usize,
                planes.u_stride as usize,
                planes.v_stride as usize,
            ),
        );
        let stream = self
            .encoder
            .encode(&source)
            .context("the H.264 encoder failed")?;
        let key_frame = match stream.frame_type() {
            FrameType::IDR => true,
            FrameType::I | FrameType::P => false,
            other => bail!("the H.264 encoder gave no frame but {other:?}"),
        };

        let mut data = Vec::new();
        let (mut sequence, mut picture) = (None, None);
        for layer in (0..stream.num_layers()).filter_map(|i| stream.layer(i)) {
            for unit in (0..layer.nal_count()).filter_map(|i| layer.nal_unit(i)) {
                let unit = without_start_code(unit)?;
                match unit[0] & 0x1f {
                    7 => sequence = Some(unit.to_vec()),
                    8 => picture = Some(unit.to_vec()),
                    _ => {
                        data.extend_from_slice(&u32::try_from(unit.len())?.to_be_bytes());
                        data.extend_from_slice(unit);
                    }
                }
            }
        }
        if let Some((sequence, picture)) = sequence.zip(picture) {
            let parameters = ParameterSets { sequence, picture };
            // The file has one place for them, so a change in mid-stream could not be decoded.
            ensure!(
                *self.parameters.get_or_insert_with(|| parameters.clone()) == parameters,
                "the H.264 encoder changed its parameters within the clip"
            );
        }
        Ok(AccessUnit { data, key_frame })
    }
}

/// The length in bytes at which a frame is split into slices: three bits a pixel, which only noise
/// needs.
///
/// OpenH264 gives up on a frame that takes more than a byte a pixel in one slice, as its buffer must
/// have room for half a slice's length more (`WelsEncodeNal` in `nal_encap.cpp`); the noise that
/// untrained weights draw does. Slices of this length always fit. No slice may be shorter than a few
/// macroblocks of 400 bytes.
fn max_slice(width: u32, height: u32) -> u32 {
    (width * height / 8 * 3).max(4000)
}

/// Keeps OpenH264 from printing remarks on its settings to the user's terminal, which it does while
/// it starts, at the first frame.
fn silence(encoder: &mut Encoder) -> Result<()> {
    // `ENCODER_OPTION_TRACE_LEVEL` and `WELS_LOG_QUIET` of OpenH264's codec_app_def.h.
    const TRACE_LEVEL: c_int = 25;
    let mut quiet: c_int = 0;
    // SAFETY: the option takes a pointer to an int, reads it during the call, and may be set before
    // the encoder is initialised (`CWelsH264SVCEncoder::SetOption`).
    let code = unsafe {
        encoder
            .raw_api()
            .set_option(TRACE_LEVEL, (&raw mut quiet).cast())
    };
    ensure!(
        code == 0,
        "cannot set up the H.264 encoder: it answered {code}"
    );
    Ok(())
}

/// A NAL unit, not empty, without the `00 00 01` (after any zeros) before it.
fn without_start_code(unit: &[u8]) -> Result<&[u8]> {
    unit.iter()
        .position(|&byte| byte != 0)
        .filter(|&zeros| zeros >= 2 && unit[zeros] == 1 && unit.len() > zeros + 1)
        .map(|zeros| &unit[zeros + 1..])
        .context("the H.264 encoder gave data without a start code")
}
