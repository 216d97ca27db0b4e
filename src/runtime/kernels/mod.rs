//! What the networks compute with, as well as matrix products: MLX's operations (`mlx`,
//! `elementwise`, `compiled`) or this program's own on the host ([`cpu`]). [`Device::kernels`]
//! says which.

mod compiled;
pub mod cpu;
mod elementwise;
pub mod metal;
mod mlx;
mod rotation;

pub(crate) use rotation::rotate_runs;

use mlx_rs::error::Result;
use mlx_rs::ops::concatenate;
use mlx_rs::{Array, Dtype};

use super::{Device, DeviceKind, Packing, count_product, f32, ffi, rows};

/// A set of functions that the networks compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// MLX's, convolutions too: what a GPU needs.
    Mlx,
    /// This program's, where MLX's CPU backend is slow; the others are MLX's.
    Cpu,
}

impl Device {
    /// Whether chains of elementwise operations are compiled. On the CPU MLX compiles by calling the
    /// machine's C++ compiler at run time, which a user need not have.
    fn compiles(&self) -> bool {
        self.kernels == Kernels::Mlx && self.kind == DeviceKind::Gpu
    }

    /// Whether the three time taps of a 3x3x3 convolution of these input and output channels go as one
    /// 2D convolution of each frame with three times the outputs, where MLX's Metal backend then takes
    /// Winograd's algorithm and for the taps apart does not.
    pub fn joins_time_taps(&self, [inputs, outputs]: [i32; 2]) -> bool {
        self.kernels == Kernels::Mlx
            && !self.tuning.whole_convolutions
            && !metal::takes_winograd([inputs, outputs])
            && metal::takes_winograd([inputs, 3 * outputs])
    }

    /// Multi-head attention, `softmax(q k^T * scale + weights) v`.
    ///
    /// Shapes: `q` `[1, heads, n, d]`, `k` and `v` `[1, heads, m, d]`, `weights` `[1, 1, 1, m]`;
    /// result `[1, heads, n, d]` in the operands' dtype, a view of `[n, heads, d]` in row-major order.
    /// Queries go in chunks of [`Self::attention_rows`]: rows of the softmax are independent. As with
    /// any product of fewer rows, a BLAS may round the last bits differently.
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
        match self.kernels {
            Kernels::Cpu => {
                let merged = self.merged_attention([q, k, v], scale, weights, score_bytes)?;
                let by_rows = merged.reshape(&[1, q.dim(2), q.dim(1), v.dim(3)])?;
                by_rows.transpose_axes(&[0, 2, 1, 3])
            }
            Kernels::Mlx => {
                count_attention(q, k);
                let shape = [q.dim(1), q.dim(2), k.dim(2), q.dim(3)];
                let rows = self.attention_rows(shape, score_bytes);
                mlx::attention(q, k, v, scale, weights, rows)
            }
        }
    }

    /// As [`Self::attention`], with the heads side by side: `[n, heads * d]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn merged_attention(
        &self,
        [q, k, v]: [&Array; 3],
        scale: f32,
        weights: Option<&Array>,
        score_bytes: u64,
    ) -> Result<Array> {
        match self.kernels {
            // In float32 between the operands, as fused kernels compute.
            Kernels::Cpu => {
                count_attention(q, k);
                let [wide_q, wide_k, wide_v] = [f32(q)?, f32(k)?, f32(v)?];
                let wide = [&wide_q, &wide_k, &wide_v];
                cpu::attention(wide, scale, weights, self.blocks())?.as_dtype(q.dtype())
            }
            Kernels::Mlx => {
                let out = self.attention([q, k, v], scale, weights, score_bytes)?;
                out.transpose_axes(&[0, 2, 1, 3])?
                    .reshape(&[q.dim(2), q.dim(1) * v.dim(3)])
            }
        }
    }

    /// Rows `start` to `end` of `x` `[rows, width]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn rows(&self, x: &Array, start: i32, end: i32) -> Result<Array> {
        match (self.kernels, x.dtype()) {
            (Kernels::Cpu, Dtype::Float32) => cpu::rows(x, start, end),
            _ => rows(x, start, end),
        }
    }

    /// The rows of all of `parts`, `[rows, width]` each, one after the other.
    ///
    /// # Errors
    /// When MLX fails, or the widths differ.
    pub fn joined(&self, parts: &[Array]) -> Result<Array> {
        match parts {
            [only] => Ok(only.clone()),
            [first, ..] if self.kernels == Kernels::Cpu && first.dtype() == Dtype::Float32 => {
                cpu::joined(parts)
            }
            _ => concatenate(parts, 0),
        }
    }

    /// `x + h`, float32, `[rows, width]`; `h` of any float dtype.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn add(&self, x: &Array, h: &Array) -> Result<Array> {
        match (self.kernels, h.dtype()) {
            (Kernels::Cpu, Dtype::Float32) => cpu::add(x, h),
            _ => x.add(f32(h)?),
        }
    }

    /// Bytes of scores that [`Self::attention`] has at once in MLX's memory: of `queries` to `keys` in
    /// `heads` of `width`.
    pub fn scores_at_once(&self, [heads, queries, keys, width]: [i32; 4], score_bytes: u64) -> u64 {
        // On the processor a core keeps its own outside.
        if self.kernels == Kernels::Cpu || self.fuses(width) {
            return 0;
        }
        let queries = self.attention_rows([heads, queries, keys, width], score_bytes);
        let size = |value: i32| value.max(0) as u64;
        4 * size(heads) * size(keys) * size(queries)
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
        match (self.kernels, h.dtype()) {
            (Kernels::Cpu, Dtype::Float32) => cpu::add_gated(x, h, gate),
            _ if self.compiles() => compiled::add_gated(x, h, gate),
            _ => elementwise::add_gated(x, h, gate),
        }
    }

    /// The dense weight `[outputs, inputs]` in `dtype` of a packed one: `packed` and `scales` as
    /// [`Packing`] says, `biases` like the scales where the mode has them; in float32 times `factor`, `[1]`
    /// or `[outputs]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn dequantize(
        &self,
        [packed, scales]: [&Array; 2],
        biases: Option<&Array>,
        packing: Packing,
        factor: Option<&Array>,
        dtype: Dtype,
    ) -> Result<Array> {
        if self.kernels == Kernels::Cpu && dtype == Dtype::Float32 && cpu::unpacks(packing) {
            return cpu::dequantize([packed, scales], biases, packing, factor);
        }
        let weight = ffi::dequantize([packed, scales], biases, packing, dtype)?;
        match factor {
            Some(factor) => weight.multiply(factor.reshape(&[-1, 1])?.as_dtype(dtype)?),
            None => Ok(weight),
        }
    }

    /// `x` `[rows, inputs]` of a float dtype times the transposed packed weight `[outputs, inputs]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn quantized_matmul(
        &self,
        x: &Array,
        weight: [&Array; 2],
        biases: Option<&Array>,
        packing: Packing,
    ) -> Result<Array> {
        ffi::quantized_matmul(x, weight, biases, packing)
    }

    /// `x * factor + bias`, computed in float32, in `x`'s dtype: `x` `[rows, width]`, `factor` `[1]` or
    /// `[width]`, `bias` `[width]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn scale_shift(&self, x: &Array, factor: &Array, bias: Option<&Array>) -> Result<Array> {
        match (self.compiles(), bias) {
            (true, Some(bias)) => compiled::scale_shift(x, factor, bias),
            _ => elementwise::scale_shift(x, factor, bias),
        }
    }
}

/// Counts the products of attention.
fn count_attention(q: &Array, k: &Array) {
    for _head in 0..q.dim(1) {
        count_product(2 * q.dim(2), q.dim(3), k.dim(2));
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::ops;

    use super::*;
    use crate::runtime::{Precision, to_host};

    fn values(shape: &[i32], seed: i32, dtype: Dtype) -> Array {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|i| ((i * 37 + seed) % 1009) as f32 / 300.0 - 1.7)
            .collect();
        Array::from_slice(&values, shape).as_dtype(dtype).unwrap()
    }

    /// What either set makes of the same, and how far apart it may be in float32 and in bfloat16.
    fn agree(what: &str, dtype: Dtype, run: impl Fn(&Device) -> Result<Array>) {
        let tolerance = match dtype {
            Dtype::Bfloat16 => 0.05,
            _ => 1e-5,
        };
        let [ours, mlx] = [Kernels::Cpu, Kernels::Mlx].map(|kernels| {
            let precision = Some(Precision::F32);
            let device = Device::with_kernels(DeviceKind::Cpu, precision, kernels);
            run(&device).unwrap()
        });
        assert_eq!(ours.shape(), mlx.shape(), "{what}");
        for (a, b) in to_host(&ours).unwrap().iter().zip(to_host(&mlx).unwrap()) {
            assert!((a - b).abs() <= tolerance, "{what} in {dtype:?}: {a} {b}");
        }
    }

    #[test]
    fn both_sets_are_the_same_functions() {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        let exact = |shape: &[i32], seed| values(shape, seed, Dtype::Float32);
        for dtype in [Dtype::Float32, Dtype::Bfloat16] {
            let x = values(&[24, 36], 3, dtype);
            agree("SiLU", dtype, |device| device.silu(&x));
            agree("GELU", dtype, |device| device.gelu_tanh(&x));
            let (stream, gate) = (exact(&[24, 36], 5), exact(&[36], 7));
            agree("gated", dtype, |device| {
                device.add_gated(&stream, &x, &gate)
            });
            let (cos, sin) = (exact(&[24, 1, 6], 11), exact(&[24, 1, 6], 13));
            let tables = Some([&cos, &sin]);
            for (norm, tables) in [
                (None, None),
                (Some((&gate, 1e-6)), None),
                (Some((&gate, 1e-6)), tables),
            ] {
                agree("heads", dtype, |device| {
                    device.to_heads(&x, 3, norm, tables)
                });
            }
            let [q, k, v] = [17, 19, 23].map(|seed| values(&[1, 3, 40, 16], seed, dtype));
            let weights = exact(&[1, 1, 1, 40], 29);
            for weights in [None, Some(&weights)] {
                // Seven rows of scores at once.
                for bytes in [u64::MAX, 7 * 4 * 3 * 40] {
                    agree("attention", dtype, |device| {
                        device.attention([&q, &k, &v], 0.25, weights, bytes)
                    });
                }
            }
            let weight = exact(&[48, 256], 31);
            for bits in [4, 8] {
                let (packed, scales, biases) = ops::quantize(&weight, 64, bits).unwrap();
                let [scales, biases] = [scales, biases].map(|x| x.as_dtype(dtype).unwrap());
                let (parts, packing) = ([&packed, &scales], Packing::affine(bits, 64));
                agree("dequantize", dtype, |device| {
                    device.dequantize(parts, Some(&biases), packing, None, dtype)
                });
            }
            let (factor, bias) = (exact(&[36], 31), exact(&[36], 37));
            agree("scale and shift", dtype, |device| {
                device.scale_shift(&x, &factor, Some(&bias))
            });
        }
        let x = exact(&[2, 5, 7, 24], 37);
        let (weight, bias) = (exact(&[24], 41), exact(&[24], 43));
        agree("norm and SiLU", Dtype::Float32, |device| {
            device.norm_silu(&x, &weight, 1e-24)
        });
        let x = exact(&[70, 24], 47);
        agree("layer norm", Dtype::Float32, |device| {
            device.layer_norm(&x, &weight, &bias, 1e-6)
        });
    }

    #[test]
    fn a_gpu_has_the_scores_that_it_may_have_and_a_row_at_least() {
        let gpu = Device::new(DeviceKind::Gpu, None);
        let scores = |bytes| gpu.scores_at_once([40, 1000, 1000, 384], bytes);
        assert_eq!(scores(u64::MAX), 160_000_000);
        // 6 rows of 160,000 bytes each.
        assert_eq!(scores(1 << 20), 960_000);
        assert_eq!(scores(0), 160_000);
        let fused = gpu.scores_at_once([40, 1000, 1000, 128], 1 << 20);
        assert_eq!(fused, 0);
    }

    /// What a GPU executes, on the CPU: parts by their operations, joined in one copy.
    #[test]
    fn fused_attention_in_parts_is_the_same_and_its_rows_follow_each_other() {
        mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
        let matrices = Device::with_kernels(DeviceKind::Cpu, None, Kernels::Mlx);
        let fused = Device {
            fused_attention: true,
            ..matrices
        };
        let [q, k, v] = [17, 19, 23].map(|seed| values(&[1, 3, 200, 64], seed, Dtype::Float32));
        let rows = 64;
        let whole = matrices.attention([&q, &k, &v], 0.25, None, u64::MAX);
        let parts = mlx::attention(&q, &k, &v, 0.25, None, rows).unwrap();
        parts.eval().unwrap();
        assert_eq!(parts.strides(), [3 * 200 * 64, 64, 3 * 64, 1]);
        let by_rule = fused.attention([&q, &k, &v], 0.25, None, 0).unwrap();
        let whole = to_host(&whole.unwrap()).unwrap();
        for ours in [parts, by_rule].map(|x| to_host(&x).unwrap()) {
            for (a, b) in ours.iter().zip(&whole) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }
}
