//! What takes several of MLX's operations, without the machine's own.

use mlx_rs::error::Result;
use mlx_rs::fast::ScaledDotProductAttentionMask;
use mlx_rs::{Array, fast};

use crate::runtime::{MAX_KERNEL_ROWS, f32, in_chunks};

/// Attention by MLX's fused kernel; see [`Device::attention`](crate::runtime::Device::attention).
pub fn attention(
    q: &Array,
    k: &Array,
    v: &Array,
    scale: f32,
    weights: Option<&Array>,
    score_bytes: u64,
) -> Result<Array> {
    // The mask has to be of the operands' dtype.
    let weights = weights.map(|w| w.as_dtype(q.dtype())).transpose()?;
    let weights = weights.as_ref();
    let row_bytes = 4 * k.dim(1).max(1) as u64 * k.dim(2).max(1) as u64;
    let rows = (score_bytes / row_bytes).clamp(1, MAX_KERNEL_ROWS as u64);
    let chunked = q.dim(2) > rows as i32;
    in_chunks(q, 2, rows as i32, |q| {
        let mask = weights.map(ScaledDotProductAttentionMask::from);
        let out = fast::scaled_dot_product_attention(q, k, v, scale, mask, None)?;
        if chunked {
            out.eval()?;
        }
        Ok(out)
    })
}

/// Projections as attention wants them; see [`Device::to_heads`](crate::runtime::Device::to_heads).
/// `rotate` gets `[rows, heads, head_dim]`.
pub fn to_heads(
    x: &Array,
    heads: i32,
    norm: Option<(&Array, f32)>,
    rotate: impl Fn(Array) -> Result<Array>,
) -> Result<Array> {
    let x = match norm {
        Some((weight, eps)) => fast::rms_norm(f32(x)?, Some(weight), eps)?,
        None => x.clone(),
    };
    let x = x.reshape(&[x.dim(0), heads, x.dim(1) / heads])?;
    rotate(x)?.transpose_axes(&[1, 0, 2])?.expand_dims(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::kernels::cpu;
    use crate::runtime::to_host;

    #[test]
    fn scores_in_parts_are_the_same_attention() {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        let values = |shape: [i32; 4], seed: i32| {
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|i| ((i * 37 + seed) % 1009) as f32 / 300.0 - 1.7)
                .collect();
            Array::from_slice(&values, &shape)
        };
        let [q, k, v] = [3, 17, 5].map(|seed| values([1, 3, 40, 16], seed));
        let weights = values([1, 1, 1, 40], 11);
        for weights in [None, Some(&weights)] {
            let with = |score_bytes| {
                let all = attention(&q, &k, &v, 0.25, weights, score_bytes);
                to_host(&all.unwrap()).unwrap()
            };
            // Seven rows of scores at once.
            let parts = with(7 * 4 * 3 * 40);
            let host = cpu::attention(&q, &k, &v, 0.25, weights, u64::MAX).unwrap();
            let all = with(u64::MAX);
            for other in [parts, to_host(&host).unwrap()] {
                for (a, b) in all.iter().zip(&other) {
                    assert!((a - b).abs() < 1e-5, "{a} {b}");
                }
            }
        }
    }
}
