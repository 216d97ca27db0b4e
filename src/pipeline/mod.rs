//! One clip, from request to media file.
//!
//! text encoding -> image condition -> denoising -> decoding -> media file. Every stage takes
//! what it needs, owns its weights, and is gone when its result is there.

mod cache;
mod condition;
mod decode;
mod denoise;
mod eta;
mod identity;
mod progress;
mod text;

pub use condition::{Condition, encode_condition, first_frame_mask};
pub use decode::decode_clip;
pub use denoise::{DenoiseSettings, Denoiser, Observer, Passes, guide};
pub use progress::{
    Event, Interrupted, Memory, Network, Phase, PhaseReport, Progress, Silent, StepReport,
};
pub use text::{EncodedPrompts, PromptIds, TEXT_LEN, encode_prompts, tokenize};

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use mlx_rs::Array;

use self::progress::Recorder;
use crate::backend::Backend;
use crate::checkpoint::Checkpoint;
use crate::dump::Dump;
use crate::forecast::{Budget, Clip, Rates, Settled, Tokens, fit, settle};
use crate::media::clip::{ClipSpec, ClipWriter, OutputKind, check_writable};
use crate::media::picture::Picture;
use crate::media::strip::{self, FilmStrip};
use crate::noise;
use crate::preview::LatentRgb;
use crate::record::Record;
use crate::request::{Plan, Request};
use crate::resume::{Keeper, Saved};
use crate::schedule::{Sampler, Schedule};

/// A request whose every input has been read and checked, short of loading weights.
#[derive(Debug)]
pub struct Job {
    request: Request,
    checkpoint: Checkpoint,
    picture: Picture,
    prompts: PromptIds,
    plan: Plan,
    observer: Option<Box<dyn Observer>>,
}

impl Job {
    /// Checks everything that can be checked before a model is loaded: flags, picture, output,
    /// the checkpoint's configuration and tensor headers, the prompt.
    ///
    /// # Errors
    /// Names the flag or file, what was found, what was expected.
    pub fn prepare(request: Request) -> Result<Self> {
        request.check()?;
        let picture = Picture::open(&request.image).context("--image")?;
        check_writable(&request.output).context("--output")?;
        request.check_output_spares_image()?;
        if let Some(strip) = &request.strip {
            strip::check(strip).context("--strip")?;
            request.check_spares_others("--strip", strip)?;
        }
        let checkpoint = request.model.open(request.bits)?;
        // As many rows as columns, which opening the checkpoint checks.
        let patch = checkpoint.high.patch_size[1];
        let size = (picture.width(), picture.height());
        let plan = request.plan(&checkpoint.settings, size, patch)?;
        plan.clip_spec()
            .check(OutputKind::from_path(&request.output)?)
            .with_context(|| format!("--output {}", request.output.display()))?;
        check_positions(&plan, &checkpoint)?;
        let prompts = tokenize(&checkpoint, &request.prompt, &plan)?;
        Ok(Self {
            request,
            checkpoint,
            picture,
            prompts,
            plan,
            observer: None,
        })
    }

    /// Lets somebody look on while the clip is denoised.
    pub fn observe(&mut self, observer: Box<dyn Observer>) {
        self.observer = Some(observer);
    }

    /// How the model's latents are shown without decoding them.
    ///
    /// # Errors
    /// When the model names no colours for the latents that it has.
    pub fn latent_rgb(&self) -> Result<&LatentRgb> {
        let map = &self.checkpoint.settings.latent_rgb;
        map.check_channels(self.checkpoint.vae.z_dim)
            .context("--preview: latent_rgb in the model's wan_i2v.json")?;
        Ok(map)
    }

    /// The settled settings.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What the user should know before the run starts, such as a prompt that was cut.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.prompts.warnings();
        if self.request.negative_prompt.is_some() && !self.plan.guide_scale.needs_negative() {
            warnings.push("--negative-prompt has no effect: a guidance of 1 is none".into());
        }
        warnings
    }

    /// `backend` as the clip fits into `budget`; see [`fit`].
    ///
    /// # Errors
    /// As [`fit`].
    pub fn fit(&self, backend: Backend, budget: Budget) -> Result<Backend> {
        fit(self.clip(), backend, budget)
    }

    /// How the clip is computed within `budget`, and what it costs; see [`settle`].
    ///
    /// # Errors
    /// As [`settle`].
    pub fn settle(
        &self,
        backend: Backend,
        budget: Budget,
        rates: Option<&Rates>,
    ) -> Result<Settled> {
        settle(self.clip(), backend, budget, rates)
    }

    fn clip(&self) -> Clip<'_> {
        Clip {
            request: &self.request,
            checkpoint: &self.checkpoint,
            picture: (self.picture.width(), self.picture.height()),
            plan: &self.plan,
            tokens: Tokens {
                prompt: self.prompts.prompt.ids.len(),
                negative: self.prompts.negative.as_ref().map(|ids| ids.ids.len()),
            },
        }
    }

    /// Takes another seed, and another place for the clip.
    pub fn reseed(&mut self, seed: u64, output: PathBuf) {
        self.plan.seed = seed;
        self.request.seed = seed;
        self.request.output = output;
    }

    /// Makes the clip.
    ///
    /// # Errors
    /// When the folder for intermediates or the clip cannot be written, a weight is damaged, MLX
    /// fails, or a tensor stops being finite (named by step, expert and layer).
    pub fn run(self, backend: Backend, progress: &mut dyn Progress) -> Result<Summary> {
        self.run_kept(backend, None, None, progress)
    }

    /// As [`Self::run`], with the run's state kept on disk, and going on from one that was; its
    /// identity must be this job's.
    ///
    /// # Errors
    /// As there, and [`Interrupted`] when `progress` asked for it; the keeper has what is kept.
    pub fn run_kept(
        self,
        backend: Backend,
        keeper: Option<&mut Keeper>,
        from: Option<&Saved>,
        progress: &mut dyn Progress,
    ) -> Result<Summary> {
        let start = Instant::now();
        let mut recorder = Recorder {
            inner: progress,
            phases: Vec::new(),
        };
        let progress: &mut dyn Progress = &mut recorder;
        let Self {
            request,
            checkpoint,
            picture,
            prompts,
            plan,
            mut observer,
        } = self;
        let dump = request.dump.as_deref().map(Dump::create).transpose()?;
        let dump = dump.as_ref();
        let record = request
            .metadata
            .then(|| Record::new(&request, &plan, &picture, &checkpoint, backend))
            .transpose()?;
        let tags = record.map(|record| record.tags()).transpose()?;

        let schedule = Schedule::new(plan.solver, plan.steps as usize, plan.shift);
        let sampler = Sampler::new(plan.solver, schedule.clone());
        let settings = DenoiseSettings {
            guide_scale: plan.guide_scale,
            guide_interval: plan.guide_interval,
            cache: plan.cache.clone(),
        };
        let mut denoiser = if let Some(saved) = from {
            Denoiser::resume(&checkpoint, backend, &saved.state, sampler, settings)
                .with_context(|| format!("{} cannot be gone on from", saved.path.display()))?
        } else {
            let encoded = encode_prompts(&checkpoint, backend, &prompts, dump, progress)?;
            let (width, height) = (plan.width as usize, plan.height as usize);
            let pixels = picture.resized(width, height, request.resize)?;
            drop(picture);
            let condition =
                encode_condition(&checkpoint, backend, pixels.view(), &plan, dump, progress)?;
            let noise = initial_noise(plan.seed, checkpoint.vae.z_dim, plan.latent_grid());
            if let Some(dump) = dump {
                dump.array("noise", &noise)?;
                dump.integers("timesteps", &schedule.timesteps)?;
                let sigmas: Vec<f32> = schedule.sigmas.iter().map(|&s| s as f32).collect();
                dump.array(
                    "sigmas",
                    &Array::from_slice(&sigmas, &[sigmas.len() as i32]),
                )?;
            }
            Denoiser::new(
                &checkpoint,
                backend,
                encoded,
                condition,
                noise,
                sampler,
                settings,
            )
        };
        if let Some(observer) = &mut observer {
            denoiser = denoiser.observed_by(Some(observer.as_mut()));
        }
        let latents = denoiser.run_kept(dump, keeper, progress)?;
        let passes = denoiser.passes();
        drop(denoiser);

        let mut writer = ClipWriter::create(&request.output, &plan.clip_spec(), tags.as_ref())
            .with_context(|| format!("--output {}", request.output.display()))?;
        let strip = request.strip.as_deref();
        let mut strip = strip
            .map(|path| FilmStrip::new(path, plan.frames, tags))
            .transpose()
            .context("--strip")?;
        decode_clip(
            &checkpoint,
            backend,
            &latents,
            dump,
            progress,
            &mut |frame| {
                if let Some(strip) = &mut strip {
                    strip.push(frame);
                }
                writer.push(frame)
            },
        )?;
        writer
            .finish()
            .with_context(|| format!("--output {}", request.output.display()))?;
        if let Some(strip) = strip {
            strip.finish().context("--strip; the clip is complete")?;
        }
        Ok(Summary {
            seconds: start.elapsed().as_secs_f64(),
            passes,
            phases: recorder.phases,
            memory: Memory::now(),
            plan,
        })
    }
}

impl Plan {
    fn clip_spec(&self) -> ClipSpec {
        ClipSpec {
            width: self.width,
            height: self.height,
            fps: self.fps,
        }
    }
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The settings it was made with.
    pub plan: Plan,
    /// Passes through the transformers.
    pub passes: Passes,
    /// Its phases, in order.
    pub phases: Vec<PhaseReport>,
    /// Memory at its end.
    pub memory: Memory,
    /// Wall time of the whole run.
    pub seconds: f64,
}

/// The initial noise `[z_dim, frames, height, width]` of a seed.
///
/// PyTorch draws `[1, z_dim, frames, height, width]` in row-major order; so do we.
pub fn initial_noise(seed: u64, z_dim: i32, grid: [i32; 3]) -> Array {
    let shape = [z_dim, grid[0], grid[1], grid[2]];
    let count = shape.iter().map(|&d| d as usize).product();
    Array::from_slice(&noise::randn(seed, count), &shape)
}

/// Refuses grids beyond the rotary tables, which the reference cannot index either.
fn check_positions(plan: &Plan, checkpoint: &Checkpoint) -> Result<()> {
    let grid = plan.latent_grid();
    for config in [&checkpoint.high, &checkpoint.low] {
        for tokens in config.token_grid(grid) {
            anyhow::ensure!(
                tokens <= config.rope_max_seq_len,
                "a clip of {} x {} pixels and {} frames has {} tokens along one axis; the model \
                 covers {}; choose fewer --frames or a smaller --size",
                plan.width,
                plan.height,
                plan.frames,
                tokens,
                config.rope_max_seq_len
            );
        }
        // Values per latent pixel of the largest arrays that are made on the host.
        let widest = config.in_channels.max(config.attention_head_dim);
        let values = grid
            .into_iter()
            .fold(i64::from(widest), |values, axis| values * i64::from(axis));
        anyhow::ensure!(
            values <= i64::from(i32::MAX),
            "a clip of {} x {} pixels and {} frames is too large to compute; choose fewer \
             --frames or a smaller --size",
            plan.width,
            plan.height,
            plan.frames
        );
    }
    Ok(())
}
