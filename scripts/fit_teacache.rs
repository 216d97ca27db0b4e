//! Fits TeaCache's polynomial to a model and prints it as `wan_i2v.json` takes it; to the built-in
//! miniature, or to the model of runs that `--dump` wrote (without `--cache`):
//! `cargo run --release --example fit-teacache [-- DUMP...]`.
//!
//! The method is TeaCache's (arXiv:2411.19108; its author in ali-vilab/TeaCache, issue 2): the
//! relative change of the prediction from one step to the next, as a polynomial of the change of
//! what indicates it, here the time projection ("e0" in TeaCache4Wan2.1), by least squares. Two
//! things differ. Residuals count relative to the prediction's change, not as they are: otherwise
//! the few large changes decide alone, and the fit is near zero or below for the many small ones
//! that are to be added up. And the degree is 2, not 4: it fits as well, and stays sane beyond the
//! fitted range.

#![allow(clippy::disallowed_macros, clippy::disallowed_methods)]

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use npyz::NpyFile;
use wan_i2v::clip::{CacheSettings, GuideInterval};
use wan_i2v::diagnose::lab::linear::solve;
use wan_i2v::diagnose::lab::scenes::{Recipe, Studio, scene};
use wan_i2v::persist::dump::Dump;

/// Scenes that `bench-caches` does not show.
const SCENES: std::ops::Range<u64> = 1000..1016;
/// Steps of the runs: what users choose.
const STEPS: [u32; 6] = [6, 8, 12, 20, 30, 40];
const DEGREE: usize = 2;
/// Timestep from which the high-noise expert predicts, in the miniature as in Wan2.2 I2V-A14B.
const BOUNDARY: i64 = 900;

/// A step to the next within one expert.
struct Pair {
    high_noise: bool,
    /// Relative change of the time projection.
    time: f64,
    /// Relative change of the prediction.
    prediction: f64,
}

fn main() -> Result<()> {
    let dumps: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let mut pairs = Vec::new();
    for dump in &dumps {
        pairs.extend(read(dump)?);
    }
    if dumps.is_empty() {
        pairs = miniature()?;
    }
    let (x, y): (Vec<f64>, Vec<f64>) = pairs.iter().map(|p| (p.time, p.prediction)).unzip();
    let coefficients = least_squares(&x, &y, DEGREE)?;
    println!(
        "| expert | pairs | change of time | change of prediction | median error of the fit |"
    );
    println!("| --- | --- | --- | --- | --- |");
    for (name, high_noise) in [("high-noise", true), ("low-noise", false)] {
        let chosen = || pairs.iter().filter(|pair| pair.high_noise == high_noise);
        let mut errors: Vec<f64> = chosen()
            .map(|pair| (polynomial(&coefficients, pair.time) / pair.prediction - 1.0).abs())
            .collect();
        errors.sort_by(f64::total_cmp);
        let (time, prediction) = (
            range(chosen().map(|p| p.time)),
            range(chosen().map(|p| p.prediction)),
        );
        println!(
            "| {name} | {} | {time} | {prediction} | {:.0}% |",
            errors.len(),
            errors.get(errors.len() / 2).unwrap_or(&f64::NAN) * 100.0
        );
    }
    let rounded: Vec<String> = coefficients.iter().map(|c| format!("{c:.6}")).collect();
    println!("\n\"teacache\": [{}]", rounded.join(", "));
    Ok(())
}

fn range(values: impl Iterator<Item = f64> + Clone) -> String {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    format!("{low:.4} to {:.4}", values.fold(0.0, f64::max))
}

/// The pairs of runs of the miniature.
fn miniature() -> Result<Vec<Pair>> {
    let studio = Studio::open()?;
    let mut pairs = Vec::new();
    for number in SCENES {
        let stage = studio.stage(&scene(number))?;
        for steps in STEPS {
            let recipe = Recipe {
                steps,
                guide_scale: studio.checkpoint.settings.guide_scale.0,
                guide_interval: GuideInterval::default(),
                cache: CacheSettings::default(),
            };
            let folder = tempfile::tempdir()?;
            let dump = Dump::create(folder.path())?;
            studio.denoise(&stage, &recipe, Some(&dump))?;
            pairs.extend(read(folder.path())?);
        }
        eprintln!("scene {number}: {} pairs so far", pairs.len());
    }
    Ok(pairs)
}

/// The pairs of a run that was dumped to `folder`.
fn read(folder: &Path) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    let mut before: Option<(bool, Vec<f32>, Vec<f32>)> = None;
    for (index, timestep) in load::<i64>(folder, "timesteps")?.into_iter().enumerate() {
        let tensor = |what: &str| load::<f32>(folder, &format!("step_{index:03}_{what}"));
        let now = (timestep >= BOUNDARY, tensor("time")?, tensor("cond")?);
        if let Some(before) = before.filter(|before| before.0 == now.0) {
            pairs.push(Pair {
                high_noise: now.0,
                time: change(&before.1, &now.1),
                prediction: change(&before.2, &now.2),
            });
        }
        before = Some(now);
    }
    Ok(pairs)
}

fn load<T: npyz::Deserialize>(folder: &Path, name: &str) -> Result<Vec<T>> {
    let path = folder.join(format!("{name}.npy"));
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(NpyFile::new(BufReader::new(file))?.into_vec::<T>()?)
}

/// Mean absolute difference over the mean absolute value before.
fn change(before: &[f32], now: &[f32]) -> f64 {
    let sum =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v.abs())).sum::<f64>();
    sum(&mut before.iter().zip(now).map(|(a, b)| b - a)) / sum(&mut before.iter().copied())
}

/// Coefficients of the polynomial nearest to the points relative to their `y`, the highest power
/// first.
fn least_squares(x: &[f64], y: &[f64], degree: usize) -> Result<Vec<f64>> {
    // In units of the largest x the powers are of one size, which keeps the normal equations sane.
    let unit = x.iter().copied().fold(0.0, f64::max);
    let order = degree + 1;
    let mut rows = vec![vec![0.0; order + 1]; order];
    for (&x, &y) in x.iter().zip(y) {
        let powers: Vec<f64> = (0..order).map(|p| (x / unit).powi(p as i32)).collect();
        for (row, a) in rows.iter_mut().zip(&powers) {
            for (cell, b) in row.iter_mut().zip(powers.iter().chain([&y])) {
                *cell += a * b / (y * y);
            }
        }
    }
    let [solution] = solve(rows)?;
    let coefficients = (0..order).rev();
    Ok(coefficients
        .map(|p| solution[p] / unit.powi(p as i32))
        .collect())
}

fn polynomial(coefficients: &[f64], x: f64) -> f64 {
    coefficients.iter().fold(0.0, |sum, c| sum * x + c)
}
