//! What a pass costs, from the configuration alone, and the tiling that fits.
//!
//! The network is walked as it runs, step by evaluated step: operations and weights are added up, and
//! so are the buffers alive in each step. They are counted as alive together: MLX allocates for a
//! whole graph before the first kernel has run.

mod meter;
mod tiles;
mod tiny;

use std::collections::BTreeMap;

use super::wan22::Factor;
use super::{Band, Division, LEVELS, TEMPORAL_STRIDE, Tiling, VaeConfig, static_chunks};
use crate::model::MemoryPlan;
use crate::model::cost::{Operations, number};
use crate::runtime::Device;
use meter::{Held, Meter, STEADY_CHUNK, Size, values};
pub use tiles::{OVERLAP, choose_decode_tiling, choose_encode_tiling};

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
    let [clip, height, width] = config.decoded_grid(grid);
    let pixels = Size::new(chunk, height, width).volume(3);

    let Some(tile) = part(memory.decode_tiling, rows, columns) else {
        let mut meter = Meter::walk(device, memory, frames, |meter, _| {
            decoder_features(config, meter, whole);
            decoder_pixels(config, meter, whole, None);
        });
        // The pixels, and clipped.
        meter.note_alive(2 * pixels);
        return vec![meter.footprint(0, latents, 0)];
    };
    let mut features = 0;
    let below = Meter::walk(device, memory, frames, |meter, _| {
        features = decoder_features(config, meter, whole);
    });
    let above = Meter::walk(device, memory, frames, |meter, _| {
        decoder_pixels(config, meter, Size::new(1, tile[0], tile[1]), None);
    });
    let features = features * u64::try_from(frames).unwrap_or(0);
    let host = Size::new(clip, height, width).volume(3).div_ceil(2);
    let mut end = Meter::new(device, memory, 0);
    end.note_alive(2 * pixels);
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
    // A small encoder's chunk has frames of the next one.
    let chunk = if config.tiny && frames > 1 {
        1 + TEMPORAL_STRIDE
    } else {
        1
    };
    let inputs = whole.times(chunk, config.spatial_stride()).volume(3);
    let latents = values(&[config.z_dim, frames, rows, columns]);

    let tile = part(memory.encode_tiling, rows, columns);
    let [h, w] = tile
        .unwrap_or([rows, columns])
        .map(|side| side * config.spatial_stride());
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
            Meter::operations(chunk, |meter| decoder_pixels(config, meter, tile, None)).times(times)
        });
        below + above.sum()
    };
    let later = number(frames - STEADY_CHUNK);
    let first = (0..frames.min(STEADY_CHUNK))
        .map(of_chunk)
        .sum::<Operations>();
    first + of_chunk(STEADY_CHUNK).times(later)
}

/// The operations of a machine's largest share of decoding a clip of `[frames, rows, columns]` latents, and of
/// decoding it alone.
pub(super) fn decode_share(
    config: &VaeConfig,
    grid: [i32; 3],
    tiling: Option<Tiling>,
    division: &Division,
) -> [u64; 2] {
    let [_, rows, columns] = grid;
    let size = Size::new(1, rows, columns);
    let operations = |network: &dyn Fn(&mut Meter)| {
        Meter::operations(STEADY_CHUNK, |meter| network(meter)).total()
    };
    let features = operations(&|meter| _ = decoder_features(config, meter, size));
    let pixels = |band: Option<&Band>| {
        features + operations(&|meter| decoder_pixels(config, meter, size, band))
    };
    match division {
        Division::Bands(bands) => {
            let shares = bands.iter().map(|band| pixels(Some(band)));
            [shares.max().unwrap_or_default(), pixels(None)]
        }
        Division::Tiles(machines) => {
            // They are alike.
            let tiles: u64 = tiles(tiling, rows, columns).map(|(_, count)| count).sum();
            [tiles.div_ceil(*machines as u64), tiles]
        }
    }
}

/// Bytes that so many machines exchange to decode a clip of `[frames, rows, columns]` latents, in bands or in
/// tiles: latents to the others, and pixels of about as many parts back, all in float32.
pub(super) fn decode_exchange(
    config: &VaeConfig,
    grid: [i32; 3],
    tiling: Option<Tiling>,
    machines: u64,
) -> u64 {
    let [frames, rows, columns] = grid;
    let latents = values(&[config.z_dim, frames, rows, columns]);
    let areas = tiles(tiling, rows, columns).map(|([rows, columns], times)| {
        let [clip, height, width] = config.decoded_grid([frames, rows, columns]);
        values(&[clip, height, width, 3]) * times
    });
    let pixels: u64 = areas.sum();
    4 * (machines - 1) * (latents + pixels / machines)
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
    let has_picture = |chunk: i32| {
        // A small encoder's chunk has frames of the next one.
        let next = config.tiny && chunk + 1 < frames && pictures.contains(&(chunk + 1));
        next || pictures.contains(&chunk)
    };
    let of_chunk = |chunk: i32, settled: usize| {
        let time = if chunk == 0 { 1 } else { TEMPORAL_STRIDE };
        let mut channels = 0;
        let above = tiles(tiling, rows, columns).map(|([rows, columns], times)| {
            let tile = Size::new(1, rows, columns).times(time, config.spatial_stride());
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
        blank = match has_picture(chunk) {
            true => 0,
            false => blank + 1,
        };
        let settled = settling.iter().filter(|&&last| blank > last).count();
        let kind = (chunk.min(STEADY_CHUNK), settled);
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

/// Rows and columns of a tile, when a frame has more than one.
fn part(tiling: Option<Tiling>, rows: i32, columns: i32) -> Option<[i32; 2]> {
    let [tile_rows, tile_columns] = tiling?.tile;
    (tile_rows < rows || tile_columns < columns)
        .then(|| [tile_rows.min(rows), tile_columns.min(columns)])
}

/// [`VaeDecoder::features`](super::VaeDecoder); returns the values of one frame's features.
fn decoder_features(config: &VaeConfig, meter: &mut Meter, size: Size) -> u64 {
    if config.tiny {
        return tiny::decoder_features(config, meter, size);
    }
    let channels = config.decoder_dim() * config.dim_mult[LEVELS - 1];
    let z = Held::new(size, config.z_dim);
    let x = meter.conv(z, config.z_dim, [1, 1, 1], [1, 1, 1], 0);
    let x = meter.causal(x, channels, [3, 3, 3], 0);
    let input = meter.mid(x);
    let kept = config.is_residual;
    let x = meter.residuals(input, channels, config.num_res_blocks + 1, kept);
    if !kept {
        return x.buffer;
    }
    meter.note_alive(input.buffer + x.buffer + 2 * x.volume());
    2 * x.volume()
}

/// [`VaeDecoder::pixels`](super::VaeDecoder), or [`VaeDecoder::band`](super::VaeDecoder) of a frame.
fn decoder_pixels(config: &VaeConfig, meter: &mut Meter, size: Size, band: Option<&Band>) {
    if config.tiny {
        return tiny::decoder_pixels(config, meter, size);
    }
    let widths: Vec<i32> = config
        .dim_mult
        .iter()
        .rev()
        .map(|m| config.decoder_dim() * m)
        .collect();
    let temporal: Vec<bool> = config.temperal_downsample.iter().rev().copied().collect();
    let mut x = Held::new(size, widths[0]);
    for (level, &outputs) in widths.iter().enumerate() {
        let temporal = temporal.get(level).copied();
        let kept = config.is_residual && temporal.is_some();
        if let Some(band) = band {
            let [h, w] = band.of_level(level, [size.h, size.w]);
            x = Held::new(Size { h, w, ..x.size }, x.channels);
        }
        let input = x.buffer;
        if level > 0 {
            x = meter.residuals(x, outputs, config.num_res_blocks + 1, kept);
        }
        let Some(temporal) = temporal else {
            continue;
        };
        if kept {
            meter.held += input;
        }
        let (size, c) = (x.size, x.channels);
        let mut arranged = 0;
        if temporal && meter.chunk > 0 {
            arranged = 2 * meter.causal(x, 2 * c, [3, 1, 1], 0).buffer;
            x = Held::new(size.times(2, 1), c);
        } else if temporal {
            // Loaded, and passed by.
            meter.weights += meter.conv_weights([c, 2 * c], [3, 1, 1], [1, 1, 1]);
        }
        x = meter.padded(x, [config.upsampled(c), 1, 2, 2], 0, arranged);
        if kept {
            meter.note_alive(x.buffer + x.volume());
            meter.held -= input;
            x = Held::new(x.size, x.channels);
        }
    }
    let x = meter.activate(x, 0);
    let x = meter.causal(x, config.out_channels, [3, 3, 3], 0);
    if config.out_channels > 3 {
        meter.note_alive(x.buffer + x.volume());
    }
}

/// [`VaeEncoder::features`](super::VaeEncoder) of `[frames, height, width]` pixels, of which the first
/// `settled` levels are not computed; returns the features' channels.
fn encoder_features(config: &VaeConfig, meter: &mut Meter, size: Size, settled: usize) -> i32 {
    if config.tiny {
        let channels = tiny::encoder_features(config, meter, [size.h, size.w]);
        if settled > 0 {
            meter.operations = Operations::default();
        }
        return channels;
    }
    let patch = config.patch();
    let patches = Size::new(size.t, size.h / patch, size.w / patch);
    let pixels = Held::new(patches, config.in_channels);
    // The caller's pixels lie where they are seen, unless they are copied.
    let beside = match meter.copies_inputs() {
        true => pixels.buffer,
        false => 0,
    };
    let mut x = meter.causal(pixels, config.base_dim, [3, 3, 3], beside);
    for (level, &temporal) in config.temperal_downsample.iter().enumerate() {
        let c = config.base_dim * config.dim_mult[level];
        let added = shortcut(config, meter, x, c, Some(temporal));
        x = meter.residuals(x, c, config.num_res_blocks, false);
        let t = x.size.t;
        x = meter.padded(x, [c, 2, 1, 1], 0, 0);
        if temporal {
            let kept = Size::new(1, x.size.h, x.size.w).volume(c);
            meter.keep(kept, kept);
            if meter.chunk > 0 {
                let joined = Held::new(Size::new(t + 1, x.size.h, x.size.w), c);
                x = meter.conv(joined, c, [3, 1, 1], [2, 1, 1], x.buffer + kept);
            } else {
                meter.weights += meter.conv_weights([c, c], [3, 1, 1], [2, 1, 1]);
            }
        }
        x = added_to(meter, x, added);
        if level < settled {
            meter.operations = Operations::default();
        }
    }
    x.channels
}

/// [`VaeEncoder::mean`](super::VaeEncoder) of features.
fn encoder_mean(config: &VaeConfig, meter: &mut Meter, size: Size, channels: i32) {
    if config.tiny {
        return tiny::encoder_mean(config, meter, size);
    }
    let outputs = config.base_dim * config.dim_mult[LEVELS - 1];
    let x = Held::new(size, channels);
    let added = shortcut(config, meter, x, outputs, None);
    let x = meter.residuals(x, outputs, config.num_res_blocks, false);
    let x = added_to(meter, x, added);
    let x = meter.mid(x);
    let x = meter.activate(x, 0);
    let moments = 2 * config.z_dim;
    let x = meter.causal(x, moments, [3, 3, 3], 0);
    meter.conv(x, moments, [1, 1, 1], [1, 1, 1], 0);
}

/// What leads around a level of the encoder, alive until [`added_to`]; its values.
fn shortcut(
    config: &VaeConfig,
    meter: &mut Meter,
    x: Held,
    outputs: i32,
    resampled: Option<bool>,
) -> u64 {
    if !config.is_residual {
        return 0;
    }
    let Factor { time, space } = Factor::of(resampled);
    let Size { t, h, w } = x.size;
    let frames = (t + time - 1) / time;
    // Arranged in groups, and with zeros in front before that.
    let arranged = Size::new(frames * time, h, w).volume(x.channels);
    let padded = if t % time == 0 { 0 } else { arranged };
    let mean = Size::new(frames, h / space, w / space).volume(outputs);
    meter.note_alive(x.buffer + padded + arranged + mean);
    meter.held += mean;
    mean
}

/// A level's output with what was led around it.
fn added_to(meter: &mut Meter, x: Held, shortcut: u64) -> Held {
    if shortcut == 0 {
        return x;
    }
    meter.note_alive(x.buffer + x.volume());
    meter.held -= shortcut;
    Held::new(x.size, x.channels)
}
