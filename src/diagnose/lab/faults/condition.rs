//! The picture's encoding and its mask, rightly and wrongly.

use anyhow::{Context, Result};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{concatenate, ones_like, zeros_dtype, zeros_like};
use mlx_rs::{Array, Dtype};

use super::{Case, Fault, weights};
use crate::diagnose::lab::scenes::{Scene, Stage, Studio};
use crate::model::MemoryPlan;
use crate::model::vae::{Chunk, EncoderStream, Slot, TEMPORAL_STRIDE, VaeEncoder};
use crate::pipeline::frame_mask;
use crate::sampling::noise::randn;
use crate::weights::naming::Kind;

/// The condition `[4 + z_dim, frames, height, width]` of a case.
pub fn condition(studio: &Studio, stage: &Stage, scene: &Scene, case: &Case) -> Result<Array> {
    let sound = stage.condition.beside.as_ref();
    let sound = sound.context("the scene has no condition")?;
    let mask = frame_mask(stage.plan.latent_grid(&studio.checkpoint.vae), false)?;
    let latents = match encoded(studio, scene, sound.dim(1), case)? {
        Some(latents) if case.has(Fault::NotNormalised) => latents,
        Some(latents) => studio.checkpoint.vae.normalize(&latents)?,
        None => sound.try_index(mask.dim(0)..)?,
    };
    let mask = match case {
        case if case.has(Fault::MaskOfZeros) => zeros_like(&mask)?,
        case if case.has(Fault::MaskOfOnes) => ones_like(&mask)?,
        case if case.has(Fault::MaskInverted) => ones_like(&mask)?.subtract(&mask)?,
        _ => mask,
    };
    let parts = match case.has(Fault::MaskLast) {
        true => [latents, mask],
        false => [mask, latents],
    };
    Ok(concatenate(&parts, 0)?)
}

/// The conditioning video's latents, not normalised, where a case gets others than the sound ones.
fn encoded(studio: &Studio, scene: &Scene, frames: i32, case: &Case) -> Result<Option<Array>> {
    let zero = |shape: &[i32]| zeros_dtype(shape, Dtype::Float32).ok();
    let changed = |name: &str, shape: &[i32]| match case {
        case if case.has(Fault::EncoderOfZeros) => zero(shape),
        case if case.has(Fault::EncoderAtRandom) => random(name, shape),
        // In no file, since level 0 has none; the program that the report is about left zeros where
        // no weight was loaded.
        _ if name.starts_with("encoder.down_blocks.2.time_conv") => zero(shape),
        _ => None,
    };
    let load = || -> Result<VaeEncoder> {
        let mut config = studio.checkpoint.vae.clone();
        if case.has(Fault::TemporalOrder) {
            config.temperal_downsample = vec![true, true, false];
        }
        weights::load("vae", Kind::Vae, studio.device, &changed, |source| {
            VaeEncoder::load(&config, source, studio.device)
        })
    };
    let in_chunks = |level, forgetting| in_chunks(&load()?, scene, frames, level, forgetting);
    Ok(match case {
        case if case.has(Fault::AtOnce) => Some(at_once(&load()?, scene, frames)?),
        case if case.has(Fault::NoMemory) => Some(in_chunks(0.0, true)?),
        case if case.has(Fault::BlackFrames) => Some(in_chunks(-1.0, false)?),
        case if [
            Fault::EncoderOfZeros,
            Fault::EncoderAtRandom,
            Fault::TemporalOrder,
            Fault::NotNormalised,
        ]
        .into_iter()
        .any(|fault| case.has(fault)) =>
        {
            Some(in_chunks(0.0, false)?)
        }
        _ => None,
    })
}

/// What a framework puts where no weights were loaded: values as small as the inputs are many.
fn random(name: &str, shape: &[i32]) -> Option<Array> {
    let count = shape.iter().product::<i32>();
    let inputs = count / shape.first()?;
    let spread = match name.ends_with("gamma") {
        true => return mlx_rs::ops::ones_dtype(shape, Dtype::Float32).ok(),
        false => (f64::from(inputs.max(1)) * 3.0).sqrt().recip() as f32,
    };
    let seed = name.bytes().map(u64::from).sum();
    // The generator draws 16 at least.
    let values = randn(seed, count.max(16) as usize);
    let values: Vec<f32> = values[..count as usize]
        .iter()
        .map(|v| v * spread)
        .collect();
    Some(Array::from_slice(&values, shape))
}

/// The picture, `[1, height, width, 3]`, and four frames of `level`.
fn chunks(scene: &Scene, level: f32) -> [Array; 2] {
    let (width, height) = scene.picture.dimensions();
    let (rows, columns) = (height as i32, width as i32);
    let pixels: Vec<f32> = scene
        .picture
        .iter()
        .map(|&value| f32::from(value) / 127.5 - 1.0)
        .collect();
    let blank = vec![level; pixels.len() * TEMPORAL_STRIDE as usize];
    [
        Array::from_slice(&pixels, &[1, rows, columns, 3]),
        Array::from_slice(&blank, &[TEMPORAL_STRIDE, rows, columns, 3]),
    ]
}

/// The latents of the picture and frames of `level`, chunk by chunk, `forgetting` what was before
/// each.
fn in_chunks(
    encoder: &VaeEncoder,
    scene: &Scene,
    frames: i32,
    level: f32,
    forgetting: bool,
) -> Result<Array> {
    let [picture, blank] = chunks(scene, level).map(Chunk::Pixels);
    let mut stream = encoder.stream(&MemoryPlan::WHOLE);
    let mut latents = vec![stream.push(&picture)?];
    for _ in 1..frames {
        if forgetting {
            for slot in stream.cache_mut().slots_mut() {
                if let Slot::Frames(frames) = slot {
                    *frames = zeros_like(&*frames)?;
                }
            }
        }
        latents.push(stream.push(&blank)?);
    }
    Ok(concatenate(&latents, 1)?)
}

/// The latents of all frames as one chunk, with zeros in front of every convolution.
fn at_once(encoder: &VaeEncoder, scene: &Scene, frames: i32) -> Result<Array> {
    let [picture, blank] = chunks(scene, 0.0);
    let mut stream = encoder.stream(&MemoryPlan::WHOLE);
    prime(encoder, &mut stream, [&picture, &blank])?;
    let mut video = vec![picture];
    video.extend((1..frames).map(|_| blank.clone()));
    Ok(stream.push(&Chunk::Pixels(concatenate(&video, 0)?))?)
}

/// Fills the slots of `stream`'s temporal downsamplers with zeros: empty ones let a chunk pass.
///
/// After two chunks they are those that keep one frame, where other convolutions keep two.
fn prime(encoder: &VaeEncoder, stream: &mut EncoderStream<'_>, chunks: [&Array; 2]) -> Result<()> {
    let mut probe = encoder.stream(&MemoryPlan::WHOLE);
    for chunk in chunks {
        probe.push(&Chunk::Pixels(chunk.clone()))?;
    }
    let mut primed = 0;
    let slots = stream.cache_mut().slots_mut();
    for (slot, seen) in slots.iter_mut().zip(probe.cache_mut().slots_mut()) {
        if let Slot::Frames(frames) = seen
            && frames.dim(0) == 1
        {
            let shape = [2, frames.dim(1), frames.dim(2), frames.dim(3)];
            *slot = Slot::Frames(zeros_dtype(&shape, Dtype::Float32)?);
            primed += 1;
        }
    }
    (primed == 2)
        .then_some(())
        .context("two levels halve the frames")
}
