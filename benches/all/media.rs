//! A picture of 1280 x 960 in, clips of 832 x 480 out.

use divan::Bencher;
use divan::counter::ItemsCount;
use image::{Rgb, RgbImage};
use ndarray::Array3;
use wan_i2v::media::Resize;
use wan_i2v::media::clip::{ClipSpec, ClipWriter};
use wan_i2v::media::frames::to_rgb8;
use wan_i2v::media::picture::Picture;

const PICTURE: (u32, u32) = (1280, 960);
const CLIP: (u32, u32) = (832, 480);
const FRAMES: u32 = 5;

/// Soft gradients that move with `frame`, and a little noise, which no encoder gets for nothing.
fn drawing((width, height): (u32, u32), frame: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let noise = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503)) >> 9 & 7;
        let ramp = |value: u32| ((value / 4 + noise) % 256) as u8;
        Rgb([
            ramp(x + 8 * frame),
            ramp(y + 4 * frame),
            ramp(x + y + 2 * frame),
        ])
    })
}

/// Items are pixels of the file.
#[divan::bench(args = ["png", "jpg"])]
fn open_picture(bencher: Bencher, extension: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("start.{extension}"));
    drawing(PICTURE, 0).save(&path).unwrap();
    let pixels = ItemsCount::new(PICTURE.0 * PICTURE.1);
    bencher
        .counter(pixels)
        .bench_local(|| Picture::open(&path).unwrap());
}

/// Items are pixels of the result.
#[divan::bench(args = [Resize::Lanczos, Resize::Bicubic])]
fn resize_picture(bencher: Bencher, filter: Resize) {
    let drawing = drawing(PICTURE, 0);
    let shape = (PICTURE.1 as usize, PICTURE.0 as usize, 3);
    let values = drawing.as_raw().iter().map(|&v| f32::from(v) / 255.0);
    let pixels = Array3::from_shape_vec(shape, values.collect()).unwrap();
    let picture = Picture::from_pixels(pixels).unwrap();
    let (width, height) = (CLIP.0 as usize, CLIP.1 as usize);
    bencher
        .counter(ItemsCount::new(width * height))
        .bench_local(|| picture.resized(width, height, filter).unwrap());
}

/// Items are frames.
#[divan::bench]
fn frame_to_8_bits(bencher: Bencher) {
    let shape = (CLIP.1 as usize, CLIP.0 as usize, 3);
    let frame = Array3::from_shape_fn(shape, |(y, x, c)| ((x + y + c) % 200) as f32 / 100.0 - 1.0);
    bencher
        .counter(ItemsCount::new(1_usize))
        .bench_local(|| to_rgb8(frame.view()).unwrap());
}

/// Items are frames, of which a clip has five.
#[divan::bench(args = ["clip.mp4", "clip.gif", "frames/"])]
fn write_clip(bencher: Bencher, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let frames: Vec<RgbImage> = (0..FRAMES).map(|frame| drawing(CLIP, frame)).collect();
    let spec = ClipSpec {
        width: CLIP.0,
        height: CLIP.1,
        fps: 16.0,
    };
    let path = folder.path().join(name);
    bencher.counter(ItemsCount::new(FRAMES)).bench_local(|| {
        let mut writer = ClipWriter::create(&path, &spec, None).unwrap();
        for frame in &frames {
            writer.push(frame).unwrap();
        }
        writer.finish().unwrap();
    });
}
