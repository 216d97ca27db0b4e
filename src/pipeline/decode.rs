//! From latents to frames.

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use mlx_rs::ops::clip;
use mlx_rs::{Array, memory};
use ndarray::ArrayView4;

use crate::media::frames::to_rgb8;
use crate::model::vae::{
    SPATIAL_STRIDE, TEMPORAL_STRIDE, Tiling, VaeDecoder, choose_decode_tiling, steps,
};
use crate::persist::dump::Dump;
use crate::progress::{Network, Phase, PhaseReport, Progress, RunningPhase, load};
use crate::runtime::{Backend, all_finite, to_host};
use crate::weights::Checkpoint;

/// Loads the VAE's decoder, decodes `latents` `[z_dim, frames, height, width]` (normalised) one
/// latent frame at a time, in tiles if the backend's budget asks for them, and gives each pixel
/// frame to `emit`; then lets the decoder go.
///
/// # Errors
/// When a weight is damaged, MLX fails, a decoded value is not finite, or `emit` fails.
pub fn decode_clip(
    checkpoint: &Checkpoint,
    backend: Backend,
    latents: &Array,
    dump: Option<&Dump>,
    progress: &mut dyn Progress,
    emit: &mut dyn FnMut(&RgbImage) -> Result<()>,
) -> Result<()> {
    let mut decoder = ClipDecoder::new(checkpoint);
    decoder.decode(backend, latents, dump, progress, emit)?;
    Ok(())
}

/// The VAE's decoder, loaded when the first clip is decoded.
#[derive(Debug)]
pub(super) struct ClipDecoder<'a> {
    checkpoint: &'a Checkpoint,
    decoder: Option<VaeDecoder>,
}

impl<'a> ClipDecoder<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self {
            checkpoint,
            decoder: None,
        }
    }

    /// See [`decode_clip`]; in the parts that `backend` asks for.
    ///
    /// # Errors
    /// As there.
    pub(super) fn decode(
        &mut self,
        backend: Backend,
        latents: &Array,
        dump: Option<&Dump>,
        progress: &mut dyn Progress,
        emit: &mut dyn FnMut(&RgbImage) -> Result<()>,
    ) -> Result<PhaseReport> {
        let grid = [1, 2, 3].map(|axis| latents.dim(axis));
        let tiling = choose_decode_tiling(&self.checkpoint.vae, backend, grid);
        let mut stage = RunningPhase::start(Phase::Decoding, steps(tiling, grid), 0, progress);
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            empty => {
                let (decoder, _) = load(Network::VaeDecoder, progress, || {
                    self.checkpoint.load_vae_decoder(backend)
                })?;
                empty.insert(decoder)
            }
        };
        decoder.set_score_bytes(backend.score_bytes);
        decode(
            self.checkpoint,
            decoder,
            tiling,
            latents,
            dump,
            emit,
            &mut || stage.advance(progress),
        )?;
        memory::clear_cache()?;
        Ok(stage.finish(progress))
    }

    /// Lets the decoder go.
    pub(super) fn release(&mut self) -> Result<()> {
        self.decoder = None;
        Ok(memory::clear_cache()?)
    }
}

fn decode(
    checkpoint: &Checkpoint,
    decoder: &VaeDecoder,
    tiling: Option<Tiling>,
    latents: &Array,
    dump: Option<&Dump>,
    emit: &mut dyn FnMut(&RgbImage) -> Result<()>,
    advance: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let latent_frames = latents.dim(1);
    let latents = checkpoint.vae.denormalize(latents)?;
    let frames = (latent_frames - 1) * TEMPORAL_STRIDE + 1;
    let (height, width) = (
        (latents.dim(2) * SPATIAL_STRIDE) as usize,
        (latents.dim(3) * SPATIAL_STRIDE) as usize,
    );
    let mut dumped = match dump {
        Some(dump) => {
            let shape = [frames as u64, height as u64, width as u64, 3];
            Some(dump.writer::<f32>("frames", &shape)?)
        }
        None => None,
    };
    let mut frame = 0;
    let mut finish = |pixels: &Array| {
        // Before clipping, which turns infinity into white.
        ensure!(
            all_finite(pixels)?,
            "decoding latent frame {frame} of {latent_frames}: the VAE's output is not finite; \
             try --device cpu and please report it"
        );
        let pixels = clip(pixels, (-1.0, 1.0))?;
        let count = pixels.dim(0) as usize;
        let values = to_host(&pixels)?;
        if let Some(writer) = &mut dumped {
            writer.push(&values)?;
        }
        let chunk = ArrayView4::from_shape((count, height, width, 3), &values)?;
        for pixels in chunk.outer_iter() {
            let image = to_rgb8(pixels)
                .with_context(|| format!("decoding latent frame {frame} of {latent_frames}"))?;
            emit(&image)?;
        }
        frame += 1;
        Ok(())
    };
    decoder.decode(&latents, tiling, advance, &mut finish)?;
    if let Some(writer) = dumped {
        writer.finish()?;
    }
    Ok(())
}
