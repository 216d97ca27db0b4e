//! The networks: UMT5 text encoder, causal video VAE, diffusion transformer.
//!
//! Model code knows tensors' names and shapes, nothing of files or terminals. It asks a
//! [`TensorSource`] for each tensor once, at construction.

pub mod cost;
pub mod dit;
pub mod layers;
mod memory_plan;
pub mod umt5;
pub mod vae;

use anyhow::{Result, ensure};
use mlx_rs::{Array, Dtype};

pub use memory_plan::MemoryPlan;

use crate::runtime::{Device, DeviceKind, Precision};
use layers::Weight;

/// What a tensor is for, which decides the dtype it is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Weight or bias of a linear layer: the precision's matmul dtype.
    Matmul,
    /// Norms, modulation, convolutions, time embedding: float32.
    Exact,
    /// A table that rows are gathered from: the dtype it was stored in.
    Table,
}

/// Hands out a network's tensors by name.
pub trait TensorSource {
    /// The tensor `name`, which must have `shape`, in the dtype that `role` asks for.
    ///
    /// # Errors
    /// When the tensor is missing, has another shape or holds a value that is not finite.
    fn tensor(&mut self, name: &str, shape: &[i32], role: Role) -> Result<Array>;

    /// The weight `name` of a linear layer, `[outputs, inputs]`, which may stay quantized when
    /// `role` is [`Role::Matmul`].
    ///
    /// # Errors
    /// As [`Self::tensor`].
    fn weight(&mut self, name: &str, shape: [i32; 2], role: Role) -> Result<Weight> {
        self.tensor(name, &shape, role).map(Weight::Dense)
    }
}

/// The largest width or table that a configuration may name; products of a few stay in 32 bits.
const MAX_WIDTH: i64 = 1 << 20;
/// The most layers a configuration may name.
const MAX_LAYERS: i64 = 256;

/// Refuses dimensions that no network has, before a product of them overflows or a list of
/// layers fills the memory.
fn check_dimensions(fields: &[(&str, i64)], most: i64) -> Result<()> {
    for (field, value) in fields {
        ensure!(
            (1..=most).contains(value),
            "{field} is {value}; expected 1 to {most}"
        );
    }
    Ok(())
}

/// The product of dimensions, for [`check_dimensions`].
fn product(factors: &[i32]) -> i64 {
    factors
        .iter()
        .fold(1, |product: i64, &f| product.saturating_mul(f.into()))
}

/// Refuses an epsilon that lets a norm divide by zero or take the root of a negative number.
fn check_epsilon(field: &str, value: f32) -> Result<()> {
    ensure!(
        value > 0.0 && value < 1.0,
        "{field} is {value}; expected a small positive number, such as 1e-6"
    );
    Ok(())
}

/// Name and shape of one tensor that a network needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The checkpoint's name.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<i32>,
    /// What it is for.
    pub role: Role,
}

/// A source that records what is asked for and hands out unevaluated zeros, so that a
/// network's list of tensors is its own constructor and cannot drift from it.
#[derive(Debug, Default)]
pub struct Recorder {
    /// What was asked for, in order.
    pub specs: Vec<TensorSpec>,
}

impl Recorder {
    /// What to load a network with whose list of tensors is wanted; it does not depend on it.
    pub const DEVICE: Device = Device::new(DeviceKind::Cpu, Some(Precision::F32));
}

impl TensorSource for Recorder {
    fn tensor(&mut self, name: &str, shape: &[i32], role: Role) -> Result<Array> {
        self.specs.push(TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
            role,
        });
        Ok(mlx_rs::ops::zeros_dtype(shape, Dtype::Float32)?)
    }
}
