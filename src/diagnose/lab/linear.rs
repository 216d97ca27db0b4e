//! Systems of linear equations, for the fitting programs.

use anyhow::{Result, ensure};

/// Solves equations given as rows, each with the coefficients of all unknowns and then `N` right
/// sides, by Gauss-Jordan elimination with pivoting: the unknowns for each right side.
pub fn solve<const N: usize>(mut rows: Vec<Vec<f64>>) -> Result<[Vec<f64>; N]> {
    let order = rows.len();
    for column in 0..order {
        let size = |row: usize| rows[row][column].abs();
        let pivot = (column..order).max_by(|&a, &b| size(a).total_cmp(&size(b)));
        rows.swap(column, pivot.unwrap_or(column));
        let pivot = rows[column].clone();
        ensure!(pivot[column].abs() > 1e-12, "too few different points");
        for (index, row) in rows.iter_mut().enumerate() {
            let factor = row[column] / pivot[column];
            for (cell, value) in row.iter_mut().zip(&pivot) {
                *cell -= if index == column { 0.0 } else { factor * value };
            }
        }
    }
    Ok(std::array::from_fn(|side| {
        let unknown = |i: usize| rows[i][order + side] / rows[i][i];
        (0..order).map(unknown).collect()
    }))
}
