//! Pixels to latents.

use anyhow::Result;
use mlx_rs::Array;
use mlx_rs::error::{Exception, Result as MlxResult};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::zeros_dtype;

use super::blocks::{Downsample, MidBlock, Norm, ResidualBlock};
use super::conv::{CausalConv, Conv, FeatureCache, Loader};
use super::static_frames::static_chunks;
use super::wan22::{AverageDown, Factor, patchify};
use super::{TEMPORAL_STRIDE, VaeConfig, tiny};
use crate::model::{MemoryPlan, TensorSource};
use crate::runtime::Device;

/// The encoder half of the VAE with its weights.
#[derive(Debug)]
pub struct VaeEncoder {
    network: Network,
    slots: usize,
    side: i32,
    feature_channels: i32,
}

#[derive(Debug)]
enum Network {
    Causal(Box<Causal>),
    Tiny(Box<tiny::Encoder>),
}

/// That of a whole VAE.
#[derive(Debug)]
struct Causal {
    z_dim: i32,
    patch: i32,
    feature_channels: i32,
    conv_in: CausalConv,
    levels: Vec<Level>,
    mid: MidBlock,
    norm_out: Norm,
    conv_out: CausalConv,
    quant_conv: Conv,
    /// When its stages settle.
    settling: Vec<i32>,
}

/// A chunk of a clip: the pixels that a latent frame stands for.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// `[1, height, width, 3]` for the clip's first chunk, `[4, height, width, 3]` for every later
    /// one; values in [-1, 1].
    Pixels(Array),
    /// Four frames of zeros, of the last chunk's size. After some of them in a row less and less is
    /// computed: see [`static_chunks`].
    Blank,
}

#[derive(Debug)]
struct Level {
    blocks: Vec<ResidualBlock>,
    down: Option<Downsample>,
    shortcut: Option<AverageDown>,
}

impl VaeEncoder {
    /// Takes the encoder's tensors from `source`.
    ///
    /// # Errors
    /// Whatever the source refuses, with the tensor's name.
    pub fn load(config: &VaeConfig, source: &mut dyn TensorSource, device: Device) -> Result<Self> {
        config.validate()?;
        let mut slots = 0;
        let (network, feature_channels) = match config.tiny {
            true => {
                let loader = &mut Loader {
                    source: source.scope("encoder"),
                    device,
                    slots: &mut slots,
                };
                let network = tiny::Encoder::load(config, loader)?;
                (Network::Tiny(network.into()), config.base_dim)
            }
            false => {
                let network = Causal::load(config, source, device, &mut slots)?;
                let channels = network.feature_channels;
                (Network::Causal(network.into()), channels)
            }
        };
        Ok(Self {
            network,
            slots,
            side: config.spatial_stride(),
            feature_channels,
        })
    }

    /// Starts a clip of whole frames.
    pub fn stream(&self, memory: &MemoryPlan) -> EncoderStream<'_> {
        EncoderStream {
            encoder: self,
            cache: self.new_cache(memory),
        }
    }

    pub(super) fn new_cache(&self, memory: &MemoryPlan) -> FeatureCache {
        FeatureCache::new(self.slots, memory)
    }

    /// Pixels per latent row and column.
    pub fn side(&self) -> i32 {
        self.side
    }

    /// Channels of what [`Self::features`] returns.
    pub(super) fn feature_channels(&self) -> i32 {
        self.feature_channels
    }

    /// Chunk `index` of the `frames` of a clip, whose chunks `chunk` gives, as [`EncoderStream::push`] takes
    /// it.
    pub(super) fn chunk(
        &self,
        index: i32,
        frames: i32,
        chunk: &dyn Fn(i32) -> MlxResult<Chunk>,
    ) -> MlxResult<Chunk> {
        match self.network {
            Network::Causal(_) => chunk(index),
            Network::Tiny(_) => tiny::grouped(index, frames, chunk),
        }
    }

    /// The part down to the latents' size: a chunk to features `[1, rows, columns, channels]`.
    /// Convolutions alone, so a feature depends on nothing farther than some five latent rows and
    /// columns away.
    pub(super) fn features(&self, chunk: &Chunk, cache: &mut FeatureCache) -> MlxResult<Array> {
        match &self.network {
            Network::Causal(network) => network.features(chunk, cache),
            Network::Tiny(network) => network.features(chunk, cache),
        }
    }

    /// The rest, at the latents' size: features to the mean of one latent frame,
    /// `[z_dim, 1, rows, columns]`. It holds all of the attention.
    pub(super) fn mean(&self, features: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        match &self.network {
            Network::Causal(network) => network.mean(features, cache),
            Network::Tiny(network) => network.mean(features, cache),
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
        let loader = &mut Loader {
            source: source.scope("encoder"),
            device,
            slots: &mut *slots,
        };
        let mut channels = config.base_dim;
        let conv_in =
            CausalConv::load(&mut loader.scope("conv_in"), [config.in_channels, channels])?;
        let mut levels = Vec::new();
        let mut feature_channels = channels;
        // diffusers numbers residual blocks and downsamplers in one list, unless levels have shortcuts.
        let mut index = 0;
        let mut name = |level: usize, part: &str| {
            index += 1;
            match config.is_residual {
                true => format!("down_blocks.{level}.{part}"),
                false => format!("down_blocks.{}", index - 1),
            }
        };
        for (level, multiplier) in config.dim_mult.iter().enumerate() {
            let outputs = config.base_dim * multiplier;
            let resampled = config.temperal_downsample.get(level).copied();
            let shortcut = config.is_residual.then(|| AverageDown {
                factor: Factor::of(resampled),
                outputs,
            });
            let mut blocks = Vec::new();
            for block in 0..config.num_res_blocks {
                let loader = &mut loader.scope(&name(level, &format!("resnets.{block}")));
                blocks.push(ResidualBlock::load(loader, [channels, outputs])?);
                channels = outputs;
            }
            let down = match resampled {
                Some(temporal) => {
                    let loader = &mut loader.scope(&name(level, "downsampler"));
                    Some(Downsample::load(loader, channels, temporal)?)
                }
                None => None,
            };
            if down.is_some() {
                feature_channels = channels;
            }
            levels.push(Level {
                blocks,
                down,
                shortcut,
            });
        }
        let moments = 2 * config.z_dim;
        let mid = MidBlock::load(&mut loader.scope("mid_block"), channels)?;
        let norm_out = Norm::load(&mut loader.scope("norm_out"), channels, false)?;
        let conv_out = CausalConv::load(&mut loader.scope("conv_out"), [channels, moments])?;
        let loader = &mut Loader {
            source: source.scope("quant_conv"),
            device,
            slots,
        };
        Ok(Self {
            z_dim: config.z_dim,
            patch: config.patch(),
            feature_channels,
            conv_in,
            levels,
            mid,
            norm_out,
            conv_out,
            quant_conv: Conv::load_pointwise(loader, [moments, moments], false)?,
            settling: static_chunks(config),
        })
    }

    fn features(&self, chunk: &Chunk, cache: &mut FeatureCache) -> MlxResult<Array> {
        let (start, mut x) = match (cache.static_frames.reused(), chunk) {
            (Some((stage, x)), Chunk::Blank) => (stage + 1, x),
            (_, Chunk::Blank) => (0, self.conv_in.forward(self.blank(cache)?, cache)?),
            (_, Chunk::Pixels(pixels)) => {
                let pixels = match self.patch {
                    1 => pixels.clone(),
                    side => patchify(pixels, side)?,
                };
                (0, self.conv_in.forward(pixels, cache)?)
            }
        };
        for (stage, level) in self.levels.iter().enumerate().skip(start) {
            if level.down.is_some() {
                x = level.forward(x, cache)?;
                cache.static_frames.keep(stage, self.settling[stage], &x);
            }
        }
        Ok(x)
    }

    /// The pixels of [`Chunk::Blank`], patches of them if that is what the network sees.
    fn blank(&self, cache: &FeatureCache) -> MlxResult<Array> {
        match self.conv_in.last_frames(cache) {
            Some(last) => {
                let [height, width, channels] = [1, 2, 3].map(|axis| last.dim(axis));
                zeros_dtype(&[TEMPORAL_STRIDE, height, width, channels], last.dtype())
            }
            None => Err(Exception::custom("a clip's first chunk cannot be blank")),
        }
    }

    fn mean(&self, features: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        let stage = self.settling.len() - 1;
        if let Some((kept, mean)) = cache.static_frames.reused()
            && kept == stage
        {
            return Ok(mean);
        }
        let mut x = features;
        for level in self.levels.iter().filter(|level| level.down.is_none()) {
            x = level.forward(x, cache)?;
        }
        let x = self.mid.forward(x, cache)?;
        let x = self.conv_out.forward(self.norm_out.activate(&x)?, cache)?;
        let moments = self.quant_conv.forward(&x)?;
        let mean = moments
            .try_index((.., .., .., 0..self.z_dim))?
            .transpose_axes(&[3, 0, 1, 2])?
            .contiguous()?;
        mean.eval()?;
        cache.static_frames.keep(stage, self.settling[stage], &mean);
        Ok(mean)
    }
}

impl Level {
    fn forward(&self, mut x: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        let shortcut = self.shortcut.as_ref();
        let added = shortcut.map(|shortcut| shortcut.forward(&x)).transpose()?;
        for block in &self.blocks {
            x = block.forward(&x, cache)?;
        }
        if let Some(down) = &self.down {
            x = down.forward(x, cache)?;
        }
        if let Some(added) = added {
            x = x.add(added)?;
            x.eval()?;
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
    /// Encodes the next chunk to the mean of one latent frame: `[z_dim, 1, rows, columns]`, not
    /// normalised; evaluated. A small encoder's chunks all have four frames, of which the last of
    /// those that there are stands for others.
    ///
    /// # Errors
    /// When the first chunk is blank, or MLX fails.
    pub fn push(&mut self, chunk: &Chunk) -> MlxResult<Array> {
        self.cache.static_frames.next(matches!(chunk, Chunk::Blank));
        let features = self.encoder.features(chunk, &mut self.cache)?;
        self.encoder.mean(features, &mut self.cache)
    }

    /// What is carried to the next chunk.
    pub fn cache_mut(&mut self) -> &mut FeatureCache {
        &mut self.cache
    }
}
