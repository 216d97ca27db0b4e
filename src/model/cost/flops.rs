//! Floating-point operations of each phase: two for every multiplication of a matrix product,
//! attention or convolution. Everything else is small beside them.
//!
//! [`crate::runtime::operations`] counts what is really asked for; a test holds the two equal.
//!
//! Beside them, the quantized weights that have to be unpacked for products of many rows.

use crate::model::MemoryPlan;
use crate::model::dit::DitConfig;
use crate::model::umt5::Umt5Config;
use crate::model::vae::{Tiling, VaeConfig, static_chunks};
use crate::runtime::Device;

/// Operations of one kind of kernel each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Operations {
    /// Matrix products and convolutions.
    pub products: u64,
    /// Attention: scores and weighted values.
    pub attention: u64,
    /// Values of quantized weights that are unpacked; no part of [`Self::total`].
    pub unpacked: u64,
}

impl Operations {
    fn products(count: u64) -> Self {
        Self {
            products: count,
            ..Self::default()
        }
    }

    fn attention(queries: u64, keys: u64, width: u64) -> Self {
        Self {
            attention: 4 * queries * keys * width,
            ..Self::default()
        }
    }

    fn unpacking(values: u64) -> Self {
        Self {
            unpacked: values,
            ..Self::default()
        }
    }

    fn times(self, factor: u64) -> Self {
        Self {
            products: self.products * factor,
            attention: self.attention * factor,
            unpacked: self.unpacked * factor,
        }
    }

    /// All floating-point operations.
    pub fn total(self) -> u64 {
        self.products + self.attention
    }
}

impl std::ops::Add for Operations {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            products: self.products + other.products,
            attention: self.attention + other.attention,
            unpacked: self.unpacked + other.unpacked,
        }
    }
}

impl std::iter::Sum for Operations {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), std::ops::Add::add)
    }
}

fn linear(rows: u64, inputs: u64, outputs: u64) -> Operations {
    Operations::products(2 * rows * inputs * outputs)
}

fn number(value: i32) -> u64 {
    value.max(0) as u64
}

/// The text encoder on a prompt of `tokens`.
pub fn text_encoder(config: &Umt5Config, tokens: u64) -> Operations {
    let width = number(config.d_model);
    let inner = number(config.num_heads) * number(config.d_kv);
    let layer = linear(tokens, width, inner).times(4)
        + linear(tokens, width, number(config.d_ff)).times(3)
        + Operations::attention(tokens, tokens, inner);
    layer.times(number(config.num_layers))
}

/// What has to be unpacked for a text encoder with `quantized` values to encode a prompt of `tokens`.
pub fn unpack_text_encoder(device: Device, quantized: u64, tokens: u64) -> Operations {
    match tokens > number(device.dense_above) {
        true => Operations::unpacking(quantized),
        false => Operations::default(),
    }
}

/// What has to be unpacked for an expert with `quantized` values: for prompts of `rows` keys each,
/// `steps` steps on `tokens`, of which `guided` with two passes.
///
/// All of a block's products are taken to be quantized alike; those outside the blocks are few.
pub fn unpack_expert(
    config: &DitConfig,
    device: Device,
    memory: &MemoryPlan,
    quantized: u64,
    rows: &[u64],
    tokens: u64,
    [steps, guided]: [u64; 2],
) -> Operations {
    let (width, layers) = (number(config.dim()), number(config.num_layers));
    let square = width * width;
    let feed_forward = 2 * width * number(config.ffn_dim);
    let all = layers * (8 * square + feed_forward);
    let least = number(device.dense_above);
    let prompts = rows.iter().filter(|&&rows| rows > least).count() as u64;
    // Every chunk of tokens unpacks anew.
    let chunk = tokens.min(number(memory.chunk_rows)).max(1);
    let chunks = match chunk > least {
        true => tokens.div_ceil(chunk),
        false => 0,
    };
    let passes = match memory.joint_passes {
        true => steps,
        false => steps + guided,
    };
    let start = steps * 4 * square;
    let pass = layers * (2 * square + feed_forward) + layers.saturating_sub(1) * 4 * square;
    let unpacked = prompts * layers * 2 * square + chunks * (start + passes * pass);
    // As large a part of it as of the weights.
    let share = u128::from(unpacked) * u128::from(quantized) / u128::from(all.max(1));
    Operations::unpacking(u64::try_from(share).unwrap_or(u64::MAX))
}

/// What an expert computes once per clip for one prompt: text embedding and the keys and values
/// of every block. `rows` are the real tokens and, when there is padding, one more.
pub fn expert_prompt(config: &DitConfig, rows: u64) -> Operations {
    let width = number(config.dim());
    linear(rows, number(config.text_dim), width)
        + linear(rows, width, width)
        + linear(rows, width, width).times(2 * number(config.num_layers))
}

/// What an expert computes once per clip whatever the prompts: the condition's part of the patch
/// embedding.
pub fn expert_clip(config: &DitConfig, tokens: u64) -> Operations {
    let patch: u64 = config.patch_size.iter().map(|&p| number(p)).product();
    let channels = number(config.in_channels - config.out_channels);
    linear(tokens, channels * patch, number(config.dim()))
}

/// What a step computes once, whatever the prompts: time and patch embedding.
pub fn step(config: &DitConfig, tokens: u64) -> Operations {
    let width = number(config.dim());
    let patch: u64 = config.patch_size.iter().map(|&p| number(p)).product();
    linear(1, number(config.freq_dim), width)
        + linear(1, width, width)
        + linear(1, width, 6 * width)
        + linear(tokens, number(config.out_channels) * patch, width)
}

/// The first block's self-attention: once per step, when a pass is computed at all.
pub fn step_start(config: &DitConfig, tokens: u64) -> Operations {
    let width = number(config.dim());
    linear(tokens, width, width).times(4) + Operations::attention(tokens, tokens, width)
}

/// A pass behind [`step_start`] with a prompt of `rows` keys: the rest of the blocks and the head.
pub fn pass(config: &DitConfig, tokens: u64, rows: u64) -> Operations {
    let (width, layers) = (number(config.dim()), number(config.num_layers));
    let patch: u64 = config.patch_size.iter().map(|&p| number(p)).product();
    let with_text = linear(tokens, width, width).times(2)
        + Operations::attention(tokens, rows, width)
        + linear(tokens, width, number(config.ffn_dim)).times(2);
    with_text.times(layers)
        + step_start(config, tokens).times(layers.saturating_sub(1))
        + linear(tokens, width, number(config.out_channels) * patch)
}

/// Frames, rows and columns of a convolution's output.
#[derive(Clone, Copy)]
struct Extent {
    frames: u64,
    rows: u64,
    columns: u64,
}

impl Extent {
    fn pixels(self) -> u64 {
        self.frames * self.rows * self.columns
    }

    fn convolution(self, inputs: u64, outputs: u64, taps: u64) -> Operations {
        Operations::products(2 * self.pixels() * inputs * outputs * taps)
    }

    /// A convolution over three frames and `taps` pixels of each, before which `seen` frames came:
    /// zeros before those are not multiplied.
    fn causal(self, inputs: u64, outputs: u64, taps: u64, seen: u64) -> Operations {
        let blind: u64 = (0..self.frames)
            .map(|frame| 2_u64.saturating_sub(seen + frame))
            .sum();
        let frame = Extent { frames: 1, ..self };
        let frame = frame.convolution(inputs, outputs, taps);
        frame.times(3 * self.frames - blind)
    }

    fn residual(self, inputs: u64, outputs: u64, seen: u64) -> Operations {
        let shortcut = match inputs == outputs {
            true => Operations::default(),
            false => self.convolution(inputs, outputs, 1),
        };
        self.causal(inputs, outputs, 9, seen) + self.causal(outputs, outputs, 9, seen) + shortcut
    }

    fn mid(self, channels: u64, seen: u64) -> Operations {
        let place = self.rows * self.columns;
        self.residual(channels, channels, seen).times(2)
            + self.convolution(channels, 4 * channels, 1)
            + Operations::attention(place, place, channels).times(self.frames)
    }
}

/// Decoding `frames` latent frames of `rows` x `columns`, whole or in tiles.
pub fn decode(config: &VaeConfig, grid: [i32; 3], tiling: Option<Tiling>) -> Operations {
    let [frames, rows, columns] = grid;
    (0..number(frames))
        .map(|chunk| {
            let above = tiles(tiling, rows, columns)
                .map(|[rows, columns]| decode_pixels(config, number(rows), number(columns), chunk));
            decode_features(config, number(rows), number(columns), chunk) + above.sum()
        })
        .sum()
}

/// Encoding the conditioning video of a clip, as [`decode`]. `pictures`: the chunks that are not
/// blank.
pub fn encode(
    config: &VaeConfig,
    grid: [i32; 3],
    tiling: Option<Tiling>,
    pictures: &[i32],
) -> Operations {
    let [frames, rows, columns] = grid;
    let settling = static_chunks(config);
    let mut blank = 0;
    let mut chunk = |chunk| {
        blank = match pictures.contains(&chunk) {
            true => 0,
            false => blank + 1,
        };
        let settled = settling.iter().filter(|&&last| blank > last).count();
        let chunk = number(chunk);
        let above = tiles(tiling, rows, columns).map(|[rows, columns]| {
            encode_features(config, number(rows), number(columns), chunk, settled)
        });
        let below = match settled < settling.len() {
            true => encode_mean(config, number(rows), number(columns), chunk),
            false => Operations::default(),
        };
        below + above.sum()
    };
    (0..frames).map(&mut chunk).sum()
}

/// Rows and columns of each tile, or of the whole frame.
fn tiles(tiling: Option<Tiling>, rows: i32, columns: i32) -> impl Iterator<Item = [i32; 2]> {
    let whole = Tiling {
        tile: [rows, columns],
        overlap: 0,
    };
    let side = |range: std::ops::Range<i32>| range.end - range.start;
    tiling
        .unwrap_or(whole)
        .tiles(rows, columns)
        .into_iter()
        .map(move |tile| [side(tile.rows), side(tile.columns)])
}

/// The decoder's widths, from the latents' size up.
fn decoder_widths(config: &VaeConfig) -> Vec<u64> {
    let base = number(config.decoder_base_dim.unwrap_or(config.base_dim));
    let multipliers = config.dim_mult.iter().rev();
    multipliers.map(|&m| base * number(m)).collect()
}

fn decode_features(config: &VaeConfig, rows: u64, columns: u64, chunk: u64) -> Operations {
    let at = Extent {
        frames: 1,
        rows,
        columns,
    };
    let (z, channels) = (number(config.z_dim), decoder_widths(config)[0]);
    let blocks = at
        .residual(channels, channels, chunk)
        .times(number(config.num_res_blocks) + 1);
    at.convolution(z, z, 1) + at.causal(z, channels, 9, chunk) + at.mid(channels, chunk) + blocks
}

/// Frames that come before a chunk where every chunk but the first has `frames`.
fn frames_before(chunk: u64, frames: u64) -> u64 {
    match chunk {
        0 => 0,
        _ => 1 + (chunk - 1) * frames,
    }
}

fn decode_pixels(config: &VaeConfig, rows: u64, columns: u64, chunk: u64) -> Operations {
    let widths = decoder_widths(config);
    let temporal: Vec<bool> = config.temperal_downsample.iter().rev().copied().collect();
    let mut at = Extent {
        frames: 1,
        rows,
        columns,
    };
    let mut channels = widths[0];
    let mut sum = Operations::default();
    for (level, &outputs) in widths.iter().enumerate() {
        let seen = frames_before(chunk, at.frames);
        if level > 0 {
            for _ in 0..=config.num_res_blocks {
                sum = sum + at.residual(channels, outputs, seen);
                channels = outputs;
            }
        }
        let Some(&temporal) = temporal.get(level) else {
            continue;
        };
        if temporal && chunk > 0 {
            // The first chunk passed it by.
            sum = sum + at.causal(channels, 2 * channels, 1, seen - 1);
            at.frames *= 2;
        }
        at.rows *= 2;
        at.columns *= 2;
        sum = sum + at.convolution(channels, channels / 2, 9);
        channels /= 2;
    }
    let seen = frames_before(chunk, at.frames);
    sum + at.causal(channels, number(config.out_channels), 9, seen)
}

/// The levels above the latents' size, but for the first `settled`.
fn encode_features(
    config: &VaeConfig,
    rows: u64,
    columns: u64,
    chunk: u64,
    settled: usize,
) -> Operations {
    let shrink = 1 << config.temperal_downsample.len();
    let mut at = Extent {
        frames: if chunk == 0 { 1 } else { 4 },
        rows: rows * shrink,
        columns: columns * shrink,
    };
    let mut channels = number(config.base_dim);
    let seen = frames_before(chunk, at.frames);
    let mut stage = at.causal(number(config.in_channels), channels, 9, seen);
    let mut sum = Operations::default();
    let levels = config.dim_mult.iter().zip(&config.temperal_downsample);
    for (level, (&multiplier, &temporal)) in levels.enumerate() {
        let seen = frames_before(chunk, at.frames);
        let outputs = number(config.base_dim) * number(multiplier);
        for _ in 0..config.num_res_blocks {
            stage = stage + at.residual(channels, outputs, seen);
            channels = outputs;
        }
        at.rows /= 2;
        at.columns /= 2;
        stage = stage + at.convolution(channels, channels, 9);
        if temporal && chunk > 0 {
            at.frames /= 2;
            stage = stage + at.convolution(channels, channels, 3);
        }
        if level >= settled {
            sum = sum + stage;
        }
        stage = Operations::default();
    }
    sum
}

fn encode_mean(config: &VaeConfig, rows: u64, columns: u64, chunk: u64) -> Operations {
    let at = Extent {
        frames: 1,
        rows,
        columns,
    };
    let width = |level: usize| {
        let multiplier = config.dim_mult.get(level).copied().unwrap_or(1);
        number(config.base_dim) * number(multiplier)
    };
    let levels = config.temperal_downsample.len();
    let (mut channels, outputs) = (width(levels - 1), width(levels));
    let mut sum = Operations::default();
    for _ in 0..config.num_res_blocks {
        sum = sum + at.residual(channels, outputs, chunk);
        channels = outputs;
    }
    let moments = 2 * number(config.z_dim);
    sum + at.mid(channels, chunk)
        + at.causal(channels, moments, 9, chunk)
        + at.convolution(moments, moments, 1)
}
