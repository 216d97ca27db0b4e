//! What the networks compute with, as well as matrix products: MLX's operations ([`mlx`],
//! [`elementwise`], [`compiled`]) or this program's own on the host ([`cpu`]). [`Device::kernels`]
//! says which.

mod compiled;
pub mod cpu;
mod elementwise;
mod mlx;

use mlx_rs::error::Result;
use mlx_rs::{Array, Dtype, ops};

use super::{Device, DeviceKind, count_product, f32};

/// A set of functions that the networks compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// MLX's, convolutions too: what a GPU needs.
    Mlx,
    /// This program's, where MLX's CPU backend is slow; the others are MLX's. A convolution is a sum
    /// of matrix products, one per kernel tap: MLX's CPU backend unfolds the input before its
    /// product, and without that copy the same shapes run 2.5 to 4 times faster.
    Cpu,
}

impl Device {
    /// Whether chains of elementwise operations are compiled. On the CPU MLX compiles by calling the
    /// machine's C++ compiler at run time, which a user need not have.
    fn compiles(&self) -> bool {
        self.kernels == Kernels::Mlx && self.kind == DeviceKind::Gpu
    }

    /// Multi-head attention, `softmax(q k^T * scale + weights) v`.
    ///
    /// Shapes: `q` `[1, heads, n, d]`, `k` and `v` `[1, heads, m, d]`, `weights` `[1, 1, 1, m]`;
    /// result `[1, heads, n, d]` in the operands' dtype. Queries go in chunks that keep to
    /// [`MAX_KERNEL_ROWS`](super::MAX_KERNEL_ROWS) and the score matrix within `score_bytes`: rows of
    /// the softmax are independent. As with any product of fewer rows, a BLAS may round the last bits
    /// differently.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn attention(
        &self,
        [q, k, v]: [&Array; 3],
        scale: f32,
        weights: Option<&Array>,
        score_bytes: u64,
    ) -> Result<Array> {
        for _head in 0..q.dim(1) {
            count_product(2 * q.dim(2), q.dim(3), k.dim(2));
        }
        match (self.kernels, q.dtype()) {
            (Kernels::Cpu, Dtype::Float32) => cpu::attention(q, k, v, scale, weights, score_bytes),
            _ => mlx::attention(q, k, v, scale, weights, score_bytes),
        }
    }

    /// Bytes of scores that [`Self::attention`] in `dtype` has at once: of `queries` to `keys` in
    /// `heads` of `width`.
    pub fn scores_at_once(
        &self,
        dtype: Dtype,
        [heads, queries, keys, width]: [i32; 4],
        score_bytes: u64,
    ) -> u64 {
        if self.kernels == Kernels::Cpu && dtype == Dtype::Float32 {
            return cpu::scores_at_once(heads, queries, keys, width, score_bytes);
        }
        let size = |value: i32| value.max(0) as u64;
        let row = 4 * size(heads) * size(keys);
        (row * size(queries)).min(score_bytes.max(row))
    }

    /// LayerNorm of `x` `[rows, width]` over the width, times `weight` plus `bias`, `[width]` each;
    /// all of it float32.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn layer_norm(&self, x: &Array, weight: &Array, bias: &Array, eps: f32) -> Result<Array> {
        match self.kernels {
            Kernels::Mlx => mlx_rs::fast::layer_norm(x, weight, bias, eps),
            Kernels::Cpu => cpu::layer_norm(x, weight, bias, eps),
        }
    }

    /// RMS norm over the channels of `x` `[frames, height, width, channels]`, times `gamma`, and then
    /// SiLU; float32, evaluated.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn norm_silu(&self, x: &Array, gamma: &Array, eps: f32) -> Result<Array> {
        match self.kernels {
            Kernels::Mlx => {
                let h = self.silu(&mlx_rs::fast::rms_norm(x, Some(gamma), eps)?)?;
                h.eval()?;
                Ok(h)
            }
            Kernels::Cpu => cpu::norm_silu(x, gamma, eps),
        }
    }

    /// Projections `[rows, heads * head_dim]` of any float dtype as attention wants them, `[1, heads,
    /// rows, head_dim]`, in float32 or, with MLX's kernels and without a norm, as they come: RMS norm
    /// over the whole width with the weights and epsilon of `norm`, and then adjacent pairs rotated by
    /// the cosines and sines of `rope`, `[rows, 1, head_dim / 2]`.
    ///
    /// # Errors
    /// When MLX fails, or the tables are of other rows.
    pub fn to_heads(
        &self,
        x: &Array,
        heads: i32,
        norm: Option<(&Array, f32)>,
        rope: Option<[&Array; 2]>,
    ) -> Result<Array> {
        match self.kernels {
            Kernels::Mlx => mlx::to_heads(x, heads, norm, |x| match rope {
                Some([cos, sin]) => self.rotate(&x, cos, sin),
                None => Ok(x),
            }),
            Kernels::Cpu => cpu::to_heads(&f32(x)?, heads, norm, rope),
        }
    }

    /// Rotates adjacent pairs (2i, 2i+1) of `x` `[tokens, heads, head_dim]` by `cos` and `sin`
    /// `[tokens, 1, head_dim / 2]`; float32.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn rotate(&self, x: &Array, cos: &Array, sin: &Array) -> Result<Array> {
        match self.compiles() {
            true => compiled::rotate(x, cos, sin),
            false => elementwise::rotate(x, cos, sin),
        }
    }

    /// `x * sigmoid(x)`, in `x`'s dtype.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn silu(&self, x: &Array) -> Result<Array> {
        match self.compiles() {
            true => compiled::silu(x),
            false => elementwise::silu(x),
        }
    }

    /// The tanh approximation of GELU (Hendrycks and Gimpel, arXiv:1606.08415), of `[rows, columns]`
    /// in `x`'s dtype.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn gelu_tanh(&self, x: &Array) -> Result<Array> {
        match (self.kernels, x.dtype()) {
            (Kernels::Cpu, Dtype::Float32) => cpu::gelu_tanh(x),
            _ if self.compiles() => compiled::gelu_tanh(x),
            _ => elementwise::gelu_tanh(x),
        }
    }

    /// `x + h * gate`, float32: `x` `[rows, width]`, `h` of any float dtype, `gate` `[width]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn add_gated(&self, x: &Array, h: &Array, gate: &Array) -> Result<Array> {
        match self.compiles() {
            true => compiled::add_gated(x, h, gate),
            false => elementwise::add_gated(x, h, gate),
        }
    }

    /// The dense weight of MLX's affine quantization: `packed` `[outputs, inputs * bits / 32]`,
    /// uint32, and `scales` and `biases` `[outputs, inputs / group_size]` to `[outputs, inputs]` in
    /// their dtype.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn dequantize(
        &self,
        packed: &Array,
        [scales, biases]: [&Array; 2],
        group_size: i32,
        bits: i32,
    ) -> Result<Array> {
        let exact = scales.dtype() == Dtype::Float32;
        if self.kernels == Kernels::Cpu && exact && cpu::unpacks(bits, group_size) {
            return cpu::dequantize(packed, [scales, biases], group_size, bits);
        }
        ops::dequantize(packed, scales, Some(biases), group_size, bits)
    }
}
