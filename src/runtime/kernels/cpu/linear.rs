//! Products with a layer's weight.

use super::blas::{Engine, Matrix, product_at};
use super::{Places, Rows, new_array, spread, vector};
use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};

/// Multiplications that one core does sooner than they are handed over.
const SMALL: usize = 1 << 21;

/// Multiplications of a part that is not worth dividing further for the sake of cores that are late.
const ENOUGH: usize = 1 << 30;

/// `x` `[rows, inputs]` times the transposed `weight` `[outputs, inputs]`, plus `bias` `[outputs]`; float32,
/// evaluated.
///
/// Each core has its own part of the result: none waits for another in between, as a BLAS's own threads do.
pub fn linear(x: &Array, weight: &Array, bias: Option<&Array>) -> Result<Array> {
    let (x, weight) = (Rows::of_matrix(x)?, Rows::of_matrix(weight)?);
    let [rows, outputs, inner] = [x.count(), weight.count(), x.values];
    if weight.values != inner || inner == 0 {
        return Err(Exception::custom(format!(
            "cannot multiply rows of {inner} with {outputs} x {}",
            weight.values
        )));
    }
    let bias = bias.map(|bias| vector(bias, outputs)).transpose()?;
    let engine = Engine::of([rows, outputs, inner]);
    let [from, weight] = [&x, &weight].map(|rows| (rows.all(), rows.strides[1]));
    new_array(&[rows, outputs].map(|side| side as i32), |out| {
        let room = out.len();
        let to = Places::of(out);
        let [down, across] = grid([rows, outputs, inner], rayon::current_num_threads());
        let part = |part: usize| {
            let share = |count: usize, at: usize, parts: usize| {
                let each = count.div_ceil(parts).next_multiple_of(TILE);
                (each * at).min(count)..(each * (at + 1)).min(count)
            };
            let [down, across] = [
                share(rows, part / across, down),
                share(outputs, part % across, across),
            ];
            let sides = [down.len(), across.len(), inner];
            if sides.contains(&0) {
                return;
            }
            if let Some(bias) = bias {
                for row in down.clone() {
                    // SAFETY: no other part has these values.
                    let to = unsafe { to.slice(row * outputs + across.start, across.len()) };
                    to.copy_from_slice(&bias[across.clone()]);
                }
            }
            let from = Matrix::new(&from.0[down.start * from.1..], from.1);
            let weight = Matrix::new(&weight.0[across.start * weight.1..], weight.1).transposed();
            let start = down.start * outputs + across.start;
            let to = to.at(start);
            // SAFETY: no other part has these values.
            unsafe {
                product_at(
                    engine,
                    sides,
                    from,
                    weight,
                    bias.is_some(),
                    to,
                    outputs,
                    room - start,
                )
            };
        };
        spread(down * across, usize::MAX, part);
    })
}

/// Rows and columns of a kernel's tile, at most: parts are multiples of it.
const TILE: usize = 48;

/// In how many parts down and across a product of these rows, columns and inner values is computed on so many
/// cores: as many parts for each, and as square as may be, since each part reads its rows of both sides.
fn grid([rows, columns, inner]: [usize; 3], cores: usize) -> [usize; 2] {
    let work = rows * columns * inner;
    if work < SMALL {
        return [1, 1];
    }
    let rounds = (work / ENOUGH / cores).clamp(1, 4);
    let parts = rounds * cores;
    let sides = |down: usize| [down, parts / down];
    let cost = |[down, across]: [usize; 2]| rows.div_ceil(down) + columns.div_ceil(across);
    (1..=parts)
        .filter(|&down| parts.is_multiple_of(down))
        .map(sides)
        .min_by_key(|&sides| cost(sides))
        .unwrap_or([1, parts])
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, ops};

    use super::*;

    #[test]
    fn it_is_mlx_s_product() {
        Device::set_default(&Device::cpu());
        let filled = |shape: &[i32], seed: i32| {
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|i: i32| (i.wrapping_mul(7919).wrapping_add(seed) % 1009) as f32 / 504.0)
                .collect();
            Array::from_slice(&values, shape)
        };
        for [rows, inputs, outputs] in [[1, 1, 1], [3, 70, 5], [80, 96, 384], [700, 300, 515]] {
            let (x, weight) = (filled(&[rows, inputs], 3), filled(&[outputs, inputs], 5));
            let bias = filled(&[outputs], 7);
            // Every other row of a larger one.
            let view = filled(&[2 * rows, inputs], 3)
                .reshape(&[rows, 2 * inputs])
                .unwrap();
            let view = view.split_at_indices(&[inputs], 1).unwrap().remove(0);
            for (x, bias) in [(&x, None), (&x, Some(&bias)), (&view, Some(&bias))] {
                let product = x.matmul(weight.transpose().unwrap()).unwrap();
                let expected = match bias {
                    Some(bias) => product.add(bias).unwrap(),
                    None => product,
                };
                let ours = linear(x, &weight, bias).unwrap();
                assert_eq!(ours.shape(), [rows, outputs]);
                let off = ours.subtract(&expected).unwrap().abs().unwrap();
                let most = ops::max(expected.abs().unwrap(), None)
                    .unwrap()
                    .item_exact::<f32>();
                let off = off.max(None).unwrap().item_exact::<f32>() / most;
                assert!(off < 2e-6, "{rows} {inputs} {outputs}: {off}");
            }
        }
        assert!(linear(&filled(&[2, 3], 1), &filled(&[4, 5], 1), None).is_err());
        // Whatever MLX says is between the rows of one, or of copies.
        let (row, weight) = (filled(&[70], 1), filled(&[5, 70], 1));
        let expected = linear(&row.reshape(&[1, 70]).unwrap(), &weight, None).unwrap();
        for rows in [1, 3] {
            let x = row.expand_dims(0).unwrap();
            let x = ops::broadcast_to(&x, &[rows, 70]).unwrap();
            let found = linear(&x, &weight, None).unwrap();
            assert_eq!(found.shape(), [rows, 5]);
            assert_eq!(found.as_slice::<f32>()[..5], *expected.as_slice::<f32>());
        }
    }

    #[test]
    fn every_core_has_a_part_and_parts_are_square() {
        assert_eq!(grid([80, 64, 64], 8), [1, 1]);
        assert_eq!(grid([80, 384, 384], 2), [1, 2]);
        assert_eq!(grid([720, 1536, 1536], 2), [1, 2]);
        assert_eq!(grid([720, 8960, 1536], 2), [1, 8]);
        assert_eq!(grid([4096, 1536, 1536], 16), [8, 2]);
    }
}
