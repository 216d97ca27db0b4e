//! What MLX's CPU backend computes slowly, on the host.
//!
//! Its kernels run on one thread, and exponentials one element at a time, some 20 ns each. Its
//! arrays lie in the host's memory, so such work is done here, on all cores, in loops that the
//! compiler turns into vector instructions. Every function evaluates what it is given. Nothing here
//! may be called for arrays on the GPU.

use std::slice;

use mlx_rs::error::{Exception, Result};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{concatenate, zeros_dtype};
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

#[cfg_attr(
    not(all(target_os = "linux", target_arch = "x86_64")),
    path = "no_amx.rs"
)]
mod amx;
mod attention;
mod blas;
mod convolution;
mod cores;
mod linear;
mod math;
mod norm;
mod unpack;

pub use attention::attention;
pub use convolution::{Clip, Convolution, Tile};
pub use cores::Blocks;
pub use linear::linear;
pub use math::{add, add_gated, gelu_tanh};
pub use norm::{layer_norm, norm_silu, to_heads};
pub use unpack::{dequantize, unpacks};

/// Whether large float32 products are computed on a matrix unit of the processor, and not by the BLAS.
pub fn has_matrix_unit() -> bool {
    amx::is_there()
}

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
        // Not squeezed, which would wait for MLX's thread.
        let dimensions = if x.ndim() == 3 && x.dim(1) == 1 { 3 } else { 2 };
        let (count, values) = (x.dim(0) as usize, x.dim(-1) as usize);
        let array = evaluated(x, dimensions, |strides| {
            strides[dimensions - 1] == 1 && (count <= 1 || strides[0] >= values)
        })?;
        Ok(Self {
            values,
            counts: [1, count],
            // From a single row to the next is whatever MLX says.
            strides: [0, array.strides()[0].max(values)],
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

    /// All that lies in memory from the first row's beginning to the last one's end.
    fn all(&self) -> &[f32] {
        let last = self.count().checked_sub(1);
        let Some(last) = last else {
            return &[];
        };
        let length = self.offset(last) + self.values;
        // SAFETY: as for a row.
        unsafe {
            let data = mlx_sys::mlx_array_data_float32(self.array.as_ptr());
            slice::from_raw_parts(data, length)
        }
    }

    fn offset(&self, row: usize) -> usize {
        row / self.counts[1] * self.strides[0] + row % self.counts[1] * self.strides[1]
    }

    fn count(&self) -> usize {
        self.counts[0] * self.counts[1]
    }

    fn row(&self, row: usize) -> &[f32] {
        assert!(row < self.count());
        let at = self.offset(row);
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

/// A place that several cores write to, each to other values of it.
#[derive(Clone, Copy)]
struct Places(*mut f32);

// SAFETY: whoever writes through it names values that nobody else writes or reads meanwhile.
unsafe impl Send for Places {}
// SAFETY: as above.
unsafe impl Sync for Places {}

impl Places {
    /// The places of `values`.
    fn of(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// The place of value `start`.
    fn at(self, start: usize) -> *mut f32 {
        self.0.wrapping_add(start)
    }

    /// The `count` values from `start` on.
    ///
    /// # Safety
    /// They must lie within the buffer, and be nobody else's while the slice is alive.
    #[inline(always)]
    unsafe fn slice<'a>(self, start: usize, count: usize) -> &'a mut [f32] {
        // SAFETY: as the caller says.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), count) }
    }
}

/// Runs `work` for each of so many parts, on all cores, or here where all of it, so many values, is done
/// sooner than it is handed over.
fn spread(parts: usize, values: usize, work: impl Fn(usize) + Send + Sync) {
    if parts <= 1 || values < PARCEL {
        return (0..parts).for_each(work);
    }
    (0..parts).into_par_iter().for_each(work);
}

/// An array of `shape` of which `fill` makes each row from the same row of `from`, on all cores.
fn each_row(from: &Rows, shape: &[i32], fill: impl Fn(&[f32], &mut [f32]) + Sync) -> Result<Array> {
    each_place(shape, from.values, |row, out| fill(from.row(row), out))
}

/// An array of `shape` of which `fill` makes each row of so many values, given its number, on all cores.
fn each_place(
    shape: &[i32],
    values: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<Array> {
    let (values, many) = (values.max(1), parcel_rows(values));
    new_array(shape, |out| {
        let (count, to) = (out.len() / values, Places::of(out));
        spread(count.div_ceil(many), out.len(), |parcel| {
            for row in parcel * many..count.min((parcel + 1) * many) {
                // SAFETY: no other parcel has this row.
                fill(row, unsafe { to.slice(row * values, values) });
            }
        });
    })
}

/// Rows `start` to `end` of `x` `[rows, width]`: a copy of few, for which MLX's thread is not asked, and a view
/// of many.
pub fn rows(x: &Array, start: i32, end: i32) -> Result<Array> {
    let shape = [end - start, x.dim(1)];
    if values_of(&shape) >= FEW || end > x.dim(0) {
        return x.try_index(start..end);
    }
    let from = Rows::of_matrix(x)?;
    new_array(&shape, |out| {
        let rows = out.chunks_exact_mut(from.values.max(1));
        rows.zip(start as usize..)
            .for_each(|(out, row)| out.copy_from_slice(from.row(row)));
    })
}

/// The rows of all of `parts`, `[rows, width]` each, one after the other.
pub fn joined(parts: &[Array]) -> Result<Array> {
    let [height, width] = [0, 1].map(|axis| parts.iter().map(move |part| part.dim(axis)));
    let shape = [height.sum(), width.max().unwrap_or(0)];
    if values_of(&shape) >= FEW || parts.iter().any(|part| part.dim(1) != shape[1]) {
        return concatenate(parts, 0);
    }
    let parts = parts
        .iter()
        .map(Rows::of_matrix)
        .collect::<Result<Vec<_>>>()?;
    new_array(&shape, |out| {
        let from = parts
            .iter()
            .flat_map(|part| (0..part.count()).map(|row| part.row(row)));
        let rows = out.chunks_exact_mut((shape[1] as usize).max(1));
        rows.zip(from)
            .for_each(|(out, row)| out.copy_from_slice(row));
    })
}

/// Values that are copied sooner than MLX's thread is asked for an array.
const FEW: usize = 1 << 16;

fn values_of(shape: &[i32]) -> usize {
    shape.iter().map(|&side| side.max(0) as usize).product()
}

/// A float32 array of which `fill` writes every value, in row-major order.
fn new_array(shape: &[i32], fill: impl FnOnce(&mut [f32])) -> Result<Array> {
    /// Values whose zeros, which MLX writes on one thread, take longer than to do without them.
    const MANY: usize = 1 << 18;
    let values = values_of(shape);
    if (1..FEW).contains(&values) {
        let mut host = vec![0.0; values];
        fill(&mut host);
        return Ok(Array::from_slice(&host, shape));
    }
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

#[cfg(test)]
mod tests {
    use mlx_rs::Device;
    use mlx_rs::ops::array_eq;

    use super::*;

    #[test]
    fn rows_are_taken_apart_and_joined_whether_few_or_many() {
        Device::set_default(&Device::cpu());
        for width in [5, FEW as i32 / 4] {
            let all = Array::from_iter((0..7 * width).map(|i| i as f32), &[7, width]);
            let parts = [(0, 2), (2, 6), (6, 7)].map(|(start, end)| {
                let part = rows(&all, start, end).unwrap();
                assert_eq!(part.shape(), [end - start, width]);
                part
            });
            let again = joined(&parts).unwrap();
            assert!(array_eq(&again, &all, None).unwrap().item_exact::<bool>());
            let doubled = add(&all, &again).unwrap();
            let expected = all.add(&all).unwrap();
            assert!(
                array_eq(&doubled, &expected, None)
                    .unwrap()
                    .item_exact::<bool>()
            );
        }
        let others =
            [1, 2].map(|width| Array::from_slice(&vec![0.0_f32; width], &[1, width as i32]));
        assert!(joined(&others).is_err());
    }
}
