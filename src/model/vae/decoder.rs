//! Latents to pixels.

use anyhow::Result;
use mlx_rs::Array;
use mlx_rs::error::{Exception, Result as MlxResult};
use mlx_rs::ops::concatenate;

use super::blocks::{MidBlock, Norm, ResidualBlock, Upsample};
use super::conv::{CausalConv, Conv, FeatureCache, Loader};
use super::division::Band;
use super::wan22::{Factor, RepeatUp, unpatchify};
use super::{VaeConfig, tiny};
use crate::model::{MemoryPlan, TensorSource};
use crate::runtime::Device;

/// The decoder half of the VAE with its weights.
#[derive(Debug)]
pub struct VaeDecoder {
    network: Network,
    slots: usize,
    side: i32,
}

#[derive(Debug)]
enum Network {
    Causal(Box<Causal>),
    Tiny(Box<tiny::Decoder>),
}

/// That of a whole VAE.
#[derive(Debug)]
struct Causal {
    post_quant_conv: Conv,
    conv_in: CausalConv,
    mid: MidBlock,
    levels: Vec<Level>,
    norm_out: Norm,
    conv_out: CausalConv,
    patch: i32,
    upscale: i32,
}

#[derive(Debug)]
struct Level {
    blocks: Vec<ResidualBlock>,
    up: Option<Upsample>,
    shortcut: Option<RepeatUp>,
}

impl VaeDecoder {
    /// Takes the decoder's tensors from `source`.
    ///
    /// # Errors
    /// Whatever the source refuses, with the tensor's name.
    pub fn load(config: &VaeConfig, source: &mut dyn TensorSource, device: Device) -> Result<Self> {
        config.validate()?;
        let mut slots = 0;
        let network = match config.tiny {
            true => Network::Tiny(Box::new(tiny::Decoder::load(
                config,
                &mut Loader {
                    source: source.scope("decoder"),
                    device,
                    slots: &mut slots,
                },
            )?)),
            false => Network::Causal(Causal::load(config, source, device, &mut slots)?.into()),
        };
        Ok(Self {
            network,
            slots,
            side: config.spatial_stride() * config.output_scale(),
        })
    }

    /// The same decoder, of which only the last frame of every chunk is wanted. A small one leaves the others
    /// out as far as it can.
    #[must_use]
    pub fn of_last_frames(mut self) -> Self {
        if let Network::Tiny(network) = &mut self.network {
            network.only_last = true;
        }
        self
    }

    /// Starts a clip of whole frames.
    pub fn stream(&self, memory: &MemoryPlan) -> DecoderStream<'_> {
        DecoderStream {
            decoder: self,
            cache: self.new_cache(memory),
        }
    }

    pub(super) fn new_cache(&self, memory: &MemoryPlan) -> FeatureCache {
        FeatureCache::new(self.slots, memory)
    }

    /// Pixels that a latent row and column is decoded to.
    pub(super) fn side(&self) -> i32 {
        self.side
    }

    /// The part that works at the latents' own size: `[z_dim, 1, height, width]` to features
    /// `[1, height, width, channels]`, with what level 0 adds to them at its end behind them, if it has
    /// a shortcut. It holds all of the attention.
    pub(super) fn features(&self, latents: &Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        match &self.network {
            Network::Causal(network) => network.features(latents, cache),
            Network::Tiny(network) => network.features(latents, cache),
        }
    }

    /// The rest: features to pixels as [`DecoderStream::push`] gives them. Convolutions alone, so a
    /// pixel depends on nothing farther than some six latent rows and columns away.
    pub(super) fn pixels(&self, features: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        match &self.network {
            Network::Causal(network) => network.pixels(features, None, cache),
            Network::Tiny(network) => network.pixels(features, cache),
        }
    }

    /// As [`Self::pixels`], of a band of the whole frame's features alone, which has the same values there.
    pub(super) fn band(
        &self,
        features: &Array,
        band: &Band,
        cache: &mut FeatureCache,
    ) -> MlxResult<Array> {
        match &self.network {
            Network::Causal(network) => network.pixels(features.clone(), Some(band), cache),
            Network::Tiny(_) => Err(Exception::custom("a small decoder has no bands")),
        }
    }
}

impl Causal {
    fn load(
        config: &VaeConfig,
        source: &mut dyn TensorSource,
        device: Device,
        slots: &mut usize,
    ) -> Result<Self> {
        let post_quant_conv = Conv::load_pointwise(
            &mut Loader {
                source: source.scope("post_quant_conv"),
                device,
                slots: &mut *slots,
            },
            [config.z_dim, config.z_dim],
            false,
        )?;
        let loader = &mut Loader {
            source: source.scope("decoder"),
            device,
            slots,
        };
        let widths: Vec<i32> = config
            .dim_mult
            .iter()
            .rev()
            .map(|m| config.decoder_dim() * m)
            .collect();
        let mut channels = widths[0];
        let conv_in = CausalConv::load(&mut loader.scope("conv_in"), [config.z_dim, channels])?;
        let mid = MidBlock::load(&mut loader.scope("mid_block"), channels)?;
        let mut levels = Vec::new();
        let temporal: Vec<bool> = config.temperal_downsample.iter().rev().copied().collect();
        for (level, &outputs) in widths.iter().enumerate() {
            let loader = &mut loader.scope(&format!("up_blocks.{level}"));
            let mut blocks = Vec::new();
            for block in 0..=config.num_res_blocks {
                let loader = &mut loader.scope(&format!("resnets.{block}"));
                blocks.push(ResidualBlock::load(loader, [channels, outputs])?);
                channels = outputs;
            }
            let up = match temporal.get(level) {
                Some(&temporal) => {
                    let name = match config.is_residual {
                        true => "upsampler",
                        false => "upsamplers.0",
                    };
                    let outputs = config.upsampled(channels);
                    let up =
                        Upsample::load(&mut loader.scope(name), [channels, outputs], temporal)?;
                    channels = outputs;
                    Some(up)
                }
                None => None,
            };
            let shortcut = up
                .as_ref()
                .filter(|_| config.is_residual)
                .map(|_| RepeatUp {
                    factor: Factor::of(temporal.get(level).copied()),
                });
            levels.push(Level {
                blocks,
                up,
                shortcut,
            });
        }
        let norm_out = Norm::load(&mut loader.scope("norm_out"), channels, false)?;
        let conv_out = CausalConv::load(
            &mut loader.scope("conv_out"),
            [channels, config.out_channels],
        )?;
        Ok(Self {
            post_quant_conv,
            conv_in,
            mid,
            levels,
            norm_out,
            conv_out,
            patch: config.patch(),
            upscale: config.output_scale(),
        })
    }

    fn features(&self, latents: &Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        let x = latents.transpose_axes(&[1, 2, 3, 0])?;
        let x = self.post_quant_conv.forward(&x)?;
        let x = self.conv_in.forward(x, cache)?;
        let x = self.mid.forward(x, cache)?;
        let level = &self.levels[0];
        let Some(_) = level.shortcut else {
            return level.blocks(x, cache);
        };
        let features = concatenate(&[&level.blocks(x.clone(), cache)?, &x], -1)?;
        features.eval()?;
        Ok(features)
    }

    fn pixels(
        &self,
        features: Array,
        band: Option<&Band>,
        cache: &mut FeatureCache,
    ) -> MlxResult<Array> {
        let mut x = features;
        for (index, level) in self.levels.iter().enumerate() {
            if let Some(band) = band {
                x = band.enter(index, &x)?;
            }
            let mut added = None;
            if index > 0 {
                added = level.shortcut.as_ref().map(|_| x.clone());
                x = level.blocks(x, cache)?;
            } else if level.shortcut.is_some() {
                let halves = x.split_equal(2, -1)?;
                added = halves.last().cloned();
                x = halves[0].clone();
            }
            if let Some(up) = &level.up {
                x = up.forward(x, cache)?;
            }
            if let (Some(shortcut), Some(added)) = (&level.shortcut, added) {
                x = shortcut.add(&added, &x)?;
            }
        }
        let activated = self.norm_out.activate(&x)?;
        drop(x);
        let mut x = self.conv_out.forward(activated, cache)?;
        if let Some(band) = band {
            x = band.leave(&x)?;
        }
        let pixels = match (self.patch, self.upscale) {
            (1, 1) => return Ok(x),
            (1, scale) => shuffle(&x, scale)?,
            (patch, _) => unpatchify(&x, patch)?,
        };
        pixels.eval()?;
        Ok(pixels)
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

/// Channels `[t, h, w, c * scale * scale]` as pixels `[t, h * scale, w * scale, c]`, as PyTorch's
/// `pixel_shuffle` arranges them: of each channel a row after the other.
pub(super) fn shuffle(x: &Array, scale: i32) -> MlxResult<Array> {
    let (t, h, w, c) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3) / (scale * scale));
    x.reshape(&[t, h, w, c, scale, scale])?
        .transpose_axes(&[0, 1, 4, 2, 5, 3])?
        .reshape(&[t, h * scale, w * scale, c])
}

/// One pass of the decoder over a clip.
#[derive(Debug)]
pub struct DecoderStream<'a> {
    decoder: &'a VaeDecoder,
    cache: FeatureCache,
}

impl DecoderStream<'_> {
    /// Decodes the next latent frame, `[z_dim, 1, height, width]`, not normalised, to
    /// `[1, side * height, side * width, 3]` for the clip's first and `[4, ...]` for every later one,
    /// `side` being [`VaeConfig::spatial_stride`] times [`VaeConfig::output_scale`]; values near
    /// [-1, 1], not clamped; evaluated.
    pub fn push(&mut self, latents: &Array) -> MlxResult<Array> {
        let features = self.decoder.features(latents, &mut self.cache)?;
        self.decoder.pixels(features, &mut self.cache)
    }

    /// What is carried to the next chunk.
    pub fn cache_mut(&mut self) -> &mut FeatureCache {
        &mut self.cache
    }
}
