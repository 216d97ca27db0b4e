//! From the start picture to what the transformer sees of it.

use anyhow::{Result, ensure};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype, memory};
use ndarray::ArrayView3;

use super::progress::{Network, Phase, Progress, Stage, load};
use crate::backend::{Backend, all_finite};
use crate::checkpoint::Checkpoint;
use crate::dump::Dump;
use crate::model::vae::{TEMPORAL_STRIDE, VaeEncoder, choose_encode_tiling, steps};
use crate::request::Plan;

/// The channels that are joined to the noise: `[4 + z_dim, frames, height, width]`, the mask and
/// then the normalised latents of the picture followed by zeros.
#[derive(Clone, Debug)]
pub struct Condition(pub Array);

/// Loads the VAE's encoder, encodes the conditioning video (the picture, then zeros), in tiles if
/// the backend's budget asks for them, and lets the encoder go.
///
/// `pixels`: `[height, width, 3]` in [-1, 1], of the clip's size.
///
/// # Errors
/// When a weight is damaged or MLX fails.
pub fn encode_condition(
    checkpoint: &Checkpoint,
    backend: Backend,
    pixels: ArrayView3<'_, f32>,
    plan: &Plan,
    dump: Option<&Dump>,
    progress: &mut dyn Progress,
) -> Result<Condition> {
    let units = image_units(checkpoint, backend, plan);
    let mut stage = Stage::start(Phase::Image, units, 0, progress);
    let mut encoder = ImageEncoder::load(checkpoint, backend, progress)?;
    let condition = encoder.encode(backend, pixels, plan, &mut stage, progress)?;
    if let Some(dump) = dump {
        condition.dump(dump)?;
    }
    drop(encoder);
    memory::clear_cache()?;
    stage.finish(progress);
    Ok(condition)
}

/// Units of encoding a clip's conditioning video.
pub(super) fn image_units(checkpoint: &Checkpoint, backend: Backend, plan: &Plan) -> usize {
    let grid = plan.latent_grid();
    steps(choose_encode_tiling(&checkpoint.vae, backend, grid), grid)
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
        backend: Backend,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let (encoder, _) = load(Network::VaeEncoder, progress, || {
            checkpoint.load_vae_encoder(backend)
        })?;
        Ok(Self {
            checkpoint,
            encoder,
        })
    }

    /// See [`encode_condition`]; in the parts that `backend` asks for.
    ///
    /// # Errors
    /// When MLX fails, the latents are not finite, or the run shall stop here.
    pub(super) fn encode(
        &mut self,
        backend: Backend,
        pixels: ArrayView3<'_, f32>,
        plan: &Plan,
        stage: &mut Stage,
        progress: &mut dyn Progress,
    ) -> Result<Condition> {
        self.encoder.set_score_bytes(backend.score_bytes);
        encode(
            self.checkpoint,
            &self.encoder,
            backend,
            pixels,
            plan,
            &mut || stage.advance(progress),
        )
    }
}

impl Condition {
    /// Writes it, and its mask by itself.
    pub(super) fn dump(&self, dump: &Dump) -> Result<()> {
        dump.array("mask", &self.0.try_index(..TEMPORAL_STRIDE)?)?;
        dump.array("condition", &self.0)
    }
}

fn encode(
    checkpoint: &Checkpoint,
    encoder: &VaeEncoder,
    backend: Backend,
    pixels: ArrayView3<'_, f32>,
    plan: &Plan,
    advance: &mut dyn FnMut() -> Result<()>,
) -> Result<Condition> {
    let grid = plan.latent_grid();
    let frames = grid[0];
    let tiling = choose_encode_tiling(&checkpoint.vae, backend, grid);
    let (rows, columns) = (plan.height as i32, plan.width as i32);
    ensure!(
        pixels.dim() == (rows as usize, columns as usize, 3),
        "the picture was resized to {:?}; expected {rows} x {columns} RGB",
        pixels.dim()
    );
    let picture: Vec<f32> = pixels.iter().copied().collect();
    let picture = Array::from_slice(&picture, &[1, rows, columns, 3]);
    let blank = zeros_dtype(&[TEMPORAL_STRIDE, rows, columns, 3], Dtype::Float32)?;

    let chunk = |frame| Ok(if frame == 0 { &picture } else { &blank }.clone());
    let latents = encoder.encode(frames, &chunk, tiling, advance)?;
    let latents = checkpoint.vae.normalize(&latents)?;
    let mask = first_frame_mask(grid)?;
    let condition = concatenate(&[mask, latents], 0)?.contiguous()?;
    condition.eval()?;
    ensure!(
        all_finite(&condition)?,
        "the VAE's encoding of the picture is not finite; its weights are damaged, or try \
         --device cpu and please report it"
    );
    Ok(Condition(condition))
}

/// The mask `[4, frames, height, width]`: ones in latent frame 0, zeros after. Its channels are
/// the four pixel frames of a latent frame; the first latent frame holds one picture four times.
pub fn first_frame_mask(grid: [i32; 3]) -> Result<Array> {
    let [frames, height, width] = grid;
    let first = mlx_rs::ops::ones_dtype(&[TEMPORAL_STRIDE, 1, height, width], Dtype::Float32)?;
    let rest = zeros_dtype(
        &[TEMPORAL_STRIDE, frames - 1, height, width],
        Dtype::Float32,
    )?;
    Ok(concatenate(&[first, rest], 1)?)
}
