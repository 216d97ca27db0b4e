//! Fits the colours of the built-in miniature's latents, for `--preview`, and prints them as
//! `wan_i2v.json` takes them; with `measure` after them, how near the pictures come to the clip at
//! each step: `cargo run --release --example fit-latent-rgb [-- measure]`.
//!
//! A latent pixel stands for 8 x 8 pixels, of the first frame or of four frames. Its channels are
//! mapped to the mean of these, by least squares, over the clips of some scenes.

#![allow(clippy::disallowed_macros, clippy::disallowed_methods)]

use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use mlx_rs::Array;
use wan_i2v::clip::{CacheSettings, GuideInterval};
use wan_i2v::diagnose::lab::linear::solve;
use wan_i2v::diagnose::lab::scenes::{Recipe, Studio, scene};
use wan_i2v::media::metrics::psnr_of_mean_square;
use wan_i2v::media::preview::{self, LatentRgb};
use wan_i2v::media::strip::Title;
use wan_i2v::model::vae::TEMPORAL_STRIDE;
use wan_i2v::pipeline::{Observer, initial_noise};
use wan_i2v::runtime::to_host;
use wan_i2v::sampling::{Schedule, Solver};

/// Scenes that are fitted to, and those that are measured.
const FITTED: std::ops::Range<u64> = 1000..1032;
const MEASURED: std::ops::Range<u64> = 0..32;

/// A clip's frames at the latents' resolution: RGB in [-1, 1], frame by frame, row by row.
type Small = Vec<[f64; 3]>;

fn main() -> Result<()> {
    let studio = Studio::open()?;
    if std::env::args().nth(1).as_deref() == Some("measure") {
        return measure(&studio);
    }
    let map = fit(&studio)?;
    let row = |row: &[f32; 3]| format!("[{:.4}, {:.4}, {:.4}]", row[0], row[1], row[2]);
    let rows: Vec<String> = map.factors.iter().map(row).collect();
    let text = format!(
        "\"latent_rgb\": {{\"factors\": [{}], \"bias\": {}}}\n",
        rows.join(", "),
        row(&map.bias)
    );
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn fit(studio: &Studio) -> Result<LatentRgb> {
    let channels = studio.checkpoint.vae.z_dim as usize;
    // Normal equations; the last unknown is the bias, the last three columns the right sides.
    let mut rows = vec![vec![0.0; channels + 4]; channels + 1];
    for number in FITTED {
        let (latents, small) = clip(studio, number, &mut Quiet)?;
        let values = to_host(&latents)?;
        for (at, colour) in small.iter().enumerate() {
            let channel = |c: usize| f64::from(values[c * small.len() + at]);
            let mut point: Vec<f64> = (0..channels).map(channel).collect();
            point.push(1.0);
            for (row, a) in rows.iter_mut().zip(&point) {
                for (cell, b) in row.iter_mut().zip(point.iter().chain(colour)) {
                    *cell += a * b;
                }
            }
        }
        eprintln!("scene {number}");
    }
    let solved: [Vec<f64>; 3] = solve(rows)?;
    let row = |i: usize| -> [f32; 3] { std::array::from_fn(|side| solved[side][i] as f32) };
    Ok(LatentRgb {
        factors: (0..channels).map(row).collect(),
        bias: row(channels),
    })
}

/// A scene's latents and its clip made small.
fn clip(studio: &Studio, number: u64, observer: &mut dyn Observer) -> Result<(Array, Small)> {
    let settings = &studio.checkpoint.settings;
    let recipe = Recipe {
        steps: settings.steps,
        guide_scale: settings.guide_scale.0,
        guide_interval: GuideInterval::default(),
        cache: CacheSettings::default(),
    };
    let stage = studio.stage(&scene(number))?;
    let (latents, _) = studio.denoise_observed(&stage, &recipe, None, Some(observer))?;
    let side = studio.checkpoint.vae.spatial_stride() as u32;
    let small = shrink(&studio.decode(&latents)?, side);
    Ok((latents, small))
}

/// The mean of the pixels, `side` each way, that each latent pixel stands for.
fn shrink(frames: &[RgbImage], side: u32) -> Small {
    let mut small = Vec::new();
    let (first, others) = frames.split_at(1);
    let groups = [first]
        .into_iter()
        .chain(others.chunks(TEMPORAL_STRIDE as usize));
    for group in groups {
        let (width, height) = group[0].dimensions();
        for (y, x) in (0..height / side).flat_map(|y| (0..width / side).map(move |x| (y, x))) {
            let mut sum = [0.0; 3];
            for frame in group {
                for (dy, dx) in (0..side).flat_map(|dy| (0..side).map(move |dx| (dy, dx))) {
                    let pixel = frame.get_pixel(x * side + dx, y * side + dy);
                    for (sum, level) in sum.iter_mut().zip(pixel.0) {
                        *sum += f64::from(level);
                    }
                }
            }
            let count = group.len() as f64 * f64::from(side * side);
            small.push(sum.map(|sum| sum / count / 127.5 - 1.0));
        }
    }
    small
}

/// Prints PSNR of the pictures of each step against the clip that comes of it, at the latents'
/// resolution, and against the pictures of the final latents; of the squared differences' mean over
/// all scenes.
fn measure(studio: &Studio) -> Result<()> {
    let settings = &studio.checkpoint.settings;
    let steps = settings.steps as usize;
    let mut squares = vec![[0.0; 2]; steps];
    let mut clips = Small::new();
    for number in MEASURED {
        let mut watcher = Watcher::default();
        let (latents, small) = clip(studio, number, &mut watcher)?;
        ensure!(watcher.estimates.len() == steps, "an estimate is missing");
        let shown = |latents| -> Result<Small> {
            let pictures = settings.latent_rgb.pictures(latents)?;
            let pixels = pictures.iter().flat_map(RgbImage::pixels);
            Ok(pixels
                .map(|p| p.0.map(|level| f64::from(level) / 127.5 - 1.0))
                .collect())
        };
        let last = shown(&latents)?;
        for (sums, estimate) in squares.iter_mut().zip(&watcher.estimates) {
            let shown = shown(estimate)?;
            sums[0] += square(&shown, &small);
            sums[1] += square(&shown, &last);
        }
        clips.extend(small);
    }
    let schedule = Schedule::new(Solver::UniPc, steps, settings.shift);
    let psnr = |sum: f64| psnr_of_mean_square(sum * 127.5 * 127.5 / (clips.len() * 3) as f64);
    println!("| step | noise level | clip | last picture |\n| --- | --- | --- | --- |");
    for (index, [clip, last]) in squares.iter().enumerate() {
        let sigma = schedule.sigmas.get(index).context("no noise level")?;
        let (step, clip, last) = (index + 1, psnr(*clip), psnr(*last));
        println!("| {step} | {sigma:.3} | {clip:.1} dB | {last:.1} dB |");
    }
    let mut mean = [0.0; 3];
    for colour in &clips {
        for (mean, value) in mean.iter_mut().zip(colour) {
            *mean += value / clips.len() as f64;
        }
    }
    let grey = square(&vec![mean; clips.len()], &clips);
    println!("\nall of one colour: {:.1} dB", psnr(grey));
    cost()
}

/// Prints what a preview of the published model's clips takes.
fn cost() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let title = Title {
        prompt: Some("a prompt".into()),
        facts: "81 frames".into(),
    };
    for (clip, height, width) in [("480p", 60, 104), ("720p", 90, 160)] {
        let latents = initial_noise(1, 16, [21, height, width]);
        for name in ["preview.png", "preview.gif"] {
            let start = Instant::now();
            let pictures = LatentRgb::default().pictures(&latents)?;
            preview::write(&folder.path().join(name), &pictures, 16.0, &title)?;
            println!(
                "{clip}, 81 frames, {name}: {:.2} s",
                start.elapsed().as_secs_f64()
            );
        }
    }
    Ok(())
}

/// The sum of squared differences.
fn square(a: &Small, b: &Small) -> f64 {
    let values = a.as_flattened().iter().zip(b.as_flattened());
    values.map(|(a, b)| (a - b) * (a - b)).sum()
}

/// Keeps every estimate.
#[derive(Debug, Default)]
struct Watcher {
    estimates: Vec<Array>,
}

impl Observer for Watcher {
    fn wants(&self, _index: usize, _steps: usize) -> bool {
        true
    }

    fn estimate(&mut self, clean: &Array) {
        self.estimates.push(clean.clone());
    }
}

/// Wants nothing.
#[derive(Debug)]
struct Quiet;

impl Observer for Quiet {
    fn wants(&self, _index: usize, _steps: usize) -> bool {
        false
    }

    fn estimate(&mut self, _clean: &Array) {}
}
