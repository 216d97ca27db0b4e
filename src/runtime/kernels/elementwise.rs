//! Chains of elementwise operations, written out in MLX's.

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{self, sigmoid, stack, tanh};

use crate::runtime::f32;

/// `x * sigmoid(x)`.
pub(crate) fn silu(x: &Array) -> Result<Array> {
    x.multiply(sigmoid(x)?)
}

/// The tanh approximation of GELU.
pub(crate) fn gelu_tanh(x: &Array) -> Result<Array> {
    let scalar = |v: f32| Array::from_f32(v).as_dtype(x.dtype());
    let cubic = x
        .square()?
        .multiply(scalar(0.044_715)?)?
        .add(scalar(1.0)?)?
        .multiply(x)?
        .multiply(scalar((2.0 / std::f64::consts::PI).sqrt() as f32)?)?;
    tanh(&cubic)?
        .add(scalar(1.0)?)?
        .multiply(x)?
        .multiply(scalar(0.5)?)
}

/// `x + h * gate`, float32.
pub(crate) fn add_gated(x: &Array, h: &Array, gate: &Array) -> Result<Array> {
    x.add(f32(h)?.multiply(gate)?)
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
