//! Statistics of a clip's frames.

use std::collections::VecDeque;

use anyhow::{Result, ensure};
use image::RgbImage;
use serde::Serialize;

use super::checkerboard::{PERIODS, amplitude};
use super::plane::Plane;
use super::report::{Report, Size};
use super::spectrum::Spectrum;
use super::symptoms;
use crate::media::metrics;
use crate::model::vae::TEMPORAL_STRIDE;

/// Frames that a latent frame stands for.
pub(super) const STEP: usize = TEMPORAL_STRIDE as usize;

/// Statistics of one frame, in levels of 0 to 255.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FrameStats {
    /// Its number, from 0.
    pub frame: usize,
    /// Mean over all pixels and channels.
    pub mean: f64,
    /// Standard deviation over all pixels and channels.
    pub std: f64,
    /// The lowest level.
    pub min: u8,
    /// The highest level.
    pub max: u8,
    /// Standard deviation of the pixels within each channel (root of the mean variance): unlike
    /// [`std`](Self::std) it is 0 for a frame of one colour.
    pub contrast: f64,
    /// Mean absolute difference from the frame before; `None` for the first one.
    pub difference: Option<f64>,
    /// Mean absolute difference from the first frame; `None` for that one.
    pub from_first: Option<f64>,
    /// Correlation with the frame a latent frame (4 frames) before, or with the first one: 1 for a
    /// still clip, 0 where one has nothing to do with the other; `None` for the first frame, and for
    /// frames of one colour.
    pub coherence: Option<f64>,
    /// Variance of the luma's Laplacian.
    pub sharpness: f64,
    /// Standard deviation of white noise in the luma (Immerkær); fine texture counts as noise.
    pub noise: f64,
    /// Amplitudes of checkerboards in the luma.
    pub checkerboard: Checkerboard,
    /// Power at a period of 8 pixels over its neighbours' ([`Spectrum::grid_power`]); `None` when a
    /// side is below 32 pixels.
    pub grid_power: Option<f64>,
    /// Values that are infinite or no number; 0 in all files of 8 bits.
    pub non_finite: usize,
}

/// Amplitudes of checkerboards by their period in pixels, in levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Checkerboard {
    /// Period 2.
    pub px2: f64,
    /// Period 8.
    pub px8: f64,
    /// Period 16.
    pub px16: f64,
}

impl Checkerboard {
    fn of(plane: &Plane) -> Self {
        let [px2, px8, px16] = PERIODS.map(|period| amplitude(plane, period));
        Self { px2, px8, px16 }
    }

    /// Each period in pixels with its amplitude.
    pub fn by_period(self) -> [(usize, f64); 3] {
        let [two, eight, sixteen] = PERIODS;
        [(two, self.px2), (eight, self.px8), (sixteen, self.px16)]
    }
}

/// How well the first frame meets the picture that the clip starts with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FirstFrame {
    /// Peak signal-to-noise ratio in dB; `None` when they are equal.
    pub psnr: Option<f64>,
    /// Structural similarity, 1 when they are equal; `None` when a side is below 11 pixels.
    pub ssim: Option<f64>,
    /// Statistics of the picture at the clip's size.
    pub picture: FrameStats,
}

/// Takes a clip's frames one by one.
#[derive(Debug)]
pub struct Analyzer {
    picture: Option<RgbImage>,
    met: Option<FirstFrame>,
    first: Option<RgbImage>,
    /// The last frames, as many as a latent frame stands for; the oldest one in front.
    before: VecDeque<RgbImage>,
    frames: Vec<FrameStats>,
}

impl Analyzer {
    /// An analyzer of a clip that starts with `picture`, at the clip's size, if that is known.
    pub fn new(picture: Option<RgbImage>) -> Self {
        Self {
            picture,
            met: None,
            first: None,
            before: VecDeque::new(),
            frames: Vec::new(),
        }
    }

    /// Whether no frame has come yet.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Takes the next frame.
    ///
    /// # Errors
    /// When it has no pixels, or is of another size than the one before or the picture.
    pub fn push(&mut self, frame: RgbImage) -> Result<()> {
        self.push_with(frame, 0)
    }

    /// As [`push`](Self::push), of a frame that had `non_finite` values where no level could stand for
    /// them.
    ///
    /// # Errors
    /// As there.
    pub fn push_with(&mut self, frame: RgbImage, non_finite: usize) -> Result<()> {
        let index = self.frames.len();
        ensure!(!frame.is_empty(), "frame {index} has no pixels");
        if let Some(before) = self.before.back() {
            ensure!(
                before.dimensions() == frame.dimensions(),
                "frame {index} is {}x{} pixels, the one before {}x{}; expected frames of one size",
                frame.width(),
                frame.height(),
                before.width(),
                before.height()
            );
        }
        let mut stats = FrameStats::of(&frame, index);
        stats.non_finite = non_finite;
        let from = |other: Option<&RgbImage>| other.map(|other| difference(other, &frame));
        stats.difference = from(self.before.back());
        stats.from_first = from(self.first.as_ref());
        let oldest = self.before.front();
        stats.coherence = oldest.and_then(|oldest| correlation(oldest, &frame));
        if self.before.len() == STEP {
            self.before.pop_front();
        }
        if let Some(picture) = self.picture.take() {
            self.met = Some(FirstFrame::of(&frame, &picture)?);
        }
        self.frames.push(stats);
        self.first.get_or_insert_with(|| frame.clone());
        self.before.push_back(frame);
        Ok(())
    }

    /// What the frames say.
    ///
    /// # Errors
    /// When there was none.
    pub fn finish(self) -> Result<Report> {
        let Some(first) = self.first else {
            anyhow::bail!("the clip has no frames");
        };
        let size = Size {
            width: first.width() as usize,
            height: first.height() as usize,
        };
        let verdicts = symptoms::verdicts(&self.frames, self.met.as_ref());
        Ok(Report {
            frames: self.frames,
            first_frame: self.met,
            ..Report::new(size, verdicts)
        })
    }
}

/// Analyzes a clip whose frames are at hand; `picture` is what it starts with, at its size.
///
/// # Errors
/// As [`Analyzer::push`] and [`Analyzer::finish`].
pub fn analyze(
    frames: impl IntoIterator<Item = RgbImage>,
    picture: Option<RgbImage>,
) -> Result<Report> {
    let mut analyzer = Analyzer::new(picture);
    for frame in frames {
        analyzer.push(frame)?;
    }
    analyzer.finish()
}

impl FirstFrame {
    fn of(frame: &RgbImage, picture: &RgbImage) -> Result<Self> {
        let psnr = metrics::psnr(frame, picture)?;
        Ok(Self {
            psnr: psnr.is_finite().then_some(psnr),
            ssim: metrics::ssim(frame, picture).ok(),
            picture: FrameStats::of(picture, 0),
        })
    }
}

impl FrameStats {
    /// Statistics of a frame without regard to others.
    fn of(frame: &RgbImage, index: usize) -> Self {
        let pixels = f64::from(frame.width()) * f64::from(frame.height());
        // Whole numbers: exact for any frame that fits into memory.
        let (mut sums, mut squares) = ([0_u64; 3], [0_u64; 3]);
        let (mut min, mut max) = (u8::MAX, u8::MIN);
        for pixel in frame.pixels() {
            for (channel, level) in pixel.0.into_iter().enumerate() {
                sums[channel] += u64::from(level);
                squares[channel] += u64::from(level).pow(2);
                min = min.min(level);
                max = max.max(level);
            }
        }
        let means = sums.map(|sum| sum as f64 / pixels);
        let mean_squares = squares.map(|sum| sum as f64 / pixels);
        let average = |values: [f64; 3]| values.iter().sum::<f64>() / 3.0;
        let variance: [f64; 3] = std::array::from_fn(|c| mean_squares[c] - means[c].powi(2));
        let mean = average(means);
        let plane = Plane::of(frame);
        Self {
            frame: index,
            mean,
            std: (average(mean_squares) - mean * mean).max(0.0).sqrt(),
            min,
            max,
            contrast: average(variance).max(0.0).sqrt(),
            difference: None,
            from_first: None,
            coherence: None,
            sharpness: plane.sharpness(),
            noise: plane.noise(),
            checkerboard: Checkerboard::of(&plane),
            grid_power: Spectrum::of(&plane).map(|spectrum| spectrum.grid_power()),
            non_finite: 0,
        }
    }
}

/// Mean absolute difference of two frames of one size, in levels.
fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
    let sum: u64 = a
        .iter()
        .zip(b.iter())
        .map(|(a, b)| u64::from(a.abs_diff(*b)))
        .sum();
    sum as f64 / a.len() as f64
}

/// Correlation of two frames of one size, each channel less its mean; `None` when one of them is of
/// one colour.
fn correlation(a: &RgbImage, b: &RgbImage) -> Option<f64> {
    let (mut sums, mut products) = ([[0_u64; 2]; 3], [[0_u64; 3]; 3]);
    for (a, b) in a.pixels().zip(b.pixels()) {
        for channel in 0..3 {
            let (a, b) = (u64::from(a[channel]), u64::from(b[channel]));
            let sum = &mut sums[channel];
            *sum = [sum[0] + a, sum[1] + b];
            let product = &mut products[channel];
            *product = [product[0] + a * b, product[1] + a * a, product[2] + b * b];
        }
    }
    let pixels = f64::from(a.width()) * f64::from(a.height());
    let (mut covariance, mut variances) = (0.0, [0.0; 2]);
    for (sums, products) in sums.into_iter().zip(products) {
        let [a, b] = sums.map(|sum| sum as f64 / pixels);
        let [ab, aa, bb] = products.map(|sum| sum as f64 / pixels);
        covariance += ab - a * b;
        variances = [variances[0] + aa - a * a, variances[1] + bb - b * b];
    }
    let [a, b] = variances;
    // Below a level's variance it is rounding that would be correlated.
    (a > 1.0 && b > 1.0).then(|| covariance / (a * b).sqrt())
}
