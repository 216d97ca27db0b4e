//! From latents to frames.

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use mlx_rs::ops::clip;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, memory};
use ndarray::ArrayView4;

use super::progress::{Phase, Progress};
use crate::backend::{Backend, all_finite, to_host};
use crate::checkpoint::Checkpoint;
use crate::dump::Dump;
use crate::media::frames::to_rgb8;
use crate::model::vae::{SPATIAL_STRIDE, TEMPORAL_STRIDE};

/// Loads the VAE's decoder, decodes `latents` `[z_dim, frames, height, width]` (normalised) one
/// latent frame at a time and gives each pixel frame to `emit`; then lets the decoder go.
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
    let latent_frames = latents.dim(1);
    progress.start(Phase::Decoding, latent_frames as usize);
    progress.detail("loading the VAE's decoder");
    let decoder = checkpoint.load_vae_decoder(backend)?;
    progress.detail("");

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
    let mut stream = decoder.stream();
    for frame in 0..latent_frames {
        let pixels = stream.push(&latents.try_index((.., frame..frame + 1))?)?;
        // Before clipping, which turns infinity into white.
        ensure!(
            all_finite(&pixels)?,
            "decoding latent frame {frame} of {latent_frames}: the VAE's output is not finite; \
             try --device cpu and please report it"
        );
        let pixels = clip(&pixels, (-1.0, 1.0))?;
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
        progress.advance();
    }
    if let Some(writer) = dumped {
        writer.finish()?;
    }
    memory::clear_cache()?;
    progress.finish();
    Ok(())
}
