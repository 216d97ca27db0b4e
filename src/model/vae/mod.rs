//! The causal video VAE of Wan2.1: pixels to latents (4 x 8 x 8 times smaller) and back.
//!
//! Mirrors `WanVAE_` of Wan-Video/Wan2.2 (`wan/modules/vae2_1.py`) with diffusers' tensor names
//! (`AutoencoderKLWan`). Both directions stream: the first pixel frame alone, then four pixel
//! frames per latent frame, with the last frames of every causal convolution carried over in a
//! [`FeatureCache`], so memory does not grow with the clip's length.
//!
//! Activations are channels-last `[frames, height, width, channels]`, float32.

mod blocks;
mod conv;
pub mod cost;
mod decoder;
mod encoder;
mod static_frames;
mod tiling;

pub use conv::{FeatureCache, Slot, convolve};
pub use cost::OVERLAP;
pub use decoder::{DecoderStream, VaeDecoder};
pub use encoder::{Chunk, EncoderStream, VaeEncoder};
pub use static_frames::static_chunks;
pub use tiling::{Tile, Tiling, steps};

use anyhow::{Result, ensure};
use mlx_rs::Array;
use mlx_rs::error::Result as MlxResult;
use serde::{Deserialize, Serialize};

use super::{MAX_LAYERS, MAX_WIDTH, check_dimensions, product};

/// Pixel frames per latent frame after the first.
pub const TEMPORAL_STRIDE: i32 = 4;
/// Pixels per latent row and column.
pub const SPATIAL_STRIDE: i32 = 8;
/// Levels of resolution; all but the last halve rows and columns.
const LEVELS: usize = 4;

/// Dimensions of the VAE, with diffusers' names (`vae/config.json`).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct VaeConfig {
    /// Channels of the first level.
    pub base_dim: i32,
    /// Channels of the decoder's last level; `base_dim` when absent.
    #[serde(default)]
    pub decoder_base_dim: Option<i32>,
    /// Latent channels.
    pub z_dim: i32,
    /// Channel multiplier of each level.
    pub dim_mult: Vec<i32>,
    /// Residual blocks per encoder level; the decoder has one more.
    pub num_res_blocks: i32,
    /// Scales with attention inside the levels; none in any Wan.
    #[serde(default)]
    pub attn_scales: Vec<f32>,
    /// Whether each level but the last also halves the frame count.
    pub temperal_downsample: Vec<bool>,
    /// Mean of each latent channel.
    pub latents_mean: Vec<f32>,
    /// Standard deviation of each latent channel.
    pub latents_std: Vec<f32>,
    /// Wan2.2's 16x VAE has residual shortcuts; the 2.1 VAE has not.
    #[serde(default)]
    pub is_residual: bool,
    /// Wan2.2's 16x VAE patchifies pixels; the 2.1 VAE does not.
    #[serde(default)]
    pub patch_size: Option<i32>,
    /// Pixel channels in.
    #[serde(default = "rgb")]
    pub in_channels: i32,
    /// Pixel channels out.
    #[serde(default = "rgb")]
    pub out_channels: i32,
}

fn rgb() -> i32 {
    3
}

impl VaeConfig {
    /// Refuses configurations that this network does not implement.
    ///
    /// # Errors
    /// Names the field, what it holds and what is supported.
    pub fn validate(&self) -> Result<()> {
        ensure!(
            !self.is_residual && self.patch_size.is_none(),
            "is_residual or patch_size is set: this is the VAE of Wan2.2 TI2V-5B; \
             image-to-video A14B uses the Wan2.1 VAE"
        );
        ensure!(
            self.attn_scales.is_empty(),
            "attn_scales is {:?}; only an empty list is supported",
            self.attn_scales
        );
        ensure!(
            self.in_channels == 3 && self.out_channels == 3,
            "in_channels and out_channels are {} and {}; expected 3 (RGB)",
            self.in_channels,
            self.out_channels
        );
        let levels = self.dim_mult.len();
        ensure!(
            levels == LEVELS,
            "dim_mult has {levels} levels; expected {LEVELS} for a spatial stride of \
             {SPATIAL_STRIDE}"
        );
        ensure!(
            self.temperal_downsample.len() + 1 == levels
                && self.temperal_downsample.iter().filter(|&&t| t).count() == 2,
            "temperal_downsample is {:?}; expected {} entries, two of them true",
            self.temperal_downsample,
            levels - 1
        );
        check_dimensions(
            &[
                ("base_dim", self.base_dim.into()),
                ("decoder_base_dim", self.decoder_dim().into()),
                ("z_dim", self.z_dim.into()),
            ],
            MAX_WIDTH,
        )?;
        check_dimensions(
            &[("num_res_blocks", self.num_res_blocks.into())],
            MAX_LAYERS,
        )?;
        for &multiplier in &self.dim_mult {
            check_dimensions(
                &[
                    ("dim_mult", multiplier.into()),
                    ("base_dim * dim_mult", product(&[self.base_dim, multiplier])),
                    (
                        "decoder_base_dim * dim_mult",
                        product(&[self.decoder_dim(), multiplier]),
                    ),
                ],
                MAX_WIDTH,
            )?;
        }
        for level in 1..levels {
            let width = self.decoder_dim() * self.dim_mult[level];
            ensure!(
                width % 2 == 0,
                "decoder level {level} has {width} channels; upsampling halves them, so \
                 expected an even number"
            );
        }
        for (field, values) in [
            ("latents_mean", &self.latents_mean),
            ("latents_std", &self.latents_std),
        ] {
            ensure!(
                values.len() == self.z_dim as usize && values.iter().all(|v| v.is_finite()),
                "{field} has {} values; expected {} finite ones (z_dim)",
                values.len(),
                self.z_dim
            );
        }
        ensure!(
            self.latents_std.iter().all(|&s| s > 0.0),
            "latents_std holds a value that is not positive"
        );
        Ok(())
    }

    fn decoder_dim(&self) -> i32 {
        self.decoder_base_dim.unwrap_or(self.base_dim)
    }

    /// `(latents - mean) / std` per channel, on `[z_dim, frames, height, width]`: what the
    /// diffusion transformer works on.
    pub fn normalize(&self, latents: &Array) -> MlxResult<Array> {
        latents
            .subtract(self.per_channel(&self.latents_mean))?
            .divide(self.per_channel(&self.latents_std))
    }

    /// The inverse of [`Self::normalize`].
    pub fn denormalize(&self, latents: &Array) -> MlxResult<Array> {
        latents
            .multiply(self.per_channel(&self.latents_std))?
            .add(self.per_channel(&self.latents_mean))
    }

    fn per_channel(&self, values: &[f32]) -> Array {
        Array::from_slice(values, &[values.len() as i32, 1, 1, 1])
    }
}
