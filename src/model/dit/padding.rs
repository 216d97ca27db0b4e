//! Keys that stand for the equal ones of padding.

use half::{bf16, f16};
use mlx_rs::Dtype;

/// Keys that stand for equal ones where one is too coarse.
const KEYS: i32 = 3;

/// What is added to the scores of the keys that stand for `copies` equal ones, in attention whose mask
/// is of `dtype`: equal keys share a softmax term, `n e^s = e^(s + ln n)`.
///
/// In float32 one key does. `ln n` rounded to bfloat16 is off by up to 1.6% of the padding's share, in
/// every layer: there each of three keys takes what the ones before it have left.
pub(super) fn copies_as_offsets(copies: i32, dtype: Dtype) -> Vec<f32> {
    let copies = f64::from(copies.max(1));
    // The largest relative rounding error, for what is left to be no less than nothing.
    let (round, error): (fn(f64) -> f64, f64) = match dtype {
        Dtype::Bfloat16 => (|v| bf16::from_f64(v).to_f64(), 0.5_f64.powi(8)),
        Dtype::Float16 => (|v| f16::from_f64(v).to_f64(), 0.5_f64.powi(11)),
        _ => return vec![copies.ln() as f32],
    };
    if copies == 1.0 {
        return vec![0.0];
    }
    let mut left = copies;
    let keys = 1..=KEYS;
    keys.map(|key| {
        let exact = left.ln();
        let below = if key < KEYS { exact.abs() * error } else { 0.0 };
        let offset = round(exact - below);
        left -= offset.exp();
        offset as f32
    })
    .collect()
}

/// How many keys stand for `copies` equal ones in `dtype`.
pub(super) fn keys_of_copies(copies: i32, dtype: Dtype) -> i32 {
    match (copies, dtype) {
        (2.., Dtype::Bfloat16 | Dtype::Float16) => KEYS,
        (1.., _) => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_add_up_to_the_copies_that_they_stand_for() {
        for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
            let mut worst = 0.0_f64;
            for copies in 1..=512 {
                let offsets = copies_as_offsets(copies, dtype);
                assert_eq!(offsets.len() as i32, keys_of_copies(copies, dtype));
                for &offset in &offsets {
                    let rounded = match dtype {
                        Dtype::Bfloat16 => bf16::from_f32(offset).to_f32(),
                        Dtype::Float16 => f16::from_f32(offset).to_f32(),
                        _ => offset,
                    };
                    assert_eq!(rounded, offset);
                }
                let sum: f64 = offsets.iter().map(|&o| f64::from(o).exp()).sum();
                worst = worst.max((sum / f64::from(copies) - 1.0).abs());
            }
            println!("measured {dtype:?}: off by {worst:.1e} at most");
            assert!(worst < 2e-5, "{dtype:?}: {worst}");
        }
    }
}
