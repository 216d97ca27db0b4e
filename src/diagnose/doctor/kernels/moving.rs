//! What moves values and computes nothing: it has to be exact.

use mlx_rs::ops::indexing::TryIndexMutOp;
use mlx_rs::ops::{self, PadWidth, concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype};

use super::{Case, doubles, exact};
use crate::diagnose::doctor::CheckRunner;
use crate::diagnose::doctor::reference::uniform;
use crate::model::dit::{patchify, unpatchify};
use crate::runtime::{in_row_chunks, rows};

/// Rows, beyond what an int16 counts.
const ROWS: i32 = 75_600;
const WIDTH: i32 = 16;

pub fn examine(round: &mut CheckRunner<'_>) {
    let x = uniform(30, (ROWS * WIDTH) as usize, 1.0);
    let width = WIDTH as usize;
    let all = || exact(&x, &[ROWS, WIDTH]);
    let whole = doubles(&x);

    let ids: Vec<u32> = (0..50_000_u32).map(|i| i * 7919 % ROWS as u32).collect();
    let gathered: Vec<f64> = ids
        .iter()
        .flat_map(|&id| whole[id as usize * width..][..width].iter().copied())
        .collect();
    let name = format!("gather, {} of {ROWS} rows", ids.len());
    round.kernel(&Case::exact(&name, width, &gathered), &|| {
        all().take_axis(Array::from_slice(&ids, &[ids.len() as i32]), 0)
    });

    let cut = &whole[32_700 * width..];
    let name = format!("slice, rows 32700 to {ROWS}");
    round.kernel(&Case::exact(&name, width, cut), &|| {
        rows(&all(), 32_700, ROWS)?.contiguous()
    });

    let name = format!("split and concatenate, {ROWS} rows");
    round.kernel(&Case::exact(&name, width, &whole), &|| {
        in_row_chunks(&all(), 0, |x| Ok(x.clone()))
    });

    let twice: Vec<f64> = [whole.as_slice(), &whole].concat();
    let name = format!("concatenate, {} rows", 2 * ROWS);
    round.kernel(&Case::exact(&name, width, &twice), &|| {
        concatenate(&[all(), all()], 0)
    });

    let mut padded = vec![0.0; whole.len() + 3 * width];
    padded[2 * width..][..whole.len()].copy_from_slice(&whole);
    for (name, way) in [("pad", true), ("fill in place", false)] {
        let name = format!("{name}, {ROWS} rows into {}", ROWS + 3);
        round.kernel(&Case::exact(&name, width, &padded), &|| {
            if way {
                return ops::pad(all(), PadWidth::Widths(&[(2, 1), (0, 0)]), None, None);
            }
            let mut out = zeros_dtype(&[ROWS + 3, WIDTH], Dtype::Float32)?;
            out.try_index_mut((2..2 + ROWS, ..), &all())?;
            Ok(out)
        });
    }

    // [channels, frames, rows, columns] with more tokens than an int16 counts, and back.
    let grid = [4, 9, 90, 140];
    let latents = uniform(31, grid.iter().product::<i32>() as usize, 1.0);
    let expected = doubles(&latents);
    let name = format!("patchify and unpatchify, {} tokens", 9 * 90 * 140 / 4);
    round.kernel(&Case::exact(&name, 140, &expected), &|| {
        let patches = patchify(&exact(&latents, &grid), [1, 2, 2])?;
        // Patches have their channels first, what the head gives has them last.
        let tokens = patches.dim(0);
        let patches = patches
            .reshape(&[tokens, 4, 4])?
            .transpose_axes(&[0, 2, 1])?;
        unpatchify(&patches.reshape(&[tokens, 16])?, [9, 90, 140], [1, 2, 2])
    });

    let turned: Vec<f64> = (0..width)
        .flat_map(|column| whole.iter().copied().skip(column).step_by(width))
        .collect();
    let name = format!("transpose, {ROWS} x {WIDTH}");
    round.kernel(&Case::exact(&name, ROWS as usize, &turned), &|| {
        all().transpose()?.contiguous()
    });
}
