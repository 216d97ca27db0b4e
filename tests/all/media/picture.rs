//! Start pictures, against what PIL and PyTorch make of the same files.

use std::fs;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageBuffer, Luma, LumaA, Rgb, Rgba};
use ndarray::{Array3, ArrayD};
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;
use wan_i2v::media::Resize;
use wan_i2v::media::picture::Picture;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/media")
        .join(name)
}

/// All tensors of a golden file (see scripts/golden_media.py) as f32.
fn golden(name: &str) -> Vec<(String, ArrayD<f32>)> {
    let bytes = fs::read(data(name)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let read = |view: safetensors::tensor::TensorView<'_>| -> Vec<f32> {
        match view.dtype() {
            Dtype::U8 => view
                .data()
                .iter()
                .map(|&level| f32::from(level) / 255.0)
                .collect(),
            _ => {
                let chunks = view.data().chunks_exact(4);
                chunks
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect()
            }
        }
    };
    tensors
        .iter()
        .map(|(name, view)| {
            let shape = view.shape().to_vec();
            (
                name.to_owned(),
                ArrayD::from_shape_vec(shape, read(view)).unwrap(),
            )
        })
        .collect()
}

fn largest_difference<'a>(
    a: impl IntoIterator<Item = &'a f32>,
    b: impl IntoIterator<Item = &'a f32>,
) -> f32 {
    a.into_iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn pictures_decode_as_in_pil() {
    let golden = golden("pictures.safetensors");
    assert_eq!(golden.len(), 14);
    for (name, expected) in golden {
        let picture = Picture::open(&data(&name)).unwrap();
        assert_eq!(picture.pixels().shape(), expected.shape(), "{name}");
        let difference = 255.0 * largest_difference(picture.pixels(), &expected);
        // JPEG leaves the inverse transform's rounding to the decoder, and how halved colour planes
        // are interpolated.
        let tolerance = match name.split_once('.').unwrap() {
            ("subsampled", _) => 10.5,
            (_, "jpg") => 3.5,
            _ => 0.01,
        };
        assert!(difference <= tolerance, "{name}: {difference} levels");
    }
}

#[test]
fn resizing_agrees_with_torch_and_pil() {
    let golden = golden("resize.safetensors");
    let find = |name: &str| &golden.iter().find(|(n, _)| n == name).unwrap().1;
    let mut compared = 0;
    for (name, expected) in &golden {
        let (filter, tolerance) = match name.split('_').next().unwrap() {
            "bicubic" => (Resize::Bicubic, 1e-5),
            "lanczos" => (Resize::Lanczos, 1e-4),
            _ => continue,
        };
        let source = find(&format!("source_{}", name.split('_').nth(1).unwrap()));
        let source: Array3<f32> = source.clone().into_dimensionality().unwrap();
        let picture = Picture::from_pixels(source).unwrap();
        let (height, width) = (expected.shape()[0], expected.shape()[1]);
        let resized = picture.resized(width, height, filter).unwrap();
        assert_eq!(resized.shape(), expected.shape());
        let difference = largest_difference(&resized, expected);
        assert!(difference <= tolerance, "{name}: {difference}");
        compared += 1;
    }
    assert_eq!(compared, 12);
}

#[test]
fn the_own_size_leaves_pixels_unchanged() {
    let picture = Picture::open(&data("rgb.png")).unwrap();
    for filter in [Resize::Lanczos, Resize::Bicubic] {
        let same = picture
            .resized(picture.width(), picture.height(), filter)
            .unwrap();
        assert_eq!(same, picture.pixels().mapv(|unit| (unit - 0.5) / 0.5));
    }
    assert!(picture.resized(0, 16, Resize::Lanczos).is_err());
}

/// Saves an image as PNG and reads it back.
fn reread(image: impl Into<DynamicImage>) -> Picture {
    let folder = TempDir::new().unwrap();
    // The content decides, not the name.
    let path = folder.path().join("picture.jpg");
    image
        .into()
        .save_with_format(&path, image::ImageFormat::Png)
        .unwrap();
    Picture::open(&path).unwrap()
}

fn first_pixel(picture: &Picture) -> [f32; 3] {
    std::array::from_fn(|channel| picture.pixels()[[0, 0, channel]])
}

#[test]
fn sixteen_bits_keep_their_precision_and_alpha_lies_over_white() {
    let deep = ImageBuffer::from_pixel(2, 1, Rgb([1u16, 32768, 65535]));
    assert_eq!(
        first_pixel(&reread(deep)),
        [1.0, 32768.0, 65535.0].map(|v| v / 65535.0)
    );
    let deep_grey = ImageBuffer::from_pixel(2, 1, Luma([257u16 * 3 + 1]));
    assert_eq!(first_pixel(&reread(deep_grey)), [772.0 / 65535.0; 3]);

    let close = |found: [f32; 3], expected: [f32; 3]| {
        assert!(
            largest_difference(&found, &expected) < 1e-6,
            "{found:?}, not {expected:?}"
        );
    };
    let clear = ImageBuffer::from_pixel(2, 1, Rgba([200u8, 10, 30, 0]));
    close(first_pixel(&reread(clear)), [1.0; 3]);
    let half = ImageBuffer::from_pixel(2, 1, Rgba([255u8, 0, 51, 51]));
    close(first_pixel(&reread(half)), [1.0, 0.8, 0.84]);
    let grey = ImageBuffer::from_pixel(2, 1, LumaA([0u8, 51]));
    close(first_pixel(&reread(grey)), [0.8; 3]);
    let opaque = ImageBuffer::from_pixel(2, 1, Rgba([200u8, 10, 30, 255]));
    assert_eq!(
        first_pixel(&reread(opaque)),
        [200.0, 10.0, 30.0].map(|v| v / 255.0)
    );
}

#[test]
fn what_is_no_picture_is_refused_with_a_reason() {
    let folder = TempDir::new().unwrap();
    let error = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = format!("{:#}", Picture::open(&path).unwrap_err());
        assert!(error.contains(name), "{error}");
        error
    };
    assert!(error("empty.png", b"").contains("is empty"));
    assert!(error("text.jpg", b"not a picture, but long enough").contains("no PNG, JPEG, WebP"));
    assert!(error("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1").contains("HEIC"));
    assert!(error("anim.gif", b"GIF89a\x01\0\x01\0\0\0\0").contains("damaged"));

    for name in [
        "rgb.png",
        "rgb.jpg",
        "progressive.jpg",
        "rgb.webp",
        "lossy.webp",
    ] {
        let whole = fs::read(data(name)).unwrap();
        // A PNG without the last checksum is complete all the same.
        for keep in (4..whole.len() - 5).step_by(7) {
            error(name, &whole[..keep]);
        }
    }

    // A PNG header claims its size in bytes 16 to 23.
    let claim = |width: u32, height: u32| {
        let mut png = fs::read(data("rgb.png")).unwrap();
        png[16..20].copy_from_slice(&width.to_be_bytes());
        png[20..24].copy_from_slice(&height.to_be_bytes());
        let checksum = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&checksum.to_be_bytes());
        png
    };
    assert!(Picture::open(&data("rgb.png")).is_ok());
    assert!(error("zero.png", &claim(0, 16)).contains("zero.png"));
    assert!(error("wide.png", &claim(1 << 30, 1)).contains("wide.png"));
    assert!(error("bomb.png", &claim(60_000, 60_000)).contains("60000x60000"));
    assert!(error("lying.png", &claim(24, 400)).contains("damaged"));

    let missing = Picture::open(&folder.path().join("missing.png")).unwrap_err();
    assert!(format!("{missing:#}").contains("missing.png"));
    assert!(format!("{:#}", Picture::open(folder.path()).unwrap_err()).contains("folder"));
}

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
