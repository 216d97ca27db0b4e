//! Pixels to latents.

use anyhow::Result;
use mlx_rs::Array;
use mlx_rs::error::Result as MlxResult;
use mlx_rs::ops::indexing::TryIndexOp;

use super::VaeConfig;
use super::blocks::{Downsample, MidBlock, Norm, ResidualBlock};
use super::conv::{CausalConv, Conv, FeatureCache, Loader};
use crate::backend::Backend;
use crate::model::TensorSource;

/// The encoder half of the VAE with its weights.
#[derive(Debug)]
pub struct VaeEncoder {
    z_dim: i32,
    feature_channels: i32,
    conv_in: CausalConv,
    levels: Vec<Level>,
    mid: MidBlock,
    norm_out: Norm,
    conv_out: CausalConv,
    quant_conv: Conv,
    slots: usize,
}

#[derive(Debug)]
struct Level {
    blocks: Vec<ResidualBlock>,
    down: Option<Downsample>,
}

impl VaeEncoder {
    /// Takes the encoder's tensors from `source`.
    ///
    /// # Errors
    /// Whatever the source refuses, with the tensor's name.
    pub fn load(
        config: &VaeConfig,
        source: &mut dyn TensorSource,
        backend: Backend,
    ) -> Result<Self> {
        config.validate()?;
        let mut loader = Loader {
            source,
            backend,
            slots: 0,
        };
        let loader = &mut loader;
        let mut channels = config.base_dim;
        let conv_in = CausalConv::load(loader, "encoder.conv_in", [config.in_channels, channels])?;
        let mut levels = Vec::new();
        let mut feature_channels = channels;
        // diffusers numbers residual blocks and downsamplers in one list.
        let mut index = 0;
        let mut next_name = || {
            index += 1;
            format!("encoder.down_blocks.{}", index - 1)
        };
        for (level, multiplier) in config.dim_mult.iter().enumerate() {
            let outputs = config.base_dim * multiplier;
            let mut blocks = Vec::new();
            for _ in 0..config.num_res_blocks {
                blocks.push(ResidualBlock::load(
                    loader,
                    &next_name(),
                    [channels, outputs],
                )?);
                channels = outputs;
            }
            let down = match config.temperal_downsample.get(level) {
                Some(&temporal) => {
                    Some(Downsample::load(loader, &next_name(), channels, temporal)?)
                }
                None => None,
            };
            if down.is_some() {
                feature_channels = channels;
            }
            levels.push(Level { blocks, down });
        }
        let moments = 2 * config.z_dim;
        let encoder = Self {
            z_dim: config.z_dim,
            feature_channels,
            conv_in,
            levels,
            mid: MidBlock::load(loader, "encoder.mid_block", channels)?,
            norm_out: Norm::load(loader, "encoder.norm_out", channels, false)?,
            conv_out: CausalConv::load(loader, "encoder.conv_out", [channels, moments])?,
            quant_conv: Conv::load_pointwise(loader, "quant_conv", [moments, moments], false)?,
            slots: 0,
        };
        Ok(Self {
            slots: loader.slots,
            ..encoder
        })
    }

    /// From now on computes so many bytes of scores at once.
    pub fn set_score_bytes(&mut self, bytes: u64) {
        self.mid.set_score_bytes(bytes);
    }

    /// Starts a clip.
    pub fn stream(&self) -> EncoderStream<'_> {
        EncoderStream {
            encoder: self,
            cache: self.new_cache(),
        }
    }

    pub(super) fn new_cache(&self) -> FeatureCache {
        FeatureCache::new(self.slots)
    }

    /// Channels of what [`Self::features`] returns.
    pub(super) fn feature_channels(&self) -> i32 {
        self.feature_channels
    }

    /// The part down to the latents' size: `[1 or 4, height, width, 3]` to features
    /// `[1, height/8, width/8, channels]`. Convolutions alone, so a feature depends on nothing
    /// farther than some five latent rows and columns away.
    pub(super) fn features(&self, pixels: &Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        let mut x = self.conv_in.forward(pixels.clone(), cache)?;
        for level in &self.levels {
            if let Some(down) = &level.down {
                x = level.blocks(x, cache)?;
                x = down.forward(x, cache)?;
            }
        }
        Ok(x)
    }

    /// The rest, at the latents' size: features to the mean of one latent frame,
    /// `[z_dim, 1, height/8, width/8]`. It holds all of the attention.
    pub(super) fn mean(&self, features: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        let mut x = features;
        for level in self.levels.iter().filter(|level| level.down.is_none()) {
            x = level.blocks(x, cache)?;
        }
        let x = self.mid.forward(x, cache)?;
        let x = self.conv_out.forward(self.norm_out.activate(&x)?, cache)?;
        let moments = self.quant_conv.forward(&x)?;
        let mean = moments
            .try_index((.., .., .., 0..self.z_dim))?
            .transpose_axes(&[3, 0, 1, 2])?
            .contiguous()?;
        mean.eval()?;
        Ok(mean)
    }
}

impl Level {
    fn blocks(&self, mut x: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        for block in &self.blocks {
            x = block.forward(&x, cache)?;
        }
        Ok(x)
    }
}

/// One pass of the encoder over a clip.
#[derive(Debug)]
pub struct EncoderStream<'a> {
    encoder: &'a VaeEncoder,
    cache: FeatureCache,
}

impl EncoderStream<'_> {
    /// Encodes the next chunk, `[1, height, width, 3]` first and `[4, height, width, 3]` after,
    /// values in [-1, 1], to the mean of one latent frame: `[z_dim, 1, height/8, width/8]`,
    /// not normalised; evaluated.
    pub fn push(&mut self, pixels: &Array) -> MlxResult<Array> {
        let features = self.encoder.features(pixels, &mut self.cache)?;
        self.encoder.mean(features, &mut self.cache)
    }

    /// What is carried to the next chunk.
    pub fn cache_mut(&mut self) -> &mut FeatureCache {
        &mut self.cache
    }
}
