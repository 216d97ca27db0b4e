//! The networks: UMT5 text encoder, causal video VAE, diffusion transformer.
//!
//! Model code knows tensors' names and shapes, nothing of files or terminals. It asks a
//! [`TensorSource`] for each tensor once, at construction.

pub mod dit;
pub mod layers;
pub mod umt5;
pub mod vae;

use anyhow::Result;
use mlx_rs::{Array, Dtype};

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
}

/// Name and shape of one tensor that a network needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The checkpoint's name.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<i32>,
}

/// A source that records what is asked for and hands out unevaluated zeros, so that a
/// network's list of tensors is its own constructor and cannot drift from it.
#[derive(Debug, Default)]
pub struct Recorder {
    /// What was asked for, in order.
    pub specs: Vec<TensorSpec>,
}

impl TensorSource for Recorder {
    fn tensor(&mut self, name: &str, shape: &[i32], _role: Role) -> Result<Array> {
        self.specs.push(TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
        });
        Ok(mlx_rs::ops::zeros_dtype(shape, Dtype::Float32)?)
    }
}
