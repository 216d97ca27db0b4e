//! The dtype of matrix products.

use mlx_rs::Dtype;

/// residual stream are float32 in either case, as under the reference's autocast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Everything in float32.
    F32,
    /// Linear layers and attention in bfloat16.
    Bf16,
}

impl Precision {
    /// The MLX dtype of linear layers' weights and of attention's operands.
    pub fn matmul_dtype(self) -> Dtype {
        match self {
            Precision::F32 => Dtype::Float32,
            Precision::Bf16 => Dtype::Bfloat16,
        }
    }

    /// Bytes of a value in [`Self::matmul_dtype`].
    pub const fn matmul_dtype_size(self) -> usize {
        match self {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        })
    }
}
