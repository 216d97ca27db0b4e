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

/// Rows of the largest tile of Metal's kernels for products and attention: 32 or 64, by the chip
/// (`steel_matmul`, `steel_attention` and their `nax` forms in MLX 0.32).
pub const TILE_ROWS: i32 = 64;

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
    let each = equal_parts(rows, most);
    let boundaries: Vec<i32> = (each..rows).step_by(each as usize).collect();
    let outputs = x
        .split_at_indices(&boundaries, axis)?
        .iter()
        .map(f)
        .collect::<Result<Vec<_>>>()?;
    concatenate(&outputs, axis)
}

/// Rows of the parts that `count` rows go in when none may have more than `most`: equal ones, of whole
/// tiles where that is allowed.
pub fn equal_parts(count: i32, most: i32) -> i32 {
    let [count, most] = [count, most].map(|rows| i64::from(rows.max(1)));
    let ceiling = |value: i64, by: i64| (value + by - 1) / by;
    let each = ceiling(count, ceiling(count, most));
    let whole = ceiling(each, TILE_ROWS.into()) * i64::from(TILE_ROWS);
    let rows = if whole <= most.min(count) {
        whole
    } else {
        each
    };
    rows as i32
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_equal_and_of_whole_tiles() {
        for (count, most, each) in [
            (32_760, 32_767, 32_760),
            (75_600, 32_767, 25_216),
            (32_760, 2944, 2752),
            (32_760, 2048, 2048),
            (75_600, 16_384, 15_168),
            (100, 70, 64),
            (130, 65, 65),
            (10, 4, 4),
            (i32::MAX, i32::MAX, i32::MAX),
            (0, 0, 1),
        ] {
            assert_eq!(equal_parts(count, most), each, "{count} in at most {most}");
        }
    }
}
