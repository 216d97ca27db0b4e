//! Layers that the networks share.

use anyhow::Result as AnyResult;
use mlx_rs::error::Result;
use mlx_rs::ops::{addmm, dequantize, quantized_matmul};
use mlx_rs::{Array, Dtype, fast};

use super::{Role, TensorSource};
use crate::runtime::kernels::cpu;
use crate::runtime::kernels::{compiled, elementwise};
use crate::runtime::{DeviceKind, computes_on, count_product, count_unpacked, in_row_chunks};

/// Inputs that share a scale and a bias in what this program writes.
pub const GROUP_SIZE: usize = 64;

/// A weight `[outputs, inputs]` in MLX's affine quantization: each group of `group_size` inputs has
/// a scale and a bias, and a weight is `scale * q + bias` with `q` of `bits` bits.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// `[outputs, inputs * bits / 32]`, uint32; the lowest bits hold the first input.
    pub packed: Array,
    /// `[outputs, inputs / group_size]`, in the dtype of the products.
    pub scales: Array,
    /// As `scales`.
    pub biases: Array,
    /// Inputs that share a scale and a bias.
    pub group_size: i32,
    /// Bits per weight.
    pub bits: i32,
    /// Products of more rows than this unpack the weight first and use the dense kernel, which
    /// spares each row the unpacking.
    pub dense_above: i32,
}

impl Quantized {
    /// The dense weight `[outputs, inputs]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn dequantize(&self) -> Result<Array> {
        let exact = self.scales.dtype() == Dtype::Float32;
        if computes_on() == DeviceKind::Cpu && exact && cpu::unpacks(self.bits, self.group_size) {
            let sides = [&self.scales, &self.biases];
            return cpu::dequantize(&self.packed, sides, self.group_size, self.bits);
        }
        let (scales, biases) = (&self.scales, Some(&self.biases));
        dequantize(&self.packed, scales, biases, self.group_size, self.bits)
    }
}

/// The weight of a linear layer, as a source hands it out.
#[derive(Clone, Debug)]
pub enum Weight {
    /// `[outputs, inputs]`, of a float dtype.
    Dense(Array),
    /// Of 4 or 8 bits.
    Quantized(Quantized),
}

/// A weight, ready for products.
#[derive(Clone, Debug)]
enum Matrix {
    /// Transposed view of the checkpoint's `[out, in]` weight.
    Transposed(Array),
    Quantized(Quantized),
}

/// `y = x W^T + b`, in the weight's dtype.
#[derive(Clone, Debug)]
pub struct Linear {
    matrix: Matrix,
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
        let weight = source.weight(&format!("{name}.weight"), [outputs, inputs], role)?;
        Self::from_weight(weight, None)
    }

    /// From a weight `[outputs, inputs]` and an optional bias `[outputs]`.
    pub fn from_weight(weight: Weight, bias: Option<Array>) -> AnyResult<Self> {
        let matrix = match weight {
            Weight::Dense(weight) => Matrix::Transposed(weight.transpose()?),
            Weight::Quantized(quantized) => Matrix::Quantized(quantized),
        };
        Ok(Self { matrix, bias })
    }

    /// `x` `[n, inputs]` of any float dtype to `[n, outputs]` in the weight's dtype.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let outputs = match &self.matrix {
            Matrix::Transposed(weight) => weight.dim(1),
            Matrix::Quantized(q) => q.packed.dim(0),
        };
        count_product(x.dim(0), x.dim(1), outputs);
        match &self.matrix {
            Matrix::Transposed(weight) => self.dense(x, weight),
            Matrix::Quantized(q) if x.dim(0) > q.dense_above => {
                let weight = q.dequantize()?.transpose()?;
                count_unpacked(weight.size());
                let y = self.dense(x, &weight)?;
                drop(weight);
                if computes_on() == DeviceKind::Cpu {
                    // The unpacked weight goes before the next one comes.
                    y.eval()?;
                }
                Ok(y)
            }
            Matrix::Quantized(q) => {
                let x = x.as_dtype(q.scales.dtype())?;
                let (scales, biases) = (&q.scales, Some(&q.biases));
                let y = in_row_chunks(&x, 0, |x| {
                    quantized_matmul(x, &q.packed, scales, biases, true, q.group_size, q.bits)
                })?;
                match &self.bias {
                    Some(bias) => y.add(bias),
                    None => Ok(y),
                }
            }
        }
    }

    fn dense(&self, x: &Array, weight: &Array) -> Result<Array> {
        let x = x.as_dtype(weight.dtype())?;
        in_row_chunks(&x, 0, |x| match &self.bias {
            Some(bias) => addmm(bias, x, weight, None, None),
            None => x.matmul(weight),
        })
    }
}

/// `x * sigmoid(x)`, in `x`'s dtype.
pub fn silu(x: &Array) -> Result<Array> {
    match computes_on() {
        DeviceKind::Gpu => compiled::silu(x),
        DeviceKind::Cpu => elementwise::silu(x),
    }
}

/// The tanh approximation of GELU (Hendrycks and Gimpel, arXiv:1606.08415), of `[rows, columns]` in
/// `x`'s dtype.
pub fn gelu_tanh(x: &Array) -> Result<Array> {
    match computes_on() {
        DeviceKind::Gpu => compiled::gelu_tanh(x),
        DeviceKind::Cpu if x.dtype() == Dtype::Float32 => cpu::gelu_tanh(x),
        DeviceKind::Cpu => elementwise::gelu_tanh(x),
    }
}

/// LayerNorm of `x` `[rows, width]` over the width, times `weight` plus `bias`, `[width]` each; all
/// of it float32.
pub fn layer_norm(x: &Array, weight: &Array, bias: &Array, eps: f32) -> Result<Array> {
    match computes_on() {
        DeviceKind::Gpu => fast::layer_norm(x, weight, bias, eps),
        DeviceKind::Cpu => cpu::layer_norm(x, weight, bias, eps),
    }
}

/// `x + h * gate`, float32: `x` `[rows, width]`, `h` of any float dtype, `gate` `[width]`.
pub fn add_gated(x: &Array, h: &Array, gate: &Array) -> Result<Array> {
    match computes_on() {
        DeviceKind::Gpu => compiled::add_gated(x, h, gate),
        DeviceKind::Cpu => elementwise::add_gated(x, h, gate),
    }
}

/// Rotates adjacent pairs (2i, 2i+1) of `x` `[tokens, heads, head_dim]` by `cos` and `sin`
/// `[tokens, 1, head_dim / 2]`; float32.
pub fn rotate(x: &Array, cos: &Array, sin: &Array) -> Result<Array> {
    match computes_on() {
        DeviceKind::Gpu => compiled::rotate(x, cos, sin),
        DeviceKind::Cpu => elementwise::rotate(x, cos, sin),
    }
}

/// Projections `[rows, heads * head_dim]` of any float dtype as attention wants them, `[1, heads,
/// rows, head_dim]`, in float32 or, on the GPU and without a norm, as they come: RMS norm over the
/// whole width with the weights and epsilon of `norm`, and then adjacent pairs rotated by the cosines
/// and sines of `places`, `[rows, 1, head_dim / 2]`.
pub fn to_heads(
    x: &Array,
    heads: i32,
    norm: Option<(&Array, f32)>,
    places: Option<[&Array; 2]>,
) -> Result<Array> {
    if computes_on() == DeviceKind::Cpu {
        return cpu::to_heads(&f32(x)?, heads, norm, places);
    }
    let x = match norm {
        Some((weight, eps)) => fast::rms_norm(f32(x)?, Some(weight), eps)?,
        None => x.clone(),
    };
    let mut x = x.reshape(&[x.dim(0), heads, x.dim(1) / heads])?;
    if let Some([cos, sin]) = places {
        x = rotate(&x, cos, sin)?;
    }
    x.transpose_axes(&[1, 0, 2])?.expand_dims(0)
}

pub use crate::runtime::f32;
