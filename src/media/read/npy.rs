//! Arrays of NumPy: frames and latents, as `--dump` writes them.

use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use image::RgbImage;
use ndarray::Array4;

use super::{Frame, check_size};
use crate::util::files::open_regular;
use crate::util::npy::{Element, Header, MAGIC};
use crate::util::show::Show;

/// The most values of latents that are read: those of 4001 frames at 720p are a quarter of it.
const MAX_LATENTS: u64 = 1 << 30;

/// Values that are read at a time.
const PIECE: usize = 1 << 20;

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
    let cannot = || format!("cannot read {}", path.shown());
    let mut file = BufReader::new(open_regular(path).with_context(cannot)?);
    let mut start = Vec::new();
    (&mut file)
        .take(6)
        .read_to_end(&mut start)
        .with_context(cannot)?;
    if !is_npy(&start) {
        return Ok(None);
    }
    let mut file = BufReader::new(open_regular(path).with_context(cannot)?);
    let header = header(&mut file).with_context(cannot)?;
    kind_of(&header.shape).map(Some).with_context(cannot)
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

fn header(file: &mut impl Read) -> Result<Header> {
    let header = Header::read(file)?;
    ensure!(
        !header.fortran_order || header.shape.len() < 2,
        "it is stored column by column (Fortran's order); save numpy.ascontiguousarray(array)"
    );
    Ok(header)
}

/// Gives each frame of `[frames, height, width, 3]`: floats in [-1, 1], as the VAE decodes them, or
/// bytes.
pub(super) fn read_frames(
    mut file: impl Read,
    each: &mut dyn FnMut(Frame) -> Result<()>,
) -> Result<()> {
    let header = header(&mut file)?;
    let shape = &header.shape;
    let [count, height, width, 3] = shape[..] else {
        bail!("its shape is {shape:?}; expected frames as [frames, height, width, 3]");
    };
    check_size(width, height)?;
    let (columns, rows) = (u32::try_from(width)?, u32::try_from(height)?);
    let signed = |value: f32| ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    let frame = |values: Vec<f32>| -> Result<Frame> {
        let non_finite = values.iter().filter(|value| !value.is_finite()).count();
        // What is no number becomes 0, as in a cast of the reference's.
        let levels = values.into_iter().map(signed).collect();
        let pixels = RgbImage::from_raw(columns, rows, levels).context("a frame is too large")?;
        Ok(Frame { pixels, non_finite })
    };
    let size = 3 * width as usize * height as usize;
    let element = header.element()?;
    let width = match element {
        Element::F16 => 2,
        Element::F32 => 4,
        Element::F64 => 8,
        Element::Uint(1) => 1,
        _ => bail!(unsupported(&header, "float16, float32, float64 or uint8")),
    };
    let mut bytes = vec![0; width * size];
    for index in 0..count {
        file.read_exact(&mut bytes)
            .with_context(|| format!("the array's data is cut off in frame {index}"))?;
        match element {
            Element::Uint(_) => {
                let pixels = RgbImage::from_raw(columns, rows, bytes.clone());
                each(pixels.context("a frame is too large")?.into())?;
            }
            _ => each(frame(floats(element, &bytes))?)?,
        }
    }
    Ok(())
}

/// Latents `[channels, frames, height, width]` of any float type.
///
/// # Errors
/// When the file cannot be read, is damaged, or holds something else.
pub fn read_latents(path: &Path) -> Result<Array4<f32>> {
    let read = || {
        let mut file = BufReader::new(open_regular(path)?);
        let header = header(&mut file)?;
        let shape = &header.shape;
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
        let element = header.element()?;
        let bytes = match element {
            Element::F16 => 2,
            Element::F32 => 4,
            Element::F64 => 8,
            _ => bail!(unsupported(&header, "float16, float32 or float64")),
        };
        // Piece by piece: what the header claims need not be there.
        let mut values = Vec::new();
        let mut left = total.unwrap_or(0) as usize;
        while left > 0 {
            let mut piece = vec![0; bytes * left.min(PIECE)];
            file.read_exact(&mut piece)
                .context("the array's data is cut off")?;
            values.extend(floats(element, &piece));
            left -= left.min(PIECE);
        }
        let shape = [channels, frames, height, width].map(|side| side as usize);
        Ok(Array4::from_shape_vec(shape, values)?)
    };
    read().with_context(|| format!("cannot read {}", path.shown()))
}

fn unsupported(header: &Header, expected: &str) -> String {
    format!(
        "its values are of the type '{}'; expected {expected}",
        header.descr
    )
}

/// Little-endian floats of the type `element`, as float32.
fn floats(element: Element, bytes: &[u8]) -> Vec<f32> {
    match element {
        Element::F16 => {
            let (values, _) = bytes.as_chunks::<2>();
            values
                .iter()
                .map(|v| f16::from_le_bytes(*v).to_f32())
                .collect()
        }
        Element::F64 => {
            let (values, _) = bytes.as_chunks::<8>();
            values
                .iter()
                .map(|v| f64::from_le_bytes(*v) as f32)
                .collect()
        }
        _ => {
            let (values, _) = bytes.as_chunks::<4>();
            values.iter().map(|v| f32::from_le_bytes(*v)).collect()
        }
    }
}
