//! A clip as an MP4 file.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::RgbImage;
use mp4_atom::{
    Avc1, Avcc, Co64, Codec, Colr, Dinf, Dref, Encode, FourCC, Ftyp, Hdlr, Header, Mdhd, Mdia,
    Minf, Moov, Mvhd, Stbl, Stsc, StscEntry, Stsd, Stss, Stsz, StszSamples, Stts, SttsEntry, Tkhd,
    Trak, Url, Visual, Vmhd,
};
use tempfile::NamedTempFile;

use super::ClipSpec;
use super::h264::{H264Encoder, ParameterSets};
use super::timing::FrameRate;
use crate::media::tags::{Tags, user_data};
use crate::util::show::Show;
use crate::util::temporary;

/// H.264 in an MP4 with the index in front of the data ("fast start").
///
/// The index needs every frame's size, so the encoded frames wait in memory (a few MB a second of
/// video) until the clip is complete.
pub(super) struct Mp4Writer {
    target: PathBuf,
    file: NamedTempFile,
    spec: ClipSpec,
    rate: FrameRate,
    encoder: H264Encoder,
    samples: Vec<u8>,
    sample_sizes: Vec<u32>,
    /// Counted from 1, as the file does.
    key_frames: Vec<u32>,
    /// The atom `udta`, or nothing.
    user_data: Vec<u8>,
}

impl Mp4Writer {
    pub fn create(
        target: &Path,
        spec: &ClipSpec,
        rate: FrameRate,
        tags: Option<&Tags>,
    ) -> Result<Self> {
        Ok(Self {
            target: target.to_owned(),
            file: temporary::file(target)?,
            spec: *spec,
            rate: rate.fine(),
            encoder: H264Encoder::new(spec.width, spec.height, spec.fps)?,
            samples: Vec::new(),
            sample_sizes: Vec::new(),
            key_frames: Vec::new(),
            user_data: tags.map(user_data).transpose()?.unwrap_or_default(),
        })
    }

    pub fn push(&mut self, frame: &RgbImage) -> Result<()> {
        let unit = self.encoder.encode(frame)?;
        self.samples.extend_from_slice(&unit.data);
        self.sample_sizes.push(unit.data.len().try_into()?);
        if unit.key_frame {
            self.key_frames.push(self.sample_sizes.len().try_into()?);
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<()> {
        let head = self.head().context("cannot build the MP4 index")?;
        let context = || format!("cannot write {}", self.target.shown());
        self.file.write_all(&head).with_context(context)?;
        self.file.write_all(&self.samples).with_context(context)?;
        self.file.as_file().sync_all().with_context(context)?;
        self.file.persist(&self.target).with_context(context)?;
        Ok(())
    }

    /// Everything in front of the samples.
    fn head(&self) -> Result<Vec<u8>> {
        let brands = [b"isom", b"iso2", b"avc1", b"mp41"];
        let ftyp = Ftyp {
            major_brand: FourCC::new(b"isom"),
            minor_version: 0x200,
            compatible_brands: brands.map(FourCC::new).to_vec(),
        };
        let mdat = Header {
            kind: FourCC::new(b"mdat"),
            size: Some(self.samples.len()),
        };
        let parameters = self
            .encoder
            .parameters
            .as_ref()
            .context("the H.264 encoder gave no parameters")?;
        let head = |samples_at: u64| -> Result<Vec<u8>> {
            let mut head = Vec::new();
            ftyp.encode(&mut head)?;
            let index = head.len();
            self.moov(parameters, samples_at)?.encode(&mut head)?;
            // The atom's last child; its size is in front.
            head.extend_from_slice(&self.user_data);
            let size = u32::try_from(head.len() - index)?;
            head[index..index + 4].copy_from_slice(&size.to_be_bytes());
            mdat.encode(&mut head)?;
            Ok(head)
        };
        // The offset is of fixed width, so writing it does not move the samples.
        let samples_at = head(0)?.len().try_into()?;
        head(samples_at)
    }

    fn moov(&self, parameters: &ParameterSets, samples_at: u64) -> Result<Moov> {
        let frames = u32::try_from(self.sample_sizes.len())?;
        let timescale = self.rate.ticks_per_second;
        let duration = u64::from(frames) * u64::from(self.rate.ticks_per_frame);
        let (width, height) = (self.spec.width.try_into()?, self.spec.height.try_into()?);
        let track_id = 1;

        let avc1 = Avc1 {
            visual: Visual {
                data_reference_index: 1,
                width,
                height,
                ..Default::default()
            },
            avcc: Avcc::new(&parameters.sequence, &parameters.picture)?,
            // BT.709 primaries, transfer and matrix, limited range (ITU-T H.273), as in the stream.
            colr: Some(Colr::new(1, 1, 1, false)?),
            ..Default::default()
        };
        let stbl = Stbl {
            stsd: Stsd {
                codecs: vec![Codec::Avc1(avc1)],
            },
            stts: Stts {
                entries: vec![SttsEntry {
                    sample_count: frames,
                    sample_delta: self.rate.ticks_per_frame,
                }],
            },
            stss: Some(Stss {
                entries: self.key_frames.clone(),
            }),
            // All samples lie together: one chunk.
            stsc: Stsc {
                entries: vec![StscEntry {
                    first_chunk: 1,
                    samples_per_chunk: frames,
                    sample_description_index: 1,
                }],
            },
            stsz: Stsz {
                samples: StszSamples::Different {
                    sizes: self.sample_sizes.clone(),
                },
            },
            co64: Some(Co64 {
                entries: vec![samples_at],
            }),
            ..Default::default()
        };
        let mdia = Mdia {
            mdhd: Mdhd {
                timescale,
                duration,
                language: "und".into(),
                ..Default::default()
            },
            hdlr: Hdlr {
                handler: FourCC::new(b"vide"),
                name: "VideoHandler".into(),
            },
            minf: Minf {
                vmhd: Some(Vmhd::default()),
                dinf: Dinf {
                    dref: Dref {
                        entries: vec![Url::default().into()],
                    },
                },
                stbl,
                ..Default::default()
            },
        };
        let tkhd = Tkhd {
            track_id,
            duration,
            enabled: true,
            in_movie: true,
            width: width.into(),
            height: height.into(),
            ..Default::default()
        };
        // No times of creation: the same frames give the same file.
        let mvhd = Mvhd {
            creation_time: 0,
            modification_time: 0,
            timescale,
            duration,
            rate: 1.into(),
            volume: 1.into(),
            matrix: Default::default(),
            next_track_id: track_id + 1,
        };
        Ok(Moov {
            mvhd,
            trak: vec![Trak {
                tkhd,
                mdia,
                ..Default::default()
            }],
            ..Default::default()
        })
    }
}
