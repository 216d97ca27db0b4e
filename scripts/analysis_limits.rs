//! What the limits of `wan-i2v analyze` rest on: the extremes of every figure over sound clips of the
//! built-in miniature, and over the same clips with faults put in.
//!
//! `cargo run --release --example analysis-limits -- CLIPS`

#[path = "scenes.rs"]
mod scenes;

use anyhow::Result;
use image::{Rgb, RgbImage};
use mlx_rs::Array;
use ndarray::ArrayView4;
use scenes::{Recipe, Studio, scene};
use wan_i2v::analysis::{self, FrameStats, Report, Status, latents};
use wan_i2v::request::{CacheSettings, GuideInterval};

fn show(name: &str, report: &Report) {
    let f = &report.frames;
    let max = |v: &dyn Fn(&FrameStats) -> f64| f.iter().map(v).fold(f64::MIN, f64::max);
    let min = |v: &dyn Fn(&FrameStats) -> f64| f.iter().map(v).fold(f64::MAX, f64::min);
    let first = report.first_frame.as_ref();
    println!(
        "{name:28} contrast {:5.1} least {:4.2} | noise {:4.2} most {:5.2} x{:4.1} | diff {:4.2}..{:5.2} | cb2 {:4.2} cb8 {:4.2} cb16 {:4.2} | grid {:5.2} | sharp {:6.1} {:4.2} ({:4.2}) | first {:5.2} coh {:5.2} | {:.1} dB {:.3} | {}",
        f[0].contrast,
        min(&|f| f.contrast) / f[0].contrast,
        f[0].noise,
        max(&|f| f.noise),
        max(&|f| f.noise) / f[0].noise,
        f.iter()
            .filter_map(|f| f.difference)
            .fold(f64::MAX, f64::min),
        f.iter().filter_map(|f| f.difference).fold(0.0, f64::max),
        max(&|f| f.checkerboard.px2),
        max(&|f| f.checkerboard.px8),
        max(&|f| f.checkerboard.px16),
        max(&|f| f.grid_power.unwrap_or(0.0)),
        f[0].sharpness,
        min(&|f| f.sharpness) / f[0].sharpness,
        {
            let mut g: Vec<f64> = f.iter().filter_map(|f| f.grid_power).collect();
            g.sort_by(f64::total_cmp);
            g[g.len() / 2]
        },
        f.iter().filter_map(|f| f.from_first).fold(0.0, f64::max),
        f.iter().filter_map(|f| f.coherence).fold(1.0, f64::min),
        first.and_then(|f| f.psnr).unwrap_or(99.0),
        first.and_then(|f| f.ssim).unwrap_or(1.0),
        report
            .findings()
            .map(|v| format!(
                "{:?}{}",
                v.symptom,
                if v.status == Status::Alarm { "!" } else { "" }
            ))
            .collect::<Vec<_>>()
            .join(" "),
    );
}

fn lat(name: &str, array: &Array) -> Result<()> {
    let values = wan_i2v::backend::to_host(array)?;
    let s = array.shape();
    let view = ArrayView4::from_shape(
        (s[0] as usize, s[1] as usize, s[2] as usize, s[3] as usize),
        &values,
    )?;
    let report = latents::analyze(view)?;
    let l = &report.latents;
    let all: Vec<String> = l
        .iter()
        .map(|f| {
            format!(
                "{:.2}/{:.2}/{:.2}/{:.2}",
                f.std,
                f.contrast,
                f.correlation.unwrap_or(0.0),
                f.difference.unwrap_or(0.0)
            )
        })
        .collect();
    println!("{name:28} {}", all.join(" "));
    Ok(())
}

fn main() -> Result<()> {
    let clips: u64 = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(16);
    let studio = Studio::open()?;
    for number in 0..clips {
        let scene = scene(number);
        let stage = studio.stage(&scene)?;
        let recipe = |steps, guide_scale| Recipe {
            steps,
            guide_scale,
            guide_interval: GuideInterval::default(),
            cache: CacheSettings::default(),
        };
        let (array, _) = studio.denoise(&stage, &recipe(12, 2.0), None)?;
        let frames = studio.decode(&array)?;
        println!("{}", scene.prompt);
        show(
            "sound",
            &analysis::analyze(frames.clone(), Some(scene.picture.clone()))?,
        );
        lat("  latents", &array)?;
        if number < 6 {
            for steps in [2, 4, 6] {
                let (array, _) = studio.denoise(&stage, &recipe(steps, 2.0), None)?;
                show(
                    &format!("{steps} steps"),
                    &analysis::analyze(studio.decode(&array)?, Some(scene.picture.clone()))?,
                );
            }
            let noise = wan_i2v::pipeline::initial_noise(number, 16, stage.plan.latent_grid());
            show(
                "noise latents",
                &analysis::analyze(studio.decode(&noise)?, Some(scene.picture.clone()))?,
            );
            lat("  noise", &noise)?;
            for level in [0.3, 0.6] {
                let half = array
                    .multiply(Array::from_f32(1.0 - level))?
                    .add(noise.multiply(Array::from_f32(level))?)?;
                show(
                    &format!("noise {level}"),
                    &analysis::analyze(studio.decode(&half)?, Some(scene.picture.clone()))?,
                );
                lat("  ", &half)?;
            }
            let zero = Array::zeros::<f32>(array.shape())?;
            show(
                "zero latents",
                &analysis::analyze(studio.decode(&zero)?, Some(scene.picture.clone()))?,
            );
            // Content in the first latent frame only.
            let t = array.dim(1);
            let mask: Vec<f32> = (0..t).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect();
            let kept = array.multiply(Array::from_slice(&mask, &[1, t, 1, 1]))?;
            show(
                "first latent only",
                &analysis::analyze(studio.decode(&kept)?, Some(scene.picture.clone()))?,
            );
            let still = RgbImage::from_fn(64, 64, |x, y| {
                let p = scene.picture.get_pixel(x, y).0;
                Rgb(p)
            });
            show(
                "other picture",
                &analysis::analyze(frames.clone(), Some(scenes::scene(number + 1).picture))?,
            );
            let _ = still;
        }
        let dir = tempfile::tempdir()?;
        for ext in ["mp4", "gif"] {
            let path = dir.path().join(format!("x.{ext}"));
            let mut w = wan_i2v::media::clip::ClipWriter::create(
                &path,
                &wan_i2v::media::clip::ClipSpec {
                    width: 64,
                    height: 64,
                    fps: 16.0,
                },
                None,
            )?;
            for f in &frames {
                w.push(f)?;
            }
            w.finish()?;
            let mut read = Vec::new();
            wan_i2v::media::read::frames(&path, &mut |f| {
                read.push(f.pixels);
                Ok(())
            })?;
            show(ext, &analysis::analyze(read, Some(scene.picture.clone()))?);
        }
    }
    Ok(())
}
