//! What the limits of `wan-i2v analyze` rest on (`docs/analyze.md`): the range of every figure that is
//! held to a limit, over sound clips of the built-in miniature and over broken ones.
//!
//! `cargo run --release --example analysis-limits -- CLIPS`

#![allow(clippy::disallowed_macros, clippy::disallowed_methods)]

use anyhow::Result;
use mlx_rs::Array;
use wan_i2v::clip::{CacheSettings, GuideInterval};
use wan_i2v::diagnose::analyze::{FrameStats, LatentStats, Report, analyze};
use wan_i2v::diagnose::lab::scenes::{self, Recipe, Studio};
use wan_i2v::diagnose::lab::{report_of, through};
use wan_i2v::pipeline::initial_noise;

/// The names of the figures of [`of_frames`].
const FRAMES: [&str; 12] = [
    "least contrast",
    "its share",
    "noise",
    "coherence",
    "difference",
    "from first",
    "2 px",
    "8 px",
    "16 px",
    "power",
    "PSNR",
    "SSIM",
];
/// The names of the figures of [`of_latents`].
const LATENTS: [&str; 3] = ["least contrast", "its share", "correlation"];

/// The lowest and the highest value of each figure.
struct Ranges {
    name: String,
    ranges: Vec<(f64, f64)>,
    clips: usize,
    alarms: usize,
}

impl Ranges {
    fn add(all: &mut Vec<Self>, name: &str, report: &Report) {
        let figures = match report.frames.is_empty() {
            false => of_frames(report).to_vec(),
            true => of_latents(&report.latents).to_vec(),
        };
        let place = all.iter().position(|ranges| ranges.name == name);
        let place = place.unwrap_or_else(|| {
            all.push(Self {
                name: name.into(),
                ranges: vec![(f64::MAX, f64::MIN); figures.len()],
                clips: 0,
                alarms: 0,
            });
            all.len() - 1
        });
        let ranges = &mut all[place];
        for ((low, high), figure) in ranges.ranges.iter_mut().zip(figures) {
            if !figure.is_finite() {
                continue;
            }
            (*low, *high) = (low.min(figure), high.max(figure));
        }
        ranges.clips += 1;
        ranges.alarms += usize::from(report.alarm);
    }
}

fn of_frames(report: &Report) -> [f64; 12] {
    let most = |value: &dyn Fn(&FrameStats) -> Option<f64>| {
        report
            .frames
            .iter()
            .filter_map(value)
            .fold(f64::MIN, f64::max)
    };
    let least = |value: &dyn Fn(&FrameStats) -> Option<f64>| -most(&|f| value(f).map(|v| -v));
    let contrast = least(&|f| Some(f.contrast));
    let first = report.first_frame.as_ref();
    [
        contrast,
        contrast / first.map_or(f64::NAN, |first| first.picture.contrast),
        most(&|f| Some(f.noise)),
        least(&|f| f.coherence),
        least(&|f| f.difference),
        most(&|f| f.from_first),
        most(&|f| Some(f.checkerboard.px2)),
        most(&|f| Some(f.checkerboard.px8)),
        most(&|f| Some(f.checkerboard.px16)),
        most(&|f| f.grid_power),
        first.and_then(|first| first.psnr).unwrap_or(f64::INFINITY),
        first.and_then(|first| first.ssim).unwrap_or(1.0),
    ]
}

fn of_latents(frames: &[LatentStats]) -> [f64; 3] {
    let least = |value: &dyn Fn(&LatentStats) -> f64| {
        frames.iter().map(value).fold(f64::INFINITY, f64::min)
    };
    [
        least(&|f| f.contrast),
        least(&|f| f.contrast / frames[0].contrast),
        least(&|f| f.correlation.unwrap_or(f64::NAN)),
    ]
}

fn main() -> Result<()> {
    let clips = std::env::args()
        .nth(1)
        .map_or(Ok(24), |clips| clips.parse())?;
    let studio = Studio::open()?;
    let (mut frames, mut latents) = (Vec::new(), Vec::new());
    for number in 0..clips {
        let scene = scenes::scene(number);
        let stage = studio.stage(&scene)?;
        let recipe = Recipe {
            steps: stage.plan.steps,
            guide_scale: stage.plan.guide_scale.low,
            guide_interval: GuideInterval::default(),
            cache: CacheSettings::default(),
        };
        let (sound, _) = studio.denoise(&stage, &recipe, None)?;
        let noise = initial_noise(
            number,
            sound.dim(0),
            stage.plan.latent_grid(&studio.checkpoint.vae),
        );
        let share = |of: &Array, share: f32| of.multiply(Array::from_f32(share));
        let mixed =
            |level| Ok::<_, anyhow::Error>(share(&sound, 1.0 - level)?.add(share(&noise, level)?)?);
        let first: Vec<f32> = (0..sound.dim(1))
            .map(|i| f32::from(u8::from(i == 0)))
            .collect();
        let first = Array::from_slice(&first, &[1, sound.dim(1), 1, 1]);
        let nothing = sound.multiply(&first)?;
        let rest = Array::from_f32(1.0).subtract(&first)?;
        let picture = || Some(scene.picture.clone());
        for (name, array) in [
            ("sound", &sound),
            ("all noise", &noise),
            ("3 tenths noise", &mixed(0.3)?),
            ("6 tenths noise", &mixed(0.6)?),
            ("all zero", &share(&sound, 0.0)?),
            ("zero after the first", &nothing),
            (
                "noise after the first",
                &nothing.add(noise.multiply(rest)?)?,
            ),
        ] {
            Ranges::add(&mut latents, name, &report_of(array)?);
            let clip = studio.decode(array)?;
            Ranges::add(&mut frames, name, &analyze(clip.clone(), picture())?);
            if name == "sound" {
                for file in ["sound.mp4", "sound.gif"] {
                    let read = through(file, &clip)?;
                    Ranges::add(&mut frames, file, &analyze(read, picture())?);
                }
                let other = scenes::scene(number + 1).picture;
                Ranges::add(&mut frames, "another picture", &analyze(clip, Some(other))?);
            }
        }
    }
    show(&FRAMES, &frames);
    show(&LATENTS, &latents);
    Ok(())
}

fn show(figures: &[&str], all: &[Ranges]) {
    for ranges in all {
        println!(
            "{}: {} clips, {} with alarms",
            ranges.name, ranges.clips, ranges.alarms
        );
        for (figure, (low, high)) in figures.iter().zip(&ranges.ranges) {
            // What is of one colour has no correlation.
            match low <= high {
                true => println!("  {figure:<15} {low:8.3} to {high:8.3}"),
                false => println!("  {figure:<15}        -"),
            }
        }
    }
}
