//! A small decoder of previews: what a clip looks like while it is denoised.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use mlx_rs::Array;
use mlx_rs::memory::clear_cache;
use mlx_rs::ops::clip;
use ndarray::ArrayView3;

use crate::media::frames::to_rgb8;
use crate::model::MemoryPlan;
use crate::model::vae::cost::{choose_decode_tiling, decode_peak_bytes};
use crate::model::vae::{VaeConfig, VaeDecoder, small};
use crate::runtime::{Device, to_host};
use crate::weights::config::{PartConfig, vae};
use crate::weights::naming::Kind;
use crate::weights::part::{Loader, Part};
use crate::weights::published;
use crate::weights::store::Location;

/// Bytes that a preview may take beside the transformer's weights, while nothing else is computed.
const BYTES: u64 = 1_000_000_000;

/// taew2_1 or taew2_2, checked by header; its weights are loaded for the first preview.
#[derive(Debug)]
pub struct PreviewDecoder {
    part: Part,
    config: VaeConfig,
    decoder: Option<VaeDecoder>,
}

impl PreviewDecoder {
    /// The file or folder at `path`, for latents of `z_dim` channels.
    ///
    /// # Errors
    /// When it is none, not whole, or for others.
    pub fn open(path: &Path, z_dim: i32) -> Result<Self> {
        let location = Location::at(path)?;
        let part = Part::open(&location, Kind::Vae)?;
        let config = vae(&part)?;
        ensure!(
            config.tiny,
            "{location}: this is a whole VAE, which takes long\nhint: take a small decoder: taew2_1, or \
             taew2_2 for TI2V-5B"
        );
        ensure!(
            config.z_dim == z_dim,
            "{location}: this is {}, and the model has {z_dim} latent channels\nhint: take {}",
            small(config.z_dim),
            if z_dim == 48 { "taew2_2" } else { "taew2_1" }
        );
        part.check(&PartConfig::Vae(config.clone()).specs()?)?;
        Ok(Self {
            part,
            config,
            decoder: None,
        })
    }

    /// The last frame that each latent frame of `clean`, `[z_dim, frames, height, width]`, stands for.
    ///
    /// # Errors
    /// When a weight is damaged, or MLX fails.
    pub fn pictures(&mut self, clean: &Array, device: Device) -> Result<Vec<RgbImage>> {
        let decoder = match &self.decoder {
            Some(decoder) => decoder,
            None => {
                let mut loader = Loader {
                    part: &self.part,
                    device,
                    bits: None,
                    adapters: &[],
                    merges: false,
                };
                let decoder = VaeDecoder::load(&self.config, &mut loader, device)?;
                self.decoder.insert(decoder.of_last_frames())
            }
        };
        clean.eval()?;
        let memory = memory(&self.config, device, [1, 2, 3].map(|axis| clean.dim(axis)));
        let mut pictures = Vec::new();
        let mut show = |pixels: &Array| {
            let (height, width) = (pixels.dim(1) as usize, pixels.dim(2) as usize);
            let values = to_host(&clip(pixels, (-1.0, 1.0))?)?;
            let frame = values.len().saturating_sub(height * width * 3);
            let view = ArrayView3::from_shape((height, width, 3), &values[frame..])?;
            pictures.push(to_rgb8(view).context("a preview's frame")?);
            Ok(())
        };
        decoder.decode(clean, &memory, None, &mut || Ok(()), &mut show)?;
        // The transformer's next step needs buffers of other sizes.
        clear_cache()?;
        Ok(pictures)
    }
}

/// In what parts a preview of so many latents is decoded.
fn memory(config: &VaeConfig, device: Device, grid: [i32; 3]) -> MemoryPlan {
    let whole = MemoryPlan::WHOLE;
    MemoryPlan {
        decode_tiling: choose_decode_tiling(config, device, &whole, grid, BYTES),
        ..whole
    }
}

/// The most bytes that a preview takes, weights included.
pub(super) fn peak_bytes(z_dim: i32, device: Device, grid: [i32; 3]) -> u64 {
    let config = published::small_vae(z_dim);
    decode_peak_bytes(&config, device, &memory(&config, device, grid), grid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::DeviceKind;

    /// Whole frames at 480p on a Mac, tiles where they take more.
    #[test]
    fn previews_keep_to_their_bytes() {
        for kind in [DeviceKind::Gpu, DeviceKind::Cpu] {
            let device = Device::new(kind, None);
            for (z_dim, grid) in [
                (16, [21, 60, 104]),
                (16, [21, 90, 160]),
                (48, [31, 30, 52]),
                (48, [31, 44, 80]),
            ] {
                let bytes = peak_bytes(z_dim, device, grid);
                let tiling = memory(&published::small_vae(z_dim), device, grid).decode_tiling;
                println!("measured {kind} {z_dim} {grid:?}: {bytes} bytes, {tiling:?}");
                assert!(bytes <= BYTES, "{kind} {z_dim} {grid:?}: {bytes}");
            }
        }
    }
}
