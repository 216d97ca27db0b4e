//! The blocks that encoder and decoder are made of.

use anyhow::Result;
use mlx_rs::error::Result as MlxResult;
use mlx_rs::ops::concatenate;
use mlx_rs::transforms::eval;
use mlx_rs::{Array, fast};

use super::conv::{CausalConv, Conv, FeatureCache, Loader, Slot};
use crate::runtime::{Device, rows};

/// The reference L2-normalises channels and multiplies by sqrt(channels), which is an RMS norm;
/// this epsilon stands for its lower bound of 1e-12 on the length.
const NORM_EPS: f32 = 1e-24;

/// RMS norm over channels.
#[derive(Debug)]
pub(super) struct Norm {
    gamma: Array,
    device: Device,
}

impl Norm {
    /// Loads `gamma`, `[channels, 1, 1, 1]`, or `[channels, 1, 1]` when `planar`.
    pub(super) fn load(loader: &mut Loader, channels: i32, planar: bool) -> Result<Self> {
        let shape = [channels, 1, 1, 1];
        let stored = if planar { &shape[..3] } else { &shape[..] };
        let gamma = loader.exact("gamma", stored)?;
        Ok(Self {
            gamma: gamma.reshape(&[channels])?,
            device: loader.device,
        })
    }

    pub(super) fn forward(&self, x: &Array) -> MlxResult<Array> {
        fast::rms_norm(x, Some(&self.gamma), NORM_EPS)
    }

    /// The norm and then SiLU, evaluated.
    pub(super) fn activate(&self, x: &Array) -> MlxResult<Array> {
        self.device.norm_silu(x, &self.gamma, NORM_EPS)
    }
}

/// Two causal convolutions around a shortcut.
#[derive(Debug)]
pub(super) struct ResidualBlock {
    norm1: Norm,
    conv1: CausalConv,
    norm2: Norm,
    conv2: CausalConv,
    shortcut: Option<Conv>,
}

impl ResidualBlock {
    pub(super) fn load(loader: &mut Loader, [inputs, outputs]: [i32; 2]) -> Result<Self> {
        Ok(Self {
            norm1: Norm::load(&mut loader.scope("norm1"), inputs, false)?,
            conv1: CausalConv::load(&mut loader.scope("conv1"), [inputs, outputs])?,
            norm2: Norm::load(&mut loader.scope("norm2"), outputs, false)?,
            conv2: CausalConv::load(&mut loader.scope("conv2"), [outputs, outputs])?,
            shortcut: if inputs == outputs {
                None
            } else {
                let loader = &mut loader.scope("conv_shortcut");
                Some(Conv::load_pointwise(loader, [inputs, outputs], false)?)
            },
        })
    }

    /// Evaluated step by step, which keeps a few activations alive instead of a whole graph.
    pub(super) fn forward(&self, x: &Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        let h = self.conv1.forward(self.norm1.activate(x)?, cache)?;
        let activated = self.norm2.activate(&h)?;
        drop(h);
        let h = self.conv2.forward(activated, cache)?;
        let out = match &self.shortcut {
            Some(conv) => h.add(conv.forward(x)?),
            None => h.add(x),
        }?;
        out.eval()?;
        Ok(out)
    }
}

/// Single-head self-attention within each frame.
#[derive(Debug)]
struct AttentionBlock {
    norm: Norm,
    to_qkv: Conv,
    proj: Conv,
    device: Device,
}

impl AttentionBlock {
    fn load(loader: &mut Loader, channels: i32) -> Result<Self> {
        let pointwise =
            |loader: &mut Loader, outputs| Conv::load_pointwise(loader, [channels, outputs], true);
        Ok(Self {
            norm: Norm::load(&mut loader.scope("norm"), channels, true)?,
            to_qkv: pointwise(&mut loader.scope("to_qkv"), 3 * channels)?,
            proj: pointwise(&mut loader.scope("proj"), channels)?,
            device: loader.device,
        })
    }

    fn forward(&self, x: &Array, score_bytes: u64) -> MlxResult<Array> {
        let (t, h, w, c) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
        let qkv = self.to_qkv.forward(&self.norm.forward(x)?)?;
        let parts = qkv.reshape(&[t, 1, h * w, 3 * c])?.split_equal(3, -1)?;
        let scale = f64::from(c).sqrt().recip() as f32;
        let frames = (0..t)
            .map(|i| {
                let part = |j: usize| rows(&parts[j], i, i + 1);
                let [q, k, v] = [part(0)?, part(1)?, part(2)?];
                self.device
                    .attention([&q, &k, &v], scale, None, score_bytes)
            })
            .collect::<MlxResult<Vec<_>>>()?;
        let out = concatenate(&frames, 0)?.reshape(&[t, h, w, c])?;
        let out = x.add(self.proj.forward(&out)?)?;
        out.eval()?;
        Ok(out)
    }
}

/// Residual block, attention, residual block, at the smallest size.
#[derive(Debug)]
pub(super) struct MidBlock {
    first: ResidualBlock,
    attention: AttentionBlock,
    second: ResidualBlock,
}

impl MidBlock {
    pub(super) fn load(loader: &mut Loader, channels: i32) -> Result<Self> {
        let both = [channels, channels];
        Ok(Self {
            first: ResidualBlock::load(&mut loader.scope("resnets.0"), both)?,
            attention: AttentionBlock::load(&mut loader.scope("attentions.0"), channels)?,
            second: ResidualBlock::load(&mut loader.scope("resnets.1"), both)?,
        })
    }

    pub(super) fn forward(&self, x: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        let x = self.first.forward(&x, cache)?;
        let x = self.attention.forward(&x, cache.score_bytes)?;
        self.second.forward(&x, cache)
    }
}

/// Halves rows and columns, and frames when it has a temporal convolution.
#[derive(Debug)]
pub(super) struct Downsample {
    space: Conv,
    time: Option<(Conv, usize)>,
}

impl Downsample {
    pub(super) fn load(loader: &mut Loader, channels: i32, temporal: bool) -> Result<Self> {
        let both = [channels, channels];
        let space = &mut loader.scope("resample.1");
        Ok(Self {
            space: Conv::load(space, both, [1, 3, 3], [1, 2, 2], true)?,
            time: if temporal {
                let time = &mut loader.scope("time_conv");
                let conv = Conv::load(time, both, [3, 1, 1], [2, 1, 1], false)?;
                Some((conv, loader.next_slot()))
            } else {
                None
            },
        })
    }

    /// The first chunk is one frame and passes the temporal convolution by; later chunks see
    /// the last frame before them.
    pub(super) fn forward(&self, x: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        let x = self.space.padded(x, 1, (0, 1))?;
        let Some((conv, slot)) = &self.time else {
            return Ok(x);
        };
        let slot = cache.slot(*slot);
        // A view would keep all of `x` alive until the next chunk.
        let last = rows(&x, x.dim(0) - 1, x.dim(0))?.contiguous()?;
        let out = match slot {
            Slot::Frames(before) => conv.forward(&concatenate(&[&*before, &x], 0)?)?,
            Slot::Empty | Slot::Passed => x,
        };
        eval([&out, &last])?;
        *slot = Slot::Frames(last);
        Ok(out)
    }
}

/// Doubles rows and columns; doubles frames when it has a temporal convolution.
#[derive(Debug)]
pub(super) struct Upsample {
    space: Conv,
    time: Option<CausalConv>,
}

impl Upsample {
    pub(super) fn load(
        loader: &mut Loader,
        [channels, outputs]: [i32; 2],
        temporal: bool,
    ) -> Result<Self> {
        let space = Conv::load(
            &mut loader.scope("resample.1"),
            [channels, outputs],
            [1, 3, 3],
            [1, 1, 1],
            true,
        )?;
        let time = if temporal {
            let loader = &mut loader.scope("time_conv");
            let channels = [channels, 2 * channels];
            Some(CausalConv::load_kernel(loader, channels, [3, 1, 1])?)
        } else {
            None
        };
        Ok(Self { space, time })
    }

    /// Takes `x`, which is not needed beside the eight times larger result.
    pub(super) fn forward(&self, x: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        let x = match &self.time {
            Some(time) if time.has_seen_a_chunk(cache) => {
                // The first half of the channels are the even frames, the second the odd ones.
                let (t, h, w, c) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
                time.forward(x, cache)?
                    .reshape(&[t, h, w, 2, c])?
                    .transpose_axes(&[0, 3, 1, 2, 4])?
                    .reshape(&[2 * t, h, w, c])?
            }
            Some(time) => {
                time.pass(cache);
                x
            }
            None => x,
        };
        self.space.padded(x, 2, (1, 1))
    }
}
