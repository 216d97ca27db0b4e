//! Spatial frequencies of a frame.

use image::{Rgb, RgbImage};
use rustfft::FftPlanner;
use rustfft::num_complex::Complex;

use super::checkerboard::PERIODS;
use super::plane::Plane;

/// The period in pixels whose power is compared with its neighbours': the VAE's stride.
pub const GRID: usize = 8;

/// Power of a frame by spatial frequency.
#[derive(Clone, Debug)]
pub struct Spectrum {
    width: usize,
    height: usize,
    /// `[height, width]`, zero frequency first.
    power: Vec<f32>,
}

impl Spectrum {
    /// The power spectrum of a plane's upper left part with sides that are multiples of 16, its
    /// mean removed, under a Hann window, scaled so that white noise of variance v has the power v
    /// at every frequency. `None` when a side is below 32 pixels: there the frequency of the grid has
    /// no neighbours.
    pub(super) fn of(plane: &Plane) -> Option<Self> {
        let whole = |side: usize| side - side % PERIODS[2];
        let (width, height) = (whole(plane.width), whole(plane.height));
        if width < 4 * GRID || height < 4 * GRID {
            return None;
        }
        let (across, down) = (hann(width), hann(height));
        let rows = (0..height).map(|y| &plane.row(y)[..width]);
        let mean = rows.clone().flatten().map(|&v| f64::from(v)).sum::<f64>();
        let mean = (mean / (width * height) as f64) as f32;
        let mut values: Vec<Complex<f32>> = rows
            .zip(&down)
            .flat_map(|(row, down)| {
                let windowed = row.iter().zip(&across);
                windowed.map(move |(value, across)| ((value - mean) * across * down).into())
            })
            .collect();
        let mut planner = FftPlanner::new();
        planner.plan_fft_forward(width).process(&mut values);
        let mut columns = transposed(&values, width, height);
        planner.plan_fft_forward(height).process(&mut columns);
        let squares = |window: &[f32]| window.iter().map(|w| w * w).sum::<f32>();
        let scale = 1.0 / (squares(&across) * squares(&down));
        let power = transposed(&columns, height, width);
        Some(Self {
            width,
            height,
            power: power.iter().map(|value| value.norm_sqr() * scale).collect(),
        })
    }

    /// Mean power by horizontal frequency, 0 to half a cycle per pixel in `width / 2 + 1` steps.
    pub fn horizontal(&self) -> Vec<f64> {
        let mean = |x: usize| {
            let column = (0..self.height).map(|y| f64::from(self.power[y * self.width + x]));
            column.sum::<f64>() / self.height as f64
        };
        (0..=self.width / 2).map(mean).collect()
    }

    /// Mean power by vertical frequency, 0 to half a cycle per pixel in `height / 2 + 1` steps.
    pub fn vertical(&self) -> Vec<f64> {
        let mean = |row: &[f32]| {
            row.iter().map(|&value| f64::from(value)).sum::<f64>() / self.width as f64
        };
        let rows = self.power.chunks_exact(self.width);
        rows.take(self.height / 2 + 1).map(mean).collect()
    }

    /// The power in decibels as a picture, from that of rounding (black) over 80 dB (white); no
    /// frequency is in the middle.
    pub fn picture(&self) -> RgbImage {
        let (width, height) = (self.width, self.height);
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let x = (x as usize + width / 2) % width;
            let y = (y as usize + height / 2) % height;
            let decibels = 10.0 * (12.0 * self.power[y * width + x]).max(1.0).log10();
            // A cast takes what is above to white.
            Rgb([(decibels / 80.0 * 255.0) as u8; 3])
        })
    }

    /// Power at a period of 8 pixels over that of its neighbours, of the axis where the ratio is
    /// larger; about 1 where nothing repeats every 8 pixels.
    pub fn grid_power(&self) -> f64 {
        let across = ratio(&self.horizontal(), self.width / GRID);
        let down = ratio(&self.vertical(), self.height / GRID);
        across.max(down)
    }
}

/// Power at `bin` over the mean of its neighbours': from two bins away (the window spreads a frequency
/// over the next ones) to a quarter of the frequency, three at least. Frames are rounded to whole
/// levels, so no power below that of the rounding counts.
fn ratio(power: &[f64], bin: usize) -> f64 {
    const ROUNDING: f64 = 1.0 / 12.0;
    let reach = (bin / 4).max(3);
    let neighbours = (2..=reach).flat_map(|away| [bin - away, bin + away]);
    let neighbours: Vec<f64> = neighbours
        .filter_map(|bin| power.get(bin).copied())
        .collect();
    let mean = neighbours.iter().sum::<f64>() / neighbours.len().max(1) as f64;
    (power[bin] + ROUNDING) / (mean + ROUNDING)
}

/// A periodic Hann window.
fn hann(length: usize) -> Vec<f32> {
    let turn = std::f64::consts::TAU / length as f64;
    let value = |i: usize| (0.5 - 0.5 * (turn * i as f64).cos()) as f32;
    (0..length).map(value).collect()
}

/// Columns of `width` values a row as rows.
fn transposed(values: &[Complex<f32>], width: usize, height: usize) -> Vec<Complex<f32>> {
    let column = |x: usize| (0..height).map(move |y| values[y * width + x]);
    (0..width).flat_map(column).collect()
}
