//! 3 x 3 convolutions by Winograd's algorithm.
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv:1509.09308). A tile of 4 x
//! 4 outputs takes 36 products a channel instead of 144, one of 2 x 2 takes 16 instead of 36. Time
//! taps are summed before the way back. The larger tile's points are 0, 5/8, -5/8, 3/2, -3/2 and infinity,
//! whose rounding errors are half of those of the usual 0, 1, -1, 2 and -2.

use std::ops::Range;
use std::sync::Mutex;

use mlx_rs::Array;
use mlx_rs::error::Result;
use rayon::prelude::*;

use super::{Output, Seen, dense_weight, parts, values};
use crate::runtime::kernels::cpu::blas::{Matrix, add_product};
use crate::runtime::kernels::cpu::{Places, new_array};

/// Channels that are transformed together.
const LANES: usize = 16;

/// As many values as a vector register has, or two, or four.
type Lane = [f32; LANES];

/// The most points along an axis.
const POINTS: usize = 6;

/// Bytes of transformed values, inputs and outputs, that exist at once: they should not leave the caches.
const ROUND_BYTES: usize = 16 << 20;

/// Output frames that are computed together, at most.
const FRAMES_AT_ONCE: usize = 4;

/// Tiles that a core transforms at once.
const TILES_AT_ONCE: usize = 16;

/// How many outputs a tile has along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 2: products fall by 2.25, and the weight grows by 1.78.
    Two,
    /// 4: products and weight change by 4; rounding errors are three times those of 2.
    Four,
}

impl Tile {
    /// Outputs along an axis.
    pub const fn side(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Points along an axis: the inputs that a tile sees.
    pub const fn points(self) -> usize {
        self.side() + 2
    }

    /// What turns three taps of a kernel into [`Self::points`] values.
    fn of_taps(self) -> Vec<[f64; 3]> {
        match self {
            Self::Two => vec![[1.0, 0.0, 0.0], [0.5; 3], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]],
            Self::Four => {
                let [a, b] = [A, B].map(f64::from);
                let point = |x: f64, scale: f64| [1.0, x, x * x].map(|power| power / scale);
                let [near, far] = [2.0 * a * a, -2.0 * b * b].map(|x| x * (a * a - b * b));
                vec![
                    point(0.0, a * a * b * b),
                    point(a, near),
                    point(-a, near),
                    point(b, far),
                    point(-b, far),
                    [0.0, 0.0, 1.0],
                ]
            }
        }
    }
}

/// The larger tile's points.
const A: f32 = 0.625;
const B: f32 = 1.5;

/// What a tile does along an axis.
trait Axis {
    /// Of outputs and of points.
    const SIDES: [usize; 2];
    fn to_points(inputs: [Lane; POINTS]) -> [Lane; POINTS];
    fn to_outputs(points: [Lane; POINTS]) -> [Lane; 4];
}

/// `f` of each channel.
#[inline(always)]
fn each<const IN: usize, const OUT: usize>(
    from: [Lane; IN],
    f: impl Fn([f32; IN]) -> [f32; OUT],
) -> [Lane; OUT] {
    let mut out = [[0.0; LANES]; OUT];
    for i in 0..LANES {
        let values = f(std::array::from_fn(|j| from[j][i]));
        for (out, value) in out.iter_mut().zip(values) {
            out[i] = value;
        }
    }
    out
}

struct Two;

impl Axis for Two {
    const SIDES: [usize; 2] = [2, 4];

    #[inline(always)]
    fn to_points(inputs: [Lane; POINTS]) -> [Lane; POINTS] {
        each(inputs, |[a, b, c, d, ..]| {
            [a - c, b + c, c - b, d - b, 0.0, 0.0]
        })
    }

    #[inline(always)]
    fn to_outputs(points: [Lane; POINTS]) -> [Lane; 4] {
        each(points, |[a, b, c, d, ..]| [a + b + c, b - c + d, 0.0, 0.0])
    }
}

struct Four;

impl Axis for Four {
    const SIDES: [usize; 2] = [4, 6];

    #[inline(always)]
    fn to_points(inputs: [Lane; POINTS]) -> [Lane; POINTS] {
        const AA: f32 = A * A;
        const BB: f32 = B * B;
        each(inputs, |d| {
            let [even_a, even_b] = [d[4] - BB * d[2], d[4] - AA * d[2]];
            let [odd_a, odd_b] = [A * (d[3] - BB * d[1]), B * (d[3] - AA * d[1])];
            [
                d[4] - (AA + BB) * d[2] + AA * BB * d[0],
                even_a + odd_a,
                even_a - odd_a,
                even_b + odd_b,
                even_b - odd_b,
                d[5] - (AA + BB) * d[3] + AA * BB * d[1],
            ]
        })
    }

    #[inline(always)]
    fn to_outputs(points: [Lane; POINTS]) -> [Lane; 4] {
        each(points, |m| {
            let [even_a, even_b] = [m[1] + m[2], m[3] + m[4]];
            let [odd_a, odd_b] = [m[1] - m[2], m[3] - m[4]];
            [
                m[0] + even_a + even_b,
                A * odd_a + B * odd_b,
                A * A * even_a + B * B * even_b,
                A * A * A * odd_a + B * B * B * odd_b + m[5],
            ]
        })
    }
}

/// A transformed weight.
#[derive(Clone, Debug)]
pub(super) struct Winograd {
    /// `[points, points, kt, inputs, outputs]`.
    weight: Array,
    tile: Tile,
}

impl Winograd {
    /// Transforms `weight` `[outputs, inputs, kt, 3, 3]`.
    pub(super) fn new(weight: &Array, tile: Tile) -> Result<Self> {
        let dense = dense_weight(weight)?;
        let from = values(&dense)?;
        let shape @ [outputs, inputs, kt] = [0, 1, 2].map(|axis| weight.dim(axis));
        let points = tile.points() as i32;
        let weight = new_array(&[points, points, kt, inputs, outputs], |to| {
            let (to, shape) = (Places::of(to), shape.map(|side| side as usize));
            let blocks: Vec<_> = parts(inputs as usize, CHANNELS_AT_ONCE).collect();
            (blocks.into_par_iter())
                .for_each(|channels| transform(from, shape, channels, tile, to));
        })?;
        Ok(Self { weight, tile })
    }

    pub(super) fn run(&self, seen: &Seen, bias: &[f32], out: &Output) {
        let Ok(weight) = values(&self.weight) else {
            return;
        };
        let [height, width] = [out.size[1], out.size[2]];
        let side = self.tile.side();
        let job = Job {
            seen,
            weight,
            bias,
            out,
            grid: [height, width].map(|pixels| pixels.div_ceil(side)),
            kt: self.weight.dim(2) as usize,
            tile: self.tile,
        };
        job.run();
    }
}

/// Input channels whose weights a core transforms at once.
const CHANNELS_AT_ONCE: usize = 8;

fn transform(
    weight: &[f32],
    [outputs, inputs, kt]: [usize; 3],
    channels: Range<usize>,
    tile: Tile,
    out: Places,
) {
    let count = channels.len();
    // The taps of all outputs beside each other: `[channel, kt, 9, outputs]`.
    let mut taps = vec![0.0_f32; count * kt * 9 * outputs];
    for o in 0..outputs {
        let from = &weight[(o * inputs + channels.start) * kt * 9..][..count * kt * 9];
        for (i, value) in from.iter().enumerate() {
            taps[i * outputs + o] = *value;
        }
    }
    let factors = tile.of_taps();
    let points = tile.points();
    for (i, taps) in taps.chunks_exact(9 * outputs).enumerate() {
        let (channel, k) = (channels.start + i / kt, i % kt);
        for (p, down) in factors.iter().enumerate() {
            for (q, across) in factors.iter().enumerate() {
                let matrix = (p * points + q) * kt + k;
                let start = (matrix * inputs + channel) * outputs;
                // SAFETY: no other channel, tap or point has this row, and the array has been filled.
                let row = unsafe { out.slice(start, outputs) };
                weigh(taps, *down, *across, row);
            }
        }
    }
}

vectorised! {
    /// The sums of nine taps, `[9, outputs]`, by the products of two rows of factors.
    fn weigh(taps: &[f32], down: [f64; 3], across: [f64; 3], row: &mut [f32]) {
        let outputs = row.len();
        let taps: [&[f32]; 9] = std::array::from_fn(|i| &taps[i * outputs..(i + 1) * outputs]);
        let factors: [f64; 9] = std::array::from_fn(|i| down[i / 3] * across[i % 3]);
        for (o, out) in row.iter_mut().enumerate() {
            let mut sum = 0.0;
            for (taps, factor) in taps.iter().zip(factors) {
                sum += f64::from(taps[o]) * factor;
            }
            *out = sum as f32;
        }
    }
}

/// One convolution.
struct Job<'a> {
    seen: &'a Seen<'a>,
    /// `[points, points, kt, inputs, outputs]`.
    weight: &'a [f32],
    bias: &'a [f32],
    out: &'a Output,
    /// Tiles down and across.
    grid: [usize; 2],
    kt: usize,
    tile: Tile,
}

/// Some tiles of some output frames, and where their transformed values lie.
struct Round {
    /// Output frames.
    out_frames: Range<usize>,
    /// Input frames.
    in_frames: Range<usize>,
    tiles: Range<usize>,
    /// Values from point to point, of inputs and of outputs.
    strides: [usize; 2],
}

/// What an earlier convolution computed in.
static BUFFER: Mutex<Vec<f32>> = Mutex::new(Vec::new());

/// Values from point to point are an odd number of cache lines apart, so that those of a tile do not all
/// want the same place in the cache.
fn apart(values: usize) -> usize {
    values.div_ceil(LANES) / 2 * 2 * LANES + LANES
}

impl Job<'_> {
    fn run(&self) {
        let [frames, _, _] = self.out.size;
        let (tiles, inputs, outputs) = (
            self.grid[0] * self.grid[1],
            self.seen.inputs,
            self.out.channels,
        );
        // Few frames go together, since their inputs overlap.
        let together = frames.min(FRAMES_AT_ONCE);
        let of_tile = (together + self.kt - 1) * inputs + together * outputs;
        let most = ROUND_BYTES / (size_of::<f32>() * self.matrices() * of_tile);
        // Equal rounds.
        let most = tiles.div_ceil(tiles.div_ceil(most.max(1)));
        // Another call may hold the buffer: it has its own then.
        let mut kept = BUFFER.try_lock().ok();
        let mut own = Vec::new();
        let buffer = kept.as_deref_mut().unwrap_or(&mut own);
        for out_frames in parts(frames, together) {
            let missing = self.seen.missing;
            let in_frames =
                out_frames.start.saturating_sub(missing)..out_frames.end + self.kt - 1 - missing;
            for tiles in parts(tiles, most) {
                let round = Round {
                    strides: [
                        apart(in_frames.len() * tiles.len() * inputs),
                        apart(out_frames.len() * tiles.len() * outputs),
                    ],
                    out_frames: out_frames.clone(),
                    in_frames: in_frames.clone(),
                    tiles,
                };
                self.run_round(&round, buffer);
            }
        }
    }

    /// Products, one per point.
    fn matrices(&self) -> usize {
        self.tile.points() * self.tile.points()
    }

    fn run_round(&self, round: &Round, buffer: &mut Vec<f32>) {
        let wanted = round.strides.map(|stride| stride * self.matrices());
        if buffer.len() < wanted[0] + wanted[1] {
            buffer.resize(wanted[0] + wanted[1], 0.0);
        }
        let (points, sums) = buffer.split_at_mut(wanted[0]);
        let tiles: Vec<_> = parts(round.tiles.len(), TILES_AT_ONCE)
            .map(|part| round.tiles.start + part.start..round.tiles.start + part.end)
            .collect();

        let to = Places::of(points);
        let work = |i: usize| {
            let frame = round.in_frames.start + i / tiles.len();
            let tiles = tiles[i % tiles.len()].clone();
            match self.tile {
                Tile::Two => to_points_of_two(self, round, frame, tiles, to),
                Tile::Four => to_points_of_four(self, round, frame, tiles, to),
            }
        };
        (0..round.in_frames.len() * tiles.len())
            .into_par_iter()
            .for_each(work);

        let from = points.par_chunks_exact(round.strides[0]);
        let to = sums[..wanted[1]].par_chunks_exact_mut(round.strides[1]);
        (from.zip(to).enumerate())
            .for_each(|(matrix, (from, to))| self.multiply(round, matrix, from, to));

        let from = &*sums;
        let work = |i: usize| {
            let frame = round.out_frames.start + i / tiles.len();
            let tiles = tiles[i % tiles.len()].clone();
            match self.tile {
                Tile::Two => to_outputs_of_two(self, round, frame, tiles, from),
                Tile::Four => to_outputs_of_four(self, round, frame, tiles, from),
            }
        };
        (0..round.out_frames.len() * tiles.len())
            .into_par_iter()
            .for_each(work);
    }

    /// The sums over time taps and inputs at a point.
    fn multiply(&self, round: &Round, matrix: usize, from: &[f32], to: &mut [f32]) {
        let (inputs, outputs, count) = (self.seen.inputs, self.out.channels, round.tiles.len());
        let missing = self.seen.missing;
        let of_tap = inputs * outputs;
        // The last tap first: there is no output frame without it.
        for k in (0..self.kt).rev() {
            let weight = &self.weight[(matrix * self.kt + k) * of_tap..][..of_tap];
            // An output frame sees frame `frame + k - missing`.
            let first = round.out_frames.start.max(missing.saturating_sub(k));
            let frames = round.out_frames.end.saturating_sub(first);
            if frames == 0 {
                continue;
            }
            let seen = first + k - missing - round.in_frames.start;
            add_product(
                [frames * count, outputs, inputs],
                Matrix::new(&from[seen * count * inputs..], inputs),
                Matrix::new(weight, outputs),
                k + 1 < self.kt,
                &mut to[(first - round.out_frames.start) * count * outputs..],
                outputs,
            );
        }
    }

    #[inline(always)]
    fn to_points<T: Axis>(&self, round: &Round, frame: usize, tiles: Range<usize>, to: Places) {
        let [side, points] = T::SIDES;
        let (seen, inputs) = (self.seen, self.seen.inputs);
        let values = seen.frames[frame];
        let row = (frame - round.in_frames.start) * round.tiles.len();
        for tile in tiles {
            let [top, left] = [tile / self.grid[1], tile % self.grid[1]].map(|at| at * side);
            let row = (row + tile - round.tiles.start) * inputs;
            let mut pixels = [[None; POINTS]; POINTS];
            for (x, column) in pixels[..points].iter_mut().enumerate() {
                for (y, pixel) in column[..points].iter_mut().enumerate() {
                    *pixel = seen.pixel(values, top + y, left + x);
                }
            }
            for c in (0..inputs).step_by(LANES) {
                let lanes = (inputs - c).min(LANES);
                let mut half = [[[0.0; LANES]; POINTS]; POINTS];
                for (x, pixels) in pixels[..points].iter().enumerate() {
                    let mut column = [[0.0; LANES]; POINTS];
                    for (pixel, lane) in pixels[..points].iter().zip(&mut column) {
                        if let Some(at) = pixel {
                            load(&values[at + c..], lanes, lane);
                        }
                    }
                    let column = T::to_points(column);
                    for (half, lane) in half.iter_mut().zip(column) {
                        half[x] = lane;
                    }
                }
                for (y, half) in half[..points].iter().enumerate() {
                    for (x, lane) in T::to_points(*half)[..points].iter().enumerate() {
                        let start = (y * points + x) * round.strides[0] + row + c;
                        // SAFETY: no other tile and frame has this row of the point's matrix.
                        unsafe { to.slice(start, lanes) }.copy_from_slice(&lane[..lanes]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn to_outputs<T: Axis>(&self, round: &Round, frame: usize, tiles: Range<usize>, from: &[f32]) {
        let [side, points] = T::SIDES;
        let ([_, height, width], outputs) = (self.out.size, self.out.channels);
        let row = (frame - round.out_frames.start) * round.tiles.len();
        for tile in tiles {
            let [top, left] = [tile / self.grid[1], tile % self.grid[1]].map(|at| at * side);
            let row = (row + tile - round.tiles.start) * outputs;
            for c in (0..outputs).step_by(LANES) {
                let lanes = (outputs - c).min(LANES);
                let mut bias = [0.0; LANES];
                load(&self.bias[c..], lanes, &mut bias);
                let mut half = [[[0.0; LANES]; POINTS]; 4];
                for y in 0..points {
                    let mut line = [[0.0; LANES]; POINTS];
                    for (x, lane) in line[..points].iter_mut().enumerate() {
                        let start = (y * points + x) * round.strides[1] + row + c;
                        load(&from[start..], lanes, lane);
                    }
                    for (half, lane) in half.iter_mut().zip(T::to_outputs(line)) {
                        half[y] = lane;
                    }
                }
                for (x, half) in half[..side].iter().enumerate() {
                    for (y, lane) in T::to_outputs(*half)[..side].iter().enumerate() {
                        let [y, x] = [top + y, left + x];
                        if y >= height || x >= width {
                            continue;
                        }
                        let start = ((frame * height + y) * width + x) * outputs + c;
                        // SAFETY: no other tile and frame has this pixel.
                        let out = unsafe { self.out.values.slice(start, lanes) };
                        for ((out, value), bias) in out.iter_mut().zip(lane).zip(bias) {
                            *out = value + bias;
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn load(from: &[f32], lanes: usize, to: &mut Lane) {
    match from.first_chunk() {
        Some(all) if lanes == LANES => *to = *all,
        _ => to[..lanes].copy_from_slice(&from[..lanes]),
    }
}

vectorised! {
    fn to_points_of_two(job: &Job, round: &Round, frame: usize, tiles: Range<usize>, to: Places) {
        job.to_points::<Two>(round, frame, tiles, to);
    }
}

vectorised! {
    fn to_points_of_four(job: &Job, round: &Round, frame: usize, tiles: Range<usize>, to: Places) {
        job.to_points::<Four>(round, frame, tiles, to);
    }
}

vectorised! {
    fn to_outputs_of_two(job: &Job, round: &Round, frame: usize, tiles: Range<usize>, from: &[f32]) {
        job.to_outputs::<Two>(round, frame, tiles, from);
    }
}

vectorised! {
    fn to_outputs_of_four(job: &Job, round: &Round, frame: usize, tiles: Range<usize>, from: &[f32]) {
        job.to_outputs::<Four>(round, frame, tiles, from);
    }
}
