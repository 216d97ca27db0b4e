//! What every module does with arrays.

use mlx_rs::error::{Exception, Result};
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};

/// The most rows one kernel call is given.
///
/// Several Metal kernels kept row distances in int16 and returned wrong results above it
/// (ml-explore/mlx#3360, #3631, #3856; black clips in Blaizzy/mlx-video#40).
pub const MAX_KERNEL_ROWS: i32 = 32_767;

/// Applies `f` to slices of `x` along `axis` of at most [`MAX_KERNEL_ROWS`] and joins the results.
pub fn in_row_chunks(
    x: &Array,
    axis: i32,
    f: impl FnMut(&Array) -> Result<Array>,
) -> Result<Array> {
    in_chunks(x, axis, MAX_KERNEL_ROWS, f)
}

/// As [`in_row_chunks`] with at most `most` rows each.
pub fn in_chunks(
    x: &Array,
    axis: i32,
    most: i32,
    mut f: impl FnMut(&Array) -> Result<Array>,
) -> Result<Array> {
    let rows = x.dim(axis);
    if rows <= most {
        return f(x);
    }
    let parts = (rows + most - 1) / most;
    let boundaries: Vec<i32> = (1..parts).map(|i| i * most).collect();
    let outputs = x
        .split_at_indices(&boundaries, axis)?
        .iter()
        .map(f)
        .collect::<Result<Vec<_>>>()?;
    concatenate(&outputs, axis)
}

/// True when every element of `x` is finite. Evaluates `x`.
pub fn all_finite(x: &Array) -> Result<bool> {
    x.is_finite()?
        .all(None)?
        .try_item_exact::<bool>()
        .map_err(|e| Exception::custom(e.to_string()))
}

/// Copies a float array to the host as float32 in row-major order. Evaluates `x`.
pub fn to_host(x: &Array) -> Result<Vec<f32>> {
    let x = x.as_dtype(Dtype::Float32)?.contiguous()?;
    let data = x
        .try_as_slice::<f32>()
        .map_err(|e| Exception::custom(e.to_string()))?;
    Ok(data.to_vec())
}

/// `x` in float32.
pub fn f32(x: &Array) -> Result<Array> {
    x.as_dtype(Dtype::Float32)
}

/// Rows `start..end` of axis 0, without a copy.
pub fn rows(x: &Array, start: i32, end: i32) -> Result<Array> {
    x.try_index(start..end)
}
