//! Chains of elementwise operations, written out in MLX's.

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{self, sigmoid, stack, tanh};

use crate::runtime::f32;

/// `x * sigmoid(x)`, computed in float32.
pub(crate) fn silu(x: &Array) -> Result<Array> {
    let wide = f32(x)?;
    wide.multiply(sigmoid(&wide)?)?.as_dtype(x.dtype())
}

/// The tanh approximation of GELU, computed in float32: in bfloat16 the sum `1 + tanh` alone would be off
/// by 1 to 2% of small results.
pub(crate) fn gelu_tanh(x: &Array) -> Result<Array> {
    let scalar = Array::from_f32;
    let wide = f32(x)?;
    let cubic = wide
        .square()?
        .multiply(scalar(0.044_715))?
        .add(scalar(1.0))?
        .multiply(&wide)?
        .multiply(scalar((2.0 / std::f64::consts::PI).sqrt() as f32))?;
    tanh(&cubic)?
        .add(scalar(1.0))?
        .multiply(&wide)?
        .multiply(scalar(0.5))?
        .as_dtype(x.dtype())
}

/// `x + h * gate`, float32.
pub(crate) fn add_gated(x: &Array, h: &Array, gate: &Array) -> Result<Array> {
    x.add(f32(h)?.multiply(gate)?)
}

/// `x * factor + bias`, computed in float32, in `x`'s dtype.
pub(crate) fn scale_shift(x: &Array, factor: &Array, bias: Option<&Array>) -> Result<Array> {
    let y = f32(x)?.multiply(factor)?;
    let y = match bias {
        Some(bias) => y.add(f32(bias)?)?,
        None => y,
    };
    y.as_dtype(x.dtype())
}

/// Rotates adjacent pairs (2i, 2i+1) of `x` `[tokens, heads, head_dim]` by `cos` and `sin`
/// `[tokens, 1, head_dim / 2]`.
pub(crate) fn rotate(x: &Array, cos: &Array, sin: &Array) -> Result<Array> {
    let shape = x.shape().to_vec();
    let pairs = ops::unflatten(x, -1, &[shape[2] / 2, 2])?;
    let real = pairs.try_index((.., .., .., 0))?;
    let imaginary = pairs.try_index((.., .., .., 1))?;
    let rotated_real = real.multiply(cos)?.subtract(imaginary.multiply(sin)?)?;
    let rotated_imaginary = real.multiply(sin)?.add(imaginary.multiply(cos)?)?;
    stack(&[rotated_real, rotated_imaginary], -1)?.reshape(&shape)
}
