//! Functions of single values, without branches, so that loops over them become vector
//! instructions.

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};

use super::{Rows, each_place, each_row, vector};

/// The tanh approximation of GELU of `[rows, columns]`: float32, to some units in the last place
/// of the larger of the value and its argument's share of it.
pub fn gelu_tanh(x: &Array) -> Result<Array> {
    each_row(&Rows::of_matrix(x)?, x.shape(), gelu_row)
}

/// `x + h * gate` of `[rows, width]`, `gate` being `[width]`; float32.
pub fn add_gated(x: &Array, h: &Array, gate: &Array) -> Result<Array> {
    let gate = vector(gate, x.dim(1) as usize)?;
    each_two_rows(x, h, |x, h, out| add_gated_row(x, h, gate, out))
}

/// `x + h` of `[rows, width]`; float32.
pub fn add(x: &Array, h: &Array) -> Result<Array> {
    each_two_rows(x, h, add_row)
}

fn each_two_rows(
    x: &Array,
    h: &Array,
    fill: impl Fn(&[f32], &[f32], &mut [f32]) + Sync,
) -> Result<Array> {
    let (x, h) = (Rows::of_matrix(x)?, Rows::of_matrix(h)?);
    if [h.count(), h.values] != [x.count(), x.values] {
        return Err(Exception::custom("a sum of other shapes"));
    }
    let shape = [x.count() as i32, x.values as i32];
    each_place(&shape, x.values, |row, out| {
        fill(x.row(row), h.row(row), out)
    })
}

vectorised! {
    fn add_gated_row(x: &[f32], h: &[f32], gate: &[f32], out: &mut [f32]) {
        for (((out, x), h), gate) in out.iter_mut().zip(x).zip(h).zip(gate) {
            *out = x + h * gate;
        }
    }
}

vectorised! {
    fn add_row(x: &[f32], h: &[f32], out: &mut [f32]) {
        for ((out, x), h) in out.iter_mut().zip(x).zip(h) {
            *out = x + h;
        }
    }
}

vectorised! {
    fn gelu_row(x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = gelu(*x);
        }
    }
}

/// `x (1 + tanh(u)) / 2 = x / (1 + exp(-2u))` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    // 2 sqrt(2 / pi)
    const FACTOR: f32 = 1.595_769;
    x * logistic(x * (1.0 + 0.044_715 * (x * x)) * FACTOR)
}

/// `x / (1 + exp(-x))`.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x * logistic(x)
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
fn logistic(x: f32) -> f32 {
    let e = exp_of_negative(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

/// `exp(x)` for `x` up to 0, at least `exp(-87)`; of NaN too.
#[inline(always)]
pub(super) fn exp_of_negative(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln(2) / 2; ln 2 in two parts, of which n times the first is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = (std::f64::consts::LN_2 - 0.693_359_375) as f32;
    // Adding it rounds to an integer, which the lowest bits then hold.
    const ROUND: f32 = 12_582_912.0;
    let x = x.max(-87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    // Taylor's series; the next term is 5e-9 at most.
    let mut sum = 1.0 / 5040.0;
    for factor in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        sum = sum * r + factor;
    }
    let power = shifted.to_bits().wrapping_add(127) << 23;
    sum * f32::from_bits(power)
}

#[cfg(test)]
mod tests {
    use mlx_rs::Device;
    use mlx_rs::ops::indexing::TryIndexOp;

    use super::*;

    #[test]
    fn silu_is_exact_to_some_units_in_the_last_place() {
        let mut worst = 0.0_f64;
        for step in -860_000..860_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            let error = (f64::from(silu(x)) - exact).abs();
            worst = worst.max(error / exact.abs().max(f64::from(f32::MIN_POSITIVE)));
        }
        println!("measured: {worst:.2e}");
        assert!(worst < 4.0 * f64::from(f32::EPSILON), "{worst:.2e}");
        assert_eq!(silu(0.0), 0.0);
        assert_eq!(silu(1e30), 1e30);
        assert!(silu(-1e3).abs() < 1e-30);
        assert!(silu(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_is_within_a_few_units_in_the_last_place_of_its_argument() {
        let mut worst = 0.0_f64;
        for step in -100_000..100_000 {
            let x = step as f32 * 1e-4;
            let wide = f64::from(x);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            let exact = 0.5 * wide * (1.0 + u.tanh());
            // The tail is a small difference of large numbers in the formula as it is written.
            let size = exact.abs().max(1e-3 * wide.abs());
            if size > 0.0 {
                worst = worst.max((f64::from(gelu(x)) - exact).abs() / size);
            }
        }
        println!("measured: {worst:.2e}");
        assert!(worst < 16.0 * f64::from(f32::EPSILON), "{worst:.2e}");
        assert_eq!(gelu(0.0), 0.0);
        assert_eq!(gelu(1e20), 1e20);
        assert!(gelu(-1e3).abs() < 1e-30);
        assert!(gelu(f32::NAN).is_nan());
    }

    #[test]
    fn a_view_is_read_where_it_is() {
        Device::set_default(&Device::cpu());
        let values: Vec<f32> = (0..70 * 900)
            .map(|i| (i % 97) as f32 / 16.0 - 3.0)
            .collect();
        let x = Array::from_slice(&values, &[70, 900]);
        let expected: Vec<f32> = values.iter().copied().map(gelu).collect();
        let whole = gelu_tanh(&x).unwrap();
        assert_eq!(whole.try_as_slice::<f32>().unwrap(), expected);
        for part in [
            x.try_index((3..40, 100..200)).unwrap(),
            x.try_index((1..70, 100..200)).unwrap(),
            x.transpose().unwrap(),
        ] {
            let ours = gelu_tanh(&part).unwrap();
            let expected: Vec<f32> = part
                .contiguous()
                .unwrap()
                .try_as_slice::<f32>()
                .unwrap()
                .iter()
                .copied()
                .map(gelu)
                .collect();
            assert_eq!(ours.try_as_slice::<f32>().unwrap(), expected);
        }
    }
}
