//! What kernels should give, in float64 on the host, and the values that they are given.

use rayon::prelude::*;

/// `count` numbers in [-scale, scale) that depend on `seed` alone (SplitMix64, Steele et al. 2014).
pub fn uniform(seed: u64, count: usize, scale: f32) -> Vec<f32> {
    let value = |i: usize| {
        let mut z = (seed << 40).wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        scale * ((z >> 40) as f32 / 8_388_608.0 - 1.0)
    };
    (0..count).into_par_iter().map(value).collect()
}
fn dot(a: &[f32], b: &[f32]) -> f64 {
    // Four sums, which the processor adds at the same time.
    let mut sums = [0.0_f64; 4];
    for (a, b) in a.chunks(4).zip(b.chunks(4)) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(a) * f64::from(b);
        }
    }
    sums.iter().sum()
}

/// `x w^T + bias`: `x` `[n, inner]`, `w` `[columns, inner]`.
pub fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, inner: usize) -> Vec<f64> {
    let columns = w.len() / inner;
    let row = |x: &[f32]| -> Vec<f64> {
        let column =
            |(i, w): (usize, &[f32])| dot(x, w) + bias.map_or(0.0, |bias| f64::from(bias[i]));
        w.chunks(inner).enumerate().map(column).collect()
    };
    let rows: Vec<Vec<f64>> = x.par_chunks(inner).map(row).collect();
    debug_assert!(rows.iter().all(|row| row.len() == columns));
    rows.concat()
}

/// Softmax of scores, in place.
pub fn softmax(scores: &mut [f64]) {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - most).exp();
        sum += *score;
    }
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// Attention of `heads` heads of `dim`: `q` `[heads, n, dim]`, `k` and `v` `[heads, m, dim]`,
/// `weights` `[m]` added to the scores.
pub fn attention(
    [q, k, v]: [&[f32]; 3],
    weights: Option<&[f32]>,
    heads: usize,
    dim: usize,
) -> Vec<f64> {
    let scale = (dim as f64).sqrt().recip();
    let (queries, keys) = (q.len() / heads, k.len() / heads);
    let head = |head: usize| -> Vec<f64> {
        let of = |each: usize| head * each..(head + 1) * each;
        let (k, v) = (&k[of(keys)], &v[of(keys)]);
        let row = |q: &[f32]| -> Vec<f64> {
            let mut scores: Vec<f64> = k.chunks(dim).map(|k| scale * dot(q, k)).collect();
            if let Some(weights) = weights {
                for (score, &weight) in scores.iter_mut().zip(weights) {
                    *score += f64::from(weight);
                }
            }
            softmax(&mut scores);
            let mut out = vec![0.0; dim];
            for (weight, v) in scores.iter().zip(v.chunks(dim)) {
                for (out, &v) in out.iter_mut().zip(v) {
                    *out += weight * f64::from(v);
                }
            }
            out
        };
        let rows: Vec<Vec<f64>> = q[of(queries)].par_chunks(dim).map(row).collect();
        rows.concat()
    };
    (0..heads).flat_map(head).collect()
}

/// `f` of every row of `width` values.
pub fn each_row(x: &[f32], width: usize, f: impl Fn(&[f32]) -> Vec<f64> + Send + Sync) -> Vec<f64> {
    let rows: Vec<Vec<f64>> = x.par_chunks(width).map(f).collect();
    rows.concat()
}

/// LayerNorm with weight and bias.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Vec<f64> {
    each_row(x, weight.len(), |row| {
        let count = row.len() as f64;
        let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
        let squares = row.iter().map(|&v| (f64::from(v) - mean).powi(2));
        let factor = (squares.sum::<f64>() / count + eps).sqrt().recip();
        let value = |((&v, &w), &b): ((&f32, &f32), &f32)| {
            (f64::from(v) - mean) * factor * f64::from(w) + f64::from(b)
        };
        row.iter().zip(weight).zip(bias).map(value).collect()
    })
}

/// RMSNorm with a weight.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    each_row(x, weight.len(), |row| {
        let squares = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        let factor = (squares / row.len() as f64 + eps).sqrt().recip();
        let value = |(&v, &w): (&f32, &f32)| f64::from(v) * factor * f64::from(w);
        row.iter().zip(weight).map(value).collect()
    })
}

/// `x * sigmoid(x)`.
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The tanh approximation of GELU.
pub fn gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

/// Places of at most `most` out of `count` rows, spread over all of them; all where they are no more.
pub fn every(count: usize, most: usize) -> Vec<usize> {
    let most = most.min(count).max(1);
    (0..most).map(|i| i * count / most).collect()
}

/// A convolution without padding, channels last: `x` `[t, h, w, inputs]`, `weight`
/// `[outputs, inputs, kt, kh, kw]`, to [`every`] of at most `most` rows of `[t' * h' * w', outputs]`.
pub fn convolution(
    x: &[f32],
    sides: [usize; 4],
    weight: &[f32],
    bias: &[f32],
    kernel: [usize; 3],
    stride: [usize; 3],
    most: usize,
) -> Vec<f64> {
    let [_, h, w, inputs] = sides;
    let taps: usize = kernel.iter().product();
    let out: [usize; 3] = std::array::from_fn(|i| (sides[i] - kernel[i]) / stride[i] + 1);
    let count = out.iter().product();
    let sampled = every(count, most);
    let place = |&i: &usize| [i / (out[1] * out[2]), i / out[2] % out[1], i % out[2]];
    let places: Vec<[usize; 3]> = sampled.iter().map(place).collect();
    let value = |place: &[usize; 3]| -> Vec<f64> {
        let output = |o: usize| {
            let mut sum = f64::from(bias[o]);
            for tap in 0..taps {
                let at = [
                    tap / (kernel[1] * kernel[2]),
                    tap / kernel[2] % kernel[1],
                    tap % kernel[2],
                ];
                let [t, y, c]: [usize; 3] = std::array::from_fn(|i| place[i] * stride[i] + at[i]);
                let pixel = ((t * h + y) * w + c) * inputs;
                for channel in 0..inputs {
                    let weight = weight[(o * inputs + channel) * taps + tap];
                    sum += f64::from(x[pixel + channel]) * f64::from(weight);
                }
            }
            sum
        };
        (0..bias.len()).map(output).collect()
    };
    let values: Vec<Vec<f64>> = places.par_iter().map(value).collect();
    values.concat()
}
