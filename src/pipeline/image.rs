//! From pictures to what the transformer sees of them.

use anyhow::{Result, ensure};
use mlx_rs::memory::clear_cache;
use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype};
use ndarray::ArrayView3;

use crate::clip::Settings;
use crate::model::MemoryPlan;
use crate::model::vae::{Chunk, TEMPORAL_STRIDE, VaeConfig, VaeEncoder, steps};
use crate::persist::dump::Dump;
use crate::progress::{Network, Phase, Progress, RunningPhase, load};
use crate::runtime::{Device, all_finite, rows};
use crate::weights::Checkpoint;

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
/// the very last pixel frame the last picture if there is one), in tiles if `memory` asks for them,
/// and drops the encoder.
///
/// Source: `WanImageToVideoPipeline.prepare_latents` of diffusers, with and without `last_image`.
///
/// # Errors
/// When a weight is damaged or MLX fails.
pub fn encode_condition<'a>(
    checkpoint: &Checkpoint,
    device: Device,
    memory: &MemoryPlan,
    ends: impl Into<Ends<'a>>,
    settings: &Settings,
    dump: Option<&Dump>,
    progress: &mut dyn Progress,
) -> Result<Condition> {
    let units = image_units(memory, settings, &checkpoint.vae);
    let mut phase = RunningPhase::start(Phase::Image, units, 0, progress);
    let encoder = ImageEncoder::load(checkpoint, device, progress)?;
    let condition = encoder.encode(memory, ends.into(), settings, &mut phase, progress)?;
    if let Some(dump) = dump {
        condition.dump(dump)?;
    }
    drop(encoder);
    clear_cache()?;
    phase.finish(progress);
    Ok(condition)
}

/// Units of encoding a clip's conditioning video.
pub(super) fn image_units(memory: &MemoryPlan, settings: &Settings, vae: &VaeConfig) -> usize {
    steps(memory.encode_tiling, settings.latent_grid(vae))
}

/// The VAE's encoder, loaded.
#[derive(Debug)]
pub(super) struct ImageEncoder<'a> {
    checkpoint: &'a Checkpoint,
    encoder: VaeEncoder,
}

impl<'a> ImageEncoder<'a> {
    /// Loads it.
    ///
    /// # Errors
    /// When a weight is damaged, or the run shall stop here.
    pub(super) fn load(
        checkpoint: &'a Checkpoint,
        device: Device,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let (encoder, _) = load(Network::VaeEncoder, progress, || {
            checkpoint.load_vae_encoder(device)
        })?;
        Ok(Self {
            checkpoint,
            encoder,
        })
    }

    /// See [`encode_condition`].
    ///
    /// # Errors
    /// When MLX fails, the latents are not finite, or the run shall stop here.
    pub(super) fn encode(
        &self,
        memory: &MemoryPlan,
        ends: Ends<'_>,
        settings: &Settings,
        phase: &mut RunningPhase,
        progress: &mut dyn Progress,
    ) -> Result<Condition> {
        encode(
            self.checkpoint,
            &self.encoder,
            memory,
            ends,
            settings,
            &mut || phase.advance(progress),
        )
    }
}

impl Condition {
    /// Writes it, and its mask by itself.
    pub(super) fn dump(&self, dump: &Dump) -> Result<()> {
        dump.array("mask", &rows(&self.0, 0, TEMPORAL_STRIDE)?)?;
        dump.array("condition", &self.0)
    }
}

fn encode(
    checkpoint: &Checkpoint,
    encoder: &VaeEncoder,
    memory: &MemoryPlan,
    ends: Ends<'_>,
    settings: &Settings,
    advance: &mut dyn FnMut() -> Result<()>,
) -> Result<Condition> {
    let grid = settings.latent_grid(&checkpoint.vae);
    let frames = grid[0];
    let Ends { first, last } = ends;
    let (height, width) = (settings.height as i32, settings.width as i32);
    let frame = |pixels: ArrayView3<'_, f32>| {
        ensure!(
            pixels.dim() == (height as usize, width as usize, 3),
            "the picture was resized to {:?}; expected {height} x {width} RGB",
            pixels.dim()
        );
        let pixels: Vec<f32> = pixels.iter().copied().collect();
        Ok(Array::from_slice(&pixels, &[1, height, width, 3]))
    };
    ensure!(
        last.is_none() || frames > 1,
        "a clip of one frame has no last picture besides the first"
    );
    let ending = match last {
        Some(last) => {
            let blanks = [TEMPORAL_STRIDE - 1, height, width, 3];
            let blanks = zeros_dtype(&blanks, Dtype::Float32)?;
            Chunk::Pixels(concatenate(&[blanks, frame(last)?], 0)?)
        }
        None => Chunk::Blank,
    };
    let picture = Chunk::Pixels(frame(first)?);
    let chunk = |index| {
        Ok(match index {
            0 => &picture,
            index if index == frames - 1 => &ending,
            _ => &Chunk::Blank,
        }
        .clone())
    };
    let latents = encoder.encode(frames, &chunk, memory, advance)?;
    let latents = checkpoint.vae.normalize(&latents)?;
    let mask = frame_mask(grid, last.is_some())?;
    let condition = concatenate(&[mask, latents], 0)?.contiguous()?;
    condition.eval()?;
    ensure!(
        all_finite(&condition)?,
        "the VAE's encoding of the picture is not finite; its weights are damaged, or try \
         --device cpu and please report it"
    );
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
