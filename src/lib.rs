//! Image-to-video with Wan2.2 I2V-A14B on MLX.
//!
//! One clip flows in one direction: [`clip`] (what is asked for) -> [`text`] -> [`pipeline`] (text
//! encoding, image condition, denoising with [`sampling`], decoding) -> [`media`]. [`persist`] keeps
//! its state on disk and [`progress`] is how it reports. The networks are in [`model`], their weights
//! come from [`weights`], and [`runtime`] is MLX and the machine: the one place that knows how
//! backends differ. [`batch`] makes many clips, [`diagnose`] looks for what is wrong, [`hub`] fetches
//! models, [`cli`] is the command line. `CONTRIBUTING.md` has the map with a line for every module.

// Tests print, and compare paths.
#![cfg_attr(test, allow(clippy::disallowed_macros, clippy::disallowed_methods))]

pub mod batch;
pub mod cli;
pub mod clip;
pub mod diagnose;
pub mod hub;
pub mod media;
pub mod model;
pub mod persist;
pub mod pipeline;
pub mod progress;
pub mod runtime;
pub mod sampling;
pub mod text;
pub mod tiny;
pub mod util;
pub mod weights;
