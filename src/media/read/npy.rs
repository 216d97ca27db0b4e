//! Arrays of NumPy: frames and latents, as `--dump` writes them.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use image::RgbImage;
use ndarray::Array4;
use npyz::{DType, Deserialize, NpyFile, Order, TypeChar};

use super::{Frame, check_size};

const MAGIC: &[u8] = b"\x93NUMPY";

/// The most values of latents that are read: those of 4001 frames at 720p are a quarter of it.
const MAX_LATENTS: u64 = 1 << 30;

/// Whether a file that begins like this is an array of NumPy.
pub fn is_npy(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// What an array of four axes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `[frames, height, width, 3]`.
    Frames,
    /// `[channels, frames, height, width]`.
    Latents,
}

/// What the file holds, `None` when it is no array of NumPy.
///
/// # Errors
/// When it cannot be read, or its shape is neither's.
pub fn kind(path: &Path) -> Result<Option<Kind>> {
    let cannot = || format!("cannot read {}", path.display());
    let mut file = BufReader::new(File::open(path).with_context(cannot)?);
    let mut start = Vec::new();
    (&mut file)
        .take(6)
        .read_to_end(&mut start)
        .with_context(cannot)?;
    if !is_npy(&start) {
        return Ok(None);
    }
    let file = BufReader::new(File::open(path).with_context(cannot)?);
    let npy = open(file).with_context(cannot)?;
    kind_of(npy.shape()).map(Some).with_context(cannot)
}

fn kind_of(shape: &[u64]) -> Result<Kind> {
    match shape {
        [_, _, _, 3] => Ok(Kind::Frames),
        [_, _, _, _] => Ok(Kind::Latents),
        _ => bail!(
            "its shape is {shape:?}; expected frames as [frames, height, width, 3] or latents as \
             [channels, frames, height, width]"
        ),
    }
}

fn open<R: Read>(file: R) -> Result<NpyFile<R>> {
    let npy = NpyFile::new(file).context("the array's header is damaged")?;
    ensure!(
        npy.order() == Order::C,
        "it is stored column by column (Fortran's order); save numpy.ascontiguousarray(array)"
    );
    Ok(npy)
}

/// Gives each frame of `[frames, height, width, 3]`: floats in [-1, 1], as the VAE decodes them, or
/// bytes.
pub(super) fn read_frames(
    file: impl Read,
    each: &mut dyn FnMut(Frame) -> Result<()>,
) -> Result<()> {
    let npy = open(file)?;
    let shape = npy.shape().to_vec();
    let [count, height, width, 3] = shape[..] else {
        bail!("its shape is {shape:?}; expected frames as [frames, height, width, 3]");
    };
    check_size(width, height)?;
    let (width, height) = (u32::try_from(width)?, u32::try_from(height)?);
    let signed = |value: f32| ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    let mut frame = |values: Vec<f32>| {
        let non_finite = values.iter().filter(|value| !value.is_finite()).count();
        // What is no number becomes 0, as in a cast of the reference's.
        let levels = values.into_iter().map(signed).collect();
        let pixels = RgbImage::from_raw(width, height, levels).context("a frame is too large")?;
        each(Frame { pixels, non_finite })
    };
    let size = 3 * width as usize * height as usize;
    match element(&npy.dtype()) {
        Some(Element::F16) => chunks::<f16, _>(npy, count, size, |v| frame(to_f32(v))),
        Some(Element::F32) => chunks::<f32, _>(npy, count, size, frame),
        Some(Element::F64) => chunks::<f64, _>(npy, count, size, |v| {
            frame(v.into_iter().map(|value| value as f32).collect())
        }),
        Some(Element::U8) => chunks::<u8, _>(npy, count, size, |levels| {
            let pixels =
                RgbImage::from_raw(width, height, levels).context("a frame is too large")?;
            each(pixels.into())
        }),
        None => bail!(unsupported(
            &npy.dtype(),
            "float16, float32, float64 or uint8"
        )),
    }
}

/// Latents `[channels, frames, height, width]` of any float type.
///
/// # Errors
/// When the file cannot be read, is damaged, or holds something else.
pub fn read_latents(path: &Path) -> Result<Array4<f32>> {
    let read = || {
        let npy = open(BufReader::new(File::open(path)?))?;
        let shape = npy.shape().to_vec();
        let [channels, frames, height, width] = shape[..] else {
            bail!("its shape is {shape:?}; expected [channels, frames, height, width]");
        };
        let total = shape
            .iter()
            .try_fold(1_u64, |total, &side| total.checked_mul(side));
        ensure!(
            total.is_some_and(|total| (1..=MAX_LATENTS).contains(&total)),
            "its shape is {shape:?}; expected 1 to {MAX_LATENTS} values"
        );
        let cut = "the array's data is cut off";
        let values: Vec<f32> = match element(&npy.dtype()) {
            Some(Element::F16) => to_f32(npy.into_vec::<f16>().context(cut)?),
            Some(Element::F32) => npy.into_vec().context(cut)?,
            Some(Element::F64) => {
                let values = npy.into_vec::<f64>().context(cut)?;
                values.into_iter().map(|value| value as f32).collect()
            }
            _ => bail!(unsupported(&npy.dtype(), "float16, float32 or float64")),
        };
        let shape = [channels, frames, height, width].map(|side| side as usize);
        Ok(Array4::from_shape_vec(shape, values)?)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

/// Types that are read.
enum Element {
    F16,
    F32,
    F64,
    U8,
}

fn element(dtype: &DType) -> Option<Element> {
    let DType::Plain(plain) = dtype else {
        return None;
    };
    match (plain.type_char(), plain.size_field()) {
        (TypeChar::Float, 2) => Some(Element::F16),
        (TypeChar::Float, 4) => Some(Element::F32),
        (TypeChar::Float, 8) => Some(Element::F64),
        (TypeChar::Uint, 1) => Some(Element::U8),
        _ => None,
    }
}

fn unsupported(dtype: &DType, expected: &str) -> String {
    format!(
        "its values are of the type {}; expected {expected}",
        dtype.descr()
    )
}

fn to_f32(values: Vec<f16>) -> Vec<f32> {
    values.into_iter().map(f16::to_f32).collect()
}

/// Gives `count` times the next `size` values.
fn chunks<T: Deserialize, R: Read>(
    npy: NpyFile<R>,
    count: u64,
    size: usize,
    mut each: impl FnMut(Vec<T>) -> Result<()>,
) -> Result<()> {
    let mut values = npy
        .data::<T>()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    for index in 0..count {
        let chunk: std::io::Result<Vec<T>> = values.by_ref().take(size).collect();
        let chunk = chunk.ok().filter(|chunk| chunk.len() == size);
        each(chunk.with_context(|| format!("the array's data is cut off in frame {index}"))?)?;
    }
    Ok(())
}
