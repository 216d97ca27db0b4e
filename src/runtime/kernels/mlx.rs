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
