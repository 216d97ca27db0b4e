//! Weights from nowhere.

use anyhow::Result;
use mlx_rs::ops::full;
use mlx_rs::{Array, Dtype};
use wan_i2v::model::layers::{Quantized, Weight};
use wan_i2v::model::{Role, TensorSource};
use wan_i2v::runtime::{Device, Packing};

/// Inputs that share a scale and a bias.
const GROUP_SIZE: i32 = 64;

/// How linear layers keep their weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In the dtype of the products.
    Dense,
    /// In 4 bits.
    FourBits,
}

/// Hands out tensors whose every value is small and the same: what they are changes no time.
pub struct Constant {
    pub device: Device,
    pub storage: Storage,
}

impl TensorSource for Constant {
    fn tensor(&mut self, _: &str, shape: &[i32], role: Role) -> Result<Array> {
        let dtype = match role {
            Role::Matmul | Role::Table => self.device.dtype.matmul_dtype(),
            Role::Exact | Role::Stored => Dtype::Float32,
        };
        constant(shape, dtype)
    }

    fn weight(&mut self, name: &str, shape: [i32; 2], role: Role) -> Result<Weight> {
        let [outputs, inputs] = shape;
        if self.storage == Storage::Dense || role != Role::Matmul {
            return self.tensor(name, &shape, role).map(Weight::Dense);
        }
        let dtype = self.device.dtype.matmul_dtype();
        let words = Array::from_slice(&[0x7654_3210_u32], &[1]);
        let packed = full::<u32>(&[outputs, inputs / 8], words)?;
        packed.eval()?;
        let groups = [outputs, inputs / GROUP_SIZE];
        Ok(Weight::Quantized(
            Quantized {
                packed,
                scales: constant(&groups, dtype)?,
                biases: Some(constant(&groups, dtype)?),
                packing: Packing::affine(4, GROUP_SIZE),
                factor: None,
                rotation: None,
                device: self.device,
            },
            Vec::new(),
        ))
    }
}

/// An evaluated tensor of small values.
pub fn constant(shape: &[i32], dtype: Dtype) -> Result<Array> {
    let array = full::<f32>(shape, Array::from_f32(0.01))?.as_dtype(dtype)?;
    array.eval()?;
    Ok(array)
}
