//! Latents to pixels.

use anyhow::Result;
use mlx_rs::Array;
use mlx_rs::error::Result as MlxResult;

use super::VaeConfig;
use super::blocks::{MidBlock, Norm, ResidualBlock, Upsample};
use super::conv::{CausalConv, Conv, FeatureCache, Loader};
use crate::backend::Backend;
use crate::model::TensorSource;
use crate::model::layers::silu;

/// The decoder half of the VAE with its weights.
#[derive(Debug)]
pub struct VaeDecoder {
    post_quant_conv: Conv,
    conv_in: CausalConv,
    mid: MidBlock,
    levels: Vec<Level>,
    norm_out: Norm,
    conv_out: CausalConv,
    slots: usize,
}

#[derive(Debug)]
struct Level {
    blocks: Vec<ResidualBlock>,
    up: Option<Upsample>,
}

impl VaeDecoder {
    /// Takes the decoder's tensors from `source`.
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
        let widths: Vec<i32> = config
            .dim_mult
            .iter()
            .rev()
            .map(|m| config.decoder_dim() * m)
            .collect();
        let mut channels = widths[0];
        let post_quant_conv = Conv::load_pointwise(
            loader,
            "post_quant_conv",
            [config.z_dim, config.z_dim],
            false,
        )?;
        let conv_in = CausalConv::load(loader, "decoder.conv_in", [config.z_dim, channels])?;
        let mid = MidBlock::load(loader, "decoder.mid_block", channels)?;
        let mut levels = Vec::new();
        let temporal: Vec<bool> = config.temperal_downsample.iter().rev().copied().collect();
        for (level, &outputs) in widths.iter().enumerate() {
            let name = format!("decoder.up_blocks.{level}");
            let mut blocks = Vec::new();
            for block in 0..=config.num_res_blocks {
                let name = format!("{name}.resnets.{block}");
                blocks.push(ResidualBlock::load(loader, &name, [channels, outputs])?);
                channels = outputs;
            }
            let up = match temporal.get(level) {
                Some(&temporal) => {
                    let name = format!("{name}.upsamplers.0");
                    let up = Upsample::load(loader, &name, channels, temporal)?;
                    channels /= 2;
                    Some(up)
                }
                None => None,
            };
            levels.push(Level { blocks, up });
        }
        let norm_out = Norm::load(loader, "decoder.norm_out", channels, false)?;
        let conv_out =
            CausalConv::load(loader, "decoder.conv_out", [channels, config.out_channels])?;
        Ok(Self {
            post_quant_conv,
            conv_in,
            mid,
            levels,
            norm_out,
            conv_out,
            slots: loader.slots,
        })
    }

    /// Starts a clip.
    pub fn stream(&self) -> DecoderStream<'_> {
        DecoderStream {
            decoder: self,
            cache: FeatureCache::new(self.slots),
        }
    }
}

/// One pass of the decoder over a clip.
#[derive(Debug)]
pub struct DecoderStream<'a> {
    decoder: &'a VaeDecoder,
    cache: FeatureCache,
}

impl DecoderStream<'_> {
    /// Decodes the next latent frame, `[z_dim, 1, height, width]`, not normalised, to
    /// `[1, 8 height, 8 width, 3]` for the clip's first and `[4, ...]` for every later one;
    /// values near [-1, 1], not clamped; evaluated.
    pub fn push(&mut self, latents: &Array) -> MlxResult<Array> {
        let decoder = self.decoder;
        let cache = &mut self.cache;
        let x = latents.transpose_axes(&[1, 2, 3, 0])?;
        let x = decoder.post_quant_conv.forward(&x)?;
        let x = decoder.conv_in.forward(&x, cache)?;
        let mut x = decoder.mid.forward(&x, cache)?;
        for level in &decoder.levels {
            for block in &level.blocks {
                x = block.forward(&x, cache)?;
                // One block at a time keeps a few activations alive instead of a whole graph.
                x.eval()?;
            }
            if let Some(up) = &level.up {
                x = up.forward(&x, cache)?;
            }
        }
        let x = silu(&decoder.norm_out.forward(&x)?)?;
        let pixels = decoder.conv_out.forward(&x, cache)?;
        mlx_rs::transforms::eval(self.cache.arrays().chain([&pixels]))?;
        Ok(pixels)
    }

    /// What is carried to the next chunk.
    pub fn cache_mut(&mut self) -> &mut FeatureCache {
        &mut self.cache
    }
}
