//! The networks: UMT5 text encoder, CLIP's vision encoder, causal video VAE, diffusion transformer.
//!
//! Model code knows tensors' names and shapes, nothing of files or terminals. It asks a
//! [`TensorSource`] for each tensor once, at construction.

pub mod clip_vision;
pub mod cost;
pub mod dit;
pub mod layers;
mod memory_plan;
mod source;
pub mod tune;
pub mod umt5;
pub mod vae;

use anyhow::{Result, ensure};

pub use memory_plan::MemoryPlan;
pub use source::{Recorder, Role, Scope, TensorSource, TensorSpec};

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
