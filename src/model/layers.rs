//! Layers that the networks share.

use anyhow::Result as AnyResult;
use mlx_rs::error::Result;
use mlx_rs::ops::addmm;
use mlx_rs::{Array, Dtype};

use super::{Role, TensorSource};
use crate::runtime::kernels::{cpu, rotate_runs};
use crate::runtime::{Device, Kernels, Packing, count_product, count_unpacked, in_row_chunks};

/// Inputs that share a scale and a bias in what this program writes.
pub const GROUP_SIZE: usize = 64;

/// A weight `[outputs, inputs]` as MLX packs it.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// `[outputs, inputs * bits / 32]`, uint32; the lowest bits hold the first input.
    pub packed: Array,
    /// `[outputs, inputs / group_size]`: in the dtype of the products for the affine mode, else uint8.
    pub scales: Array,
    /// As `scales`; of the affine mode alone.
    pub biases: Option<Array>,
    /// How it is packed.
    pub packing: Packing,
    /// What the weight, and so each product, is multiplied by: float32, `[1]` or `[outputs]`.
    pub factor: Option<Array>,
    /// How many inputs are rotated together before the packed weight multiplies them, where they are.
    pub rotation: Option<i32>,
    /// What it was loaded for.
    pub device: Device,
}

impl Quantized {
    /// The dense weight `[outputs, inputs]`, in the dtype of the products.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn dequantize(&self) -> Result<Array> {
        let dense = self.dense(self.factor.as_ref(), self.device.dtype.matmul_dtype())?;
        self.rotated(&dense)
    }

    /// `x` `[rows, inputs]` with runs of inputs rotated, where the weight's are.
    fn rotated(&self, x: &Array) -> Result<Array> {
        match self.rotation {
            Some(size) => rotate_runs(x, size),
            None => Ok(x.clone()),
        }
    }

    fn dense(&self, factor: Option<&Array>, dtype: Dtype) -> Result<Array> {
        let (parts, biases) = ([&self.packed, &self.scales], self.biases.as_ref());
        let packing = self.packing;
        (self.device).dequantize(parts, biases, packing, factor, dtype)
    }

    /// `x` `[rows, inputs]`, of the dtype that products have here, times the transposed weight without
    /// unpacking the whole of it; and without the factor.
    fn multiply(&self, x: &Array) -> Result<Array> {
        let (parts, biases) = ([&self.packed, &self.scales], self.biases.as_ref());
        let product = |x: &Array| (self.device).quantized_matmul(x, parts, biases, self.packing);
        in_row_chunks(x, 0, product)
    }

    /// Its arrays.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let sides = [&self.biases, &self.factor].map(Option::as_ref);
        [&self.packed, &self.scales]
            .into_iter()
            .chain(sides.into_iter().flatten())
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
    /// Packed, and what adapters add to its products.
    Quantized(Quantized, Vec<Term>),
}

/// A weight, ready for products.
#[derive(Clone, Debug)]
enum Matrix {
    /// Transposed view of the checkpoint's `[out, in]` weight.
    Transposed(Array),
    /// `[out, in]`, float32, for this program's own product.
    Own(Array),
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

    /// The same as `device` computes it best.
    pub fn on(self, device: Device) -> AnyResult<Self> {
        let matrix = match self.matrix {
            Matrix::Transposed(weight)
                if device.kernels == Kernels::Cpu && weight.dtype() == Dtype::Float32 =>
            {
                Matrix::Own(weight.transpose()?)
            }
            other => other,
        };
        Ok(Self { matrix, ..self })
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
            Matrix::Own(weight) => weight.dim(0),
            Matrix::Quantized(q) => q.packed.dim(0),
        };
        count_product(x.dim(0), x.dim(1), outputs);
        match &self.matrix {
            Matrix::Transposed(weight) => self.dense(x, weight, self.bias.as_ref()),
            Matrix::Own(weight) => self.own(x, weight),
            Matrix::Quantized(q) if x.dim(0) > q.device.dense_above => {
                let (q, dtype) = self.widened(q)?;
                // A float32 takes the factor in without a loss; what has fewer bits would be rounded twice.
                let factor = q.factor.as_ref();
                let (within, after) = match dtype {
                    Dtype::Float32 => (factor, None),
                    _ => (None, factor),
                };
                let weight = q.dense(within, dtype)?;
                count_unpacked(weight.size());
                let x = &q.rotated(x)?;
                if q.device.kernels == Kernels::Cpu && dtype == Dtype::Float32 {
                    return self.own(x, &weight);
                }
                let weight = weight.transpose()?;
                let y = match after {
                    Some(factor) => {
                        self.scaled(&self.dense(x, &weight, None)?, factor, &q.device)?
                    }
                    None => self.dense(x, &weight, self.bias.as_ref())?,
                };
                drop(weight);
                if q.device.kernels == Kernels::Cpu {
                    // The unpacked weight goes before the next one comes.
                    y.eval()?;
                }
                Ok(y)
            }
            Matrix::Quantized(q) => {
                let (q, dtype) = self.widened(q)?;
                let y = q.multiply(&q.rotated(&x.as_dtype(dtype)?)?)?;
                match (&q.factor, &self.bias) {
                    (Some(factor), _) => self.scaled(&y, factor, &q.device),
                    (None, Some(bias)) => y.add(bias),
                    (None, None) => Ok(y),
                }
            }
        }
    }

    fn own(&self, x: &Array, weight: &Array) -> Result<Array> {
        // A bias that is kept as it is stored may have 16 bits.
        let bias = self.bias.as_ref().map(f32).transpose()?;
        cpu::linear(&f32(x)?, weight, bias.as_ref())
    }

    fn dense(&self, x: &Array, weight: &Array, bias: Option<&Array>) -> Result<Array> {
        let weight = match self.wide {
            true => f32(weight)?,
            false => weight.clone(),
        };
        let x = x.as_dtype(weight.dtype())?;
        in_row_chunks(&x, 0, |x| match bias {
            Some(bias) => addmm(bias, x, &weight, None, None),
            None => x.matmul(&weight),
        })
    }

    /// Products `y` times `factor`, with the bias.
    fn scaled(&self, y: &Array, factor: &Array, device: &Device) -> Result<Array> {
        in_row_chunks(y, 0, |y| device.scale_shift(y, factor, self.bias.as_ref()))
    }

    /// `quantized` with its scales as the products have them, and the products' dtype.
    fn widened(&self, quantized: &Quantized) -> Result<(Quantized, Dtype)> {
        let mut quantized = quantized.clone();
        if !self.wide {
            let dtype = quantized.device.dtype.matmul_dtype();
            return Ok((quantized, dtype));
        }
        if let Some(biases) = &mut quantized.biases {
            quantized.scales = f32(&quantized.scales)?;
            *biases = f32(biases)?;
        }
        Ok((quantized, Dtype::Float32))
    }
}

pub use crate::runtime::f32;
