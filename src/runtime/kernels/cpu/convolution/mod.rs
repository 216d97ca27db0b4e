//! Convolutions of channels-last video, without a copy of their input.

mod direct;
mod winograd;

use std::cell::{OnceCell, RefCell};
use std::ops::Range;

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};

use super::{Places, evaluated, new_array, vector};
use direct::Direct;
pub use winograd::Tile;
use winograd::Winograd;

/// Frames `[frames, height, width, channels]`, float32, and what a convolution sees around them.
#[derive(Clone, Copy, Debug)]
pub struct Clip<'a> {
    /// Frames in front of `frames`.
    pub before: Option<&'a Array>,
    /// The frames.
    pub frames: &'a Array,
    /// Frames of zeros in front of all, which are not multiplied.
    pub missing: i32,
    /// Rows and columns of zeros in front and behind.
    pub margins: [i32; 2],
    /// How many times each row and column is there.
    pub repeat: i32,
}

impl<'a> Clip<'a> {
    /// `frames` with nothing around.
    pub fn of(frames: &'a Array) -> Self {
        Self {
            before: None,
            frames,
            missing: 0,
            margins: [0, 0],
            repeat: 1,
        }
    }
}

/// A convolution's weight, as one of two algorithms has it.
#[derive(Clone, Debug)]
pub struct Convolution {
    /// `[outputs, inputs, kt, kh, kw]`, until it is prepared or first used: what only plans, or measures a part
    /// of a network, has no use for most of its weights.
    weight: RefCell<Option<Array>>,
    form: OnceCell<Form>,
    tile: Option<Tile>,
    /// `[outputs]`.
    bias: Array,
    inputs: usize,
    kernel: [usize; 3],
    stride: [usize; 3],
}

#[derive(Clone, Debug)]
enum Form {
    Winograd(Winograd),
    Direct(Direct),
}

impl Convolution {
    /// Of `weight` `[outputs, inputs, kt, kh, kw]` and `bias` `[outputs]`, float32. With a `tile` the kernel
    /// is 3 x 3 in space, and the stride 1.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn new(weight: &Array, bias: Array, stride: [i32; 3], tile: Option<Tile>) -> Result<Self> {
        let kernel = [2, 3, 4].map(|axis| weight.dim(axis) as usize);
        Ok(Self {
            weight: RefCell::new(Some(weight.clone())),
            form: OnceCell::new(),
            tile,
            bias,
            inputs: weight.dim(1) as usize,
            kernel,
            stride: stride.map(|step| step as usize),
        })
    }

    /// Transforms the weight now.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn prepare(&self) -> Result<()> {
        self.form().map(drop)
    }

    /// The weight as the algorithm has it, made of what was loaded, which goes.
    fn form(&self) -> Result<&Form> {
        if let Some(weight) = self.weight.take() {
            let made = match self.tile {
                Some(tile) => Form::Winograd(Winograd::new(&weight, tile)?),
                None => Form::Direct(Direct::new(&weight)?),
            };
            let _ = self.form.set(made);
        }
        let lost = || Exception::custom("a weight whose transformation has failed");
        self.form.get().ok_or_else(lost)
    }

    /// Convolves `clip`: each axis becomes `(input - kernel) / stride + 1`. Evaluated.
    ///
    /// # Errors
    /// When MLX fails, or the clip is smaller than the kernel.
    pub fn forward(&self, clip: Clip) -> Result<Array> {
        let arrays = clip.before.into_iter().chain([clip.frames]);
        let arrays = arrays
            .map(|x| evaluated(x, 4, |strides| is_dense(x.shape(), strides)))
            .collect::<Result<Vec<_>>>()?;
        let [height, width, inputs] = [1, 2, 3].map(|axis| clip.frames.dim(axis) as usize);
        let fits = arrays
            .iter()
            .all(|x| x.shape()[1..] == clip.frames.shape()[1..]);
        if !fits || inputs != self.inputs || clip.missing as usize >= self.kernel[0].max(1) {
            return Err(Exception::custom(format!(
                "a kernel {:?} of {} channels on {:?}, {} frames of zeros before it",
                self.kernel,
                self.inputs,
                arrays.iter().map(|x| x.shape()).collect::<Vec<_>>(),
                clip.missing,
            )));
        }
        let mut frames = Vec::new();
        for array in &arrays {
            frames.extend(values(array)?.chunks_exact((height * width * inputs).max(1)));
        }
        let repeat = clip.repeat as usize;
        let seen = Seen {
            size: [height * repeat, width * repeat],
            pitch: width,
            repeat,
            margin: clip.margins[0] as usize,
            missing: clip.missing as usize,
            frames,
            inputs,
        };
        let around: i32 = clip.margins.iter().sum();
        let around = around as usize;
        let whole = [
            seen.frames.len() + seen.missing,
            seen.size[0] + around,
            seen.size[1] + around,
        ];
        let mut output = [0; 3];
        for axis in 0..3 {
            let steps = whole[axis].checked_sub(self.kernel[axis]);
            let steps = steps.ok_or_else(|| {
                Exception::custom(format!("a kernel {:?} on {whole:?}", self.kernel))
            })?;
            output[axis] = steps / self.stride[axis] + 1;
        }
        let outputs = self.bias.dim(0) as usize;
        let (form, bias) = (self.form()?, vector(&self.bias, outputs)?);
        let [t, h, w] = output.map(|side| side as i32);
        new_array(&[t, h, w, outputs as i32], |out| {
            let out = Output {
                values: Places::of(out),
                size: output,
                channels: outputs,
            };
            match form {
                Form::Winograd(form) => form.run(&seen, bias, &out),
                Form::Direct(form) => form.run(&seen, bias, self.stride, &out),
            }
        })
    }
}

/// What is convolved.
struct Seen<'a> {
    /// Each `[height, width, inputs]` without repetitions.
    frames: Vec<&'a [f32]>,
    inputs: usize,
    /// Rows and columns, with repetitions.
    size: [usize; 2],
    /// Pixels from row to row of a frame.
    pitch: usize,
    repeat: usize,
    /// Rows and columns of zeros in front.
    margin: usize,
    missing: usize,
}

impl Seen<'_> {
    /// Whether an output of one tap, of this size, sees the frames as they are.
    fn is_plain(&self, output: [usize; 2]) -> bool {
        self.repeat == 1 && self.size == output
    }

    /// The values from pixel (`y`, `x`) of `frame` on, both counted from the margin's beginning; none of a
    /// margin.
    #[inline(always)]
    fn pixel(&self, frame: &[f32], y: usize, x: usize) -> Option<usize> {
        // In front of an edge they wrap around, and are no smaller than the side.
        let [y, x] = [y, x].map(|at| at.wrapping_sub(self.margin));
        let inside = y < self.size[0] && x < self.size[1];
        let [y, x] = match self.repeat {
            1 => [y, x],
            repeat => [y / repeat, x / repeat],
        };
        let at = (y.wrapping_mul(self.pitch).wrapping_add(x)).wrapping_mul(self.inputs);
        (inside && at < frame.len()).then_some(at)
    }
}

/// Where the result goes: `[frames, height, width, channels]`.
struct Output {
    values: Places,
    size: [usize; 3],
    channels: usize,
}

/// Whether arrays of this shape and these strides are in row-major order without gaps.
fn is_dense(shape: &[i32], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&side, &stride)| {
        let fits = side == 1 || stride == expected;
        expected *= side as usize;
        fits
    })
}

/// All values of an evaluated float32 array in row-major order.
fn values(x: &Array) -> Result<&[f32]> {
    vector(x, x.size())
}

/// `weight` `[outputs, inputs, ...]` in row-major order, evaluated.
fn dense_weight(weight: &Array) -> Result<Array> {
    evaluated(weight, 5, |strides| is_dense(weight.shape(), strides))
}

/// `count` in parts of at most `most`.
fn parts(count: usize, most: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    (0..count)
        .step_by(most.max(1))
        .map(move |start| start..count.min(start + most.max(1)))
}

#[cfg(test)]
mod tests {
    use mlx_rs::Device;

    use super::*;

    fn filled(shape: &[i32], seed: i32) -> Array {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|i: i32| (i.wrapping_mul(7919).wrapping_add(seed * 131) % 1009) as f32 / 504.0)
            .collect();
        Array::from_slice(&values, shape)
    }

    /// The same in float64, tap by tap.
    fn expected(clip: &Clip, weight: &Array, bias: &Array, stride: [usize; 3]) -> Vec<f64> {
        let [outputs, inputs, kt, kh, kw] = [0, 1, 2, 3, 4].map(|axis| weight.dim(axis) as usize);
        let [h, w] = [1, 2].map(|axis| clip.frames.dim(axis) as usize);
        let frame = h * w * inputs;
        let mut frames = vec![0.0; clip.missing as usize * frame];
        for x in clip.before.into_iter().chain([clip.frames]) {
            frames.extend(x.as_slice::<f32>().iter().map(|&v| f64::from(v)));
        }
        let [weight, bias] = [weight, bias].map(|x| x.as_slice::<f32>());
        let repeat = clip.repeat as usize;
        let [front, behind] = clip.margins.map(|margin| margin as usize);
        let whole = [
            frames.len() / frame,
            h * repeat + front + behind,
            w * repeat + front + behind,
        ];
        let [out_t, out_h, out_w] = [(0, kt), (1, kh), (2, kw)]
            .map(|(axis, kernel)| (whole[axis] - kernel) / stride[axis] + 1);
        let mut sums = Vec::new();
        for pixel in 0..out_t * out_h * out_w {
            let (t, y, x) = (pixel / out_w / out_h, pixel / out_w % out_h, pixel % out_w);
            for o in 0..outputs {
                let mut sum = f64::from(bias[o]);
                for tap in 0..kt * kh * kw {
                    let t = t * stride[0] + tap / (kh * kw);
                    let y = (y * stride[1] + tap / kw % kh).wrapping_sub(front) / repeat;
                    let x = (x * stride[2] + tap % kw).wrapping_sub(front) / repeat;
                    if y >= h || x >= w {
                        continue;
                    }
                    for c in 0..inputs {
                        let weight = weight[(o * inputs + c) * kt * kh * kw + tap];
                        let value = frames[t * frame + (y * w + x) * inputs + c];
                        sum += value * f64::from(weight);
                    }
                }
                sums.push(sum);
            }
        }
        sums
    }

    #[test]
    fn it_is_the_convolution() {
        Device::set_default(&Device::cpu());
        let (whole, planar, temporal) = ([3, 3, 3], [1, 3, 3], [3, 1, 1]);
        for (shape, before, channels, kernel, stride, [missing, front, behind, repeat]) in [
            ([1, 1, 1], 0, [1, 1], planar, [1, 1, 1], [0, 1, 1, 1]),
            ([1, 5, 7], 0, [16, 3], whole, [1, 1, 1], [2, 1, 1, 1]),
            ([2, 8, 9], 1, [20, 24], whole, [1, 1, 1], [1, 1, 1, 1]),
            ([6, 6, 11], 2, [17, 32], whole, [1, 1, 1], [0, 0, 0, 1]),
            ([5, 6, 4], 0, [32, 40], planar, [1, 1, 1], [0, 1, 1, 2]),
            ([1, 40, 37], 2, [96, 96], whole, [1, 1, 1], [0, 1, 1, 1]),
            ([2, 9, 8], 1, [3, 8], whole, [1, 1, 1], [1, 1, 1, 1]),
            ([3, 8, 10], 0, [24, 20], planar, [1, 2, 2], [0, 0, 1, 1]),
            ([4, 3, 5], 1, [20, 24], temporal, [2, 1, 1], [0, 0, 0, 1]),
            ([2, 3, 5], 0, [20, 24], temporal, [1, 1, 1], [2, 0, 0, 1]),
            (
                [2, 30, 31],
                0,
                [384, 300],
                [1, 1, 1],
                [1, 1, 1],
                [0, 0, 0, 1],
            ),
        ] {
            let ([t, h, w], [inputs, outputs]) = (shape, channels);
            let x = filled(&[t, h, w, inputs], 3);
            let earlier = filled(&[before.max(1), h, w, inputs], 5);
            let clip = Clip {
                before: (before > 0).then_some(&earlier),
                frames: &x,
                missing,
                margins: [front, behind],
                repeat,
            };
            let [kt, kh, kw] = kernel;
            let weight = filled(&[outputs, inputs, kt, kh, kw], 7);
            let bias = filled(&[outputs], 11);
            let expected = expected(&clip, &weight, &bias, stride.map(|step| step as usize));
            let most = expected.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
            for (tile, tolerance) in [
                (None, 2e-6),
                (Some(Tile::Two), 2e-6),
                (Some(Tile::Four), 4e-6),
            ] {
                if tile.is_some() && !([kh, kw] == [3, 3] && stride == [1, 1, 1]) {
                    continue;
                }
                let ours = Convolution::new(&weight, bias.clone(), stride, tile).unwrap();
                let found = ours.forward(clip).unwrap();
                assert_eq!(found.size(), expected.len(), "{shape:?} {kernel:?}");
                for (a, b) in found.as_slice::<f32>().iter().zip(&expected) {
                    let off = (f64::from(*a) - b).abs() / most;
                    assert!(
                        off < tolerance,
                        "{shape:?} {channels:?} {kernel:?} {tile:?}: {off}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        Device::set_default(&Device::cpu());
        let weight = filled(&[4, 16, 3, 3, 3], 1);
        for tile in [None, Some(Tile::Two), Some(Tile::Four)] {
            let ours = Convolution::new(&weight, filled(&[4], 2), [1, 1, 1], tile).unwrap();
            let [fits, narrow, small] =
                [[3, 6, 6, 16], [3, 6, 6, 8], [2, 5, 6, 16]].map(|shape| filled(&shape, 3));
            let clip = Clip::of(&fits);
            assert!(ours.forward(clip).is_ok());
            let before = Some(&small);
            assert!(ours.forward(Clip::of(&narrow)).is_err());
            assert!(ours.forward(Clip { before, ..clip }).is_err());
            assert!(ours.forward(Clip { missing: 3, ..clip }).is_err());
        }
    }
}
