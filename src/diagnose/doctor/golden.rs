//! A clip of the built-in miniature, held to the one that `scripts/golden_doctor.rs` made.

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::vae::mean_and_deviation;
use super::{Bound, CheckResult, scene};
use crate::clip::Model;
use crate::model::MemoryPlan;
use crate::pipeline::{
    Denoiser, Silent, encode_condition, encode_prompts, initial_noise, tokenize,
};
use crate::runtime::Device;
use crate::weights::Loading;

/// Frames of the clip.
const FRAMES: u32 = 17;
/// Side of the squares that frames are averaged over, in pixels.
const SQUARE: u32 = 4;
/// Levels by which a square of the last frame, or a frame's mean or deviation, may be off. On the
/// CPU bfloat16 products move a square by 2.4; a tail that fades or freezes, by tens.
pub const MOST: f64 = 8.0;

/// What is kept of a clip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gist {
    /// Mean and deviation of each frame's channels: red, green, blue.
    pub frames: Vec<[(f64, f64); 3]>,
    /// Means of squares of the last frame, row by row, red, green and blue.
    pub last: Vec<f64>,
}

impl Gist {
    /// Of a clip's frames, rounded to tenths of a level.
    ///
    /// # Errors
    /// When there is no frame.
    pub fn of(frames: &[RgbImage]) -> Result<Self> {
        let tenths = |value: f64| (10.0 * value).round() / 10.0;
        let last = frames.last().context("the clip has no frame")?;
        let mut squares = Vec::new();
        for y in (0..last.height()).step_by(SQUARE as usize) {
            for x in (0..last.width()).step_by(SQUARE as usize) {
                for channel in 0..3 {
                    let pixels = (0..SQUARE).flat_map(|dy| (0..SQUARE).map(move |dx| (dx, dy)));
                    let levels = pixels.filter_map(|(dx, dy)| {
                        let pixel = last.get_pixel_checked(x + dx, y + dy)?;
                        Some(f64::from(pixel[channel]))
                    });
                    squares.push(tenths(mean_and_deviation(levels).0));
                }
            }
        }
        let of_frame = |frame: &RgbImage| {
            [0, 1, 2].map(|channel| {
                let levels = frame.iter().skip(channel).step_by(3);
                let (mean, deviation) = mean_and_deviation(levels.map(|&v| f64::from(v)));
                (tenths(mean), tenths(deviation))
            })
        };
        Ok(Self {
            frames: frames.iter().map(of_frame).collect(),
            last: squares,
        })
    }

    /// The one that every machine has to come to.
    ///
    /// # Errors
    /// When the program was built with a damaged file.
    pub fn known() -> Result<Self> {
        serde_json::from_str(include_str!("golden.json")).context("golden.json is damaged")
    }

    /// How far a clip is from the known one.
    ///
    /// # Errors
    /// When it has other frames or another size.
    pub fn compare(&self, known: &Self) -> Result<CheckResult> {
        ensure!(
            self.frames.len() == known.frames.len() && self.last.len() == known.last.len(),
            "{} frames instead of {}, or another size",
            self.frames.len(),
            known.frames.len()
        );
        let squares = self.last.iter().zip(&known.last);
        let worst_square = squares.map(|(a, b)| (a - b).abs()).fold(0.0, larger);
        let distances = self.frames.iter().zip(&known.frames).map(|(ours, known)| {
            let channels = ours.iter().zip(known);
            let distance =
                |(a, b): (&(f64, f64), &(f64, f64))| larger((a.0 - b.0).abs(), (a.1 - b.1).abs());
            channels.map(distance).fold(0.0, larger)
        });
        let distances: Vec<f64> = distances.collect();
        let worst_frame = distances.iter().copied().fold(0.0, larger);
        let departs = distances
            .iter()
            .position(|&distance| !Bound::AtMost(MOST).holds(distance));
        let mut detail = format!(
            "squares of the last frame {worst_square:.1}, means and deviations of frames \
             {worst_frame:.1}"
        );
        if let Some(frame) = departs {
            detail += &format!("; frame {frame} is the first that is off");
        }
        let name = "a clip of the miniature against its known result, in levels";
        let worst = larger(worst_square, worst_frame);
        Ok(CheckResult::new(name, worst, Bound::AtMost(MOST), detail))
    }
}

/// The larger of two, and NaN if one is.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Renders the clip.
///
/// # Errors
/// When MLX fails, or a value is not finite.
pub fn render(device: Device) -> Result<Vec<RgbImage>> {
    let checkpoint = Model::Tiny.open(Loading::default())?;
    let plan = scene::plan(&checkpoint, FRAMES);
    let ids = tokenize(&checkpoint, scene::PROMPT, &plan)?;
    let prompts = encode_prompts(&checkpoint, device, &ids, None, &mut Silent)?;
    let pixels = scene::picture(plan.width, plan.height);
    let memory = &MemoryPlan::WHOLE;
    let condition = encode_condition(
        &checkpoint,
        device,
        memory,
        pixels.view(),
        &plan,
        None,
        &mut Silent,
    )?;
    let noise = initial_noise(
        plan.seed,
        checkpoint.vae.z_dim,
        plan.latent_grid(&checkpoint.vae),
    );
    let mut denoiser = Denoiser::new(
        &checkpoint,
        device,
        *memory,
        prompts,
        condition,
        noise,
        &plan,
    )?;
    let latents = denoiser.run(None, &mut Silent)?;
    scene::decoded(&checkpoint, device, memory, &latents)
}

pub(super) fn examine(device: Device) -> Result<CheckResult> {
    Gist::of(&render(device)?)?.compare(&Gist::known()?)
}
