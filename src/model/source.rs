//! Where networks take their tensors from.

use anyhow::Result;
use mlx_rs::{Array, Dtype};

use super::layers::Weight;
use crate::runtime::{Device, DeviceKind, Precision};

/// What a tensor is for, which decides the dtype it is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Weight or bias of a linear layer: the precision's matmul dtype.
    Matmul,
    /// Norms, modulation, convolutions: float32.
    Exact,
    /// A table that rows are gathered from: the dtype it was stored in.
    Table,
    /// Weight or bias of the few products that are float32 at any precision (time embedding): the dtype
    /// it was stored in.
    Stored,
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

    /// Whether the tensors stand in for a model's: what takes long to prepare for is then prepared when it
    /// is used.
    fn stands_in(&self) -> bool {
        false
    }
}

/// One part of a network's tensors: their names are relative to the part's.
pub struct Scope<'a> {
    source: &'a mut dyn TensorSource,
    name: String,
}

impl dyn TensorSource + '_ {
    /// The tensors whose names begin with `{name}.`.
    pub fn scope(&mut self, name: &str) -> Scope<'_> {
        let name = name.to_owned();
        Scope { source: self, name }
    }
}

impl Scope<'_> {
    /// As the source's own.
    pub fn scope(&mut self, name: &str) -> Scope<'_> {
        let name = self.full(name);
        Scope {
            source: &mut *self.source,
            name,
        }
    }

    fn full(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }
}

impl TensorSource for Scope<'_> {
    fn tensor(&mut self, name: &str, shape: &[i32], role: Role) -> Result<Array> {
        self.source.tensor(&self.full(name), shape, role)
    }

    fn weight(&mut self, name: &str, shape: [i32; 2], role: Role) -> Result<Weight> {
        self.source.weight(&self.full(name), shape, role)
    }

    fn stands_in(&self) -> bool {
        self.source.stands_in()
    }
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

    fn stands_in(&self) -> bool {
        true
    }
}
