//! What a pass costs, from the configuration alone, and the tiling that fits.
//!
//! The network is walked as it runs, step by evaluated step: operations and weights are added up, and
//! so are the buffers alive in each step. They are counted as alive together: MLX allocates for a
//! whole graph before the first kernel has run.

use std::collections::BTreeMap;

use mlx_rs::Dtype;

use super::conv::MIN_TAP_CHANNELS;
use super::{LEVELS, SPATIAL_STRIDE, TEMPORAL_STRIDE, Tiling, VaeConfig, static_chunks};
use crate::model::MemoryPlan;
use crate::model::cost::{F32, Operations, number};
use crate::runtime::{Device, DeviceKind, Kernels};

/// From this chunk on, every chunk of a clip costs the same: all caches are full.
const ALIKE: i32 = 3;

/// What neighbouring tiles share, in latent rows and columns. With random weights 4 is the least
/// that keeps 45 dB on average frames; 6 does so also when tiles are so small that every pixel
/// is blended. The table is in docs/performance.md.
pub const OVERLAP: i32 = 6;

/// Bytes that a phase of a pass over a clip takes at its peak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// The network's weights.
    pub weights: u64,
    /// Last frames kept for the next chunk, of a whole frame or of one tile.
    pub caches: u64,
    /// The largest set of activations alive at once, with the clip's latents and features.
    pub activations: u64,
    /// Outside MLX: the clip in the making, when it is tiled.
    pub host: u64,
}

impl Footprint {
    /// What MLX allocates.
    pub fn mlx(&self) -> u64 {
        self.weights + self.caches + self.activations
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.mlx() + self.host
    }
}

/// The phases of [`VaeDecoder::decode`](super::VaeDecoder::decode) on a validated configuration,
/// for a clip of `[frames, rows, columns]` latents.
pub fn decode_phases(
    config: &VaeConfig,
    device: Device,
    memory: &MemoryPlan,
    grid: [i32; 3],
) -> Vec<Footprint> {
    let [frames, rows, columns] = grid;
    let steady = frames > 1;
    let whole = Size::new(1, rows, columns);
    let latents = values(&[config.z_dim, frames, rows, columns]);
    let chunk = if steady { TEMPORAL_STRIDE } else { 1 };
    let pixels = whole.times(chunk, SPATIAL_STRIDE).volume(3);

    let Some(tile) = part(memory.decode_tiling, rows, columns) else {
        let mut meter = Meter::walk(device, memory, frames, |meter, _| {
            decoder_features(config, meter, whole);
            decoder_pixels(config, meter, whole);
        });
        // The pixels, clipped, and whether they are finite.
        meter.see(3 * pixels);
        return vec![meter.footprint(0, latents, 0)];
    };
    let mut features = 0;
    let below = Meter::walk(device, memory, frames, |meter, _| {
        features = decoder_features(config, meter, whole);
    });
    let above = Meter::walk(device, memory, frames, |meter, _| {
        decoder_pixels(config, meter, Size::new(1, tile[0], tile[1]));
    });
    let features = features * u64::try_from(frames).unwrap_or(0);
    let clip = (frames - 1).max(0) * TEMPORAL_STRIDE + 1;
    let host = whole.times(clip, SPATIAL_STRIDE).volume(3).div_ceil(2);
    let mut end = Meter::new(device, memory, 0);
    end.see(3 * pixels);
    // Whole frames below, tiles above beside the features of all frames, then frames again.
    vec![
        below.footprint(above.weights, latents + features, 0),
        above.footprint(below.weights, latents + features, host),
        end.footprint(below.weights + above.weights, latents, host + pixels),
    ]
}

/// The phases of [`VaeEncoder::encode`](super::VaeEncoder::encode) on a validated configuration,
/// for a clip of `[frames, rows, columns]` latents of which one chunk has pixels: blank ones make
/// their own.
pub fn encode_phases(
    config: &VaeConfig,
    device: Device,
    memory: &MemoryPlan,
    grid: [i32; 3],
) -> Vec<Footprint> {
    let [frames, rows, columns] = grid;
    let whole = Size::new(1, rows, columns);
    let inputs = whole.times(1, SPATIAL_STRIDE).volume(3);
    let latents = values(&[config.z_dim, frames, rows, columns]);

    let tile = part(memory.encode_tiling, rows, columns);
    let [h, w] = tile
        .unwrap_or([rows, columns])
        .map(|side| side * SPATIAL_STRIDE);
    let mut channels = 0;
    let above = Meter::walk(device, memory, frames, |meter, chunk| {
        channels = encoder_features(config, meter, Size::new(chunk, h, w), 0);
        if tile.is_none() {
            encoder_mean(config, meter, whole, channels);
        }
    });
    if tile.is_none() {
        return vec![above.footprint(0, inputs + latents, 0)];
    }
    let below = Meter::walk(device, memory, frames, |meter, _| {
        encoder_mean(config, meter, whole, channels);
    });
    let host = whole.volume(channels) * u64::try_from(frames).unwrap_or(0);
    // Tiles above, then whole frames below.
    vec![
        above.footprint(below.weights, inputs, host),
        below.footprint(above.weights, inputs + latents, host),
    ]
}

/// The most bytes that decoding takes at once; see [`decode_phases`].
pub fn decode_peak_bytes(
    config: &VaeConfig,
    device: Device,
    memory: &MemoryPlan,
    grid: [i32; 3],
) -> u64 {
    most(&decode_phases(config, device, memory, grid))
}

/// The most bytes that encoding takes at once; see [`encode_phases`].
pub fn encode_peak_bytes(
    config: &VaeConfig,
    device: Device,
    memory: &MemoryPlan,
    grid: [i32; 3],
) -> u64 {
    most(&encode_phases(config, device, memory, grid))
}

fn most(phases: &[Footprint]) -> u64 {
    phases.iter().map(Footprint::total).max().unwrap_or(0)
}

/// The operations of decoding a clip of `[frames, rows, columns]` latents, whole or in tiles.
pub fn decode_operations(config: &VaeConfig, grid: [i32; 3], tiling: Option<Tiling>) -> Operations {
    let [frames, rows, columns] = grid;
    let of_chunk = |chunk: i32| {
        let below = Meter::operations(chunk, |meter| {
            decoder_features(config, meter, Size::new(1, rows, columns));
        });
        let above = tiles(tiling, rows, columns).map(|([rows, columns], times)| {
            let tile = Size::new(1, rows, columns);
            Meter::operations(chunk, |meter| decoder_pixels(config, meter, tile)).times(times)
        });
        below + above.sum()
    };
    let later = number(frames - ALIKE);
    let first = (0..frames.min(ALIKE)).map(of_chunk).sum::<Operations>();
    first + of_chunk(ALIKE).times(later)
}

/// The operations of encoding the conditioning video of a clip, as [`decode_operations`]. `pictures`:
/// the chunks that are not blank.
pub fn encode_operations(
    config: &VaeConfig,
    grid: [i32; 3],
    tiling: Option<Tiling>,
    pictures: &[i32],
) -> Operations {
    let [frames, rows, columns] = grid;
    let settling = static_chunks(config);
    let of_chunk = |chunk: i32, settled: usize| {
        let time = if chunk == 0 { 1 } else { TEMPORAL_STRIDE };
        let mut channels = 0;
        let above = tiles(tiling, rows, columns).map(|([rows, columns], times)| {
            let tile = Size::new(1, rows, columns).times(time, SPATIAL_STRIDE);
            let features = |meter: &mut Meter| {
                channels = encoder_features(config, meter, tile, settled);
            };
            Meter::operations(chunk, features).times(times)
        });
        let above = above.sum::<Operations>();
        if settled == settling.len() {
            return above;
        }
        let whole = Size::new(1, rows, columns);
        above + Meter::operations(chunk, |meter| encoder_mean(config, meter, whole, channels))
    };
    // Most chunks are alike.
    let mut known = BTreeMap::new();
    let mut blank = 0;
    let mut sum = Operations::default();
    for chunk in 0..frames {
        blank = match pictures.contains(&chunk) {
            true => 0,
            false => blank + 1,
        };
        let settled = settling.iter().filter(|&&last| blank > last).count();
        let kind = (chunk.min(ALIKE), settled);
        sum = sum
            + *known
                .entry(kind)
                .or_insert_with(|| of_chunk(kind.0, kind.1));
    }
    sum
}

/// Rows and columns of the tiles of a frame, or of the whole of it, and how many have them.
fn tiles(tiling: Option<Tiling>, rows: i32, columns: i32) -> impl Iterator<Item = ([i32; 2], u64)> {
    let whole = Tiling {
        tile: [rows, columns],
        overlap: 0,
    };
    let mut counts = BTreeMap::new();
    for tile in tiling.unwrap_or(whole).tiles(rows, columns) {
        let side = |range: std::ops::Range<i32>| range.end - range.start;
        *counts
            .entry([side(tile.rows), side(tile.columns)])
            .or_insert(0) += 1;
    }
    counts.into_iter()
}

/// The tiling with the least work among those that decode within `budget` bytes; `None` when a whole
/// frame does. When nothing fits, the one that takes the least.
pub fn choose_decode_tiling(
    config: &VaeConfig,
    device: Device,
    memory: &MemoryPlan,
    grid: [i32; 3],
    budget: u64,
) -> Option<Tiling> {
    choose(grid, OVERLAP, budget, |decode_tiling| {
        let memory = MemoryPlan {
            decode_tiling,
            ..*memory
        };
        decode_peak_bytes(config, device, &memory, grid)
    })
}

/// As [`choose_decode_tiling`], for encoding.
pub fn choose_encode_tiling(
    config: &VaeConfig,
    device: Device,
    memory: &MemoryPlan,
    grid: [i32; 3],
    budget: u64,
) -> Option<Tiling> {
    choose(grid, OVERLAP, budget, |encode_tiling| {
        let memory = MemoryPlan {
            encode_tiling,
            ..*memory
        };
        encode_peak_bytes(config, device, &memory, grid)
    })
}

fn choose(
    [_, rows, columns]: [i32; 3],
    overlap: i32,
    budget: u64,
    bytes: impl Fn(Option<Tiling>) -> u64,
) -> Option<Tiling> {
    if bytes(None) <= budget {
        return None;
    }
    let mut best: Option<((bool, u64, u64), Tiling)> = None;
    for row_tile in sides(rows, overlap) {
        for column_tile in sides(columns, overlap) {
            let tiling = Tiling {
                tile: [row_tile, column_tile],
                overlap,
            };
            let tiles = tiling.tiles(rows, columns).len() as u64;
            if tiles == 1 {
                continue;
            }
            let needed = bytes(Some(tiling));
            let work = tiles * values(&[row_tile, column_tile]);
            // What fits comes before what does not; among the former less work, then less
            // memory, among the latter less memory.
            let key = if needed <= budget {
                (false, work, needed)
            } else {
                (true, needed, work)
            };
            if best.is_none_or(|(least, _)| key < least) {
                best = Some((key, tiling));
            }
        }
    }
    best.map(|(_, tiling)| tiling)
}

/// For every count of tiles along an axis, the smallest tile that needs no more of them; none
/// smaller than twice the overlap, below which most of the work is done twice and more.
fn sides(extent: i32, overlap: i32) -> Vec<i32> {
    let mut sides: Vec<i32> = (1..=extent.max(1))
        .map(|count| (extent - overlap + count - 1) / count + overlap)
        .take_while(|&side| side >= 2 * overlap)
        .collect();
    if sides.is_empty() {
        sides.push(extent);
    }
    sides.dedup();
    sides
}

/// Rows and columns of a tile, when a frame has more than one.
fn part(tiling: Option<Tiling>, rows: i32, columns: i32) -> Option<[i32; 2]> {
    let [tile_rows, tile_columns] = tiling?.tile;
    (tile_rows < rows || tile_columns < columns)
        .then(|| [tile_rows.min(rows), tile_columns.min(columns)])
}

/// The product, 0 when a factor is negative.
fn values(sides: &[i32]) -> u64 {
    sides.iter().fold(1, |product, &side| {
        product.saturating_mul(u64::try_from(side).unwrap_or(0))
    })
}

/// Frames, rows and columns of an activation.
#[derive(Clone, Copy)]
struct Size {
    t: i32,
    h: i32,
    w: i32,
}

impl Size {
    fn new(t: i32, h: i32, w: i32) -> Self {
        Self { t, h, w }
    }

    fn volume(self, channels: i32) -> u64 {
        values(&[self.t, self.h, self.w, channels])
    }

    fn times(self, time: i32, space: i32) -> Self {
        Self::new(self.t * time, self.h * space, self.w * space)
    }
}

/// An activation: its size, and the values in the buffer that holds it.
#[derive(Clone, Copy)]
struct Held {
    size: Size,
    channels: i32,
    buffer: u64,
}

impl Held {
    fn new(size: Size, channels: i32) -> Self {
        Self {
            size,
            channels,
            buffer: size.volume(channels),
        }
    }

    fn volume(self) -> u64 {
        self.size.volume(self.channels)
    }
}

/// Counts operations and values while a chunk of a clip walks through the network.
struct Meter {
    device: Device,
    score_bytes: u64,
    /// The chunk's number.
    chunk: i32,
    operations: Operations,
    weights: u64,
    caches: u64,
    peak: u64,
}

impl Meter {
    fn new(device: Device, memory: &MemoryPlan, chunk: i32) -> Self {
        Self {
            device,
            score_bytes: memory.score_bytes,
            chunk,
            operations: Operations::default(),
            weights: 0,
            caches: 0,
            peak: 0,
        }
    }

    /// The operations of `network` on chunk `chunk`.
    fn operations(chunk: i32, network: impl FnOnce(&mut Self)) -> Operations {
        // They are the same on any device.
        let device = Device::new(DeviceKind::Cpu, None);
        let mut meter = Self::new(device, &MemoryPlan::WHOLE, chunk);
        network(&mut meter);
        meter.operations
    }

    /// The walk through the chunk that takes the most of a clip of `frames` latent frames, the
    /// last; `network` is also told the pixel frames of its chunk.
    fn walk(
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
            _ => Self::new(device, memory, (frames - 1).min(ALIKE)),
        };
        network(&mut last, TEMPORAL_STRIDE);
        last
    }

    /// Frames that came before this chunk in a layer where it has `frames`.
    fn seen(&self, frames: i32) -> i32 {
        match self.chunk {
            0 => 0,
            chunk => 1 + (chunk - 1) * frames,
        }
    }

    /// Notes a step's values, beside the caches: all of them in later chunks, before that as far
    /// as they have been filled.
    fn see(&mut self, alive: u64) {
        let caches = match self.chunk {
            ..=1 => self.caches,
            _ => 0,
        };
        self.peak = self.peak.max(alive + caches);
    }

    /// A cache now holds `kept`, where the first chunk had left `before`.
    fn keep(&mut self, kept: u64, before: u64) {
        self.caches += kept;
        if self.chunk == 1 {
            self.caches -= before;
        }
    }

    /// What was seen, beside `weights` more, `others` in MLX and `host` outside.
    fn footprint(&self, weights: u64, others: u64, host: u64) -> Footprint {
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
    fn project(&mut self, size: Size, inputs: i32, outputs: i32) {
        let product = Operations::product(size.volume(1), number(inputs), number(outputs));
        self.operations = self.operations + product;
    }

    /// MLX's CPU backend has no RMS norm of its own and composes one.
    fn norm_buffers(&self, x: Held) -> u64 {
        match self.device.kind {
            DeviceKind::Cpu => 2 * x.volume() + 3 * x.size.volume(1),
            DeviceKind::Gpu => x.volume(),
        }
    }

    /// Norm and SiLU of `x` beside `others`.
    fn activate(&mut self, x: Held, others: u64) -> Held {
        self.weights += values(&[x.channels]);
        let work = match self.device.kernels {
            // One pass on the host.
            Kernels::Cpu => x.volume(),
            Kernels::Mlx => 2 * x.volume(),
        };
        self.see(others + x.buffer + work);
        Held::new(x.size, x.channels)
    }

    /// A convolution of `x`, which goes first, beside `others`.
    fn causal(&mut self, x: Held, outputs: i32, kernel: [i32; 3], others: u64) -> Held {
        let Size { t, h, w } = x.size;
        let [history, margin] = [kernel[0] - 1, kernel[1] / 2];
        // The first chunk passes a temporal resampler by.
        let passed = i32::from(margin == 0 && self.chunk > 0);
        let before = history.min(self.seen(t) - passed);
        let padded = Size::new(t + before, h + 2 * margin, w + 2 * margin);
        let padded = Held::new(padded, x.channels);
        let frame = Size::new(1, h, w).volume(x.channels);
        let kept = frame * u64::try_from(history.min(t + before)).unwrap_or(0);
        self.see(others + x.buffer + padded.buffer + kept);
        self.keep(kept, if margin > 0 { frame } else { 0 });
        let missing = history - before;
        self.conv_behind_zeros(padded, outputs, kernel, [1, 1, 1], others, missing)
    }

    /// A convolution of padded `x`, which stays, beside `others`.
    fn conv(
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
    fn conv_behind_zeros(
        &mut self,
        x: Held,
        outputs: i32,
        kernel: [i32; 3],
        stride: [i32; 3],
        others: u64,
        missing: i32,
    ) -> Held {
        let taps = values(&kernel);
        self.weights += values(&[x.channels, outputs]) * taps + values(&[outputs]);
        let along = |extent, axis: usize| (extent - kernel[axis]) / stride[axis] + 1;
        let Size { t, h, w } = x.size;
        let size = Size::new(along(t + missing, 0), along(h, 1), along(w, 2));
        let mut out = Held::new(size, outputs);
        // Zeros in front are not multiplied.
        let blind: i32 = (0..size.t).map(|frame| (missing - frame).max(0)).sum();
        let seen = Size::new(size.t * kernel[0] - blind, size.h, size.w);
        self.project(seen, x.channels * kernel[1] * kernel[2], outputs);
        let tapped = taps == 1
            || (self.device.kernels == Kernels::Cpu
                && stride == [1, 1, 1]
                && x.channels >= MIN_TAP_CHANNELS);
        // Frames that see zeros are computed apart, and joined to the others.
        let joined = if missing > 0 && size.t > 1 {
            out.volume()
        } else {
            0
        };
        let work = if tapped {
            // Sums at the input's pitch, and once more to make up the last rows, or to join products
            // of some rows each.
            let at_pitch = Size::new(size.t, h, w);
            out.buffer = at_pitch.volume(outputs);
            let in_parts = at_pitch.volume(1) > values(&[self.device.most_rows()]);
            if kernel[1] * kernel[2] > 1 || in_parts {
                2 * out.buffer
            } else {
                out.buffer
            }
        } else {
            let unfolded = seen.volume(x.channels) * values(&kernel[1..]);
            let extra = match self.device.kind {
                DeviceKind::Cpu => x.volume() + unfolded,
                // MLX's Metal kernels unfold only what they have no tiles for.
                DeviceKind::Gpu if x.channels % 16 != 0 => unfolded,
                DeviceKind::Gpu => 0,
            };
            out.buffer + extra
        };
        self.see(others + x.buffer + work + joined);
        out
    }

    fn residual(&mut self, x: Held, outputs: i32) -> Held {
        let h = self.activate(x, 0);
        let h = self.causal(h, outputs, [3, 3, 3], x.buffer);
        let h = self.activate(h, x.buffer);
        let h = self.causal(h, outputs, [3, 3, 3], x.buffer);
        if x.channels != outputs {
            self.weights += values(&[x.channels, outputs]) + values(&[outputs]);
            self.project(x.size, x.channels, outputs);
        }
        let out = Held::new(x.size, outputs);
        self.see(x.buffer + h.buffer + out.buffer);
        out
    }

    fn attention(&mut self, x: Held) {
        let c = x.channels;
        self.weights += values(&[c, c]) * 4 + values(&[c]) * 5;
        self.project(x.size, c, 4 * c);
        let tokens = x.size.h * x.size.w;
        let [count, width, frames] = [tokens, c, x.size.t].map(number);
        let weighed = Operations::attention(count, count, width).times(frames);
        self.operations = self.operations + weighed;
        let shape = [1, tokens, tokens, c];
        let scores = self
            .device
            .scores_at_once(Dtype::Float32, shape, self.score_bytes)
            / F32;
        // Norm; q, k and v together and each apart; scores; what they weigh; the projection.
        self.see(x.buffer + self.norm_buffers(x) + 8 * x.volume() + scores);
    }

    fn mid(&mut self, x: Held) -> Held {
        let x = self.residual(x, x.channels);
        self.attention(x);
        self.residual(x, x.channels)
    }
}

/// [`VaeDecoder::features`](super::VaeDecoder); returns the values of one frame's features.
fn decoder_features(config: &VaeConfig, meter: &mut Meter, size: Size) -> u64 {
    let channels = config.decoder_dim() * config.dim_mult[LEVELS - 1];
    let z = Held::new(size, config.z_dim);
    let x = meter.conv(z, config.z_dim, [1, 1, 1], [1, 1, 1], 0);
    let x = meter.causal(x, channels, [3, 3, 3], 0);
    let mut x = meter.mid(x);
    for _ in 0..=config.num_res_blocks {
        x = meter.residual(x, channels);
    }
    x.buffer
}

/// [`VaeDecoder::pixels`](super::VaeDecoder).
fn decoder_pixels(config: &VaeConfig, meter: &mut Meter, size: Size) {
    let widths: Vec<i32> = config
        .dim_mult
        .iter()
        .rev()
        .map(|m| config.decoder_dim() * m)
        .collect();
    let temporal: Vec<bool> = config.temperal_downsample.iter().rev().copied().collect();
    let mut x = Held::new(size, widths[0]);
    for (level, &outputs) in widths.iter().enumerate() {
        if level > 0 {
            for _ in 0..=config.num_res_blocks {
                x = meter.residual(x, outputs);
            }
        }
        let Some(&temporal) = temporal.get(level) else {
            continue;
        };
        let Held {
            size, channels: c, ..
        } = x;
        let mut arranged = 0;
        if temporal && meter.chunk > 0 {
            arranged = 2 * meter.causal(x, 2 * c, [3, 1, 1], 0).buffer;
            x = Held::new(size.times(2, 1), c);
        } else if temporal {
            // Loaded, and passed by.
            meter.weights += values(&[c, 2 * c]) * 3 + values(&[2 * c]);
        }
        let doubled = Held::new(x.size.times(1, 2), c);
        let padded = Size::new(x.size.t, 2 * x.size.h + 2, 2 * x.size.w + 2);
        let padded = Held::new(padded, c);
        meter.see(arranged.max(x.buffer) + doubled.buffer + padded.buffer);
        x = meter.conv(padded, c / 2, [1, 3, 3], [1, 1, 1], 0);
    }
    let x = meter.activate(x, 0);
    meter.causal(x, config.out_channels, [3, 3, 3], 0);
}

/// [`VaeEncoder::features`](super::VaeEncoder) of pixels, of which the first `settled` levels are not
/// computed; returns the features' channels.
fn encoder_features(config: &VaeConfig, meter: &mut Meter, size: Size, settled: usize) -> i32 {
    let pixels = Held::new(size, config.in_channels);
    let mut x = meter.causal(pixels, config.base_dim, [3, 3, 3], pixels.buffer);
    for (level, &temporal) in config.temperal_downsample.iter().enumerate() {
        let c = config.base_dim * config.dim_mult[level];
        for _ in 0..config.num_res_blocks {
            x = meter.residual(x, c);
        }
        let Size { t, h, w } = x.size;
        let padded = Held::new(Size::new(t, h + 1, w + 1), c);
        meter.see(x.buffer + padded.buffer);
        x = meter.conv(padded, c, [1, 3, 3], [1, 2, 2], 0);
        if temporal {
            let kept = Size::new(1, x.size.h, x.size.w).volume(c);
            meter.keep(kept, kept);
            if meter.chunk > 0 {
                let joined = Held::new(Size::new(t + 1, x.size.h, x.size.w), c);
                x = meter.conv(joined, c, [3, 1, 1], [2, 1, 1], x.buffer + kept);
            } else {
                meter.weights += values(&[c, c]) * 3 + values(&[c]);
            }
        }
        if level < settled {
            meter.operations = Operations::default();
        }
    }
    x.channels
}

/// [`VaeEncoder::mean`](super::VaeEncoder) of features.
fn encoder_mean(config: &VaeConfig, meter: &mut Meter, size: Size, channels: i32) {
    let outputs = config.base_dim * config.dim_mult[LEVELS - 1];
    let mut x = Held::new(size, channels);
    for _ in 0..config.num_res_blocks {
        x = meter.residual(x, outputs);
    }
    let x = meter.mid(x);
    let x = meter.activate(x, 0);
    let moments = 2 * config.z_dim;
    let x = meter.causal(x, moments, [3, 3, 3], 0);
    meter.conv(x, moments, [1, 1, 1], [1, 1, 1], 0);
}
