//! What the small autoencoders cost: [`super::super::tiny`], step by evaluated step.

use super::meter::{Held, Meter, Size};
use crate::model::vae::tiny::{BLOCKS, DROPPED, GROWTH, POOLED, decoder_widths};
use crate::model::vae::{TEMPORAL_STRIDE, VaeConfig};

const PLANAR: [i32; 3] = [1, 3, 3];
const POINT: [i32; 3] = [1, 1, 1];

/// Frames go one by one through the same weights: those of `index` 0 are counted.
fn once<T>(meter: &mut Meter, index: i32, run: impl FnOnce(&mut Meter) -> T) -> T {
    let weights = meter.weights;
    let made = run(meter);
    if index > 0 {
        meter.weights = weights;
    }
    made
}

/// A convolution of `x`, which goes first, beside `others`.
fn same(meter: &mut Meter, x: Held, outputs: i32, stride: i32, others: u64) -> Held {
    meter.padded(x, [outputs, stride, 1, 2], others, 0)
}

/// Of `x`, which goes, beside `others`.
fn relu(meter: &mut Meter, x: Held, others: u64) -> Held {
    meter.note_alive(others + x.buffer + x.volume());
    Held::new(x.size, x.channels)
}

/// The blocks of a level on frame `index` of a chunk; caches are those of the level's first frame.
fn through(meter: &mut Meter, mut x: Held, index: i32) -> Held {
    for _ in 0..BLOCKS {
        let Size { h, w, .. } = x.size;
        let both = Held::new(Size::new(1, h + 2, w + 2), 2 * x.channels);
        // The frame before goes when this one takes its place.
        if index == 0 {
            meter.keep(x.volume(), x.volume());
        }
        meter.note_alive(x.buffer + both.buffer);
        // From here on it is the one that is kept.
        let y = meter.conv(both, x.channels, PLANAR, POINT, 0);
        let y = relu(meter, y, 0);
        let y = same(meter, y, x.channels, 1, 0);
        let y = relu(meter, y, 0);
        let y = same(meter, y, x.channels, 1, 0);
        // The sum, and what of it is not negative.
        meter.note_alive(y.buffer + 2 * y.volume());
        x = Held::new(y.size, y.channels);
    }
    x
}

/// [`Decoder::features`](super::super::tiny::Decoder); returns the values of one frame's features.
pub(super) fn decoder_features(config: &VaeConfig, meter: &mut Meter, size: Size) -> u64 {
    let z = Held::new(size, config.z_dim);
    let x = same(meter, z, decoder_widths(config)[0], 1, 2 * z.volume());
    let x = relu(meter, x, 0);
    through(meter, x, 0).buffer
}

/// [`Decoder::pixels`](super::super::tiny::Decoder).
pub(super) fn decoder_pixels(config: &VaeConfig, meter: &mut Meter, size: Size) {
    let side = config.spatial_stride();
    let features = Held::new(size, decoder_widths(config)[0]);
    let mut frames = Frames {
        config,
        frame: Size::new(1, side * size.h, side * size.w).volume(3),
        skipped: if meter.chunk == 0 { DROPPED as i32 } else { 0 },
        counts: [0; 3],
        made: 0,
    };
    frames.descend(meter, features, 0);
    // The frames, and the chunk of them.
    meter.note_alive(2 * frames.made);
}

/// What becomes of one frame of features, one branch after the other.
struct Frames<'a> {
    config: &'a VaeConfig,
    /// Values of a frame of pixels.
    frame: u64,
    /// Frames in front of the clip that are left out.
    skipped: i32,
    /// Frames that each level has made.
    counts: [i32; 3],
    /// Values of finished frames.
    made: u64,
}

impl Frames<'_> {
    /// What a level makes of `x`, which stays.
    fn descend(&mut self, meter: &mut Meter, x: Held, level: usize) {
        let growth = GROWTH[level];
        if level == 2 && self.skipped > 1 {
            self.skipped -= growth;
            return;
        }
        let outputs = decoder_widths(self.config)[level + 1];
        meter.held += x.buffer;
        let grown = once(meter, self.counts[level], |meter| {
            meter.conv(x, growth * x.channels, POINT, POINT, 0)
        });
        meter.held += grown.buffer;
        for _ in 0..growth {
            if level == 2 && self.skipped > 0 {
                self.skipped -= 1;
                continue;
            }
            let (number, made) = (self.counts[level], self.made);
            self.counts[level] += 1;
            let y = once(meter, number, |meter| {
                let x = Held::new(x.size, x.channels);
                let y = meter.padded(x, [outputs, 1, 2, 2], made, 0);
                if level == 2 {
                    let y = relu(meter, y, made);
                    let y = same(meter, y, self.config.out_channels, 1, made);
                    meter.note_alive(made + y.buffer + 2 * y.volume());
                    return y;
                }
                meter.note_alive(y.buffer + y.volume());
                through(meter, Held::new(y.size, y.channels), number)
            });
            match level {
                2 => self.made += self.frame,
                _ => self.descend(meter, y, level + 1),
            }
        }
        meter.held -= x.buffer + grown.buffer;
    }
}

/// [`Encoder::features`](super::super::tiny::Encoder) of chunks of `[height, width]` pixels; returns the
/// features' channels.
pub(super) fn encoder_features(config: &VaeConfig, meter: &mut Meter, [h, w]: [i32; 2]) -> i32 {
    let width = config.base_dim;
    let patch = config.patch();
    let pixels = Held::new(Size::new(1, h / patch, w / patch), config.in_channels);
    let mut frames: Vec<Held> = Vec::new();
    for number in 0..TEMPORAL_STRIDE {
        let waiting: u64 = frames.iter().map(|frame| frame.buffer).sum();
        let x = once(meter, number, |meter| {
            // From 0 to 1, and in patches.
            let arranged = 2 * pixels.volume();
            let x = meter.padded(pixels, [width, 1, 1, 2], waiting, arranged);
            relu(meter, x, waiting)
        });
        frames.push(x);
    }
    for (level, count) in POOLED.into_iter().enumerate() {
        let mut next: Vec<Held> = Vec::new();
        for (number, parts) in (0..).zip(frames.chunks(count as usize)) {
            let x = parts[0];
            let alive: u64 = parts.iter().chain(&next).map(|frame| frame.buffer).sum();
            let made = once(meter, number, |meter| {
                let joined = Held::new(x.size, count * x.channels);
                meter.note_alive(alive + joined.buffer);
                let y = meter.conv(joined, width, POINT, POINT, alive);
                let y = same(meter, y, width, 2, alive);
                match level {
                    2 => y,
                    _ => through(meter, y, number),
                }
            });
            next.push(made);
        }
        frames = next;
    }
    width
}

/// [`Encoder::mean`](super::super::tiny::Encoder) of features.
pub(super) fn encoder_mean(config: &VaeConfig, meter: &mut Meter, size: Size) {
    let x = through(meter, Held::new(size, config.base_dim), 0);
    same(meter, x, config.z_dim, 1, 0);
}
