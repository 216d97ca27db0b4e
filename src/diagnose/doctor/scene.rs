//! What is looked at: a drawn picture, a prompt about it, and a small clip's settings.

use anyhow::Result;
use image::RgbImage;
use mlx_rs::Array;
use ndarray::Array3;

use crate::clip::{
    CacheSettings, Fit, GuideInterval, GuideScale, Resize, Settings, Sigmas, Switch,
};
use crate::model::MemoryPlan;
use crate::pipeline::{Condition, Ends, Silent, decode_clip, encode_condition, encode_video};
use crate::runtime::Device;
use crate::sampling::Solver;
use crate::weights::Checkpoint;
use crate::weights::Conditioning;

/// Of the miniature's world (`docs/tiny.md`), and plain words to any other model.
pub const PROMPT: &str = "the red circle moves right";
/// Sides in pixels where a model does not know one size only.
const SIDE: u32 = 256;
/// Of the initial noise.
const SEED: u64 = 7;
const BACKGROUND: [f64; 3] = [196.0, 186.0, 170.0];
const CIRCLE: [f64; 3] = [219.0, 33.0, 33.0];

/// A clip of `frames` with the model's own settings.
pub fn plan(checkpoint: &Checkpoint, frames: u32) -> Settings {
    let settings = &checkpoint.settings;
    let (width, height) = settings.size.unwrap_or((SIDE, SIDE));
    let (low, high) = settings.guide_scale;
    Settings {
        width,
        height,
        frames,
        fps: settings.fps,
        steps: settings.steps,
        switch: Switch::default(),
        sigmas: Sigmas::Wan,
        solver: Solver::UniPc,
        shift: settings.shift,
        guide_scale: GuideScale { low, high },
        guide_interval: GuideInterval::default(),
        cache: CacheSettings::default(),
        seed: SEED,
        resize: Resize::Lanczos,
        fit: Fit::Crop,
        negative_prompt: settings.negative_prompt.clone(),
    }
}

/// A red circle on a plain ground, `[height, width, 3]` in [-1, 1].
pub fn picture(width: u32, height: u32) -> Array3<f32> {
    let side = f64::from(width.min(height));
    let (centre, radius) = (
        (0.33 * f64::from(width), 0.5 * f64::from(height)),
        0.14 * side,
    );
    // An edge of a pixel of the miniature's, so that larger pictures are no sharper than photos.
    let edge = (side / 64.0).max(1.0);
    Array3::from_shape_fn((height as usize, width as usize, 3), |(y, x, channel)| {
        let (dx, dy) = (x as f64 + 0.5 - centre.0, y as f64 + 0.5 - centre.1);
        let cover = ((radius - dx.hypot(dy)) / edge + 0.5).clamp(0.0, 1.0);
        let level = BACKGROUND[channel] + cover * (CIRCLE[channel] - BACKGROUND[channel]);
        (level.round() / 127.5 - 1.0) as f32
    })
}

/// In what parts a clip of the scene is computed with `budget` bytes for the VAE.
pub fn memory_plan(
    checkpoint: &Checkpoint,
    device: Device,
    plan: &Settings,
    budget: u64,
) -> MemoryPlan {
    let grid = plan.latent_grid(&checkpoint.vae);
    MemoryPlan::of_tokens(checkpoint.dit().tokens(grid)).in_tiles(
        &checkpoint.vae,
        device,
        grid,
        budget,
    )
}

/// The latents of the scene's picture and zeros behind it, normalised.
///
/// # Errors
/// As [`encode_video`].
pub fn latents(
    checkpoint: &Checkpoint,
    device: Device,
    memory: &MemoryPlan,
    plan: &Settings,
) -> Result<Array> {
    let pixels = picture(plan.width, plan.height);
    encode_video(checkpoint, device, memory, pixels.view(), plan)
}

/// What the model is told of the scene's picture.
///
/// # Errors
/// As [`encode_condition`].
pub fn condition(
    checkpoint: &Checkpoint,
    device: Device,
    memory: &MemoryPlan,
    plan: &Settings,
) -> Result<Condition> {
    if checkpoint.family.conditioning == Conditioning::Text {
        return Ok(Condition::default());
    }
    let pixels = picture(plan.width, plan.height);
    let mut ends = Ends::from(pixels.view());
    if checkpoint.family.conditioning.features() > 1 {
        ends.last = Some(pixels.view());
    }
    encode_condition(checkpoint, device, memory, ends, plan, None, &mut Silent)
}

/// Every frame of latents `[z_dim, frames, height, width]`.
///
/// # Errors
/// As [`decode_clip`].
pub fn decoded(
    checkpoint: &Checkpoint,
    device: Device,
    memory: &MemoryPlan,
    latents: &Array,
) -> Result<Vec<RgbImage>> {
    let mut frames = Vec::new();
    let mut keep = |frame: &RgbImage| {
        frames.push(frame.clone());
        Ok(())
    };
    decode_clip(
        checkpoint,
        device,
        memory,
        latents,
        None,
        &mut Silent,
        &mut keep,
    )?;
    Ok(frames)
}
