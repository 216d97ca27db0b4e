//! The dtype of matrix products.

use half::{bf16, f16};
use mlx_rs::Dtype;
use serde::{Deserialize, Serialize};

/// The dtype of linear layers' weights and of attention's operands; norms, modulation and the residual
/// stream are float32 in either case, as under the reference's autocast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Everything in float32.
    F32,
    /// Linear layers and attention in float16: finer than bfloat16, and infinite above 65,504.
    F16,
    /// Linear layers and attention in bfloat16.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The MLX dtype of linear layers' weights and of attention's operands.
    pub fn matmul_dtype(self) -> Dtype {
        match self {
            Precision::F32 => Dtype::Float32,
            Precision::F16 => Dtype::Float16,
            Precision::Bf16 => Dtype::Bfloat16,
        }
    }

    /// Bytes of a value in [`Self::matmul_dtype`].
    pub const fn matmul_dtype_size(self) -> usize {
        match self {
            Precision::F32 => 4,
            Precision::F16 | Precision::Bf16 => 2,
        }
    }

    /// Host values as this precision has them.
    pub fn round(self, mut values: Vec<f32>) -> Vec<f32> {
        match self {
            Precision::F32 => {}
            Precision::F16 => values
                .iter_mut()
                .for_each(|v| *v = f16::from_f32(*v).to_f32()),
            Precision::Bf16 => values
                .iter_mut()
                .for_each(|v| *v = bf16::from_f32(*v).to_f32()),
        }
        values
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
        })
    }
}
