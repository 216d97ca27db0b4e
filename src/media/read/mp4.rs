//! Frames of an MP4 file.

use std::io::{BufRead, Read as _, Seek, SeekFrom};

use anyhow::{Context, Result, bail, ensure};
use mp4_atom::{Atom, Avc1, Codec, Colr, Header, Mdia, Moov, ReadFrom, Stbl, StszSamples};
use yuv::{YuvRange, YuvStandardMatrix};

use super::h264::{Colours, H264Decoder};
use super::{Frame, check_size};

/// The largest index that is read, in bytes: hours of video.
const MAX_INDEX: u64 = 64 << 20;
/// The largest encoded frame that is read, in bytes: four a pixel of the largest.
const MAX_SAMPLE: u64 = 256 << 20;

/// Of its first video track.
pub fn read(
    mut file: impl BufRead + Seek,
    each: &mut dyn FnMut(Frame) -> Result<()>,
) -> Result<()> {
    let moov = index(&mut file)?;
    let stbl = &video(&moov)?.minf.stbl;
    let avc1 = match stbl.stsd.codecs.first() {
        Some(Codec::Avc1(avc1)) => avc1,
        Some(other) => bail!(
            "its video is {}, and H.264 is read\nhint: convert it with ffmpeg -i IN -c:v libx264 \
             -pix_fmt yuv420p OUT.mp4",
            codec_name(other)
        ),
        None => bail!("the MP4's index says nothing of its video's kind; it is damaged"),
    };
    check_size(avc1.visual.width.into(), avc1.visual.height.into())?;
    let mut decoder = H264Decoder::new(&avc1.avcc, colours(avc1))?;
    let mut samples = 0;
    for_each_sample(stbl, &mut |at, size| {
        let mut data = Vec::new();
        file.seek(SeekFrom::Start(at))?;
        (&mut file).take(size).read_to_end(&mut data)?;
        ensure!(
            data.len() as u64 == size,
            "the MP4 is cut off: frame {samples} of its index is missing"
        );
        samples += 1;
        decoder.decode(&data, each)
    })?;
    ensure!(
        samples > 0,
        "the MP4's index has no frames (fragmented files are not read; remux it with ffmpeg -i IN \
         -c copy OUT.mp4)"
    );
    let decoded = decoder.finish(each)?;
    ensure!(
        decoded == samples,
        "of {samples} frames {decoded} could be decoded; the video is damaged, or of a kind that \
         OpenH264 does not read"
    );
    Ok(())
}

/// The mean rate of its first video track; `None` when the index tells none.
pub fn fps(mut file: impl BufRead + Seek) -> Result<Option<f64>> {
    let moov = index(&mut file)?;
    let media = video(&moov)?;
    let (mut count, mut ticks) = (0.0, 0.0);
    for run in &media.minf.stbl.stts.entries {
        count += f64::from(run.sample_count);
        ticks += f64::from(run.sample_count) * f64::from(run.sample_delta);
    }
    let fps = count * f64::from(media.mdhd.timescale) / ticks;
    Ok(Some(fps).filter(|fps| fps.is_finite() && *fps > 0.0))
}

/// The first video track.
fn video(moov: &Moov) -> Result<&Mdia> {
    let mut tracks = moov.trak.iter().map(|track| &track.mdia);
    let video = tracks.find(|media| media.hdlr.handler.as_ref() == b"vide");
    video.context("the MP4 has no video")
}

/// The atom `moov`.
fn index(file: &mut (impl BufRead + Seek)) -> Result<Moov> {
    let damaged = "the MP4's index is damaged";
    let length = file.seek(SeekFrom::End(0))?;
    let mut at = 0;
    while at < length {
        file.seek(SeekFrom::Start(at))?;
        let header = Header::read_from(file).context("the MP4 is damaged or cut off")?;
        let start = file.stream_position()?;
        let size = header.size.map_or(length - start, |size| size as u64);
        ensure!(
            start.checked_add(size).is_some_and(|end| end <= length),
            "the MP4 is cut off: {} at byte {at} claims {size} bytes",
            header.kind
        );
        if header.kind == Moov::KIND {
            ensure!(
                size <= MAX_INDEX,
                "the MP4's index has {size} bytes; at most {MAX_INDEX} are read"
            );
            let mut bytes = Vec::new();
            file.take(size).read_to_end(&mut bytes)?;
            return Moov::decode_body(&mut bytes.as_slice()).context(damaged);
        }
        at = start + size;
    }
    bail!("the MP4 has no index; it is cut off or was never completed")
}

/// Gives place and size of each encoded frame.
fn for_each_sample(stbl: &Stbl, each: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
    let chunks: Vec<u64> = match (&stbl.co64, &stbl.stco) {
        (Some(co64), _) => co64.entries.clone(),
        (None, Some(stco)) => stco.entries.iter().map(|&at| at.into()).collect(),
        (None, None) => bail!("the MP4's index does not say where its frames are"),
    };
    let size_of = |sample: usize| match &stbl.stsz.samples {
        StszSamples::Identical { count, size } => (sample < *count as usize).then_some(*size),
        StszSamples::Different { sizes } => sizes.get(sample).copied(),
    };
    let runs = &stbl.stsc.entries;
    ensure!(
        runs.is_sorted_by(|a, b| a.first_chunk < b.first_chunk),
        "the MP4's index has runs of chunks out of order; it is damaged"
    );
    let mut sample = 0;
    let mut next = 0;
    for (number, &chunk) in (1_u64..).zip(&chunks) {
        while runs
            .get(next)
            .is_some_and(|run| u64::from(run.first_chunk) <= number)
        {
            next += 1;
        }
        let run = next.checked_sub(1).map(|last| &runs[last]);
        let run = run.context("the MP4's index does not say which frames lie together")?;
        let mut at = chunk;
        for _ in 0..run.samples_per_chunk {
            let Some(size) = size_of(sample) else {
                return Ok(());
            };
            let size = u64::from(size);
            ensure!(
                size <= MAX_SAMPLE,
                "frame {sample} claims {size} bytes; the MP4 is damaged"
            );
            each(at, size)?;
            at = at.checked_add(size).context("the MP4's index is damaged")?;
            sample += 1;
        }
    }
    ensure!(
        size_of(sample).is_none(),
        "the MP4's index says where {sample} frames are, and that there are more; it is damaged"
    );
    Ok(())
}

/// How colours are encoded: as the file says, else what players take: BT.709 from 720 rows, BT.601
/// below, in limited range. Code points are those of ITU-T H.273, table 4.
fn colours(avc1: &Avc1) -> Colours {
    let (matrix, full_range) = match &avc1.colr {
        Some(Colr::Nclx {
            matrix_coefficients,
            full_range_flag,
            ..
        }) => (*matrix_coefficients, *full_range_flag),
        Some(Colr::Nclc {
            matrix_coefficients,
            ..
        }) => (*matrix_coefficients, false),
        _ => (2, false),
    };
    Colours {
        matrix: match matrix {
            1 => YuvStandardMatrix::Bt709,
            4 => YuvStandardMatrix::Fcc,
            5 | 6 => YuvStandardMatrix::Bt601,
            7 => YuvStandardMatrix::Smpte240,
            9 | 10 => YuvStandardMatrix::Bt2020,
            _ if avc1.visual.height >= 720 => YuvStandardMatrix::Bt709,
            _ => YuvStandardMatrix::Bt601,
        },
        range: match full_range {
            true => YuvRange::Full,
            false => YuvRange::Limited,
        },
    }
}

fn codec_name(codec: &Codec) -> String {
    match codec {
        Codec::Hev1(_) | Codec::Hvc1(_) => "H.265".into(),
        Codec::Av01(_) => "AV1".into(),
        Codec::Vp08(_) => "VP8".into(),
        Codec::Vp09(_) => "VP9".into(),
        Codec::Unknown(kind, _) => format!("{:?}", kind.to_string()),
        _ => "of another kind".into(),
    }
}
