//! A network's dimensions from a foreign configuration or from its tensors' shapes.

use anyhow::Result;
use serde_json::Value;

use super::{OriginalConfig, infer};
use crate::model::clip_vision::ClipVisionConfig;
use crate::model::dit::DitConfig;
use crate::model::umt5::Umt5Config;
use crate::model::vae::VaeConfig;

/// The canonical shape of the canonical tensor of that name, when the part has it.
///
/// Of a quantized weight just the number of rows is looked at, so its packed shape will do; a
/// flattened patch embedding may be given as it is.
pub type Look<'a> = &'a dyn Fn(&str) -> Option<Vec<usize>>;

/// An expert from the original's or mlx-video's `config.json` alone.
///
/// # Errors
/// When it is no such configuration or lacks a field.
pub fn expert_of_original(json: &Value) -> Result<DitConfig> {
    OriginalConfig::read(json)?.expert()
}

/// An expert from the original's or mlx-video's `config.json` and its tensors: what the
/// configuration leaves out comes from the shapes, and it may not contradict them.
///
/// # Errors
/// As [`infer_expert`]; names the field that contradicts the shapes.
pub fn expert_from(json: &Value, look: Look) -> Result<DitConfig> {
    infer::infer_expert(look, &OriginalConfig::read(json)?)
}

/// An expert from its tensors' shapes.
///
/// Heads are taken to have 128 channels, and norms an epsilon of 1e-6, as in every published
/// Wan; where the patch embedding is flattened, patches are taken to be 1x2x2.
///
/// # Errors
/// Names the tensor that is missing or has an impossible shape.
pub fn infer_expert(look: Look) -> Result<DitConfig> {
    infer::infer_expert(look, &OriginalConfig::default())
}

/// A VAE from its tensors' shapes, with the statistics published for 16 and 48 latent channels.
///
/// # Errors
/// Names the tensor that is missing or has an impossible shape; refuses a VAE with other latent
/// channels, whose statistics no tensor holds.
pub fn infer_vae(look: Look) -> Result<VaeConfig> {
    infer::infer_vae(look)
}

/// A text encoder from its tensors' shapes; the position buckets reach as far as in every UMT5.
///
/// # Errors
/// Names the tensor that is missing or has an impossible shape.
pub fn infer_text(look: Look) -> Result<Umt5Config> {
    infer::infer_text(look)
}

/// An image encoder from its tensors' shapes, with heads of 80 as in ViT-H.
///
/// # Errors
/// Names the tensor that is missing or has an impossible shape.
pub fn infer_image(look: Look) -> Result<ClipVisionConfig> {
    infer::infer_image(look)
}
