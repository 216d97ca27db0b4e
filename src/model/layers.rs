//! Layers that the networks share.

use anyhow::Result as AnyResult;
use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::{addmm, quantized_matmul};

use super::{Role, TensorSource};
use crate::runtime::{Device, Kernels, count_product, count_unpacked, in_row_chunks};

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
    /// What it was loaded for.
    pub device: Device,
}

impl Quantized {
    /// The dense weight `[outputs, inputs]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn dequantize(&self) -> Result<Array> {
        let sides = [&self.scales, &self.biases];
        self.device
            .dequantize(&self.packed, sides, self.group_size, self.bits)
    }
}

/// What an adapter adds to the product with a weight that stays as it is.
#[derive(Clone, Debug)]
pub enum Term {
    /// `(x down) up`.
    LowRank {
        /// `[inputs, rank]`.
        down: Array,
        /// `[rank, outputs]`, with the adapter's strength in it.
        up: Array,
    },
    /// `x` times the transposed Kronecker product of two matrices.
    Kronecker {
        /// `[a, b]`, with the adapter's strength in it.
        left: Array,
        /// `[c, d]`; the weight is `[a * c, b * d]`.
        right: Array,
    },
}

impl Term {
    /// `x` `[n, inputs]` to `[n, outputs]`, in the dtype of its matrices.
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Self::LowRank { down, up } => {
                let rank = down.dim(1);
                count_product(x.dim(0), x.dim(1), rank);
                count_product(x.dim(0), rank, up.dim(1));
                x.as_dtype(down.dtype())?.matmul(down)?.matmul(up)
            }
            Self::Kronecker { left, right } => {
                let [a, b] = [left.dim(0), left.dim(1)];
                let [c, d] = [right.dim(0), right.dim(1)];
                let n = x.dim(0);
                count_product(n * b, d, c);
                count_product(n * c, b, a);
                let x = x.as_dtype(left.dtype())?.reshape(&[n, b, d])?;
                let x = x.matmul(right.transpose()?)?;
                left.matmul(x)?.reshape(&[n, a * c])
            }
        }
    }

    /// Values of its matrices.
    pub fn values(&self) -> usize {
        match self {
            Self::LowRank { down, up } => down.size() + up.size(),
            Self::Kronecker { left, right } => left.size() + right.size(),
        }
    }
}

/// The weight of a linear layer, as a source hands it out.
#[derive(Clone, Debug)]
pub enum Weight {
    /// `[outputs, inputs]`, of a float dtype.
    Dense(Array),
    /// Of 4 or 8 bits, and what adapters add to its products.
    Quantized(Quantized, Vec<Term>),
}

/// A weight, ready for products.
#[derive(Clone, Debug)]
enum Matrix {
    /// Transposed view of the checkpoint's `[out, in]` weight.
    Transposed(Array),
    Quantized(Quantized),
}

/// `y = x W^T + b`, in the weight's dtype or in float32.
#[derive(Clone, Debug)]
pub struct Linear {
    matrix: Matrix,
    bias: Option<Array>,
    /// What adapters add.
    terms: Vec<Term>,
    /// Whether products are float32 whatever the weight's dtype.
    wide: bool,
}

impl Linear {
    /// Loads `weight` `[outputs, inputs]` and `bias` `[outputs]`.
    pub fn load(
        source: &mut dyn TensorSource,
        [inputs, outputs]: [i32; 2],
        role: Role,
    ) -> AnyResult<Self> {
        let mut linear = Self::load_without_bias(source, [inputs, outputs], role)?;
        linear.bias = Some(source.tensor("bias", &[outputs], role)?);
        Ok(linear)
    }

    /// Loads `weight` `[outputs, inputs]` alone.
    pub fn load_without_bias(
        source: &mut dyn TensorSource,
        [inputs, outputs]: [i32; 2],
        role: Role,
    ) -> AnyResult<Self> {
        Self::from_weight(source.weight("weight", [outputs, inputs], role)?, None)
    }

    /// From a weight `[outputs, inputs]` and an optional bias `[outputs]`.
    pub fn from_weight(weight: Weight, bias: Option<Array>) -> AnyResult<Self> {
        let (matrix, terms) = match weight {
            Weight::Dense(weight) => (Matrix::Transposed(weight.transpose()?), Vec::new()),
            Weight::Quantized(quantized, terms) => (Matrix::Quantized(quantized), terms),
        };
        Ok(Self {
            matrix,
            bias,
            terms,
            wide: false,
        })
    }

    /// The same with its products in float32; its weight stays as it is.
    pub fn in_float32(self) -> Self {
        Self { wide: true, ..self }
    }

    /// `x` `[n, inputs]` of any float dtype to `[n, outputs]` in the weight's dtype, or in float32.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let mut y = self.product(x)?;
        for term in &self.terms {
            let added = in_row_chunks(x, 0, |x| term.forward(x))?;
            y = y.add(added.as_dtype(y.dtype())?)?;
        }
        Ok(y)
    }

    fn product(&self, x: &Array) -> Result<Array> {
        let outputs = match &self.matrix {
            Matrix::Transposed(weight) => weight.dim(1),
            Matrix::Quantized(q) => q.packed.dim(0),
        };
        count_product(x.dim(0), x.dim(1), outputs);
        match &self.matrix {
            Matrix::Transposed(weight) => self.dense(x, weight),
            Matrix::Quantized(q) if x.dim(0) > q.device.dense_above => {
                let q = self.widened(q)?;
                let weight = q.dequantize()?.transpose()?;
                count_unpacked(weight.size());
                let y = self.dense(x, &weight)?;
                drop(weight);
                if q.device.kernels == Kernels::Cpu {
                    // The unpacked weight goes before the next one comes.
                    y.eval()?;
                }
                Ok(y)
            }
            Matrix::Quantized(q) => {
                let q = self.widened(q)?;
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
        let weight = match self.wide {
            true => f32(weight)?,
            false => weight.clone(),
        };
        let x = x.as_dtype(weight.dtype())?;
        in_row_chunks(&x, 0, |x| match &self.bias {
            Some(bias) => addmm(bias, x, &weight, None, None),
            None => x.matmul(&weight),
        })
    }

    /// `quantized` with its scales as the products have them.
    fn widened(&self, quantized: &Quantized) -> Result<Quantized> {
        let mut quantized = quantized.clone();
        if self.wide {
            quantized.scales = f32(&quantized.scales)?;
            quantized.biases = f32(&quantized.biases)?;
        }
        Ok(quantized)
    }
}

pub use crate::runtime::f32;
