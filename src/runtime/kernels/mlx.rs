//! What takes several of MLX's operations, without the machine's own.

use mlx_rs::error::Result;
use mlx_rs::fast::ScaledDotProductAttentionMask;
use mlx_rs::{Array, fast};

use crate::runtime::{f32, in_chunks};

/// MLX's attention of `most_rows` queries at once; see
/// [`Device::attention`](crate::runtime::Device::attention).
pub fn attention(
    q: &Array,
    k: &Array,
    v: &Array,
    scale: f32,
    weights: Option<&Array>,
    most_rows: i32,
) -> Result<Array> {
    // The mask has to be of the operands' dtype.
    let weights = weights.map(|w| w.as_dtype(q.dtype())).transpose()?;
    let weights = weights.as_ref();
    let chunked = q.dim(2) > most_rows;
    // Rows first: Metal's fused kernel writes them so, and joined they are what the caller wants.
    let queries = q.transpose_axes(&[0, 2, 1, 3])?;
    in_chunks(&queries, 1, most_rows, |q| {
        let q = q.transpose_axes(&[0, 2, 1, 3])?;
        let mask = weights.map(ScaledDotProductAttentionMask::from);
        let out = fast::scaled_dot_product_attention(&q, k, v, scale, mask, None)?;
        let out = out.transpose_axes(&[0, 2, 1, 3])?;
        if chunked {
            // A command buffer each.
            out.eval()?;
        }
        Ok(out)
    })?
    .transpose_axes(&[0, 2, 1, 3])
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
