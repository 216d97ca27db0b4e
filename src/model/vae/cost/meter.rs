//! Counts what a chunk of a clip costs while it walks through the network.

use super::Footprint;
use crate::model::MemoryPlan;
use crate::model::cost::{F32, Operations, number};
use crate::model::vae::TEMPORAL_STRIDE;
use crate::model::vae::conv::{Form, form, transformed_values};
use crate::runtime::kernels::metal::{self, winograd_values};
use crate::runtime::{Device, DeviceKind, Kernels};

/// From this chunk on, every chunk of a clip costs the same: all caches are full.
pub(super) const STEADY_CHUNK: i32 = 3;

/// The product, 0 when a factor is negative.
pub(super) fn values(sides: &[i32]) -> u64 {
    sides.iter().fold(1, |product, &side| {
        product.saturating_mul(u64::try_from(side).unwrap_or(0))
    })
}

/// Frames, rows and columns of an activation.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) t: i32,
    pub(super) h: i32,
    pub(super) w: i32,
}

impl Size {
    pub(super) fn new(t: i32, h: i32, w: i32) -> Self {
        Self { t, h, w }
    }

    pub(super) fn volume(self, channels: i32) -> u64 {
        values(&[self.t, self.h, self.w, channels])
    }

    pub(super) fn times(self, time: i32, space: i32) -> Self {
        Self::new(self.t * time, self.h * space, self.w * space)
    }
}

/// An activation: its size, and the values in the buffer that holds it.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) size: Size,
    pub(super) channels: i32,
    pub(super) buffer: u64,
}

impl Held {
    pub(super) fn new(size: Size, channels: i32) -> Self {
        Self {
            size,
            channels,
            buffer: size.volume(channels),
        }
    }

    pub(super) fn volume(self) -> u64 {
        self.size.volume(self.channels)
    }
}

/// Counts operations and values (float32s, not bytes) while a chunk of a clip walks through the network.
pub(super) struct Meter {
    device: Device,
    score_bytes: u64,
    /// The chunk's number.
    pub(super) chunk: i32,
    pub(super) operations: Operations,
    pub(super) weights: u64,
    pub(super) caches: u64,
    /// What stays alive beside the steps noted now.
    pub(super) held: u64,
    pub(super) peak: u64,
}

impl Meter {
    pub(super) fn new(device: Device, memory: &MemoryPlan, chunk: i32) -> Self {
        Self {
            device,
            score_bytes: memory.score_bytes,
            chunk,
            operations: Operations::default(),
            weights: 0,
            caches: 0,
            held: 0,
            peak: 0,
        }
    }

    /// The operations of `network` on chunk `chunk`.
    pub(super) fn operations(chunk: i32, network: impl FnOnce(&mut Self)) -> Operations {
        // They are the same on any device.
        let device = Device::new(DeviceKind::Cpu, None);
        let mut meter = Self::new(device, &MemoryPlan::WHOLE, chunk);
        network(&mut meter);
        meter.operations
    }

    /// Walks `network` through the costliest chunk of a clip of `frames` latent frames, its last;
    /// `network` is also told the chunk's pixel frames.
    pub(super) fn walk(
        device: Device,
        memory: &MemoryPlan,
        frames: i32,
        mut network: impl FnMut(&mut Self, i32),
    ) -> Self {
        let mut first = Self::new(device, memory, 0);
        network(&mut first, 1);
        let mut last = match frames {
            ..=1 => return first,
            2 => Self {
                caches: first.caches,
                ..Self::new(device, memory, 1)
            },
            _ => Self::new(device, memory, (frames - 1).min(STEADY_CHUNK)),
        };
        network(&mut last, TEMPORAL_STRIDE);
        last
    }

    /// Frames that came before this chunk in a layer where it has `frames`.
    pub(super) fn frames_before(&self, frames: i32) -> i32 {
        match self.chunk {
            0 => 0,
            chunk => 1 + (chunk - 1) * frames,
        }
    }

    /// Notes a step's values, beside the caches: all of them in later chunks, before that as far
    /// as they have been filled.
    pub(super) fn note_alive(&mut self, alive: u64) {
        let caches = match self.chunk {
            ..=1 => self.caches,
            _ => 0,
        };
        self.peak = self.peak.max(alive + self.held + caches);
    }

    /// A cache now holds `kept`, where the first chunk had left `before`.
    pub(super) fn keep(&mut self, kept: u64, before: u64) {
        self.caches += kept;
        if self.chunk == 1 {
            self.caches -= before;
        }
    }

    /// The footprint, in bytes, of the values noted so far, plus `weights`, `others` in MLX and
    /// `host` outside it.
    pub(super) fn footprint(&self, weights: u64, others: u64, host: u64) -> Footprint {
        let beside = match self.chunk {
            ..=1 => self.peak.saturating_sub(self.caches),
            _ => self.peak,
        };
        Footprint {
            weights: (weights + self.weights) * F32,
            caches: self.caches * F32,
            activations: (others + beside) * F32,
            host: host * F32,
        }
    }

    /// A product of every pixel's `inputs` channels with a weight that has been loaded.
    pub(super) fn project(&mut self, size: Size, inputs: i32, outputs: i32) {
        let product = Operations::product(size.volume(1), number(inputs), number(outputs));
        self.operations = self.operations + product;
    }

    /// MLX's CPU backend has no RMS norm of its own and composes one.
    pub(super) fn norm_buffers(&self, x: Held) -> u64 {
        match self.device.kind {
            DeviceKind::Cpu => 2 * x.volume() + 3 * x.size.volume(1),
            DeviceKind::Gpu => x.volume(),
        }
    }

    /// Norm and SiLU of `x` beside `others`.
    pub(super) fn activate(&mut self, x: Held, others: u64) -> Held {
        self.weights += values(&[x.channels]);
        let work = match self.device.kernels {
            // One pass on the host.
            Kernels::Cpu => x.volume(),
            Kernels::Mlx => 2 * x.volume(),
        };
        self.note_alive(others + x.buffer + work);
        Held::new(x.size, x.channels)
    }

    /// A convolution of `x`, which goes first, beside `others`.
    pub(super) fn causal(&mut self, x: Held, outputs: i32, kernel: [i32; 3], others: u64) -> Held {
        let Size { t, h, w } = x.size;
        let [history, margin] = [kernel[0] - 1, kernel[1] / 2];
        // The first chunk passes a temporal resampler by.
        let passed = i32::from(margin == 0 && self.chunk > 0);
        let before = history.min(self.frames_before(t) - passed);
        let padded = Size::new(t + before, h + 2 * margin, w + 2 * margin);
        let padded = Held::new(padded, x.channels);
        let frame = Size::new(1, h, w).volume(x.channels);
        let kept = frame * u64::try_from(history.min(t + before)).unwrap_or(0);
        let missing = history - before;
        let stride = [1, 1, 1];
        if let Form::Own(_) = self.form([x.channels, outputs], kernel, stride) {
            // What came before is seen where it lies.
            let seen = Held {
                buffer: x.buffer,
                ..padded
            };
            let out = self.conv_behind_zeros(seen, outputs, kernel, stride, others, missing);
            // Those of the last chunk go first, if none of them is kept; a clip's first frame is kept as
            // it is.
            let beside = if t < history && before > 0 { kept } else { 0 };
            self.note_alive(others + x.buffer + out.buffer + beside);
            self.keep(kept, if margin > 0 { frame } else { 0 });
            return out;
        }
        self.note_alive(others + x.buffer + padded.buffer + kept);
        self.keep(kept, if margin > 0 { frame } else { 0 });
        self.conv_behind_zeros(padded, outputs, kernel, stride, others, missing)
    }

    /// Whether convolutions copy what they see.
    pub(super) fn copies_inputs(&self) -> bool {
        self.device.kernels == Kernels::Mlx
    }

    fn form(&self, channels: [i32; 2], kernel: [i32; 3], stride: [i32; 3]) -> Form {
        form(self.device, channels, kernel, stride)
    }

    /// A convolution in space of `x`, which goes first, each of whose rows and columns is there `repeat`
    /// times, beside `others` and while it is arranged `also`.
    pub(super) fn padded(
        &mut self,
        x: Held,
        [outputs, stride, repeat, margins]: [i32; 4],
        others: u64,
        also: u64,
    ) -> Held {
        let (kernel, stride) = ([1, 3, 3], [1, stride, stride]);
        let repeated = Held::new(x.size.times(1, repeat), x.channels);
        let Size { t, h, w } = repeated.size;
        let padded = Held::new(Size::new(t, h + margins, w + margins), x.channels);
        if let Form::Own(_) = self.form([x.channels, outputs], kernel, stride) {
            self.note_alive(others + x.buffer.max(also));
            let seen = Held {
                buffer: x.buffer,
                ..padded
            };
            return self.conv(seen, outputs, kernel, stride, others);
        }
        let source = match repeat {
            1 => 0,
            _ => repeated.buffer,
        };
        self.note_alive(others + x.buffer.max(also) + source + padded.buffer);
        self.conv(padded, outputs, kernel, stride, others)
    }

    /// A convolution of padded `x`, which stays, beside `others`.
    pub(super) fn conv(
        &mut self,
        x: Held,
        outputs: i32,
        kernel: [i32; 3],
        stride: [i32; 3],
        others: u64,
    ) -> Held {
        self.conv_behind_zeros(x, outputs, kernel, stride, others, 0)
    }

    /// As [`Self::conv`] with `missing` frames of zeros in front.
    pub(super) fn conv_behind_zeros(
        &mut self,
        x: Held,
        outputs: i32,
        kernel: [i32; 3],
        stride: [i32; 3],
        others: u64,
        missing: i32,
    ) -> Held {
        let form = self.form([x.channels, outputs], kernel, stride);
        self.weights += self.conv_weights([x.channels, outputs], kernel, stride);
        let along = |extent, axis: usize| (extent - kernel[axis]) / stride[axis] + 1;
        let Size { t, h, w } = x.size;
        let size = Size::new(along(t + missing, 0), along(h, 1), along(w, 2));
        let out = Held::new(size, outputs);
        // Zeros in front are not multiplied.
        let blind: i32 = (0..size.t).map(|frame| (missing - frame).max(0)).sum();
        let seen = Size::new(size.t * kernel[0] - blind, size.h, size.w);
        self.project(seen, x.channels * kernel[1] * kernel[2], outputs);
        // Frames that see zeros are computed apart, and joined to the others.
        let joined = match form {
            Form::Joined | Form::Native if missing > 0 && size.t > 1 => out.volume(),
            _ => 0,
        };
        let work = if let Form::Own(_) = form {
            out.buffer
        } else if form == Form::Pointwise {
            let in_parts = size.volume(1) > values(&[self.device.most_rows()]);
            out.buffer * if in_parts { 2 } else { 1 }
        } else {
            let joined_taps = form == Form::Joined;
            let unfolded = seen.volume(x.channels) * values(&kernel[1..]);
            match (self.device.kind, joined_taps) {
                // A frame of the input, unfolded, with three times the outputs; sums, and once more.
                (DeviceKind::Cpu, true) => {
                    let frame = values(&[size.h, size.w]);
                    let products = frame * values(&[9 * x.channels + 3 * outputs]);
                    (out.volume() + products + values(&[h, w, x.channels])).max(2 * out.volume())
                }
                (DeviceKind::Gpu, true) => {
                    let products = values(&[size.h, size.w, 3 * outputs]);
                    let winograd = winograd_values([h, w], [x.channels, 3 * outputs]);
                    (out.volume() + products + winograd).max(2 * out.volume())
                }
                (DeviceKind::Cpu, false) => out.buffer + x.volume() + unfolded,
                (DeviceKind::Gpu, false) => {
                    let conv = metal::Conv {
                        input: [t + missing, h, w],
                        channels: [x.channels, outputs],
                        kernel,
                        stride,
                    };
                    out.buffer + conv.temporaries()
                }
            }
        };
        self.note_alive(others + x.buffer + work + joined);
        out
    }

    /// Values of a convolution's weight and bias.
    pub(super) fn conv_weights(
        &self,
        channels: [i32; 2],
        kernel: [i32; 3],
        stride: [i32; 3],
    ) -> u64 {
        let bias = values(&[channels[1]]);
        match self.form(channels, kernel, stride) {
            Form::Own(Some(tile)) => transformed_values(channels, kernel[0], tile) + bias,
            _ => values(&channels) * values(&kernel) + bias,
        }
    }

    pub(super) fn residual(&mut self, x: Held, outputs: i32) -> Held {
        let h = self.activate(x, 0);
        let h = self.causal(h, outputs, [3, 3, 3], x.buffer);
        let h = self.activate(h, x.buffer);
        let h = self.causal(h, outputs, [3, 3, 3], x.buffer);
        if x.channels != outputs {
            self.weights += values(&[x.channels, outputs]) + values(&[outputs]);
            self.project(x.size, x.channels, outputs);
        }
        let out = Held::new(x.size, outputs);
        self.note_alive(x.buffer + h.buffer + out.buffer);
        out
    }

    /// Residual blocks one after the other. With `kept` the first one's input stays alive.
    pub(super) fn residuals(&mut self, x: Held, outputs: i32, count: i32, kept: bool) -> Held {
        let input = if kept { x.buffer } else { 0 };
        let mut out = x;
        for block in 0..count {
            // The first one counts its input itself.
            let beside = if block > 0 { input } else { 0 };
            self.held += beside;
            out = self.residual(out, outputs);
            self.held -= beside;
        }
        out
    }

    pub(super) fn attention(&mut self, x: Held) {
        let c = x.channels;
        self.weights += values(&[c, c]) * 4 + values(&[c]) * 5;
        self.project(x.size, c, 4 * c);
        let tokens = x.size.h * x.size.w;
        let [count, width, frames] = [tokens, c, x.size.t].map(number);
        let weighed = Operations::attention(count, count, width).times(frames);
        self.operations = self.operations + weighed;
        let shape = [1, tokens, tokens, c];
        let scores = self.device.scores_at_once(shape, self.score_bytes) / F32;
        // Norm; q, k and v together and each apart; scores; what they weigh; the projection.
        self.note_alive(x.buffer + self.norm_buffers(x) + 8 * x.volume() + scores);
    }

    pub(super) fn mid(&mut self, x: Held) -> Held {
        let x = self.residual(x, x.channels);
        self.attention(x);
        self.residual(x, x.channels)
    }
}
