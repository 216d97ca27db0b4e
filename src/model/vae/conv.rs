//! Convolutions on channels-last video, and the frames they carry from chunk to chunk.

use anyhow::Result;
use mlx_rs::Array;
use mlx_rs::error::Result as MlxResult;
use mlx_rs::ops::indexing::{TryIndexMutOp, TryIndexOp};
use mlx_rs::ops::{self, PadWidth, concatenate, zeros_dtype};
use mlx_rs::transforms::eval;

use super::static_frames::StaticFrames;
use crate::model::{MemoryPlan, Role, Scope, TensorSource};
use crate::runtime::kernels::cpu::{Clip, Convolution, Tile};
use crate::runtime::{Device, Kernels, count_product, in_chunks, rows};

/// Fewer channels than this are not worth transforming.
const MIN_TRANSFORMED: i32 = 8;

/// Bytes that a weight may take with Winograd's larger tile, for which it grows fourfold.
const MOST_TRANSFORMED: u64 = 32 << 20;

/// What a cached layer carries to the next chunk.
#[derive(Clone, Debug, Default)]
pub enum Slot {
    /// No chunk has come yet.
    #[default]
    Empty,
    /// The first chunk went through a temporal resampler untouched.
    Passed,
    /// The last input frames, `[1 or 2, height, width, channels]`.
    Frames(Array),
}

/// What one pass over a clip carries from chunk to chunk: slots, one per cached layer, in the
/// network's order, and what blank chunks come to.
#[derive(Clone, Debug)]
pub struct FeatureCache {
    slots: Vec<Slot>,
    /// Bytes of scores that attention has at once.
    pub(super) score_bytes: u64,
    pub(super) static_frames: StaticFrames,
}

impl FeatureCache {
    pub(super) fn new(slots: usize, memory: &MemoryPlan) -> Self {
        Self {
            slots: vec![Slot::Empty; slots],
            score_bytes: memory.score_bytes,
            static_frames: StaticFrames::default(),
        }
    }

    /// The slots; diagnostics empty one to see what a lost cache looks like.
    pub fn slots_mut(&mut self) -> &mut [Slot] {
        &mut self.slots
    }

    pub(super) fn slot(&mut self, index: usize) -> &mut Slot {
        &mut self.slots[index]
    }
}

/// Loads a part of a network and numbers its cache slots.
pub(super) struct Loader<'a> {
    pub(super) source: Scope<'a>,
    pub(super) device: Device,
    /// Slots so far, of the whole network.
    pub(super) slots: &'a mut usize,
}

impl Loader<'_> {
    /// The part `name` of this part.
    pub(super) fn scope(&mut self, name: &str) -> Loader<'_> {
        Loader {
            source: self.source.scope(name),
            device: self.device,
            slots: self.slots,
        }
    }

    pub(super) fn next_slot(&mut self) -> usize {
        *self.slots += 1;
        *self.slots - 1
    }

    pub(super) fn exact(&mut self, name: &str, shape: &[i32]) -> Result<Array> {
        self.source.tensor(name, shape, Role::Exact)
    }
}

/// A convolution over `[frames, height, width, channels]` whose padding is done by the caller.
#[derive(Debug)]
pub(super) struct Conv {
    weight: Weight,
    bias: Array,
    inputs: i32,
    kernel: [i32; 3],
    stride: [i32; 3],
    device: Device,
}

#[derive(Debug)]
enum Weight {
    /// `[outputs, kt, kh, kw, inputs]`, for MLX's kernel.
    Native(Array),
    /// `[kt * outputs, kh, kw, inputs]`, for MLX's 2D kernel: all of a frame's products at once.
    Joined(Array),
    /// `[inputs, outputs]`, of a kernel of one tap.
    Pointwise(Array),
    /// For this program's own kernels.
    Own(Convolution),
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// By MLX.
    Native,
    /// By MLX, the time taps joined.
    Joined,
    /// As one product.
    Pointwise,
    /// By this program, with Winograd's algorithm where there is a tile.
    Own(Option<Tile>),
}

/// How a convolution of these input and output channels is computed.
pub(super) fn form(
    device: Device,
    [inputs, outputs]: [i32; 2],
    kernel: [i32; 3],
    stride: [i32; 3],
) -> Form {
    let [kt, kh, kw] = kernel;
    if device.kernels == Kernels::Cpu && !device.tuning.whole_convolutions {
        let fits = ([kh, kw], stride) == ([3, 3], [1, 1, 1]) && inputs >= MIN_TRANSFORMED;
        let values = |tile: Tile| transformed_values([inputs, outputs], kt, tile);
        return Form::Own(
            fits.then(|| match 4 * values(Tile::Four) <= MOST_TRANSFORMED {
                true => Tile::Four,
                false => Tile::Two,
            }),
        );
    }
    if kernel == [1, 1, 1] {
        return Form::Pointwise;
    }
    match (kernel, stride) == ([3, 3, 3], [1, 1, 1]) && device.joins_time_taps([inputs, outputs]) {
        true => Form::Joined,
        false => Form::Native,
    }
}

/// Values of a weight of `kt` time taps that Winograd's algorithm has transformed.
pub(super) fn transformed_values([inputs, outputs]: [i32; 2], kt: i32, tile: Tile) -> u64 {
    let points = tile.points() as u64;
    [inputs, outputs, kt]
        .iter()
        .fold(points * points, |product, &side| {
            product * side.max(0) as u64
        })
}

impl Conv {
    /// Loads `weight` `[outputs, inputs, kt, kh, kw]` and `bias`; `planar` weights lack the kt axis.
    pub(super) fn load(
        loader: &mut Loader,
        [inputs, outputs]: [i32; 2],
        kernel: [i32; 3],
        stride: [i32; 3],
        planar: bool,
    ) -> Result<Self> {
        let [kt, kh, kw] = kernel;
        let full = [outputs, inputs, kt, kh, kw];
        let stored: &[i32] = if planar {
            &[outputs, inputs, kh, kw]
        } else {
            &full
        };
        let weight = loader.exact("weight", stored)?.reshape(&full)?;
        let bias = loader.exact("bias", &[outputs])?;
        Self::new(loader.device, &weight, bias, stride)?.prepared(loader)
    }

    /// Of a weight `[outputs, inputs, kt, kh, kw]` and a bias `[outputs]`.
    pub(super) fn new(
        device: Device,
        weight: &Array,
        bias: Array,
        stride: [i32; 3],
    ) -> Result<Self> {
        let (outputs, inputs) = (weight.dim(0), weight.dim(1));
        let kernel = [2, 3, 4].map(|axis| weight.dim(axis));
        let form = form(device, [inputs, outputs], kernel, stride);
        let weight = match form {
            Form::Own(tile) => {
                let bias = bias.clone();
                Weight::Own(Convolution::new(weight, bias, stride, tile)?)
            }
            Form::Pointwise => {
                let matrix = weight.reshape(&[outputs, inputs])?.transpose()?;
                Weight::Pointwise(matrix.contiguous()?)
            }
            Form::Joined => {
                let [kt, kh, kw] = kernel;
                let rows_of_taps = weight.transpose_axes(&[2, 0, 3, 4, 1])?;
                let joined = rows_of_taps.reshape(&[kt * outputs, kh, kw, inputs])?;
                Weight::Joined(joined.contiguous()?)
            }
            Form::Native => Weight::Native(weight.transpose_axes(&[0, 2, 3, 4, 1])?.contiguous()?),
        };
        Ok(Self {
            weight,
            bias,
            inputs,
            kernel,
            stride,
            device,
        })
    }

    /// Ready for its first use, where it is a model's that `loader` loads.
    pub(super) fn prepared(self, loader: &Loader) -> Result<Self> {
        if let Weight::Own(own) = &self.weight
            && !loader.source.stands_in()
        {
            own.prepare()?;
        }
        Ok(self)
    }

    /// A 1x1x1 convolution: a linear layer on channels.
    pub(super) fn load_pointwise(
        loader: &mut Loader,
        channels: [i32; 2],
        planar: bool,
    ) -> Result<Self> {
        Self::load(loader, channels, [1, 1, 1], [1, 1, 1], planar)
    }

    /// Convolves padded `x`: each output axis is `(input - kernel) / stride + 1`.
    pub(super) fn forward(&self, x: &Array) -> MlxResult<Array> {
        self.forward_behind_zeros(x, 0)
    }

    /// Convolves `x`, each of whose rows and columns is there `repeat` times, with rows and columns of zeros
    /// in front and behind; evaluated. Takes `x` to let go of it before the product, if it can.
    pub(super) fn padded(&self, x: Array, repeat: i32, margins: (i32, i32)) -> MlxResult<Array> {
        if let Weight::Own(own) = &self.weight {
            let clip = Clip {
                margins: margins.into(),
                repeat,
                ..Clip::of(&x)
            };
            return self.own(own, clip);
        }
        let (t, h, w, c) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
        let repeated = match repeat {
            1 => x,
            _ => {
                let shape = [t, h, repeat, w, repeat, c];
                ops::broadcast_to(x.reshape(&[t, h, 1, w, 1, c])?, &shape)?.reshape(&[
                    t,
                    repeat * h,
                    repeat * w,
                    c,
                ])?
            }
        };
        let padded = pad(&repeated, margins)?;
        drop(repeated);
        padded.eval()?;
        let out = self.forward(&padded)?;
        out.eval()?;
        Ok(out)
    }

    fn own(&self, own: &Convolution, clip: Clip) -> MlxResult<Array> {
        let around: i32 = clip.margins.iter().sum();
        let frames = clip.frames.dim(0) + clip.before.map_or(0, |frames| frames.dim(0));
        let [h, w] = [1, 2].map(|axis| clip.repeat * clip.frames.dim(axis) + around);
        self.count([frames + clip.missing, h, w], clip.missing);
        own.forward(clip)
    }

    /// Counts the products of a padded input whose first `missing` frames are not multiplied.
    fn count(&self, input: [i32; 3], missing: i32) {
        let [t, h, w] = [0, 1, 2]
            .map(|axis: usize| ((input[axis] - self.kernel[axis]) / self.stride[axis] + 1).max(0));
        let [kt, kh, kw] = self.kernel;
        let blind: i32 = (0..t)
            .map(|frame| (missing - self.stride[0] * frame).max(0))
            .sum();
        count_product(
            (t * kt - blind) * h,
            w * kh * kw * self.inputs,
            self.bias.dim(0),
        );
    }

    /// As [`Self::forward`] with `missing` frames of zeros in front of `x`, which are not
    /// multiplied: taps that would see them are left out.
    fn forward_behind_zeros(&self, x: &Array, missing: i32) -> MlxResult<Array> {
        if let Weight::Own(own) = &self.weight {
            let clip = Clip {
                missing,
                ..Clip::of(x)
            };
            return self.own(own, clip);
        }
        self.count([x.dim(0) + missing, x.dim(1), x.dim(2)], missing);
        let kt = self.kernel[0];
        let frames = missing + x.dim(0) - kt + 1;
        let mut parts = Vec::new();
        for frame in 0..missing.min(frames) {
            let blind = missing - frame;
            parts.push(self.later_taps(&rows(x, 0, kt - blind)?, blind)?);
        }
        if frames > missing {
            parts.push(self.later_taps(x, 0)?);
        }
        match parts.as_slice() {
            [whole] => Ok(whole.clone()),
            _ => concatenate(&parts, 0),
        }
    }

    /// Convolves with the kernel's frames from `first` on.
    fn later_taps(&self, x: &Array, first: i32) -> MlxResult<Array> {
        match &self.weight {
            Weight::Native(weight) => {
                let [st, sh, sw] = self.stride;
                let weight = weight.try_index((.., first..))?;
                ops::conv3d(x.expand_dims(0)?, weight, (st, sh, sw), None, None, None)?
                    .squeeze_axes(&[0])?
                    .add(&self.bias)
            }
            Weight::Joined(weight) => {
                let (outputs, kt) = (self.bias.dim(0), self.kernel[0]);
                let weight = rows(weight, first * outputs, kt * outputs)?;
                self.sum_of_frames(x, &weight, kt - first)
            }
            Weight::Pointwise(weight) => {
                let (t, h, w, c) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
                let flat = x.reshape(&[t * h * w, c])?;
                let product = |x: &Array| ops::addmm(&self.bias, x, weight, None, None);
                in_chunks(&flat, 0, self.device.most_rows(), product)?.reshape(&[
                    t,
                    h,
                    w,
                    self.bias.dim(0),
                ])
            }
            Weight::Own(own) => own.forward(Clip::of(x)),
        }
    }

    /// Convolves frame by frame with all `kt` time taps at once, and adds each tap's part to the output
    /// frame that it belongs to. Evaluated, so that one frame's products exist at a time.
    fn sum_of_frames(&self, x: &Array, weight: &Array, kt: i32) -> MlxResult<Array> {
        let outputs = self.bias.dim(0);
        let count = x.dim(0) - kt + 1;
        let mut sums: Vec<Array> = Vec::new();
        for frame in 0..x.dim(0) {
            let products =
                ops::conv2d(&rows(x, frame, frame + 1)?, weight, None, None, None, None)?;
            for tap in 0..kt {
                let Some(at) = usize::try_from(frame - tap)
                    .ok()
                    .filter(|&at| at < count as usize)
                else {
                    continue;
                };
                let part = products.try_index((.., .., .., tap * outputs..(tap + 1) * outputs))?;
                match sums.get_mut(at) {
                    Some(sum) => *sum = sum.add(part)?,
                    None => sums.push(part.add(&self.bias)?),
                }
            }
            eval(&sums)?;
        }
        concatenate(&sums, 0)
    }
}

/// One convolution by itself, for diagnostics: padded `x` `[t, h, w, inputs]`, `weight`
/// `[outputs, inputs, kt, kh, kw]` and `bias` `[outputs]`, float32, to `[t', h', w', outputs]`.
///
/// # Errors
/// When MLX fails.
pub fn convolve(
    device: Device,
    x: &Array,
    weight: &Array,
    bias: &Array,
    stride: [i32; 3],
) -> Result<Array> {
    let conv = Conv::new(device, weight, bias.clone(), stride)?;
    Ok(conv.forward(x)?)
}

/// Zero-pads rows and columns by `(before, after)`.
pub(super) fn pad(x: &Array, space: (i32, i32)) -> MlxResult<Array> {
    let widths = [(0, 0), space, space, (0, 0)];
    ops::pad(x, PadWidth::Widths(&widths), None, None)
}

/// A convolution that sees only the past: its missing frames in front come from the last chunk,
/// or are zeros, which cost nothing.
#[derive(Debug)]
pub(super) struct CausalConv {
    conv: Conv,
    slot: usize,
}

impl CausalConv {
    /// A 3x3x3 convolution that keeps the size.
    pub(super) fn load(loader: &mut Loader, channels: [i32; 2]) -> Result<Self> {
        Self::load_kernel(loader, channels, [3, 3, 3])
    }

    /// A convolution of another odd kernel that keeps the size.
    pub(super) fn load_kernel(
        loader: &mut Loader,
        channels: [i32; 2],
        kernel: [i32; 3],
    ) -> Result<Self> {
        Ok(Self {
            conv: Conv::load(loader, channels, kernel, [1, 1, 1], false)?,
            slot: loader.next_slot(),
        })
    }

    /// Whether a chunk has come through since the start of the clip.
    pub(super) fn has_seen_a_chunk(&self, cache: &mut FeatureCache) -> bool {
        !matches!(cache.slot(self.slot), Slot::Empty)
    }

    /// What it keeps of the last chunk.
    pub(super) fn last_frames<'a>(&self, cache: &'a FeatureCache) -> Option<&'a Array> {
        match &cache.slots[self.slot] {
            Slot::Frames(frames) => Some(frames),
            Slot::Empty | Slot::Passed => None,
        }
    }

    /// Marks the first chunk as passed by without being convolved.
    pub(super) fn pass(&self, cache: &mut FeatureCache) {
        *cache.slot(self.slot) = Slot::Passed;
    }

    /// `[t, h, w, inputs]` to `[t, h, w, outputs]`, evaluated; keeps the last frames for the next
    /// chunk.
    ///
    /// Takes `x` to let go of it before the product: at full width one activation of 832 x 480
    /// takes 0.6 GB.
    pub(super) fn forward(&self, x: Array, cache: &mut FeatureCache) -> MlxResult<Array> {
        let slot = cache.slot(self.slot);
        let before = match slot {
            Slot::Frames(frames) => Some(&*frames),
            Slot::Empty | Slot::Passed => None,
        };
        let [history, margin] = [self.conv.kernel[0] - 1, self.conv.kernel[1] / 2];
        let missing = history - before.map_or(0, |frames| frames.dim(0));
        let kept = last_frames(before, &x, history)?;
        if let Weight::Own(own) = &self.conv.weight {
            let clip = Clip {
                before,
                frames: &x,
                missing,
                margins: [margin, margin],
                repeat: 1,
            };
            let out = self.conv.own(own, clip)?;
            if x.dim(0) >= history {
                // They do not depend on those before, which go first.
                *slot = Slot::Empty;
            }
            kept.eval()?;
            *slot = Slot::Frames(kept);
            return Ok(out);
        }
        let padded = joined(before, &x, margin)?;
        eval([&padded, &kept])?;
        *slot = Slot::Frames(kept);
        drop(x);
        let out = self.conv.forward_behind_zeros(&padded, missing)?;
        out.eval()?;
        Ok(out)
    }
}

/// `before` and then `x`, with rows and columns of zeros around them: one array filled in place,
/// not a copy per step.
fn joined(before: Option<&Array>, x: &Array, margin: i32) -> MlxResult<Array> {
    let (t, h, w, c) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
    let history = before.map_or(0, |frames| frames.dim(0));
    let shape = [history + t, h + 2 * margin, w + 2 * margin, c];
    let mut out = zeros_dtype(&shape, x.dtype())?;
    let (rows, columns) = (margin..margin + h, margin..margin + w);
    if let Some(before) = before {
        out.try_index_mut((..history, rows.clone(), columns.clone()), before)?;
    }
    out.try_index_mut((history..history + t, rows, columns), x)?;
    Ok(out)
}

/// The last `count` frames of `before` and `x`, or as many as there are.
fn last_frames(before: Option<&Array>, x: &Array, count: i32) -> MlxResult<Array> {
    let t = x.dim(0);
    let last = match before {
        Some(before) if t < count => {
            let from = (before.dim(0) + t - count).max(0);
            concatenate(&[&rows(before, from, before.dim(0))?, x], 0)?
        }
        _ => rows(x, (t - count).max(0), t)?,
    };
    // A view would keep all of `x` alive until the next chunk.
    last.contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{DeviceKind, to_host};

    /// No call of MLX's kernels may see more than 32,767 rows.
    #[test]
    fn many_rows_in_parts_are_the_same() {
        let filled = |shape: &[i32]| {
            let count: i32 = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|i| (i % 97) as f32 - 48.0).collect();
            Array::from_slice(&values, shape)
        };
        let (x, weight, bias) = (
            filled(&[2, 150, 150, 4]),
            filled(&[3, 4, 1, 1, 1]),
            filled(&[3]),
        );
        let [whole, parts] = [Kernels::Cpu, Kernels::Mlx].map(|kernels| {
            let device = Device::with_kernels(DeviceKind::Cpu, None, kernels);
            assert_eq!(2 * 150 * 150 > device.most_rows(), kernels == Kernels::Mlx);
            to_host(&convolve(device, &x, &weight, &bias, [1, 1, 1]).unwrap()).unwrap()
        });
        assert_eq!(whole, parts);
    }

    /// The published VAE's narrowest layer, with frames of zeros in front and without.
    #[test]
    fn joined_time_taps_are_the_same_convolution() {
        let filled = |shape: &[i32], seed: i32| {
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|i: i32| ((i * 37 + seed) % 101) as f32 / 50.0 - 1.0)
                .collect();
            Array::from_slice(&values, shape)
        };
        let (weight, bias) = (filled(&[96, 96, 3, 3, 3], 3), filled(&[96], 5));
        let [ours, joined] = [Kernels::Cpu, Kernels::Mlx].map(|kernels| {
            let device = Device::with_kernels(DeviceKind::Cpu, None, kernels);
            Conv::new(device, &weight, bias.clone(), [1, 1, 1]).unwrap()
        });
        assert!(matches!(ours.weight, Weight::Own(_)));
        assert!(matches!(joined.weight, Weight::Joined(_)));
        for (frames, missing) in [(6, 0), (3, 0), (1, 2), (2, 1), (4, 2)] {
            let x = filled(&[frames, 9, 11, 96], 7);
            let [expected, found] = [&ours, &joined].map(|conv| {
                let y = conv.forward_behind_zeros(&x, missing).unwrap();
                assert_eq!(y.shape(), [frames + missing - 2, 7, 9, 96]);
                to_host(&y).unwrap()
            });
            let most = expected.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
            for (a, b) in expected.iter().zip(&found) {
                assert!((a - b).abs() < 1e-5 * most, "{frames}, {missing}: {a} {b}");
            }
        }
    }
}
