//! The report's isolation test of the VAE: the picture and then zeros, encoded and decoded.

use anyhow::{Context, Result};
use image::RgbImage;
use mlx_rs::memory;
use mlx_rs::ops::indexing::TryIndexOp;

use super::{Bound, CheckResult, scene};
use crate::media::frames::to_rgb8;
use crate::media::metrics::psnr;
use crate::model::vae::cost;
use crate::runtime::{Device, to_host};
use crate::util::show::chain;
use crate::weights::Checkpoint;

/// Three latent frames: the first, one that follows it, and one in the middle.
const FRAMES: u32 = 9;
/// Decibels that the picture must come back with; from the miniature's VAE it has 37.
pub const LEAST_PSNR: f64 = 25.0;
/// Levels that a checkerboard in what the VAE adds may have: the report's were above 20.
pub const MOST_CHECKER: f64 = 3.0;
/// Levels that the frames behind the picture, which were zeros, may be from grey on average.
pub const MOST_GREY: f64 = 24.0;

/// What measured memory may be of the forecast: as in the tests of the forecast.
pub const MOST_OVER_FORECAST: f64 = 1.15;

/// The picture's way through the VAE.
#[derive(Clone, Debug)]
pub struct RoundTrip {
    /// The picture.
    pub picture: RgbImage,
    /// What came back, of the picture and the zeros behind it.
    pub frames: Vec<RgbImage>,
    /// Mean and deviation of each latent frame, normalised.
    pub latents: Vec<(f64, f64)>,
    /// Bytes that encoding and decoding took at their peaks, and those forecast.
    pub memory: [Peak; 2],
}

/// Bytes of arrays at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    /// As MLX counted them.
    pub measured: u64,
    /// As a plan counts them.
    pub forecast: u64,
}

impl Peak {
    /// Of what `run` makes.
    fn of<T>(forecast: u64, run: impl FnOnce() -> Result<T>) -> Result<(T, Self)> {
        let before = memory::active_memory()? as u64;
        memory::reset_peak_memory()?;
        let made = run()?;
        let measured = (memory::peak_memory()? as u64).saturating_sub(before);
        Ok((made, Self { measured, forecast }))
    }
}

/// Encodes and decodes with at most `budget` bytes.
///
/// # Errors
/// When a weight is damaged, MLX fails, or a value is not finite.
pub fn round_trip(checkpoint: &Checkpoint, device: Device, budget: u64) -> Result<RoundTrip> {
    let plan = scene::plan(checkpoint, FRAMES);
    let parts = scene::memory_plan(checkpoint, device, &plan, budget);
    let grid = plan.latent_grid(&checkpoint.vae);
    let forecast = |phases: &[cost::Footprint]| {
        let all = phases.iter().map(cost::Footprint::mlx);
        all.max().unwrap_or(0)
    };
    let config = &checkpoint.vae;
    let phases = cost::encode_phases(config, device, &parts, grid);
    let (latents, encoding) = Peak::of(forecast(&phases), || {
        scene::latents(checkpoint, device, &parts, &plan)
    })?;
    let mut statistics = Vec::new();
    for frame in 0..latents.dim(1) {
        let values = to_host(&latents.try_index((.., frame))?)?;
        statistics.push(mean_and_deviation(values.iter().map(|&v| f64::from(v))));
    }
    let phases = cost::decode_phases(config, device, &parts, grid);
    let (frames, decoding) = Peak::of(forecast(&phases), || {
        scene::decoded(checkpoint, device, &parts, &latents)
    })?;
    // What comes out may be larger than what went in.
    let size = plan.clip_spec(config);
    Ok(RoundTrip {
        picture: to_rgb8(scene::picture(size.width, size.height).view())?,
        frames,
        latents: statistics,
        memory: [encoding, decoding],
    })
}

impl RoundTrip {
    /// What is to be said of it.
    pub fn findings(&self) -> Vec<CheckResult> {
        self.find().unwrap_or_else(|error| {
            let name = "round trip".to_owned();
            vec![CheckResult {
                name,
                sound: false,
                measured: None,
                bound: None,
                detail: chain(&error),
            }]
        })
    }

    /// What is to be said of its memory.
    pub fn memory_findings(&self) -> Vec<CheckResult> {
        let names = ["encoding", "decoding"].iter().zip(self.memory);
        let finding = |(name, peak): (&&str, Peak)| {
            CheckResult::new(
                &format!("{name}: peak memory over its forecast"),
                peak.measured as f64 / peak.forecast.max(1) as f64,
                Bound::AtMost(MOST_OVER_FORECAST),
                format!(
                    "{:.3} GB, forecast {:.3} GB",
                    peak.measured as f64 / 1e9,
                    peak.forecast as f64 / 1e9
                ),
            )
        };
        names.map(finding).collect()
    }

    fn find(&self) -> Result<Vec<CheckResult>> {
        let first = self.frames.first().context("the VAE gave no frame")?;
        let latents: Vec<String> = self
            .latents
            .iter()
            .map(|(mean, deviation)| format!("{mean:.2} +- {deviation:.2}"))
            .collect();
        let mut findings = vec![CheckResult::new(
            "picture and zeros, encoded and decoded: PSNR of frame 0 in dB",
            // Of equal pictures it is infinite, which JSON does not have.
            psnr(&self.picture, first)?.min(99.0),
            Bound::AtLeast(LEAST_PSNR),
            format!("latent frames {}", latents.join(", ")),
        )];
        for period in [2, 8, 16] {
            findings.push(CheckResult::new(
                &format!("checkerboard of {period} pixels that frame 0 gains, in levels"),
                checkerboard(&self.picture, first, period),
                Bound::AtMost(MOST_CHECKER),
                String::new(),
            ));
        }
        let grey = self.frames[1..].iter().flat_map(|frame| frame.iter());
        let distances = grey.map(|&level| (f64::from(level) - 127.5).abs());
        let (mean, _) = mean_and_deviation(distances);
        findings.push(CheckResult::new(
            "frames behind it, which were zeros: distance from grey in levels",
            mean,
            Bound::AtMost(MOST_GREY),
            String::new(),
        ));
        Ok(findings)
    }
}

/// The amplitude, in levels, of a checkerboard of `period` pixels (two squares) in the difference
/// of two pictures, at the phase where it is strongest.
pub fn checkerboard(before: &RgbImage, after: &RgbImage, period: u32) -> f64 {
    let half = (period / 2).max(1);
    let mut most = 0.0_f64;
    for phase in [(0, 0), (half / 2, half / 2)] {
        for channel in 0..3 {
            let mut sum = 0.0;
            for (x, y, pixel) in after.enumerate_pixels() {
                let Some(old) = before.get_pixel_checked(x, y) else {
                    continue;
                };
                let odd = ((x + phase.0) / half + (y + phase.1) / half) % 2 == 1;
                let difference = f64::from(pixel[channel]) - f64::from(old[channel]);
                sum += if odd { -difference } else { difference };
            }
            let pixels = f64::from(after.width()) * f64::from(after.height());
            most = most.max((sum / pixels).abs());
        }
    }
    most
}

/// Mean and standard deviation.
pub(super) fn mean_and_deviation(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for value in values {
        count += 1.0;
        sum += value;
        squares += value * value;
    }
    let mean: f64 = sum / f64::max(count, 1.0);
    let variance: f64 = squares / f64::max(count, 1.0) - mean * mean;
    (mean, variance.max(0.0).sqrt())
}
