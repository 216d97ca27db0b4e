//! What MLX's CPU backend computes slowly, on the host.
//!
//! Its kernels run on one thread, and exponentials one element at a time, some 20 ns each. Its
//! arrays lie in the host's memory, so such work is done here, on all cores, in loops that the
//! compiler turns into vector instructions. Every function evaluates what it is given. Nothing here
//! may be called for arrays on the GPU.

use std::slice;

use mlx_rs::error::{Exception, Result};
use mlx_rs::ops::zeros_dtype;
use mlx_rs::{Array, Dtype};
use rayon::prelude::*;

use crate::runtime::ffi;

/// Defines a function whose loops are compiled for several vector widths, of which a call takes
/// the widest that the processor has. Neither width nor processor changes a bit of the result.
macro_rules! vectorised {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        fn $name($($arg: $type),*) {
            #[inline(always)]
            fn plain($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($arg: $type),*) {
                    plain($($arg),*);
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) {
                    plain($($arg),*);
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the processor has it.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has it.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*);
        }
    };
}
pub(crate) use vectorised;

mod attention;
mod cores;
mod math;
mod norm;
mod unpack;

pub use attention::{attention, scores_at_once};
pub use cores::{Blocks, in_parallel};
pub use math::gelu_tanh;
pub use norm::{layer_norm, norm_silu, to_heads};
pub use unpack::{dequantize, unpacks};

/// Sums that are kept apart, so that they fit a vector.
const LANES: usize = 16;

/// Values that a core is given at once, at least: less is done sooner than it is handed over.
const PARCEL: usize = 1 << 14;

/// How many rows of `values` make a parcel.
fn parcel_rows(values: usize) -> usize {
    PARCEL.div_ceil(values.max(1))
}

/// An evaluated float32 array as rows without gaps, one after the other in two nested loops. A
/// view whose rows lie apart is read in place.
struct Rows {
    array: Array,
    /// Values of a row.
    values: usize,
    /// Rows of the outer and of the inner loop.
    counts: [usize; 2],
    /// Values from row to row of either.
    strides: [usize; 2],
}

impl Rows {
    /// The rows of `[rows, values]`, or of `[rows, 1, values]`.
    fn of_matrix(x: &Array) -> Result<Self> {
        let x = match x.ndim() {
            3 if x.dim(1) == 1 => x.squeeze_axes(&[1])?,
            _ => x.clone(),
        };
        let array = evaluated(&x, 2, |strides| strides[1] == 1)?;
        Ok(Self {
            values: x.dim(1) as usize,
            counts: [1, x.dim(0) as usize],
            strides: [0, array.strides()[0]],
            array,
        })
    }

    /// The rows of pixels of `[frames, height, width, channels]`.
    fn of_frames(x: &Array) -> Result<Self> {
        let array = evaluated(x, 4, |strides| {
            strides[2] == x.dim(3) as usize && strides[3] == 1
        })?;
        Ok(Self {
            values: (x.dim(2) * x.dim(3)) as usize,
            counts: [x.dim(0) as usize, x.dim(1) as usize],
            strides: [array.strides()[0], array.strides()[1]],
            array,
        })
    }

    fn count(&self) -> usize {
        self.counts[0] * self.counts[1]
    }

    fn row(&self, row: usize) -> &[f32] {
        assert!(row < self.count());
        let at = row / self.counts[1] * self.strides[0] + row % self.counts[1] * self.strides[1];
        // SAFETY: the array is evaluated, float32 and on the host; the row is one of its rows, whose
        // values have no gaps between them, and nobody writes to an array that has been evaluated.
        unsafe {
            let data = mlx_sys::mlx_array_data_float32(self.array.as_ptr());
            slice::from_raw_parts(data.add(at), self.values)
        }
    }
}

// SAFETY: `row` only reads from memory that stays as it is while the array is alive.
unsafe impl Sync for Rows {}

/// `x`, or a copy of it in row-major order where its strides are no `good` ones; evaluated.
fn evaluated(x: &Array, dimensions: usize, good: impl Fn(&[usize]) -> bool) -> Result<Array> {
    if x.dtype() != Dtype::Float32 || x.ndim() != dimensions {
        return Err(Exception::custom(format!(
            "expected float32 of {dimensions} dimensions, not {:?} {:?}",
            x.dtype(),
            x.shape()
        )));
    }
    x.eval()?;
    if good(x.strides()) {
        return Ok(x.clone());
    }
    let packed = x.contiguous()?;
    packed.eval()?;
    Ok(packed)
}

/// The values of a float32 vector; evaluates it.
fn vector(x: &Array, values: usize) -> Result<&[f32]> {
    let found = x
        .try_as_slice::<f32>()
        .map_err(|e| Exception::custom(e.to_string()))?;
    if found.len() != values {
        return Err(Exception::custom(format!(
            "expected {values} values, not {:?}",
            x.shape()
        )));
    }
    Ok(found)
}

/// An array of `shape` of which `fill` makes each row from the same row of `from`, on all cores.
fn each_row(from: &Rows, shape: &[i32], fill: impl Fn(&[f32], &mut [f32]) + Sync) -> Result<Array> {
    let (values, many) = (from.values.max(1), parcel_rows(from.values));
    new_array(shape, |out| {
        out.par_chunks_mut(many * values)
            .enumerate()
            .for_each(|(parcel, out)| {
                for (i, out) in out.chunks_mut(values).enumerate() {
                    fill(from.row(parcel * many + i), out);
                }
            });
    })
}

/// A float32 array of which `fill` writes every value, in row-major order.
fn new_array(shape: &[i32], fill: impl FnOnce(&mut [f32])) -> Result<Array> {
    /// Values whose zeros, which MLX writes on one thread, take longer than to do without them.
    const MANY: usize = 1 << 18;
    let values: usize = shape.iter().map(|&side| side as usize).product();
    let array = match values {
        ..MANY => zeros_dtype(shape, Dtype::Float32)?,
        _ => ffi::unwritten(shape)?,
    };
    array.eval()?;
    // SAFETY: MLX has allocated a buffer for this array alone, and no other handle to it exists yet; what
    // was in the memory before are some numbers.
    fill(unsafe { values_mut(&array) });
    Ok(array)
}

/// The values of an evaluated float32 array in row-major order, for writing.
///
/// # Safety
/// The array must have a buffer of its own, on the host and without gaps, and no other handle to it
/// may be used while the slice is alive.
#[allow(clippy::mut_from_ref)]
unsafe fn values_mut(array: &Array) -> &mut [f32] {
    if array.size() == 0 {
        return &mut [];
    }
    // SAFETY: as the caller says.
    unsafe {
        let data = mlx_sys::mlx_array_data_float32(array.as_ptr()).cast_mut();
        slice::from_raw_parts_mut(data, array.size())
    }
}
