//! From latents to frames.

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use mlx_rs::Array;
use mlx_rs::memory::clear_cache;
use mlx_rs::ops::clip;
use ndarray::ArrayView4;

use super::denoise::{Decoders, Partner};
use crate::media::frames::to_rgb8;
use crate::model::MemoryPlan;
use crate::model::vae::{Others, VaeConfig, VaeDecoder, steps};
use crate::persist::dump::Dump;
use crate::progress::{Network, Phase, PhaseReport, Progress, RunningPhase, load};
use crate::runtime::{Device, all_finite, evaluate, to_host};
use crate::weights::Checkpoint;

/// Loads the VAE's decoder, decodes `latents` `[z_dim, frames, height, width]` (normalised) one
/// latent frame at a time, in tiles if `memory` asks for them, and gives each pixel frame
/// to `emit`; then drops the decoder.
///
/// # Errors
/// When a weight is damaged, MLX fails, a decoded value is not finite, or `emit` fails.
pub fn decode_clip(
    checkpoint: &Checkpoint,
    device: Device,
    memory: &MemoryPlan,
    latents: &Array,
    dump: Option<&Dump>,
    progress: &mut dyn Progress,
    emit: &mut dyn FnMut(&RgbImage) -> Result<()>,
) -> Result<()> {
    let mut decoder = ClipDecoder::new(checkpoint);
    decoder.decode(device, memory, latents, dump, progress, emit)?;
    Ok(())
}

/// The VAE's decoder, loaded when the first clip is decoded.
#[derive(Debug)]
pub(super) struct ClipDecoder<'a> {
    checkpoint: &'a Checkpoint,
    decoder: Option<VaeDecoder>,
    /// Who decodes a part.
    partner: Option<Partner>,
}

impl<'a> ClipDecoder<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self {
            checkpoint,
            decoder: None,
            partner: None,
        }
    }

    /// The same with other machines, if there are any.
    pub(super) fn with(self, partner: Option<Partner>) -> Self {
        Self { partner, ..self }
    }

    /// Bytes of arrays that this machine has sent to others.
    pub(super) fn sent(&self) -> u64 {
        self.partner.as_ref().map_or(0, Partner::sent)
    }

    /// See [`decode_clip`].
    ///
    /// # Errors
    /// As there, and [`RankLost`](crate::runtime::RankLost).
    pub(super) fn decode(
        &mut self,
        device: Device,
        memory: &MemoryPlan,
        latents: &Array,
        dump: Option<&Dump>,
        progress: &mut dyn Progress,
        emit: &mut dyn FnMut(&RgbImage) -> Result<()>,
    ) -> Result<PhaseReport> {
        let grid = [1, 2, 3].map(|axis| latents.dim(axis));
        let units = steps(memory.decode_tiling, grid);
        let mut phase = RunningPhase::start(Phase::Decoding, units, 0, progress);
        let config = &self.checkpoint.vae;
        let partner = self.partner.as_mut();
        let others = partner.map(|partner| partner.decode(config, memory, latents));
        let others = others.transpose()?.flatten();
        let decoder = match &self.decoder {
            Some(decoder) => decoder,
            None => {
                let (decoder, _) = load(Network::VaeDecoder, progress, || {
                    self.checkpoint.load_vae_decoder(device)
                })?;
                self.decoder.insert(decoder)
            }
        };
        let decoding = Decoding {
            config,
            decoder,
            memory,
            others,
        };
        decoding.run(latents, dump, emit, &mut || phase.advance(progress))?;
        clear_cache()?;
        Ok(phase.finish(progress))
    }

    /// Drops the decoder.
    pub(super) fn release(&mut self) -> Result<()> {
        self.decoder = None;
        Ok(clear_cache()?)
    }
}

/// A clip that is being decoded.
struct Decoding<'a> {
    config: &'a VaeConfig,
    decoder: &'a VaeDecoder,
    memory: &'a MemoryPlan,
    others: Option<Decoders<'a>>,
}

impl Decoding<'_> {
    fn run(
        self,
        latents: &Array,
        dump: Option<&Dump>,
        emit: &mut dyn FnMut(&RgbImage) -> Result<()>,
        advance: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let latent_frames = latents.dim(1);
        let latents = self.config.denormalize(latents)?;
        let grid = [1, 2, 3].map(|axis| latents.dim(axis));
        let [frames, height, width] = self.config.decoded_grid(grid).map(|side| side as usize);
        let mut dumped = match dump {
            Some(dump) => {
                let shape = [frames, height, width, 3].map(|side| side as u64);
                Some(dump.writer::<f32>("frames", &shape)?)
            }
            None => None,
        };
        let mut frame = 0;
        let mut finish = |pixels: &Array| {
            evaluate(pixels)
                .with_context(|| format!("decoding latent frame {frame} of {latent_frames}"))?;
            // Before clipping, which turns infinity into white.
            ensure!(
                all_finite(pixels)?,
                "decoding latent frame {frame} of {latent_frames}: the VAE's output is not finite\nhint: try --device cpu and please report it"
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
        let Self {
            decoder, memory, ..
        } = self;
        match self.others {
            Some(Decoders { division, partner }) => {
                let mut take = |machine| partner.decoded(machine);
                let take = &mut take;
                let others = Some(Others {
                    division: &division,
                    take,
                });
                decoder.decode(&latents, memory, others, advance, &mut finish)?;
            }
            None => decoder.decode(&latents, memory, None, advance, &mut finish)?,
        }
        if let Some(writer) = dumped {
            writer.finish()?;
        }
        Ok(())
    }
}
