//! What only the VAE of Wan2.2 TI2V-5B has: patches in place of pixels, and a shortcut without weights
//! around every level.
//!
//! Source: Wan-Video/Wan2.2, `wan/modules/vae2_2.py`.

use mlx_rs::Array;
use mlx_rs::error::Result as MlxResult;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{self, PadWidth};

/// Pixels `[t, h * side, w * side, c]` as patches `[t, h, w, c * side * side]`: of each channel a
/// column of the patch after the other.
pub(super) fn patchify(pixels: &Array, side: i32) -> MlxResult<Array> {
    let [t, h, w, c] = axes(pixels);
    let (h, w) = (h / side, w / side);
    pixels
        .reshape(&[t, h, side, w, side, c])?
        .transpose_axes(&[0, 1, 3, 5, 4, 2])?
        .reshape(&[t, h, w, c * side * side])
}

/// The inverse of [`patchify`].
pub(super) fn unpatchify(patches: &Array, side: i32) -> MlxResult<Array> {
    let [t, h, w, c] = axes(patches);
    let c = c / (side * side);
    patches
        .reshape(&[t, h, w, c, side, side])?
        .transpose_axes(&[0, 1, 5, 2, 4, 3])?
        .reshape(&[t, h * side, w * side, c])
}

/// Frames, and rows and columns, that a level makes one of, or that it makes of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factor {
    pub(super) time: i32,
    pub(super) space: i32,
}

impl Factor {
    /// Of a level that resamples, `Some(temporal)` as its entry in `temperal_downsample`, or does not.
    pub(super) fn of(resampled: Option<bool>) -> Self {
        Self {
            time: if resampled == Some(true) { 2 } else { 1 },
            space: if resampled.is_some() { 2 } else { 1 },
        }
    }

    /// Values of a block of so many frames, rows and columns.
    pub(super) fn volume(self) -> i32 {
        self.time * self.space * self.space
    }
}

/// The shortcut around a level of the encoder: means of neighbouring values, within a block of
/// [`Factor`] and across channels.
#[derive(Debug)]
pub(super) struct AverageDown {
    pub(super) factor: Factor,
    pub(super) outputs: i32,
}

impl AverageDown {
    /// `[t, h, w, inputs]` to `[t / time, h / space, w / space, outputs]`, evaluated. The clip's first
    /// chunk, one frame, has zeros in front.
    pub(super) fn forward(&self, x: &Array) -> MlxResult<Array> {
        let Factor { time, space } = self.factor;
        let missing = (time - x.dim(0) % time) % time;
        let x = match missing {
            0 => x.clone(),
            _ => {
                let widths = [(missing, 0), (0, 0), (0, 0), (0, 0)];
                ops::pad(x, PadWidth::Widths(&widths), None, None)?
            }
        };
        let [t, h, w, c] = axes(&x);
        let (t, h, w) = (t / time, h / space, w / space);
        let group = c * self.factor.volume() / self.outputs;
        let mean = x
            .reshape(&[t, time, h, space, w, space, c])?
            .transpose_axes(&[0, 2, 4, 6, 1, 3, 5])?
            .reshape(&[t, h, w, self.outputs, group])?
            .mean_axis(-1, None)?;
        mean.eval()?;
        Ok(mean)
    }
}

/// The shortcut around a level of the decoder: every value several times, within a block of [`Factor`]
/// and across channels.
#[derive(Debug)]
pub(super) struct RepeatUp {
    pub(super) factor: Factor,
}

impl RepeatUp {
    /// Adds a level's input `x`, `[t, h, w, inputs]`, to its output `[t * time, h * space, w * space,
    /// outputs]`, evaluated; of the clip's first chunk the output has one frame, the last.
    pub(super) fn add(&self, x: &Array, output: &Array) -> MlxResult<Array> {
        let Factor { time, space } = self.factor;
        let [t, h, w, c] = axes(x);
        let [frames, height, width, outputs] = axes(output);
        let repeats = outputs * self.factor.volume() / c;
        // Views as long as a channel's repeats fill whole axes of the block: nothing as large as the
        // output is made but the sum.
        let repeated = ops::broadcast_to(x.expand_dims(-1)?, &[t, h, w, c, repeats])?
            .reshape(&[t, h, w, outputs, time, space, space])?
            .transpose_axes(&[0, 4, 1, 5, 2, 6, 3])?
            .try_index((.., time - frames / t..))?;
        let sum = output
            .reshape(&[t, frames / t, h, space, w, space, outputs])?
            .add(repeated)?
            .reshape(&[frames, height, width, outputs])?;
        sum.eval()?;
        Ok(sum)
    }
}

fn axes(x: &Array) -> [i32; 4] {
    [0, 1, 2, 3].map(|axis| x.dim(axis))
}
