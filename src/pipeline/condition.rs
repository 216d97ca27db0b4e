//! From the start picture to what the transformer sees of it.

use anyhow::{Result, ensure};
use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype, memory};
use ndarray::ArrayView3;

use super::progress::{Network, Phase, Progress, Stage, load};
use crate::backend::{Backend, all_finite};
use crate::checkpoint::Checkpoint;
use crate::dump::Dump;
use crate::model::vae::{TEMPORAL_STRIDE, choose_encode_tiling, steps};
use crate::request::Plan;

/// The channels that are joined to the noise: `[4 + z_dim, frames, height, width]`, the mask and
/// then the normalised latents of the picture followed by zeros.
#[derive(Clone, Debug)]
pub struct Condition(pub Array);

/// The pictures that a clip is made from, each `[height, width, 3]` in [-1, 1], of the clip's size.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// What it starts with.
    pub first: ArrayView3<'a, f32>,
    /// What it ends with, if that is given.
    pub last: Option<ArrayView3<'a, f32>>,
}

impl<'a> From<ArrayView3<'a, f32>> for Ends<'a> {
    fn from(first: ArrayView3<'a, f32>) -> Self {
        Self { first, last: None }
    }
}

/// Loads the VAE's encoder, encodes the conditioning video (the first picture, then zeros, and in
/// the very last pixel frame the last picture if there is one), in tiles if the backend's budget
/// asks for them, and lets the encoder go.
///
/// Source: `WanImageToVideoPipeline.prepare_latents` of diffusers, with and without `last_image`.
///
/// # Errors
/// When a weight is damaged or MLX fails.
pub fn encode_condition<'a>(
    checkpoint: &Checkpoint,
    backend: Backend,
    ends: impl Into<Ends<'a>>,
    plan: &Plan,
    dump: Option<&Dump>,
    progress: &mut dyn Progress,
) -> Result<Condition> {
    let [frames, height, width] = plan.latent_grid();
    let grid = [frames, height, width];
    let tiling = choose_encode_tiling(&checkpoint.vae, backend, grid);
    let mut stage = Stage::start(Phase::Image, steps(tiling, grid), 0, progress);
    let (encoder, _) = load(Network::VaeEncoder, progress, || {
        checkpoint.load_vae_encoder(backend)
    })?;

    let Ends { first, last } = ends.into();
    let (rows, columns) = (plan.height as i32, plan.width as i32);
    let frame = |pixels: ArrayView3<'_, f32>| {
        ensure!(
            pixels.dim() == (rows as usize, columns as usize, 3),
            "the picture was resized to {:?}; expected {rows} x {columns} RGB",
            pixels.dim()
        );
        let pixels: Vec<f32> = pixels.iter().copied().collect();
        Ok(Array::from_slice(&pixels, &[1, rows, columns, 3]))
    };
    ensure!(
        last.is_none() || frames > 1,
        "a clip of one frame has no last picture beside the first"
    );
    let blanks = |count| zeros_dtype(&[count, rows, columns, 3], Dtype::Float32);
    let (picture, blank) = (frame(first)?, blanks(TEMPORAL_STRIDE)?);
    let ending = match last {
        Some(last) => concatenate(&[blanks(TEMPORAL_STRIDE - 1)?, frame(last)?], 0)?,
        None => blank.clone(),
    };

    let chunk = |index| {
        Ok(match index {
            0 => &picture,
            index if index == frames - 1 => &ending,
            _ => &blank,
        }
        .clone())
    };
    let latents = encoder.encode(frames, &chunk, tiling, &mut || stage.advance(progress))?;
    let latents = checkpoint.vae.normalize(&latents)?;
    let mask = frame_mask(grid, last.is_some())?;
    let condition = concatenate(&[mask.clone(), latents], 0)?.contiguous()?;
    condition.eval()?;
    ensure!(
        all_finite(&condition)?,
        "the VAE's encoding of the picture is not finite; its weights are damaged, or try \
         --device cpu and please report it"
    );
    if let Some(dump) = dump {
        dump.array("mask", &mask)?;
        dump.array("condition", &condition)?;
    }
    drop(encoder);
    memory::clear_cache()?;
    stage.finish(progress);
    Ok(Condition(condition))
}

/// The mask `[4, frames, height, width]` of the pixel frames that are given: its channels are the
/// four pixel frames of a latent frame. Ones in latent frame 0, which holds one picture four times,
/// and, when the last picture is given, in the last channel of the last latent frame.
pub fn frame_mask(grid: [i32; 3], last: bool) -> Result<Array> {
    let [frames, height, width] = grid;
    let plane = (height * width) as usize;
    let is_given = |channel, frame| {
        let ends = last && frame == frames - 1 && channel == TEMPORAL_STRIDE - 1;
        frame == 0 || ends
    };
    let mask: Vec<f32> = (0..TEMPORAL_STRIDE)
        .flat_map(|channel| (0..frames).map(move |frame| (channel, frame)))
        .flat_map(|(channel, frame)| {
            let value = if is_given(channel, frame) { 1.0 } else { 0.0 };
            std::iter::repeat_n(value, plane)
        })
        .collect();
    Ok(Array::from_slice(
        &mask,
        &[TEMPORAL_STRIDE, frames, height, width],
    ))
}
