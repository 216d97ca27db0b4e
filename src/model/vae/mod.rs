//! The causal video VAEs of Wan2.1 and of Wan2.2 TI2V-5B: pixels to latents (4 x 8 x 8 and 4 x 16 x 16
//! times smaller) and back.
//!
//! Mirrors `WanVAE_` of Wan-Video/Wan2.2 (`wan/modules/vae2_1.py` and `vae2_2.py`) with diffusers' tensor
//! names (`AutoencoderKLWan`). Both directions stream: the first pixel frame alone, then four pixel
//! frames per latent frame, with the last frames of every causal convolution carried over in a
//! [`FeatureCache`], so memory does not grow with the clip's length.
//!
//! The small autoencoders of the same latents (`tiny`) are other networks behind the same doors.
//!
//! Activations are channels-last `[frames, height, width, channels]`, float32.

mod blocks;
mod conv;
pub mod cost;
mod decoder;
mod division;
mod encoder;
mod static_frames;
mod tiling;
mod tiny;
mod wan22;

pub use conv::{FeatureCache, Slot, convolve};
pub use cost::OVERLAP;
pub use decoder::{DecoderStream, VaeDecoder};
pub use division::{Band, Division};
pub use encoder::{Chunk, EncoderStream, VaeEncoder};
pub use static_frames::static_chunks;
pub use tiling::{Others, Tile, Tiling, steps};

use anyhow::{Result, ensure};
use mlx_rs::Array;
use mlx_rs::error::Result as MlxResult;
use serde::{Deserialize, Serialize};

use super::{MAX_LAYERS, MAX_WIDTH, check_dimensions, product};
use wan22::Factor;

/// Pixel frames per latent frame after the first, of every VAE that [`VaeConfig::validate`] accepts.
pub const TEMPORAL_STRIDE: i32 = 4;
/// Levels of resolution; all but the last halve rows and columns.
const LEVELS: usize = 4;
/// Pixels each way of the largest patch.
const MAX_PATCH: i32 = 2;

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
    /// Whether shortcuts lead around whole levels: so in Wan2.2's VAE, and not in Wan2.1's.
    #[serde(default)]
    pub is_residual: bool,
    /// Pixels each way that the network sees as one, with as many times the channels: 2 in Wan2.2's VAE.
    #[serde(default)]
    pub patch_size: Option<i32>,
    /// Channels in: three a pixel.
    #[serde(default = "rgb")]
    pub in_channels: i32,
    /// Channels out: as many, or four times as many for a picture twice as high and wide.
    #[serde(default = "rgb")]
    pub out_channels: i32,
    /// Whether it is one of madebyollin's small ones, whose encoder has `base_dim` channels throughout.
    #[serde(default)]
    pub tiny: bool,
}

/// What a small autoencoder of so many latent channels is.
pub fn small(z_dim: i32) -> &'static str {
    match z_dim {
        48 => "taew2_2, a small decoder for previews",
        _ => "taew2_1, a small decoder for previews",
    }
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
            (1..=MAX_PATCH).contains(&self.patch()),
            "patch_size is {}; expected 1 to {MAX_PATCH}",
            self.patch()
        );
        ensure!(
            self.attn_scales.is_empty(),
            "attn_scales is {:?}; only an empty list is supported",
            self.attn_scales
        );
        let pixel = 3 * self.patch() * self.patch();
        let upscaled = self.patch() == 1 && self.out_channels == 3 * 2 * 2;
        let rgb = match self.patch() {
            1 => "RGB".to_owned(),
            side => format!("RGB of {side} x {side} pixels"),
        };
        ensure!(
            self.in_channels == pixel && (self.out_channels == pixel || upscaled),
            "in_channels and out_channels are {} and {}; expected {pixel} ({rgb})",
            self.in_channels,
            self.out_channels
        );
        let levels = self.dim_mult.len();
        ensure!(
            levels == LEVELS,
            "dim_mult has {levels} levels; expected {LEVELS}"
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
        match self.is_residual {
            _ if self.tiny => ensure!(
                !self.is_residual
                    && !upscaled
                    && self.num_res_blocks as usize == tiny::BLOCKS
                    && self.temperal_downsample == [true, true, false],
                "a small autoencoder has {} blocks a level and halves frames in the first two; found {}, \
                 {:?}",
                tiny::BLOCKS,
                self.num_res_blocks,
                self.temperal_downsample
            ),
            true => self.check_shortcuts()?,
            false => {
                for level in 1..levels {
                    let width = self.decoder_dim() * self.dim_mult[level];
                    ensure!(
                        width % 2 == 0,
                        "decoder level {level} has {width} channels; upsampling halves them, so \
                         expected an even number"
                    );
                }
            }
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

    /// Pixel frames per latent frame after the first.
    pub fn temporal_stride(&self) -> i32 {
        TEMPORAL_STRIDE
    }

    /// Pixels per latent row and column.
    pub fn spatial_stride(&self) -> i32 {
        (1 << (LEVELS - 1)) * self.patch()
    }

    /// How many times as high and wide as the pixels that were encoded those are that come out: 2 of
    /// spacepxl's Wan2.1-VAE-upscale2x, else 1.
    pub fn output_scale(&self) -> i32 {
        match self.patch() == 1 && self.out_channels == 3 * 2 * 2 {
            true => 2,
            false => 1,
        }
    }

    /// Latent frames, rows and columns of a clip of `[frames, height, width]` pixels.
    pub fn latent_grid(&self, [frames, height, width]: [i32; 3]) -> [i32; 3] {
        let side = self.spatial_stride();
        let frames = (frames - 1) / self.temporal_stride() + 1;
        [frames, height / side, width / side]
    }

    /// Frames, rows and columns of pixels that `[frames, rows, columns]` of latents stand for.
    pub fn pixel_grid(&self, [frames, rows, columns]: [i32; 3]) -> [i32; 3] {
        let side = self.spatial_stride();
        let frames = (frames - 1).max(0) * self.temporal_stride() + 1;
        [frames, rows * side, columns * side]
    }

    /// Frames, rows and columns of what `[frames, rows, columns]` of latents are decoded to.
    pub fn decoded_grid(&self, grid: [i32; 3]) -> [i32; 3] {
        let [frames, height, width] = self.pixel_grid(grid);
        [
            frames,
            height * self.output_scale(),
            width * self.output_scale(),
        ]
    }

    /// Shortcuts average and repeat whole channels.
    fn check_shortcuts(&self) -> Result<()> {
        for level in 0..LEVELS {
            let down = Factor::of(self.temperal_downsample.get(level).copied());
            let channels = |base: i32, level: usize| base * self.dim_mult[level];
            let outputs = channels(self.base_dim, level);
            let inputs = match level {
                0 => self.base_dim,
                _ => channels(self.base_dim, level - 1),
            };
            ensure!(
                inputs * down.volume() % outputs == 0,
                "encoder level {level} leads {inputs} channels to {outputs}, which no shortcut does"
            );
            // Decoder levels are numbered from the smallest size on.
            let of = |level: usize| channels(self.decoder_dim(), LEVELS - 1 - level);
            let [inputs, outputs] = [level.saturating_sub(1), level].map(of);
            let temporal = self.temperal_downsample.iter().rev().nth(level);
            ensure!(
                temporal.is_none_or(|&temporal| {
                    outputs * Factor::of(Some(temporal)).volume() % inputs == 0
                }),
                "decoder level {level} leads {inputs} channels to {outputs}, which no shortcut does"
            );
        }
        Ok(())
    }

    /// Pixels each way that the network sees as one.
    fn patch(&self) -> i32 {
        self.patch_size.unwrap_or(1)
    }

    /// Channels that a level of the decoder of so many goes on with.
    fn upsampled(&self, channels: i32) -> i32 {
        match self.is_residual {
            true => channels,
            false => channels / 2,
        }
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
