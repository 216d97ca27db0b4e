//! Resizing in floating point.

use anyhow::{Context, Result};
use image::imageops::{self, FilterType};
use image::{ImageBuffer, Rgb};
use ndarray::{Array3, ArrayView3, Axis};
use serde::{Deserialize, Serialize};

/// How the start picture is brought to the clip's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resize {
    /// Antialiased Lanczos (3 lobes), as PIL's `LANCZOS`, without its rounding to 8 bits; the
    /// result is clamped to the picture's range. Best for pictures larger than the clip.
    #[default]
    Lanczos,
    /// What the reference does: `torch.nn.functional.interpolate(mode="bicubic")` with
    /// `align_corners=False` and no antialiasing. Not clamped.
    Bicubic,
}

impl std::fmt::Display for Resize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Resize::Lanczos => "lanczos",
            Resize::Bicubic => "bicubic",
        })
    }
}

/// How a picture of another shape than the clip's is brought into it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Its middle fills the frame; what does not fit is cut off.
    #[default]
    Crop,
    /// All of it stands in the middle, between black bars.
    Pad,
    /// All of it fills the frame, in the frame's shape, as in the reference.
    Stretch,
}

impl std::fmt::Display for Fit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Fit::Crop => "crop",
            Fit::Pad => "pad",
            Fit::Stretch => "stretch",
        })
    }
}

/// The largest size of the shape of `shape` within `frame`, in whole pixels, of which there is one
/// at least.
pub fn within(frame: (usize, usize), shape: (usize, usize)) -> (usize, usize) {
    let side = |most: usize, of: usize, by: usize, over: usize| {
        let exact = of as f64 * by as f64 / over as f64;
        (exact.round() as usize).clamp(1, most)
    };
    let (width, height) = (frame.0 as u128, frame.1 as u128);
    match width * shape.1 as u128 > height * shape.0 as u128 {
        true => (side(frame.0, frame.1, shape.0, shape.1), frame.1),
        false => (frame.0, side(frame.1, frame.0, shape.1, shape.0)),
    }
}

/// PyTorch's bicubic coefficient: `A` in `aten/src/ATen/native/UpSample.h`.
const BICUBIC_A: f32 = -0.75;

/// Lanczos resizing of `[height, width, 3]` in [0, 1] (standard layout) to the given size.
pub(super) fn lanczos(
    pixels: ArrayView3<'_, f32>,
    width: usize,
    height: usize,
) -> Result<Array3<f32>> {
    let (from_height, from_width, _) = pixels.dim();
    let source = pixels
        .to_slice()
        .and_then(|values| {
            let (width, height) = (from_width.try_into().ok()?, from_height.try_into().ok()?);
            ImageBuffer::<Rgb<f32>, &[f32]>::from_raw(width, height, values)
        })
        .context("a picture to resize must hold its RGB rows one after the other")?;
    let (to_width, to_height) = (u32::try_from(width)?, u32::try_from(height)?);
    let resized = imageops::resize(&source, to_width, to_height, FilterType::Lanczos3);
    Ok(Array3::from_shape_vec(
        (height, width, 3),
        resized.into_raw(),
    )?)
}

/// Bicubic resizing of `[height, width, channels]` to the given size, as PyTorch does it.
pub(crate) fn bicubic(pixels: ArrayView3<'_, f32>, width: usize, height: usize) -> Array3<f32> {
    let narrowed = bicubic_axis(pixels, Axis(1), width);
    bicubic_axis(narrowed.view(), Axis(0), height)
}

/// One of bicubic's two passes: resamples one axis to `size`.
fn bicubic_axis(pixels: ArrayView3<'_, f32>, axis: Axis, size: usize) -> Array3<f32> {
    let from = pixels.len_of(axis);
    let mut shape = pixels.raw_dim();
    shape[axis.index()] = size;
    let mut resized = Array3::zeros(shape);
    for (index, mut lane) in resized.axis_iter_mut(axis).enumerate() {
        for (source, weight) in bicubic_taps(index, from, size) {
            lane.scaled_add(weight, &pixels.index_axis(axis, source));
        }
    }
    resized
}

/// The four (source index, weight) pairs behind one output index.
///
/// In f32 throughout, as PyTorch computes them: in f64 the fractions would be more exact and the
/// pixels of large pictures differ from the reference's.
fn bicubic_taps(index: usize, from: usize, to: usize) -> [(usize, f32); 4] {
    let scale = from as f32 / to as f32;
    let position = scale.mul_add(index as f32 + 0.5, -0.5);
    let first = position.floor();
    let t = (position - first).clamp(0.0, 1.0);
    let weights = [outer(t + 1.0), inner(t), inner(1.0 - t), outer(2.0 - t)];
    let last = from.saturating_sub(1) as i64;
    std::array::from_fn(|tap| {
        let source = (first as i64 - 1 + tap as i64).clamp(0, last) as usize;
        (source, weights[tap])
    })
}

/// Keys' cubic convolution kernel for distances up to 1.
fn inner(x: f32) -> f32 {
    ((BICUBIC_A + 2.0) * x - (BICUBIC_A + 3.0)) * x * x + 1.0
}

/// Keys' cubic convolution kernel for distances from 1 to 2.
fn outer(x: f32) -> f32 {
    ((BICUBIC_A * x - 5.0 * BICUBIC_A) * x + 8.0 * BICUBIC_A) * x - 4.0 * BICUBIC_A
}
