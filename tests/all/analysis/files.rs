//! Clips and arrays read from files, sound and damaged ones.

use std::fs;
use std::path::Path;

use half::f16;
use image::{DynamicImage, RgbImage};
use npyz::{WriteOptions, WriterBuilder};
use tempfile::TempDir;
use wan_i2v::diagnose::analyze::{self, Symptom, analyze};
use wan_i2v::media::clip::{ClipSpec, ClipWriter};
use wan_i2v::media::metrics::psnr;
use wan_i2v::media::picture::Picture;
use wan_i2v::media::read;
use wan_i2v::media::{Fit, Resize};

use super::drawn::{HEIGHT, WIDTH, moving, with_checkerboard};

fn write(path: &Path, frames: &[RgbImage]) {
    let (width, height) = frames[0].dimensions();
    let spec = ClipSpec {
        width,
        height,
        fps: 16.0,
    };
    let mut writer = ClipWriter::create(path, &spec, None).unwrap();
    for frame in frames {
        writer.push(frame).unwrap();
    }
    writer.finish().unwrap();
}

fn frames_of(path: &Path) -> anyhow::Result<Vec<RgbImage>> {
    let mut frames = Vec::new();
    read::frames(path, &mut |frame| {
        frames.push(frame.pixels);
        Ok(())
    })?;
    Ok(frames)
}

fn write_npy<T: npyz::AutoSerialize + Copy>(path: &Path, shape: &[u64], values: &[T]) {
    let file = fs::File::create(path).unwrap();
    let options = WriteOptions::new().default_dtype().shape(shape);
    let mut writer = options.writer(file).begin_nd().unwrap();
    writer.extend(values.iter().copied()).unwrap();
    writer.finish().unwrap();
}

fn error(path: &Path) -> String {
    let error = analyze::file(path, None).map(|_| ()).unwrap_err();
    format!("{error:#}")
}

#[test]
fn clips_come_back_as_they_were_written() {
    let folder = TempDir::new().unwrap();
    // 35 frames cross a key frame.
    let clip = moving(35);
    let source = analyze(clip.clone(), None).unwrap();
    for (name, least, most_off) in [
        ("c.mp4", 40.0, 0.5),
        ("c.gif", 28.0, 3.0),
        ("c/", f64::INFINITY, 0.0),
    ] {
        let path = folder.path().join(name);
        write(&path, &clip);
        let read = frames_of(&path).unwrap();
        assert_eq!(read.len(), clip.len(), "{name}");
        // In luma: an MP4 has a quarter of the colours' pixels.
        for (index, (a, b)) in read.iter().zip(&clip).enumerate() {
            let [a, b] = [a, b].map(|frame| DynamicImage::from(frame.clone()).into_luma8());
            let [a, b] = [a, b].map(|luma| DynamicImage::from(luma).into_rgb8());
            let psnr = psnr(&a, &b).unwrap();
            assert!(psnr >= least, "{name}, frame {index}: {psnr} dB");
        }
        let report = analyze::file(&path, None).unwrap();
        for (a, b) in report.frames.iter().zip(&source.frames) {
            assert!((a.mean - b.mean).abs() <= most_off, "{name}: {a:?} {b:?}");
            assert!(
                (a.contrast - b.contrast).abs() <= most_off,
                "{name}: {a:?} {b:?}"
            );
        }
        assert!(!report.alarm, "{name}: {:#?}", report.verdicts);
    }
}

/// Neither the matrix nor the range is taken for another.
#[test]
fn an_mp4_keeps_its_colours() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("c.mp4");
    let colours = [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [255; 3],
        [0; 3],
        [200, 120, 40],
    ];
    let patches = RgbImage::from_fn(32 * 6, 32, |x, _| image::Rgb(colours[x as usize / 32]));
    write(&path, &[patches]);
    let read = frames_of(&path).unwrap();
    for (patch, colour) in colours.into_iter().enumerate() {
        let found = read[0].get_pixel(patch as u32 * 32 + 16, 16).0;
        for (found, expected) in found.into_iter().zip(colour) {
            assert!(found.abs_diff(expected) <= 4, "{colour:?}: {found}");
        }
    }
}

#[test]
fn a_checkerboard_survives_the_encoding() {
    let folder = TempDir::new().unwrap();
    for (place, period) in [(0, 2), (1, 8), (2, 16)] {
        let clip: Vec<_> = moving(6)
            .iter()
            .map(|f| with_checkerboard(f, period, 8))
            .collect();
        let path = folder.path().join("c.mp4");
        write(&path, &clip);
        let report = analyze::file(&path, None).unwrap();
        let found = report.frames[3].checkerboard.by_period()[place].1;
        assert!((found - 8.0).abs() < 1.0, "{period}: {found}");
        assert!(report.alarm);
    }
}

#[test]
fn the_picture_is_resized_as_the_clip_was() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("start.png");
    let large = RgbImage::from_fn(200, 150, |x, y| {
        image::Rgb([x as u8, y as u8, (x ^ y) as u8])
    });
    large.save(&path).unwrap();
    let picture = Picture::open(&path).unwrap();
    let first = |resize| {
        let pixels = picture
            .resized(WIDTH as usize, HEIGHT as usize, resize)
            .unwrap();
        wan_i2v::media::frames::to_rgb8(pixels.view()).unwrap()
    };
    let frames = folder.path().join("frames/");
    write(&frames, &[first(Resize::Bicubic)]);
    let psnr = |resize| {
        let report = analyze::file(&frames, Some((&picture, resize, Fit::Stretch))).unwrap();
        report.first_frame.unwrap().psnr
    };
    assert_eq!(psnr(Resize::Bicubic), None);
    assert!(psnr(Resize::Lanczos).unwrap() < 60.0);
}

#[test]
fn arrays_of_frames_are_read_in_every_type() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("frames.npy");
    let clip = moving(6);
    let shape = [6, u64::from(HEIGHT), u64::from(WIDTH), 3];
    let levels: Vec<u8> = clip.iter().flat_map(|f| f.as_raw().clone()).collect();
    let signed: Vec<f32> = levels
        .iter()
        .map(|&level| f32::from(level) / 127.5 - 1.0)
        .collect();
    write_npy(&path, &shape, &levels);
    assert_eq!(frames_of(&path).unwrap(), clip);
    write_npy(&path, &shape, &signed);
    assert_eq!(frames_of(&path).unwrap(), clip);
    let double: Vec<f64> = signed.iter().map(|&v| v.into()).collect();
    write_npy(&path, &shape, &double);
    assert_eq!(frames_of(&path).unwrap(), clip);
    let half: Vec<f16> = signed.iter().map(|&v| f16::from_f32(v)).collect();
    write_npy(&path, &shape, &half);
    assert!(
        frames_of(&path)
            .unwrap()
            .iter()
            .zip(&clip)
            .all(|(a, b)| psnr(a, b).unwrap() > 50.0)
    );

    let mut broken = signed;
    broken[3 * (WIDTH * HEIGHT) as usize * 2 + 5] = f32::NAN;
    write_npy(&path, &shape, &broken);
    let report = analyze::file(&path, None).unwrap();
    assert_eq!(report.frames[2].non_finite, 1);
    let verdict = report.verdict(Symptom::NonFinite).unwrap();
    assert_eq!((verdict.first, verdict.last), (Some(2), Some(2)));
}

#[test]
fn arrays_of_latents_are_told_from_frames() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("latents.npy");
    let values: Vec<f32> = (0..16 * 2 * 4 * 6)
        .map(|i| (i as f32 / 3.0).sin())
        .collect();
    write_npy(&path, &[16, 2, 4, 6], &values);
    let report = analyze::file(&path, None).unwrap();
    assert_eq!((report.latents.len(), report.frames.len()), (2, 0));
    assert_eq!((report.size.width, report.size.height), (6, 4));
    assert_eq!(report.latents[0].channels.len(), 16);
}

#[test]
fn arrays_that_are_neither_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.npy");
    let refused = |part: &str| {
        let error = error(&path);
        assert!(
            error.contains("a.npy") && error.contains(part),
            "{part}: {error}"
        );
    };
    write_npy(&path, &[4], &[1_i64; 4]);
    refused("its shape is [4]; expected frames as [frames, height, width, 3]");
    write_npy(&path, &[1, 2, 2, 3], &[1_i64; 12]);
    refused("expected float16, float32, float64 or uint8");
    write_npy(&path, &[1, 2, 2, 2], &[1_u8; 8]);
    refused("of the type '|u1'; expected float16, float32 or float64");
    write_npy(&path, &[1, 2, 2, 2], &[1_f32; 8]);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    refused("cut off");
    fs::write(&path, &whole[..40]).unwrap();
    refused("its header is cut off");
    write_npy(&path, &[2, 2, 2, 3], &[0.5_f32; 24]);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    refused("cut off in frame 1");
    write_npy::<f32>(&path, &[0, 2, 2, 3], &[]);
    refused("no frames");
    write_npy::<f32>(&path, &[16, 0, 2, 2], &[]);
    refused("expected 1 to");
    // A shape of more values than there is memory, in a file of a few bytes.
    let huge = "{'descr': '<f4', 'fortran_order': False, 'shape': (16, 9999999, 99999, 9999), }";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(huge.len()).unwrap().to_le_bytes());
    bytes.extend(huge.bytes());
    fs::write(&path, &bytes).unwrap();
    refused("expected 1 to");
    let options = WriteOptions::<f32>::new()
        .default_dtype()
        .shape(&[1, 2, 2, 3]);
    let file = fs::File::create(&path).unwrap();
    let mut writer = options
        .order(npyz::Order::Fortran)
        .writer(file)
        .begin_nd()
        .unwrap();
    writer.extend([0.0_f32; 12]).unwrap();
    writer.finish().unwrap();
    refused("numpy.ascontiguousarray");
}

#[test]
fn folders_of_other_programs_are_read_in_order() {
    let folder = TempDir::new().unwrap();
    let clip = moving(12);
    for (index, frame) in clip.iter().enumerate() {
        frame
            .save(folder.path().join(format!("shot {}.png", index + 1)))
            .unwrap();
    }
    fs::write(folder.path().join("notes.txt"), "no frame").unwrap();
    assert_eq!(frames_of(folder.path()).unwrap(), clip);
    // Where there are frames of this program, what else is there is none of the clip.
    clip[7].save(folder.path().join("frame_00000.png")).unwrap();
    assert_eq!(frames_of(folder.path()).unwrap(), [clip[7].clone()]);
}

#[test]
fn folders_that_are_no_clip_are_refused() {
    let folder = TempDir::new().unwrap();
    assert!(error(folder.path()).contains("holds no frames"));
    let at = |name: &str| folder.path().join(name);
    RgbImage::new(32, 32).save(at("frame_00000.png")).unwrap();
    RgbImage::new(32, 16).save(at("frame_00001.png")).unwrap();
    assert!(error(folder.path()).contains("frame 1 is 32x16 pixels, the one before 32x32"));
    fs::write(at("frame_00001.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    assert!(error(folder.path()).contains("frame_00001.png"));
    assert!(error(&at("none")).contains("none"));
    fs::write(at("empty.mp4"), "").unwrap();
    assert!(error(&at("empty.mp4")).contains("the file is empty"));
    fs::write(at("text.mp4"), "no video at all").unwrap();
    assert!(error(&at("text.mp4")).contains("no MP4, GIF or NumPy array"));
}

/// Cut anywhere, and with any byte changed: an error that names the file, or a clip; no panic.
#[test]
fn damaged_clips_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("c.mp4");
    let bad = folder.path().join("bad.mp4");
    write(&path, &moving(3));
    let whole = fs::read(&path).unwrap();
    for length in [9, 30, 200, 400, whole.len() / 2, whole.len() - 1] {
        fs::write(&bad, &whole[..length]).unwrap();
        let error = error(&bad);
        assert!(error.contains("bad.mp4"), "{length}: {error}");
    }
    // The index is in front.
    let index = whole.windows(4).position(|w| w == b"mdat").unwrap();
    for at in (8..index).step_by(3) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(&bad, &bytes).unwrap();
        let _ = analyze::file(&bad, None);
    }
    let gif = folder.path().join("c.gif");
    write(&gif, &moving(3));
    let whole = fs::read(&gif).unwrap();
    for length in [7, 20, 900, whole.len() / 2] {
        fs::write(&gif, &whole[..length]).unwrap();
        let error = error(&gif);
        assert!(error.contains("c.gif"), "{length}: {error}");
    }
}
