//! One random model in every layout that people have: it loads, and gives the same latents.

mod converted;
mod distilled;
mod forward;
mod found;
mod inspect;
mod lossless;
mod mixed;
mod quantized;
mod search;
mod strict;

use std::path::Path;

use image::RgbImage;
use ndarray::Array3;
use tempfile::TempDir;
use wan_i2v::clip::{CacheSettings, Fit, GuideInterval, GuideScale, Resize, Settings};
use wan_i2v::model::MemoryPlan;
use wan_i2v::pipeline::{
    Denoiser, PromptIds, Silent, decode_clip, encode_condition, encode_prompts, initial_noise,
};
use wan_i2v::runtime::{Device, DeviceKind, Kernels, Precision, to_host};
use wan_i2v::sampling::{Schedule, Solver};
use wan_i2v::text::TokenIds;
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::{Checkpoint, Loading, Sources};

use crate::support::layouts::{Content, Form, Model};

const F32: Encoding = Encoding::F32;
const F16: Encoding = Encoding::F16;
const BF16: Encoding = Encoding::Bf16;

fn device() -> Device {
    Device::select(Some(DeviceKind::Cpu), Some(Precision::F32)).unwrap()
}

/// [`device`] with MLX's kernels, which a GPU computes with.
fn with_mlx_kernels() -> Device {
    let Device { kind, dtype, .. } = device();
    Device::with_kernels(kind, Some(dtype), Kernels::Mlx)
}

/// A model's folder in `form`, and the model of the values that it stands for.
fn folder(form: Form, model: &Model) -> (TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    let (contents, meant) = model.in_form(form);
    form.write(model, &contents, folder.path());
    (folder, meant)
}

/// As [`folder`], with tensors changed after they were stored.
fn damaged(form: Form, model: &Model, damage: impl FnOnce(&mut [Content; 4])) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (mut contents, _) = model.in_form(form);
    damage(&mut contents);
    form.write(model, &contents, folder.path());
    folder
}

fn open(root: &Path) -> anyhow::Result<Checkpoint> {
    Checkpoint::open(&Sources::folder(root), Loading::default())
}

/// What a short guided run makes, in which both experts take part.
#[derive(Debug, PartialEq)]
struct Made {
    latents: Vec<f32>,
    /// Pixels of every frame.
    frames: Vec<u8>,
}

fn run(checkpoint: &Checkpoint, device: Device) -> Made {
    let plan = Settings {
        width: 48,
        height: 32,
        frames: 9,
        fps: 16.0,
        steps: 4,
        switch: Default::default(),
        sigmas: Default::default(),
        solver: Solver::UniPc,
        shift: 5.0,
        guide_scale: GuideScale {
            low: 3.0,
            high: 4.0,
        },
        guide_interval: GuideInterval::default(),
        cache: CacheSettings::default(),
        seed: 11,
        resize: Resize::Lanczos,
        fit: Fit::Crop,
        negative_prompt: String::new(),
    };
    let ids = |ids: &[u32]| TokenIds {
        ids: ids.to_vec(),
        cut: None,
    };
    let ids = PromptIds {
        prompt: ids(&[17, 401, 5, 999, 268, 64, 1]),
        negative: Some(ids(&[300, 2, 77, 1])),
    };
    let prompts = encode_prompts(checkpoint, device, &ids, None, &mut Silent).unwrap();
    let pixels = Array3::from_shape_fn((32, 48, 3), |(y, x, c)| {
        ((7 * x + 5 * y + 11 * c) % 32) as f32 / 16.0 - 1.0
    });
    let condition = encode_condition(
        checkpoint,
        device,
        &MemoryPlan::WHOLE,
        pixels.view(),
        &plan,
        None,
        &mut Silent,
    )
    .unwrap();
    let noise = initial_noise(plan.seed, 16, plan.latent_grid(&checkpoint.vae));
    let schedule = Schedule::new(plan.solver, plan.steps as usize, plan.shift);
    let experts: Vec<_> = schedule
        .timesteps
        .iter()
        .map(|&t| checkpoint.expert_for(t))
        .collect();
    assert!(experts.first() != experts.last(), "{experts:?}");
    let mut denoiser = Denoiser::new(
        checkpoint,
        device,
        MemoryPlan::WHOLE,
        prompts,
        condition,
        noise,
        &plan,
    )
    .unwrap();
    let latents = denoiser.run(None, &mut Silent).unwrap();
    let mut frames = Vec::new();
    let mut push = |frame: &RgbImage| {
        frames.extend_from_slice(frame.as_raw());
        Ok(())
    };
    decode_clip(
        checkpoint,
        device,
        &MemoryPlan::WHOLE,
        &latents,
        None,
        &mut Silent,
        &mut push,
    )
    .unwrap();
    let latents = to_host(&latents).unwrap();
    assert!(latents.iter().all(|value| value.is_finite()));
    Made { latents, frames }
}

/// [`run`] of a folder.
fn run_folder(root: &Path) -> Made {
    run(&open(root).unwrap(), device())
}

/// What `model` makes from the plainest layout: diffusers' in float32.
fn reference(model: &Model) -> Made {
    let (folder, meant) = folder(Form::Diffusers(F32), model);
    assert_eq!(meant.parts[0][0].values, model.parts[0][0].values);
    run_folder(folder.path())
}

/// Fails unless two runs agree to the last bit.
#[track_caller]
fn assert_identical(ours: &Made, reference: &Made, what: &str) {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(
        bits(&ours.latents) == bits(&reference.latents),
        "{what}: the latents differ, by {:.3e}",
        rms_error(&ours.latents, &reference.latents)
    );
    assert!(ours.frames == reference.frames, "{what}: the frames differ");
}

/// Root mean square of the difference over that of the reference.
fn rms_error(ours: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(ours.len(), reference.len());
    let square = |value: f64| value * value;
    let difference: f64 = ours
        .iter()
        .zip(reference)
        .map(|(a, b)| square(f64::from(*a) - f64::from(*b)))
        .sum();
    let energy: f64 = reference.iter().map(|b| square(f64::from(*b))).sum();
    (difference / energy).sqrt()
}
