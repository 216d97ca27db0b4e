//! What MLX's CPU backend computes slowly, on the host.
//!
//! Its kernels run on one thread, and exponentials one element at a time, some 20 ns each. Its
//! arrays lie in the host's memory, so such work is done here, on all cores, in loops that the
//! compiler turns into vector instructions. Nothing here may be called for arrays on the GPU.

use std::slice;

use mlx_rs::error::{Exception, Result};
use mlx_rs::ops::zeros_dtype;
use mlx_rs::{Array, Dtype};
use rayon::prelude::*;

/// RMS norm over the channels of `[frames, height, width, channels]`, times `gamma`, and then SiLU:
/// float32 to within some units in the last place. Evaluated. Reads a view with a pitch in place.
pub fn norm_silu(x: &Array, gamma: &Array, eps: f32) -> Result<Array> {
    let gamma = gamma
        .try_as_slice::<f32>()
        .map_err(|e| Exception::custom(e.to_string()))?;
    let x = readable(x)?;
    let row_values = x.width * gamma.len();
    let kernel = row_kernel();
    new_array(&x.shape(gamma.len()), |out| {
        out.par_chunks_mut(row_values)
            .enumerate()
            .for_each(|(row, out)| kernel(x.row(row, row_values), gamma, eps, out));
    })
}

/// An evaluated float32 `[frames, height, width, channels]` whose rows of pixels have no gaps.
struct Readable {
    array: Array,
    width: usize,
    frames: usize,
    height: usize,
    /// Values from frame to frame, from row to row.
    strides: [usize; 2],
}

fn readable(x: &Array) -> Result<Readable> {
    if x.dtype() != Dtype::Float32 || x.ndim() != 4 {
        return Err(Exception::custom(format!(
            "expected float32 of four dimensions, not {:?} {:?}",
            x.dtype(),
            x.shape()
        )));
    }
    x.eval()?;
    let channels = x.dim(3) as usize;
    let array = match x.strides() {
        [_, _, pixel, 1] if *pixel == channels => x.clone(),
        _ => {
            let packed = x.contiguous()?;
            packed.eval()?;
            packed
        }
    };
    let strides = [array.strides()[0], array.strides()[1]];
    Ok(Readable {
        width: x.dim(2) as usize,
        frames: x.dim(0) as usize,
        height: x.dim(1) as usize,
        strides,
        array,
    })
}

impl Readable {
    fn shape(&self, channels: usize) -> [i32; 4] {
        [self.frames, self.height, self.width, channels].map(|side| side as i32)
    }

    /// Row `row` of all frames' rows, which has `values` values.
    fn row(&self, row: usize, values: usize) -> &[f32] {
        assert!(row < self.frames * self.height && values == self.width * self.channels());
        let at = row / self.height * self.strides[0] + row % self.height * self.strides[1];
        // SAFETY: the array is evaluated, float32 and on the host; the row is one of its rows, whose
        // values have no gaps between them, and nobody writes to an array that has been evaluated.
        unsafe {
            let data = mlx_sys::mlx_array_data_float32(self.array.as_ptr());
            slice::from_raw_parts(data.add(at), values)
        }
    }

    fn channels(&self) -> usize {
        self.array.dim(3) as usize
    }
}

// SAFETY: `row` only reads from memory that stays as it is while the array is alive.
unsafe impl Sync for Readable {}

/// A float32 array that `fill` has written, in row-major order.
fn new_array(shape: &[i32], fill: impl FnOnce(&mut [f32])) -> Result<Array> {
    let array = zeros_dtype(shape, Dtype::Float32)?;
    array.eval()?;
    let values = array.size();
    if values > 0 {
        // SAFETY: MLX has allocated and filled a buffer for this array alone, of `values` float32
        // in row-major order; it is on the host, and no other handle to it exists yet.
        fill(unsafe {
            let data = mlx_sys::mlx_array_data_float32(array.as_ptr()).cast_mut();
            slice::from_raw_parts_mut(data, values)
        });
    }
    Ok(array)
}

/// Pixels, gamma, epsilon, result.
type RowKernel = fn(&[f32], &[f32], f32, &mut [f32]);

/// The variant of [`normalise_row`] for this processor.
fn row_kernel() -> RowKernel {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]) {
            normalise_row(x, gamma, eps, out);
        }
        #[target_feature(enable = "avx2")]
        fn avx2(x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]) {
            normalise_row(x, gamma, eps, out);
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has it.
            return |x, gamma, eps, out| unsafe { avx512(x, gamma, eps, out) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has it.
            return |x, gamma, eps, out| unsafe { avx2(x, gamma, eps, out) };
        }
    }
    normalise_row
}

/// Sums that are kept apart, so that they fit a vector.
const LANES: usize = 16;

#[inline(always)]
fn normalise_row(x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]) {
    let channels = gamma.len();
    for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
        let mut sums = [0.0; LANES];
        let lanes = x.chunks_exact(LANES);
        let rest: f32 = lanes.remainder().iter().map(|v| v * v).sum();
        for lane in lanes {
            for (sum, v) in sums.iter_mut().zip(lane) {
                *sum += v * v;
            }
        }
        let mean = (sums.iter().sum::<f32>() + rest) / channels as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        for ((out, x), gamma) in out.iter_mut().zip(x).zip(gamma) {
            *out = silu(x * scale * gamma);
        }
    }
}

/// `x / (1 + exp(-x))`, without a branch.
#[inline(always)]
fn silu(x: f32) -> f32 {
    let e = exp_of_negative(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    x * numerator / (1.0 + e)
}

/// `exp(x)` for `x` up to 0, at least `exp(-87)`.
#[inline(always)]
fn exp_of_negative(x: f32) -> f32 {
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
    fn views_are_read_where_they_are_and_every_variant_agrees() {
        Device::set_default(&Device::cpu());
        for channels in [3, 8, 24, 96] {
            let shape = [2, 5, 7, channels];
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|i| ((i * 37 % 101) as f32 - 50.0) / 13.0)
                .collect();
            let gamma: Vec<f32> = (0..channels).map(|c| 0.5 + c as f32 / 40.0).collect();
            let x = Array::from_slice(&values, &shape);
            let weights = Array::from_slice(&gamma, &[channels]);
            let whole = norm_silu(&x, &weights, 1e-24).unwrap();
            let mut expected = vec![0.0; values.len()];
            normalise_row(&values, &gamma, 1e-24, &mut expected);
            let ours = whole.try_as_slice::<f32>().unwrap();
            let worst = ours
                .iter()
                .zip(&expected)
                .fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(worst <= 1e-6, "{channels}: {worst}");

            let part = x.try_index((.., 1..4, 2..6)).unwrap();
            let of_part = norm_silu(&part, &weights, 1e-24).unwrap();
            let same = whole.try_index((.., 1..4, 2..6)).unwrap();
            let same = same.contiguous().unwrap();
            assert_eq!(
                of_part.try_as_slice::<f32>().unwrap(),
                same.try_as_slice::<f32>().unwrap()
            );
            let turned = x.transpose_axes(&[0, 2, 1, 3]).unwrap();
            let turned = norm_silu(&turned, &weights, 1e-24).unwrap();
            let same = whole.transpose_axes(&[0, 2, 1, 3]).unwrap();
            let same = same.contiguous().unwrap();
            assert_eq!(
                turned.try_as_slice::<f32>().unwrap(),
                same.try_as_slice::<f32>().unwrap()
            );
        }
    }
}
