//! Layers that the networks share.

use anyhow::Result as AnyResult;
use mlx_rs::error::Result;
use mlx_rs::ops::{addmm, sigmoid, tanh};
use mlx_rs::{Array, Dtype};

use super::{Role, TensorSource};
use crate::backend::in_row_chunks;

/// `y = x W^T + b`, in the weight's dtype.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Transposed view of the checkpoint's `[out, in]` weight.
    weight_t: Array,
    bias: Option<Array>,
}

impl Linear {
    /// Loads `{name}.weight` `[outputs, inputs]` and `{name}.bias` `[outputs]`.
    pub fn load(
        source: &mut dyn TensorSource,
        name: &str,
        inputs: i32,
        outputs: i32,
        role: Role,
    ) -> AnyResult<Self> {
        let mut linear = Self::load_without_bias(source, name, inputs, outputs, role)?;
        linear.bias = Some(source.tensor(&format!("{name}.bias"), &[outputs], role)?);
        Ok(linear)
    }

    /// Loads `{name}.weight` `[outputs, inputs]` alone.
    pub fn load_without_bias(
        source: &mut dyn TensorSource,
        name: &str,
        inputs: i32,
        outputs: i32,
        role: Role,
    ) -> AnyResult<Self> {
        let weight = source.tensor(&format!("{name}.weight"), &[outputs, inputs], role)?;
        Self::from_weight(&weight, None)
    }

    /// From a weight `[outputs, inputs]` and an optional bias `[outputs]`.
    pub fn from_weight(weight: &Array, bias: Option<Array>) -> AnyResult<Self> {
        Ok(Self {
            weight_t: weight.transpose()?,
            bias,
        })
    }

    /// `x` `[n, inputs]` of any float dtype to `[n, outputs]` in the weight's dtype.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let x = x.as_dtype(self.weight_t.dtype())?;
        in_row_chunks(&x, 0, |x| match &self.bias {
            Some(bias) => addmm(bias, x, &self.weight_t, None, None),
            None => x.matmul(&self.weight_t),
        })
    }
}

/// `x * sigmoid(x)`, in `x`'s dtype.
///
/// Written out instead of mlx-rs's compiled version: MLX's CPU backend compiles by calling
/// the machine's C++ compiler at run time, which a user need not have.
pub fn silu(x: &Array) -> Result<Array> {
    x.multiply(sigmoid(x)?)
}

/// The tanh approximation of GELU (Hendrycks and Gimpel, arXiv:1606.08415), in `x`'s dtype.
pub fn gelu_tanh(x: &Array) -> Result<Array> {
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

/// `x` in float32.
pub fn f32(x: &Array) -> Result<Array> {
    x.as_dtype(Dtype::Float32)
}
