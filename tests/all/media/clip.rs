//! Clips, read back by a decoder.

use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};
use mp4_atom::{Any, Codec, Colr, Decode, Moov, StszSamples};
use openh264::decoder::{DecodedYUV, Decoder};
use openh264::formats::YUVSource;
use tempfile::TempDir;
use wan_i2v::media::clip::{ClipSpec, ClipWriter, OutputKind, check_writable};

use crate::support::names;

/// Moving gradients with some fine texture.
fn frames(width: u32, height: u32, count: u32) -> Vec<RgbImage> {
    (0..count)
        .map(|t| {
            RgbImage::from_fn(width, height, |x, y| {
                let wave = |speed: f32, phase: f32| {
                    let (x, y, t) = (x as f32, y as f32, t as f32);
                    let slow = (0.07 * (x + speed * t) + 0.05 * y + phase).sin();
                    let fine = (1.3 * (x + speed * t) - 1.1 * y).sin();
                    (127.5 + 90.0 * slow + 8.0 * fine) as u8
                };
                Rgb([wave(1.5, 0.0), wave(1.0, 1.0), wave(0.5, 2.0)])
            })
        })
        .collect()
}

fn write(path: &Path, frames: &[RgbImage], fps: f64) -> anyhow::Result<()> {
    let (width, height) = frames.first().map_or((64, 64), |f| f.dimensions());
    let mut writer = ClipWriter::create(path, &ClipSpec { width, height, fps }, None)?;
    for frame in frames {
        writer.push(frame)?;
    }
    writer.finish()
}

/// An MP4's index and its samples, read back.
pub fn read_mp4(path: &Path) -> (Moov, Vec<Vec<u8>>) {
    let bytes = fs::read(path).unwrap();
    let mut rest = bytes.as_slice();
    let mut atoms = Vec::new();
    while !rest.is_empty() {
        atoms.push(Any::decode(&mut rest).unwrap());
    }
    let [Any::Ftyp(_), Any::Moov(moov), Any::Mdat(_)] = atoms.as_slice() else {
        panic!("expected ftyp, moov, mdat in this order");
    };
    let stbl = &moov.trak[0].mdia.minf.stbl;
    let StszSamples::Different { sizes } = &stbl.stsz.samples else {
        panic!("no sample sizes")
    };
    let mut at = stbl.co64.as_ref().unwrap().entries[0] as usize;
    let samples = sizes.iter().map(|&size| {
        at += size as usize;
        bytes[at - size as usize..at].to_vec()
    });
    (moov.clone(), samples.collect())
}

/// Decodes an MP4's frames and hands each to `check`, in order.
fn decode_mp4(path: &Path, mut check: impl FnMut(usize, &DecodedYUV<'_>)) -> usize {
    let (moov, samples) = read_mp4(path);
    let Codec::Avc1(avc1) = &moov.trak[0].mdia.minf.stbl.stsd.codecs[0] else {
        panic!("no H.264")
    };
    let mut decoder = Decoder::new().unwrap();
    let start = |unit: &[u8]| [&[0, 0, 0, 1], unit].concat();
    for unit in [
        &avc1.avcc.sequence_parameter_sets[0],
        &avc1.avcc.picture_parameter_sets[0],
    ] {
        assert!(decoder.decode(&start(unit)).unwrap().is_none());
    }
    let mut decoded = 0;
    for sample in samples {
        let mut rest = sample.as_slice();
        let mut stream = Vec::new();
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let (unit, tail) = tail.split_at(u32::from_be_bytes(*length) as usize);
            stream.extend(start(unit));
            rest = tail;
        }
        if let Some(yuv) = decoder.decode(&stream).unwrap() {
            check(decoded, &yuv);
            decoded += 1;
        }
    }
    for yuv in decoder.flush_remaining().unwrap() {
        check(decoded, &yuv);
        decoded += 1;
    }
    decoded
}

/// BT.709 limited-range Y', Cb, Cr of an 8-bit RGB colour (ITU-R BT.709-6, item 3).
fn bt709([r, g, b]: [u8; 3]) -> [f64; 3] {
    let [r, g, b] = [r, g, b].map(|level| f64::from(level) / 255.0);
    let luma = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    [
        16.0 + 219.0 * luma,
        128.0 + 224.0 * (b - luma) / 1.8556,
        128.0 + 224.0 * (r - luma) / 1.5748,
    ]
}

/// How well decoded luma agrees with the frame's, in dB.
fn luma_psnr(frame: &RgbImage, yuv: &DecodedYUV<'_>) -> f64 {
    let errors = frame.enumerate_pixels().map(|(x, y, pixel)| {
        let found = yuv.y()[y as usize * yuv.strides().0 + x as usize];
        (f64::from(found) - bt709(pixel.0)[0]).powi(2)
    });
    let pixels = f64::from(frame.width() * frame.height());
    10.0 * (255f64.powi(2) * pixels / errors.sum::<f64>()).log10()
}

#[test]
fn an_mp4_holds_every_frame_at_the_right_rate_and_quality() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("clip.mp4");
    // 83 frames cross two key frames; 98x66 is cropped from whole macroblocks.
    for ((width, height), count, fps, ticks) in [
        ((98, 66), 83, 16.0, 1024.0 / 16384.0),
        ((64, 64), 1, 12.5, 1.0 / 12.5),
        ((64, 48), 5, 23.976, 1001.0 / 24000.0),
        ((64, 48), 3, 120.0, 1.0 / 120.0),
    ] {
        let frames = frames(width, height, count);
        write(&path, &frames, fps).unwrap();

        let (moov, samples) = read_mp4(&path);
        assert_eq!(samples.len(), count as usize);
        let track = &moov.trak[0];
        let timing = &track.mdia.minf.stbl.stts.entries;
        assert_eq!(timing.len(), 1);
        assert_eq!(timing[0].sample_count, count);
        let seconds = f64::from(timing[0].sample_delta) / f64::from(track.mdia.mdhd.timescale);
        assert!((seconds - ticks).abs() < 1e-12, "{fps}: {seconds}");
        assert_eq!(
            track.tkhd.duration,
            u64::from(count * timing[0].sample_delta)
        );
        let Codec::Avc1(avc1) = &track.mdia.minf.stbl.stsd.codecs[0] else {
            panic!("no H.264")
        };
        assert_eq!(
            (u32::from(avc1.visual.width), u32::from(avc1.visual.height)),
            (width, height)
        );
        assert_eq!(avc1.colr, Some(Colr::new(1, 1, 1, false).unwrap()));
        let key_frames = &track.mdia.minf.stbl.stss.as_ref().unwrap().entries;
        assert_eq!(
            key_frames.len(),
            1 + (count as usize - 1) / (2.0 * fps).ceil() as usize
        );

        let decoded = decode_mp4(&path, |index, yuv| {
            assert_eq!(yuv.dimensions(), (width as usize, height as usize));
            let psnr = luma_psnr(&frames[index], yuv);
            assert!(psnr > 42.0, "frame {index}: {psnr} dB");
        });
        assert_eq!(decoded, count as usize);
    }
    assert_eq!(Vec::from_iter(names(folder.path())), ["clip.mp4"]);
}

/// White noise: what a model with random weights draws, and the hardest picture to encode.
#[test]
fn an_mp4_holds_noise() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("clip.mp4");
    let mut state = 1u32;
    let mut noise = || {
        RgbImage::from_fn(128, 96, |_, _| {
            Rgb(std::array::from_fn(|_| {
                // xorshift32; every other value at the extremes.
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                if state & 1 == 0 {
                    (state >> 8) as u8
                } else {
                    ((state >> 8) as i8 >> 7) as u8
                }
            }))
        })
    };
    let frames = [noise(), noise(), noise()];
    write(&path, &frames, 16.0).unwrap();
    let decoded = decode_mp4(&path, |index, yuv| {
        let psnr = luma_psnr(&frames[index], yuv);
        assert!(psnr > 35.0, "frame {index}: {psnr} dB");
    });
    assert_eq!(decoded, 3);
}

#[test]
fn an_mp4_keeps_colours() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("clip.mp4");
    let colours = [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [255, 255, 255],
        [0, 0, 0],
        [200, 120, 40],
    ];
    let patches = RgbImage::from_fn(32 * 6, 32, |x, _| Rgb(colours[x as usize / 32]));
    write(&path, &[patches.clone(), patches], 16.0).unwrap();
    decode_mp4(&path, |_, yuv| {
        for (patch, colour) in colours.into_iter().enumerate() {
            let (luma, chroma) = (patch * 32 + 16, patch * 16 + 8);
            let (stride, half, _) = yuv.strides();
            let found = [
                yuv.y()[16 * stride + luma],
                yuv.u()[8 * half + chroma],
                yuv.v()[8 * half + chroma],
            ];
            for (found, expected) in found.into_iter().zip(bt709(colour)) {
                assert!(
                    (f64::from(found) - expected).abs() <= 1.6,
                    "{colour:?}: {found}, not {expected}"
                );
            }
        }
    });
}

#[test]
fn the_same_frames_give_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let frames = frames(64, 48, 6);
    for name in ["a.mp4", "b.mp4", "a.gif", "b.gif"] {
        write(&folder.path().join(name), &frames, 16.0).unwrap();
    }
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
    assert_eq!(read("a.mp4"), read("b.mp4"));
    assert_eq!(read("a.gif"), read("b.gif"));
}

#[test]
fn a_gif_keeps_its_frames_and_duration() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("clip.gif");
    let frames = frames(70, 51, 33);
    write(&path, &frames, 16.0).unwrap();
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let mut decoder = options.read_info(fs::File::open(&path).unwrap()).unwrap();
    let (mut count, mut centiseconds) = (0, 0);
    while let Some(found) = decoder.read_next_frame().unwrap() {
        assert!([6, 7].contains(&found.delay));
        centiseconds += u32::from(found.delay);
        let errors = frames[count].as_raw().chunks(3).zip(found.buffer.chunks(4));
        let sum: f64 = errors
            .flat_map(|(a, b)| (0..3).map(|c| (f64::from(a[c]) - f64::from(b[c])).powi(2)))
            .sum();
        let psnr = 10.0 * (255f64.powi(2) * frames[count].as_raw().len() as f64 / sum).log10();
        assert!(psnr > 28.0, "frame {count}: {psnr} dB");
        count += 1;
    }
    assert_eq!(count, 33);
    assert_eq!(centiseconds, 206); // 33 / 16 s = 206.25
    assert_eq!(decoder.repeat(), gif::Repeat::Infinite);
}

#[test]
fn a_folder_holds_the_frames_of_one_clip() {
    let folder = TempDir::new().unwrap();
    let target = folder.path().join("frames");
    let slashed = folder.path().join("frames/");
    let clip = frames(31, 17, 4);
    write(&slashed, &clip, 16.0).unwrap();
    assert_eq!(Vec::from_iter(names(folder.path())), ["frames"]);
    fs::write(target.join("notes.txt"), "kept").unwrap();
    write(&target, &clip[2..], 16.0).unwrap();
    assert_eq!(
        Vec::from_iter(names(&target)),
        ["frame_00000.png", "frame_00001.png", "notes.txt"]
    );
    let first = image::open(target.join("frame_00000.png"))
        .unwrap()
        .into_rgb8();
    assert_eq!(first, clip[2]);
}

#[cfg(unix)]
#[test]
fn a_clip_gets_the_permissions_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let mode = |name: &str| {
        fs::metadata(folder.path().join(name))
            .unwrap()
            .permissions()
            .mode()
    };
    fs::write(folder.path().join("file"), "").unwrap();
    fs::create_dir(folder.path().join("folder")).unwrap();
    for (name, like) in [
        ("clip.mp4", "file"),
        ("clip.gif", "file"),
        ("frames/", "folder"),
    ] {
        write(&folder.path().join(name), &frames(16, 16, 1), 16.0).unwrap();
        assert_eq!(mode(name), mode(like), "{name}");
    }
}

#[test]
fn an_unfinished_clip_leaves_no_trace() {
    let folder = TempDir::new().unwrap();
    let frame = RgbImage::new(64, 64);
    let spec = ClipSpec {
        width: 64,
        height: 64,
        fps: 16.0,
    };
    for name in ["clip.mp4", "clip.gif", "frames/"] {
        let mut writer = ClipWriter::create(&folder.path().join(name), &spec, None).unwrap();
        writer.push(&frame).unwrap();
        assert!(writer.push(&RgbImage::new(64, 32)).is_err());
        assert_eq!(names(folder.path()).len(), 1);
        drop(writer);
        assert!(names(folder.path()).is_empty());
        let empty = ClipWriter::create(&folder.path().join(name), &spec, None).unwrap();
        assert!(empty.finish().is_err());
        assert!(names(folder.path()).is_empty());
    }
}

#[test]
fn bad_outputs_are_refused_before_any_work() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert_eq!(
        OutputKind::from_path(Path::new("x/CLIP.MP4")).unwrap(),
        OutputKind::Mp4
    );
    assert_eq!(
        OutputKind::from_path(Path::new("a.b.gif")).unwrap(),
        OutputKind::Gif
    );
    assert_eq!(
        OutputKind::from_path(Path::new("clip.mp4/")).unwrap(),
        OutputKind::Frames
    );
    assert_eq!(
        OutputKind::from_path(folder.path()).unwrap(),
        OutputKind::Frames
    );
    for name in ["clip.mov", "clip", "mp4"] {
        let error = OutputKind::from_path(Path::new(name))
            .unwrap_err()
            .to_string();
        assert!(error.contains(".mp4 or .gif"), "{error}");
    }

    for name in ["clip.mp4", "clip.gif", "frames/"] {
        check_writable(&at(name)).unwrap();
        let error = check_writable(&at("missing").join(name))
            .unwrap_err()
            .to_string();
        assert!(error.contains("does not exist"), "{error}");
    }
    check_writable(folder.path()).unwrap();
    assert!(names(folder.path()).is_empty());
    fs::write(at("file"), "").unwrap();
    assert!(
        check_writable(&at("file/"))
            .unwrap_err()
            .to_string()
            .contains("not a folder")
    );

    let refused = |name: &str, width, height, fps| {
        let error = ClipWriter::create(&at(name), &ClipSpec { width, height, fps }, None)
            .err()
            .unwrap();
        assert_eq!(Vec::from_iter(names(folder.path())), ["file"]);
        error.to_string()
    };
    assert!(refused("clip.mp4", 63, 64, 16.0).contains("even"));
    assert!(refused("clip.mp4", 8, 64, 16.0).contains("16x16"));
    assert!(refused("clip.mp4", 4096, 64, 16.0).contains("3840"));
    assert!(refused("clip.gif", 64, 64, 60.0).contains("50 frames"));
    assert!(refused("frames/", 64, 0, 16.0).contains("64x0"));
    assert!(refused("clip.mp4", 64, 64, f64::NAN).contains("NaN"));
}
