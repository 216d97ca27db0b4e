//! Rotations of runs of inputs, with which int8 loses less (comfy-kitchen's ConvRot).

use std::cell::RefCell;
use std::collections::BTreeMap;

use mlx_rs::Array;
use mlx_rs::error::Result;

use crate::runtime::in_row_chunks;

/// `x` `[rows, inputs]` with each run of `size` inputs times a matrix that is symmetric and its own
/// inverse; `size` is a power of 4 that divides the inputs.
///
/// # Errors
/// When MLX fails.
pub(crate) fn rotate_runs(x: &Array, size: i32) -> Result<Array> {
    thread_local! {
        static MATRICES: RefCell<BTreeMap<i32, Array>> = const { RefCell::new(BTreeMap::new()) };
    }
    let matrix =
        MATRICES.with_borrow_mut(|all| all.entry(size).or_insert_with(|| matrix(size)).clone());
    let matrix = matrix.as_dtype(x.dtype())?;
    let runs = x.reshape(&[-1, size])?;
    in_row_chunks(&runs, 0, |runs| runs.matmul(&matrix))?.reshape(x.shape())
}

/// The Kronecker power of a matrix of 4 that has a minus on the diagonal from the upper right and plus
/// elsewhere, halved; exact in any float dtype.
fn matrix(size: i32) -> Array {
    let digits = size.ilog2() / 2;
    let cell = |at: i32| {
        let (row, column) = (at / size, at % size);
        let minus = (0..digits)
            .map(|digit| 4_i32.pow(digit))
            .filter(|place| row / place % 4 + column / place % 4 == 3)
            .count();
        let sign = if minus % 2 == 0 { 1.0 } else { -1.0 };
        sign * 0.5_f32.powi(digits as i32)
    };
    let cells: Vec<f32> = (0..size * size).map(cell).collect();
    Array::from_slice(&cells, &[size, size])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::to_host;

    #[test]
    fn a_rotation_is_its_own_inverse_and_keeps_lengths() {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        let values: Vec<f32> = (0..3 * 512)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 13.0)
            .collect();
        let x = Array::from_slice(&values, &[3, 512]);
        for size in [4, 16, 256] {
            let turned = rotate_runs(&x, size).unwrap();
            let (there, back) = (
                to_host(&turned).unwrap(),
                to_host(&rotate_runs(&turned, size).unwrap()).unwrap(),
            );
            let length = |x: &[f32]| x.iter().map(|v| v * v).sum::<f32>().sqrt();
            assert!((length(&there) / length(&values) - 1.0).abs() < 1e-5);
            assert!(there.iter().zip(&values).any(|(a, b)| (a - b).abs() > 0.1));
            assert!(
                back.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-5),
                "{size}"
            );
        }
        // The first row of 4: plus, plus, plus, minus.
        let first = to_host(
            &rotate_runs(&Array::from_slice(&[1.0_f32, 0.0, 0.0, 0.0], &[1, 4]), 4).unwrap(),
        );
        assert_eq!(first.unwrap(), [0.5, 0.5, 0.5, -0.5]);
    }
}
