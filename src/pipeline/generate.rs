//! One clip, from its job to its file.

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result};
use mlx_rs::Array;

use super::decode::ClipDecoder;
use super::denoise::Denoiser;
use super::file::ClipFile;
use super::image::{Condition, encode_condition};
use super::prepare::Job;
use super::text::encode_prompts;
use crate::model::MemoryPlan;
use crate::persist::{SavedRun, StateWriter};
use crate::progress::{Memory, Progress, Recorder, Summary};
use crate::runtime::Device;
use crate::sampling::noise::randn;
use crate::util::show::Show;

impl Job {
    /// Makes the clip.
    ///
    /// # Errors
    /// When the folder for intermediates or the clip cannot be written, a weight is damaged, MLX
    /// fails, or a tensor stops being finite (named by step, expert and layer).
    pub fn run(
        self,
        device: Device,
        memory: MemoryPlan,
        progress: &mut dyn Progress,
    ) -> Result<Summary> {
        self.run_saved(device, memory, None, None, progress)
    }

    /// As [`Self::run`], with the run's state written to disk, resuming a saved run of the same
    /// identity if one is given.
    ///
    /// # Errors
    /// As there, and [`Interrupted`](super::Interrupted) when `progress` asked for it.
    pub fn run_saved(
        mut self,
        device: Device,
        memory: MemoryPlan,
        writer: Option<&mut StateWriter>,
        saved: Option<&SavedRun>,
        progress: &mut dyn Progress,
    ) -> Result<Summary> {
        let start = Instant::now();
        let mut recorder = Recorder {
            inner: progress,
            phases: Vec::new(),
        };
        let progress: &mut dyn Progress = &mut recorder;
        let dump = self.dump()?;
        let dump = dump.as_ref();
        let tags = self.tags(device)?;
        let (checkpoint, settings) = (Rc::clone(&self.checkpoint), self.settings.clone());

        let denoiser = if let Some(SavedRun { path, state, .. }) = saved {
            Denoiser::resume(&checkpoint, device, memory, state, &settings)
                .with_context(|| format!("{} cannot be resumed", path.shown()))?
        } else {
            // 1. Text: prompts to embeddings.
            let prompts = encode_prompts(&checkpoint, device, &self.prompts, dump, progress)?;
            // 2. Image: the pictures to the channels that condition the noise.
            let images = self.resized()?;
            let condition = match images.ends() {
                Some(ends) => encode_condition(
                    &checkpoint,
                    device,
                    &memory,
                    ends,
                    &settings,
                    dump,
                    progress,
                )?,
                None => Condition::default(),
            };
            // 3. Noise.
            let noise = initial_noise(
                settings.seed,
                checkpoint.vae.z_dim,
                settings.latent_grid(&checkpoint.vae),
            );
            let denoiser = Denoiser::new(
                &checkpoint,
                device,
                memory,
                prompts,
                condition,
                noise,
                &settings,
            )?;
            dump.map(|dump| denoiser.dump_start(dump)).transpose()?;
            denoiser
        };

        // 4. Denoising: noise to latents, step by step.
        let denoiser = denoiser.observed_by(self.observer.take());
        let mut denoiser = denoiser.shared_with(self.partner.take())?;
        let latents = denoiser.run_saved(dump, writer, progress)?;
        let passes = denoiser.passes();
        let partner = denoiser.into_partner();

        // 5. Decoding, and 6. the file: latents to frames, each written as soon as it is decoded.
        let mut file = ClipFile::create(&self.request, &settings, &checkpoint.vae, tags)?;
        let mut push = |frame: &_| file.push(frame);
        let mut decoder = ClipDecoder::new(&checkpoint).with(partner);
        decoder.decode(device, &memory, &latents, dump, progress, &mut push)?;
        decoder.release()?;
        file.finish()?;

        Ok(Summary {
            frame_size: settings.frame_size(&checkpoint.vae),
            settings,
            passes,
            sent: decoder.sent(),
            phases: recorder.phases,
            memory: Memory::now(),
            seconds: start.elapsed().as_secs_f64(),
        })
    }
}

/// The initial noise `[z_dim, frames, height, width]` of a seed.
///
/// PyTorch draws `[1, z_dim, frames, height, width]` in row-major order; so do we.
pub fn initial_noise(seed: u64, z_dim: i32, grid: [i32; 3]) -> Array {
    let shape = [z_dim, grid[0], grid[1], grid[2]];
    let count = shape.iter().map(|&d| d as usize).product();
    Array::from_slice(&randn(seed, count), &shape)
}
