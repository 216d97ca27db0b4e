//! Norms and what follows them.

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};

use super::math::silu;
use super::{LANES, Places, Rows, each_row, new_array, parcel_rows, spread, vector};

/// RMS norm over the channels of `[frames, height, width, channels]`, times `gamma`, and then SiLU:
/// float32 to within some units in the last place.
pub fn norm_silu(x: &Array, gamma: &Array, eps: f32) -> Result<Array> {
    let rows = Rows::of_frames(x)?;
    let gamma = vector(gamma, x.dim(3) as usize)?;
    each_row(&rows, x.shape(), |x, out| {
        norm_silu_row(x, gamma, eps, out);
    })
}

vectorised! {
    fn norm_silu_row(x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]) {
        let channels = gamma.len();
        for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            let scale = reciprocal_rms(x, eps);
            for ((out, x), gamma) in out.iter_mut().zip(x).zip(gamma) {
                *out = silu(x * scale * gamma);
            }
        }
    }
}

/// LayerNorm of `[rows, width]` over the width, times `weight` plus `bias`, `[width]` each; float32.
pub fn layer_norm(x: &Array, weight: &Array, bias: &Array, eps: f32) -> Result<Array> {
    let rows = Rows::of_matrix(x)?;
    let [weight, bias] = [vector(weight, rows.values)?, vector(bias, rows.values)?];
    each_row(&rows, x.shape(), |x, out| {
        layer_norm_row(x, weight, bias, eps, out);
    })
}

vectorised! {
    fn layer_norm_row(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let mean = sum(x, |v| v) / x.len() as f32;
        let variance = sum(x, |v| (v - mean) * (v - mean)) / x.len() as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = (x - mean) * scale * weight + bias;
        }
    }
}

/// Projections `[rows, heads * head_dim]`, float32, ready for attention: RMS norm over the whole
/// width with the weights and epsilon of `norm`, adjacent pairs rotated by the cosines and sines of
/// `rope`, `[rows, head_dim / 2]` or `[rows, 1, head_dim / 2]`, and then heads first, `[1, heads,
/// rows, head_dim]`.
pub fn to_heads(
    x: &Array,
    heads: i32,
    norm: Option<(&Array, f32)>,
    rope: Option<[&Array; 2]>,
) -> Result<Array> {
    let rows = Rows::of_matrix(x)?;
    let heads = heads.max(1) as usize;
    let head_dim = rows.values / heads;
    let gamma = match norm {
        Some((gamma, _)) => vector(gamma, rows.values)?,
        None => &[],
    };
    let tables = rope
        .map(|rope| -> Result<_> {
            let tables = [Rows::of_matrix(rope[0])?, Rows::of_matrix(rope[1])?];
            for table in &tables {
                if [table.count(), 2 * table.values] != [rows.count(), head_dim] {
                    return Err(Exception::custom(format!(
                        "rotary tables of {} x {} do not fit {} rows of heads of {head_dim}",
                        table.count(),
                        table.values,
                        rows.count()
                    )));
                }
            }
            Ok(tables)
        })
        .transpose()?;
    let mut scales = vec![1.0; rows.count()];
    if let Some((_, eps)) = norm {
        let (many, to) = (parcel_rows(rows.values), Places::of(&mut scales));
        let parcels = rows.count().div_ceil(many);
        spread(parcels, rows.count() * rows.values, |parcel| {
            for row in parcel * many..rows.count().min((parcel + 1) * many) {
                // SAFETY: no other parcel has this row.
                measure_row(rows.row(row), eps, &mut unsafe { to.slice(row, 1) }[0]);
            }
        });
    }
    let shape = [1, heads, rows.count(), head_dim].map(|side| side as i32);
    let many = parcel_rows(head_dim).min(rows.count());
    new_array(&shape, |out| {
        let parcels = rows.count().div_ceil(many.max(1));
        let to = Places::of(out);
        spread(heads * parcels, out.len(), |i| {
            let (head, parcel) = (i / parcels, i % parcels);
            let columns = head * head_dim..(head + 1) * head_dim;
            let gamma = gamma.get(columns.clone()).unwrap_or_default();
            let end = rows.count().min((parcel + 1) * many);
            for (row, scale) in (0..end).zip(&scales).skip(parcel * many) {
                let start = (head * rows.count() + row) * head_dim;
                // SAFETY: no other part has this row of this head.
                let out = unsafe { to.slice(start, head_dim) };
                scale_row(&rows.row(row)[columns.clone()], *scale, gamma, out);
                if let Some([cos, sin]) = &tables {
                    rotate_row(cos.row(row), sin.row(row), out);
                }
            }
        });
    })
}

vectorised! {
    fn measure_row(x: &[f32], eps: f32, scale: &mut f32) {
        *scale = reciprocal_rms(x, eps);
    }
}

vectorised! {
    /// `x * scale * gamma`; without a gamma, `x`.
    fn scale_row(x: &[f32], scale: f32, gamma: &[f32], out: &mut [f32]) {
        if gamma.is_empty() {
            out.copy_from_slice(x);
        } else {
            for ((out, x), gamma) in out.iter_mut().zip(x).zip(gamma) {
                *out = x * scale * gamma;
            }
        }
    }
}

vectorised! {
    /// Rotates adjacent pairs of `x`.
    fn rotate_row(cos: &[f32], sin: &[f32], x: &mut [f32]) {
        for ((pair, cos), sin) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
            let [real, imaginary] = *pair;
            *pair = [real * cos - imaginary * sin, real * sin + imaginary * cos];
        }
    }
}

#[inline(always)]
fn reciprocal_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum(x, |v| v * v) / x.len() as f32 + eps).sqrt()
}

/// The sum of `f` of all values.
#[inline(always)]
pub(super) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (lanes, rest) = x.as_chunks::<LANES>();
    for lane in lanes {
        for (sum, v) in sums.iter_mut().zip(lane) {
            *sum += f(*v);
        }
    }
    let rest: f32 = rest.iter().map(|v| f(*v)).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use mlx_rs::ops::indexing::TryIndexOp;
    use mlx_rs::{Device, fast};

    use super::*;
    use crate::runtime::kernels::elementwise;

    fn cpu() {
        Device::set_default(&Device::cpu());
    }

    fn values(shape: &[i32], offset: f32) -> Array {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 13.0 + offset)
            .collect();
        Array::from_slice(&values, shape)
    }

    fn worst(ours: &Array, expected: &Array) -> f32 {
        assert_eq!(ours.shape(), expected.shape());
        let expected = expected.contiguous().unwrap();
        let pairs = ours.try_as_slice::<f32>().unwrap().iter();
        pairs
            .zip(expected.try_as_slice::<f32>().unwrap())
            .fold(0.0, |worst, (a, b)| f32::max(worst, (a - b).abs()))
    }

    #[test]
    fn norm_and_silu_are_mlx_s_of_views_too() {
        cpu();
        for channels in [3, 8, 24, 96] {
            let x = values(&[2, 5, 7, channels], 0.0);
            let gamma = values(&[channels], 0.3);
            let whole = norm_silu(&x, &gamma, 1e-24).unwrap();
            let normed = fast::rms_norm(&x, Some(&gamma), 1e-24).unwrap();
            let expected = elementwise::silu(&normed).unwrap();
            let off = worst(&whole, &expected);
            assert!(off <= 4e-6, "{channels}: {off}");

            let part = x.try_index((.., 1..4, 2..6)).unwrap();
            let same = whole.try_index((.., 1..4, 2..6)).unwrap();
            assert_eq!(worst(&norm_silu(&part, &gamma, 1e-24).unwrap(), &same), 0.0);
            let turned = x.transpose_axes(&[0, 2, 1, 3]).unwrap();
            let same = whole.transpose_axes(&[0, 2, 1, 3]).unwrap();
            assert_eq!(
                worst(&norm_silu(&turned, &gamma, 1e-24).unwrap(), &same),
                0.0
            );
        }
    }

    #[test]
    fn layer_norm_is_exact_to_some_units_in_the_last_place() {
        cpu();
        for width in [5, 64, 1536] {
            let x = values(&[37, width], 2.0);
            let [weight, bias] = [0.7, -0.2].map(|offset| values(&[width], offset));
            let ours = layer_norm(&x, &weight, &bias, 1e-6).unwrap();
            let [x_values, weights, biases] =
                [&x, &weight, &bias].map(|array| array.try_as_slice::<f32>().unwrap());
            let row = &x_values[width as usize..2 * width as usize];
            let wide = || row.iter().map(|&v| f64::from(v));
            let mean = wide().sum::<f64>() / f64::from(width);
            let variance = wide().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(width);
            let found = &ours.try_as_slice::<f32>().unwrap()[width as usize..];
            for (i, v) in wide().enumerate() {
                let expected = (v - mean) / (variance + 1e-6).sqrt() * f64::from(weights[i])
                    + f64::from(biases[i]);
                let off = (f64::from(found[i]) - expected).abs();
                assert!(off <= 4e-6, "{width}, {i}: {off}");
            }
            let part = layer_norm(&x.try_index(3..9).unwrap(), &weight, &bias, 1e-6).unwrap();
            assert_eq!(worst(&part, &ours.try_index(3..9).unwrap()), 0.0);
        }
        let x = Array::from_slice(&[1.0, f32::NAN, 2.0, 3.0], &[1, 4]);
        let ones = Array::ones::<f32>(&[4]).unwrap();
        let ours = layer_norm(&x, &ones, &ones, 1e-6).unwrap();
        assert!(ours.try_as_slice::<f32>().unwrap()[3].is_nan());
    }

    #[test]
    fn heads_are_normed_rotated_and_put_first() {
        cpu();
        let (tokens, heads, head_dim) = (24, 3, 12);
        let angles = 0..tokens * head_dim / 2;
        let table = |of: fn(f32) -> f32| {
            let values: Vec<f32> = angles.clone().map(|i| of(i as f32 * 0.37)).collect();
            Array::from_slice(&values, &[tokens, 1, head_dim / 2])
        };
        let (cos, sin) = (table(f32::cos), table(f32::sin));
        let x = values(&[tokens, heads * head_dim], 0.5);
        let gamma = values(&[heads * head_dim], 0.2);
        let apart = |x: &Array| x.reshape(&[tokens, heads, head_dim]).unwrap();
        let first = |x: &Array| {
            let x = x.transpose_axes(&[1, 0, 2]).unwrap();
            x.expand_dims(0).unwrap()
        };
        let normed = fast::rms_norm(&x, Some(&gamma), 1e-6).unwrap();
        let tables = Some([&cos, &sin]);
        let all = to_heads(&x, heads, Some((&gamma, 1e-6)), tables).unwrap();
        let expected = first(&elementwise::rotate(&apart(&normed), &cos, &sin).unwrap());
        assert!(worst(&all, &expected) < 4e-6);
        let unplaced = to_heads(&x, heads, Some((&gamma, 1e-6)), None).unwrap();
        assert!(worst(&unplaced, &first(&apart(&normed))) < 4e-6);
        let plain = to_heads(&x, heads, None, None).unwrap();
        assert_eq!(worst(&plain, &first(&apart(&x))), 0.0);

        let some = x.try_index(4..9).unwrap();
        assert!(to_heads(&some, heads, None, tables).is_err());
        assert!(to_heads(&some, heads, Some((&cos, 1e-6)), None).is_err());
    }
}
