//! Every part of the model against PyTorch and diffusers, by number.
//!
//! The golden data and what it holds: `scripts/golden/README.md`.

mod adapters;
pub mod clip;
mod dit;
mod family;
mod faults;
mod features;
mod memory;
mod run;
mod schedule;
mod steady;
mod tiling;
mod umt5;
mod vae;
mod weights;
