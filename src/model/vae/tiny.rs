//! The small autoencoders of madebyollin/taehv (taew2_1, taew2_2): plain convolutions, frame by frame, for
//! previews and for clips that need not be the finest.
//!
//! Latents are as the transformer has them, without mean and deviation. What crosses frames is one frame
//! for every [`MemBlock`]. All are computed one by one, so that a stream makes the bits of the whole.

use anyhow::Result;
use mlx_rs::Array;
use mlx_rs::error::{Exception, Result as MlxResult};
use mlx_rs::ops::indexing::TryIndexMutOp;
use mlx_rs::ops::{self, concatenate, maximum, tanh, zeros_dtype};

use super::conv::{Conv, FeatureCache, Loader, Slot};
use super::decoder::shuffle;
use super::static_frames::static_chunks;
use super::{Chunk, TEMPORAL_STRIDE, VaeConfig};
use crate::runtime::rows;

/// Blocks of a level.
pub(super) const BLOCKS: usize = 3;
/// Frames that a level of the decoder makes of one.
pub(super) const GROWTH: [i32; 3] = [1, 2, 2];
/// Frames that a level of the encoder makes one of.
pub(super) const POOLED: [i32; 3] = [2, 2, 1];
/// Frames in front of the clip that the decoder makes of the first latents.
pub(super) const DROPPED: usize = TEMPORAL_STRIDE as usize - 1;
/// Beyond it latents are squashed.
const LIMIT: f32 = 3.0;

/// A convolution with a square kernel, whose file may have no bias.
fn conv(
    loader: &mut Loader,
    [inputs, outputs]: [i32; 2],
    [side, stride]: [i32; 2],
    bias: bool,
) -> Result<Conv> {
    let weight = loader.exact("weight", &[outputs, inputs, side, side])?;
    let weight = weight.reshape(&[outputs, inputs, 1, side, side])?;
    let bias = match bias {
        true => loader.exact("bias", &[outputs])?,
        false => ops::zeros::<f32>(&[outputs])?,
    };
    Conv::new(loader.device, &weight, bias, [1, stride, stride])?.prepared(loader)
}

/// A 3 x 3 convolution of what has its margin already; evaluated.
fn convolved(conv: &Conv, padded: &Array) -> MlxResult<Array> {
    let out = conv.forward(padded)?;
    out.eval()?;
    Ok(out)
}

/// As [`convolved`] of `x` without its margin.
fn same(conv: &Conv, x: Array) -> MlxResult<Array> {
    conv.padded(x, 1, (1, 1))
}

/// What is not negative; evaluated.
fn relu(x: Array) -> MlxResult<Array> {
    let out = maximum(x, Array::from_f32(0.0))?;
    out.eval()?;
    Ok(out)
}

/// Convolutions around a shortcut that see the frame before, too.
#[derive(Debug)]
struct MemBlock {
    convs: [Conv; 3],
    slot: usize,
}

impl MemBlock {
    fn load(loader: &mut Loader, channels: i32) -> Result<Self> {
        let mut load = |index: usize, inputs| {
            let loader = &mut loader.scope(&format!("conv.{index}"));
            conv(loader, [inputs, channels], [3, 1], true)
        };
        Ok(Self {
            convs: [
                load(0, 2 * channels)?,
                load(2, channels)?,
                load(4, channels)?,
            ],
            slot: loader.next_slot(),
        })
    }

    /// `[1, h, w, channels]` to the same, evaluated.
    fn forward(&self, x: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        let slot = cache.slot(self.slot);
        let before = match slot {
            Slot::Frames(frame) => Some(&*frame),
            Slot::Empty | Slot::Passed => None,
        };
        let both = beside(&x, before)?;
        both.eval()?;
        *slot = Slot::Frames(x.clone());
        let [first, second, third] = &self.convs;
        let h = convolved(first, &both)?;
        drop(both);
        let h = same(second, relu(h)?)?;
        let h = same(third, relu(h)?)?;
        relu(h.add(x)?)
    }
}

/// The channels of `x` and then those of the frame `before`, with a margin of zeros: one array filled in
/// place.
fn beside(x: &Array, before: Option<&Array>) -> MlxResult<Array> {
    let [h, w, c] = [1, 2, 3].map(|axis| x.dim(axis));
    let mut out = zeros_dtype(&[1, h + 2, w + 2, 2 * c], x.dtype())?;
    out.try_index_mut((.., 1..=h, 1..=w, ..c), x)?;
    if let Some(before) = before {
        out.try_index_mut((.., 1..=h, 1..=w, c..2 * c), before)?;
    }
    Ok(out)
}

/// The blocks of a level, numbered from `first` on.
fn blocks(loader: &mut Loader, first: usize, channels: i32) -> Result<Vec<MemBlock>> {
    (first..first + BLOCKS)
        .map(|index| MemBlock::load(&mut loader.scope(&index.to_string()), channels))
        .collect()
}

fn through(blocks: &[MemBlock], x: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
    blocks
        .iter()
        .try_fold(x, |x, block| block.forward(x, cache))
}

/// Channels of the decoder's levels, from the latents' size on.
pub(super) fn decoder_widths(config: &VaeConfig) -> [i32; 4] {
    let of = |level: usize| config.decoder_dim() * config.dim_mult[level];
    [of(3), of(2), of(1), of(0)]
}

/// Latents to pixels.
#[derive(Debug)]
pub(super) struct Decoder {
    conv_in: Conv,
    blocks: Vec<MemBlock>,
    levels: Vec<Up>,
    conv_out: Conv,
    patch: i32,
    /// Whether the last frame of a chunk is wanted alone.
    pub(super) only_last: bool,
}

/// A level of the decoder.
#[derive(Debug)]
struct Up {
    grow: Conv,
    growth: i32,
    conv: Conv,
    blocks: Vec<MemBlock>,
}

impl Up {
    /// The frames that are made of one, at its size.
    fn grown(&self, x: &Array) -> MlxResult<Vec<Array>> {
        let all = convolved(&self.grow, x)?;
        all.split_equal(self.growth, -1)
    }

    /// Twice as many rows and columns, evaluated. The reference enlarges before frames grow: the same of
    /// every pixel four times.
    fn enlarged(&self, x: &Array) -> MlxResult<Array> {
        self.conv.padded(x.clone(), 2, (1, 1))
    }
}

impl Decoder {
    pub(super) fn load(config: &VaeConfig, loader: &mut Loader) -> Result<Self> {
        let widths = decoder_widths(config);
        let mut at = |index: usize, channels, bias| {
            let loader = &mut loader.scope(&index.to_string());
            conv(loader, channels, [3, 1], bias)
        };
        let conv_in = at(1, [config.z_dim, widths[0]], true)?;
        let conv_out = at(22, [widths[3], config.out_channels], true)?;
        let first = blocks(loader, 3, widths[0])?;
        let mut levels = Vec::new();
        for (level, growth) in GROWTH.into_iter().enumerate() {
            let [channels, outputs] = [widths[level], widths[level + 1]];
            let start = 7 + 6 * level;
            let grow = &mut loader.scope(&format!("{start}.conv"));
            let grow = conv(grow, [channels, growth * channels], [1, 1], false)?;
            let widen = &mut loader.scope(&(start + 1).to_string());
            levels.push(Up {
                grow,
                growth,
                conv: conv(widen, [channels, outputs], [3, 1], false)?,
                blocks: match level {
                    2 => Vec::new(),
                    _ => blocks(loader, start + 2, outputs)?,
                },
            });
        }
        Ok(Self {
            conv_in,
            blocks: first,
            levels,
            conv_out,
            patch: config.patch(),
            only_last: false,
        })
    }

    /// See [`VaeDecoder::features`](super::VaeDecoder).
    pub(super) fn features(&self, latents: &Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        let x = latents.transpose_axes(&[1, 2, 3, 0])?;
        let limit = Array::from_f32(LIMIT);
        let x = tanh(x.divide(&limit)?)?.multiply(&limit)?;
        through(&self.blocks, relu(same(&self.conv_in, x)?)?, cache)
    }

    /// See [`VaeDecoder::pixels`](super::VaeDecoder).
    pub(super) fn pixels(&self, features: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        let [first, second, last] = self.levels.as_slice() else {
            return Err(Exception::custom("a small decoder has three levels"));
        };
        let is_first = matches!(cache.slot(first.blocks[0].slot), Slot::Empty);
        let mut skipped = if is_first || self.only_last {
            DROPPED
        } else {
            0
        };
        let mut frames = Vec::new();
        for x in first.grown(&features)? {
            let x = through(&first.blocks, first.enlarged(&x)?.contiguous()?, cache)?;
            for x in second.grown(&x)? {
                let x = through(&second.blocks, second.enlarged(&x)?.contiguous()?, cache)?;
                let grown = match skipped {
                    0 | 1 => last.grown(&x)?,
                    // Nothing of it is kept.
                    _ => vec![x; last.growth as usize],
                };
                for x in grown {
                    match skipped {
                        0 => frames.push(self.frame(last.enlarged(&x)?)?),
                        _ => skipped -= 1,
                    }
                }
            }
        }
        let pixels = concatenate(&frames, 0)?;
        pixels.eval()?;
        Ok(pixels)
    }

    /// A frame `[1, height, width, 3]`, from [0, 1] to [-1, 1].
    fn frame(&self, x: Array) -> MlxResult<Array> {
        let x = same(&self.conv_out, relu(x)?)?;
        let pixels = shuffle(&x, self.patch)?
            .multiply(Array::from_f32(2.0))?
            .subtract(Array::from_f32(1.0))?;
        pixels.eval()?;
        Ok(pixels)
    }
}

/// Pixels to latents.
#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: Conv,
    levels: Vec<Down>,
    conv_out: Conv,
    patch: i32,
    /// When its stages settle.
    settling: Vec<i32>,
}

/// A level of the encoder.
#[derive(Debug)]
struct Down {
    pool: Conv,
    conv: Conv,
    blocks: Vec<MemBlock>,
}

impl Down {
    /// One of some frames, of half the rows and columns; evaluated.
    fn pooled(&self, frames: &[Array]) -> MlxResult<Array> {
        let x = convolved(&self.pool, &concatenate(frames, -1)?)?;
        same(&self.conv, x)
    }
}

impl Encoder {
    pub(super) fn load(config: &VaeConfig, loader: &mut Loader) -> Result<Self> {
        let width = config.base_dim;
        let mut at = |index: usize, channels| {
            let loader = &mut loader.scope(&index.to_string());
            conv(loader, channels, [3, 1], true)
        };
        let conv_in = at(0, [config.in_channels, width])?;
        let conv_out = at(17, [width, config.z_dim])?;
        let mut levels = Vec::new();
        for (level, frames) in POOLED.into_iter().enumerate() {
            let start = 2 + 5 * level;
            let pool = &mut loader.scope(&format!("{start}.conv"));
            let pool = conv(pool, [frames * width, width], [1, 1], false)?;
            let halve = &mut loader.scope(&(start + 1).to_string());
            levels.push(Down {
                pool,
                conv: conv(halve, [width; 2], [3, 2], false)?,
                blocks: blocks(loader, start + 2, width)?,
            });
        }
        Ok(Self {
            conv_in,
            levels,
            conv_out,
            patch: config.patch(),
            settling: static_chunks(config),
        })
    }

    /// See [`VaeEncoder::features`](super::VaeEncoder), of a chunk of four frames as [`grouped`] makes
    /// it. Of fewer the last one stands for those that are missing.
    pub(super) fn features(&self, chunk: &Chunk, cache: &mut FeatureCache) -> MlxResult<Array> {
        let [first, second, last] = self.levels.as_slice() else {
            return Err(Exception::custom("a small encoder has three levels"));
        };
        let pixels = match (chunk, cache.static_frames.reused()) {
            (Chunk::Blank, Some((_, kept))) => return Ok(kept),
            (Chunk::Blank, None) => self.blank(cache)?,
            (Chunk::Pixels(pixels), _) => pixels.clone(),
        };
        let end = pixels.dim(0) - 1;
        let frame = |i: i32| self.frame(&rows(&pixels, i.min(end), i.min(end) + 1)?);
        let mut halves = Vec::new();
        for i in (0..TEMPORAL_STRIDE).step_by(2) {
            let x = first.pooled(&[frame(i)?, frame(i + 1)?])?;
            halves.push(through(&first.blocks, x, cache)?);
        }
        let x = through(&second.blocks, second.pooled(&halves)?, cache)?;
        let features = last.pooled(&[x])?;
        cache.static_frames.keep(0, self.settling[0], &features);
        Ok(features)
    }

    /// The first layer on a frame `[1, height, width, 3]`, from [-1, 1] to [0, 1].
    fn frame(&self, pixels: &Array) -> MlxResult<Array> {
        let x = pixels
            .add(Array::from_f32(1.0))?
            .multiply(Array::from_f32(0.5))?;
        let [h, w] = [1, 2].map(|axis| x.dim(axis) / self.patch);
        let side = self.patch;
        let x = x
            .reshape(&[1, h, side, w, side, 3])?
            .transpose_axes(&[0, 1, 3, 5, 2, 4])?
            .reshape(&[1, h, w, 3 * side * side])?;
        relu(same(&self.conv_in, x)?)
    }

    /// The pixels of [`Chunk::Blank`].
    fn blank(&self, cache: &mut FeatureCache) -> MlxResult<Array> {
        match cache.slot(self.levels[0].blocks[0].slot) {
            Slot::Frames(last) => {
                let [height, width] = [1, 2].map(|axis| 2 * self.patch * last.dim(axis));
                zeros_dtype(&[1, height, width, 3], last.dtype())
            }
            Slot::Empty | Slot::Passed => {
                Err(Exception::custom("a clip's first chunk cannot be blank"))
            }
        }
    }

    /// See [`VaeEncoder::mean`](super::VaeEncoder).
    pub(super) fn mean(&self, features: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        if let Some((1, mean)) = cache.static_frames.reused() {
            return Ok(mean);
        }
        let x = through(&self.levels[2].blocks, features, cache)?;
        let mean = same(&self.conv_out, x)?
            .transpose_axes(&[3, 0, 1, 2])?
            .contiguous()?;
        mean.eval()?;
        cache.static_frames.keep(1, self.settling[1], &mean);
        Ok(mean)
    }
}

/// Chunk `index` of a clip of `frames` chunks as the small encoders take them: frames 4 `index` to 4
/// `index` + 3, the last one four times. So the reference pads a clip: at its end, not at its beginning.
pub(super) fn grouped(
    index: i32,
    frames: i32,
    chunk: &dyn Fn(i32) -> MlxResult<Chunk>,
) -> MlxResult<Chunk> {
    let own = chunk(index)?;
    let next = match index + 1 < frames {
        true => Some(chunk(index + 1)?),
        false => None,
    };
    let last = |pixels: &Array| rows(pixels, pixels.dim(0) - 1, pixels.dim(0));
    let blank =
        |like: &Array, count| zeros_dtype(&[count, like.dim(1), like.dim(2), 3], like.dtype());
    Ok(match (own, next) {
        (Chunk::Blank, None | Some(Chunk::Blank)) => Chunk::Blank,
        (Chunk::Pixels(own), None) => Chunk::Pixels(last(&own)?),
        (own, Some(next)) => {
            let rest = TEMPORAL_STRIDE - 1;
            let parts = match (&own, &next) {
                (Chunk::Pixels(own), Chunk::Pixels(next)) => [last(own)?, rows(next, 0, rest)?],
                (Chunk::Pixels(own), Chunk::Blank) => [last(own)?, blank(own, rest)?],
                (Chunk::Blank, Chunk::Pixels(next)) => [blank(next, 1)?, rows(next, 0, rest)?],
                (Chunk::Blank, Chunk::Blank) => return Ok(Chunk::Blank),
            };
            Chunk::Pixels(concatenate(&parts, 0)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vae::{VaeDecoder, VaeEncoder};
    use crate::model::{MemoryPlan, Role, TensorSource};
    use crate::runtime::{Device, DeviceKind, Kernels, to_host};

    fn filled(shape: &[i32], seed: i32, scale: f32) -> Array {
        let count: i32 = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|i| (((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0) * scale)
            .collect();
        Array::from_slice(&values, shape)
    }

    struct Weights;

    impl TensorSource for Weights {
        fn tensor(&mut self, name: &str, shape: &[i32], _: Role) -> Result<Array> {
            let inputs: i32 = shape.iter().skip(1).product();
            let scale = 1.7 / (inputs as f32).sqrt();
            Ok(filled(shape, name.len() as i32, scale))
        }
    }

    fn config() -> VaeConfig {
        VaeConfig {
            base_dim: 8,
            decoder_base_dim: None,
            z_dim: 4,
            dim_mult: vec![1, 2, 2, 3],
            num_res_blocks: BLOCKS as i32,
            attn_scales: Vec::new(),
            temperal_downsample: vec![true, true, false],
            latents_mean: vec![0.0; 4],
            latents_std: vec![1.0; 4],
            is_residual: false,
            patch_size: Some(2),
            in_channels: 12,
            out_channels: 12,
            tiny: true,
        }
    }

    fn whole(blocks: &[MemBlock], mut frames: Vec<Array>, cache: &mut FeatureCache) -> Vec<Array> {
        for block in blocks {
            let frames = frames.iter_mut();
            frames.for_each(|x| *x = block.forward(x.clone(), cache).unwrap());
        }
        frames
    }

    fn bits(parts: &[Array], axis: i32) -> Vec<f32> {
        to_host(&concatenate(parts, axis).unwrap()).unwrap()
    }

    /// Layer after layer of the whole clip, as the reference computes it, and chunk after chunk.
    #[test]
    fn a_stream_makes_the_bits_of_the_whole() {
        const FRAMES: i32 = 3;
        let (config, memory) = (config(), MemoryPlan::WHOLE);
        for kernels in [Kernels::Cpu, Kernels::Mlx] {
            let device = Device::with_kernels(DeviceKind::Cpu, None, kernels);
            let vae = VaeDecoder::load(&config, &mut Weights, device).unwrap();
            let mut slots = 0;
            let source: &mut dyn TensorSource = &mut Weights;
            let loader = &mut Loader {
                source: source.scope("decoder"),
                device,
                slots: &mut slots,
            };
            let decoder = Decoder::load(&config, loader).unwrap();
            let latents: Vec<Array> = (0..FRAMES).map(|i| filled(&[4, 1, 3, 5], i, 2.0)).collect();
            let mut stream = vae.stream(&memory);
            let streamed: Vec<Array> = latents.iter().map(|x| stream.push(x).unwrap()).collect();
            let cache = &mut vae.new_cache(&memory);
            let limit = Array::from_f32(LIMIT);
            let starts = latents.iter().map(|x| {
                let x = x.transpose_axes(&[1, 2, 3, 0]).unwrap();
                let x = tanh(x.divide(&limit).unwrap()).unwrap();
                let x = x.multiply(&limit).unwrap();
                relu(same(&decoder.conv_in, x).unwrap()).unwrap()
            });
            let mut frames = whole(&decoder.blocks, starts.collect(), cache);
            for level in &decoder.levels {
                let grown = frames.iter().flat_map(|x| level.grown(x).unwrap());
                let enlarged = grown.map(|x| level.enlarged(&x).unwrap().contiguous().unwrap());
                frames = whole(&level.blocks, enlarged.collect(), cache);
            }
            let frames = frames.into_iter().skip(DROPPED);
            let frames: Vec<Array> = frames.map(|x| decoder.frame(x).unwrap()).collect();
            assert_eq!(frames.len() as i32, 4 * FRAMES - 3);
            assert!(bits(&frames, 0) == bits(&streamed, 0), "{kernels:?}");

            let vae = VaeEncoder::load(&config, &mut Weights, device).unwrap();
            let mut slots = 0;
            let source: &mut dyn TensorSource = &mut Weights;
            let loader = &mut Loader {
                source: source.scope("encoder"),
                device,
                slots: &mut slots,
            };
            let encoder = Encoder::load(&config, loader).unwrap();
            let pixels = filled(&[4 * FRAMES, 32, 48, 3], 7, 1.0);
            let mut stream = vae.stream(&memory);
            let streamed: Vec<Array> = (0..FRAMES)
                .map(|i| Chunk::Pixels(rows(&pixels, 4 * i, 4 * i + 4).unwrap()))
                .map(|chunk| stream.push(&chunk).unwrap())
                .collect();
            let cache = &mut vae.new_cache(&memory);
            let starts = (0..4 * FRAMES).map(|i| rows(&pixels, i, i + 1).unwrap());
            let mut frames: Vec<Array> = starts.map(|x| encoder.frame(&x).unwrap()).collect();
            for (level, count) in encoder.levels.iter().zip(POOLED) {
                let pooled = frames
                    .chunks(count as usize)
                    .map(|x| level.pooled(x).unwrap());
                frames = whole(&level.blocks, pooled.collect(), cache);
            }
            let means = frames.into_iter().map(|x| {
                let x = same(&encoder.conv_out, x).unwrap();
                x.transpose_axes(&[3, 0, 1, 2]).unwrap()
            });
            assert!(
                bits(&means.collect::<Vec<_>>(), 1) == bits(&streamed, 1),
                "{kernels:?}"
            );
        }
    }

    /// A preview's frame is the last one that its latents stand for.
    #[test]
    fn last_frames_alone_are_those_of_the_clip() {
        let (config, memory) = (config(), MemoryPlan::WHOLE);
        let device = Device::new(DeviceKind::Cpu, None);
        let load = || VaeDecoder::load(&config, &mut Weights, device).unwrap();
        let (all, last) = (load(), load().of_last_frames());
        let (mut all, mut last) = (all.stream(&memory), last.stream(&memory));
        for i in 0..3 {
            let latents = filled(&[4, 1, 3, 2], i, 2.0);
            let frames = all.push(&latents).unwrap();
            let expected = rows(&frames, frames.dim(0) - 1, frames.dim(0)).unwrap();
            let found = last.push(&latents).unwrap();
            assert_eq!(found.shape(), expected.shape());
            assert!(bits(&[found], 0) == bits(&[expected], 0), "{i}");
        }
    }
}
