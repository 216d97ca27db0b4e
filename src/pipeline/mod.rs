//! From requests to media files.
//!
//! text encoding -> image condition -> denoising -> decoding -> media file. Every stage takes
//! what it needs, owns its weights, and is gone when its results are there. A single clip is many
//! of which there is one.

mod condition;
mod decode;
mod denoise;
mod eta;
mod experts;
mod identity;
mod input_cache;
mod make;
pub mod plan;
mod source_image;
mod text;

pub use crate::progress::{
    Event, EventKind, Interrupted, Memory, Network, Passes, Phase, PhaseReport, Progress, Silent,
    StepReport, Summary,
};
pub use condition::{Condition, Ends, encode_condition, frame_mask};
pub use decode::decode_clip;
pub use denoise::{DenoiseSettings, Denoiser, Observer, guide};
pub use input_cache::InputCache;
pub use text::{EncodedPrompts, PromptIds, TEXT_LEN, encode_prompts, tokenize};

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result};
use mlx_rs::Array;

pub(crate) use crate::persist::EmbeddingStore;
pub(crate) use make::{Clip, ClipObserver, Keys, Scheduler};

use self::plan::{Budget, Inputs, Rates, Settled, fit, settle};
use self::source_image::SourceImage;
use crate::clip::metadata::Metadata;
use crate::clip::{Request, Settings};
use crate::media::clip::{OutputKind, check_writable};
use crate::media::preview::LatentRgb;
use crate::media::strip;
use crate::model::MemoryPlan;
use crate::persist::{SavedRun, StateWriter};
use crate::progress::Recorder;
use crate::runtime::Device;
use crate::sampling::noise;
use crate::weights::Checkpoint;

/// A request whose every input has been read and checked, short of loading weights.
#[derive(Debug)]
pub struct Job {
    request: Request,
    checkpoint: Rc<Checkpoint>,
    picture: SourceImage,
    last: Option<SourceImage>,
    prompts: PromptIds,
    settings: Settings,
    observer: Option<Box<dyn Observer>>,
}

impl Job {
    /// Checks everything that can be checked before a model is loaded: flags, picture, output,
    /// the checkpoint's configuration and tensor headers, the prompt.
    ///
    /// # Errors
    /// Names the flag or file, what was found, what was expected.
    pub fn prepare(request: Request) -> Result<Self> {
        Self::prepare_from(request, &mut InputCache::default())
    }

    /// As [`Self::prepare`], with what jobs have in common opened once.
    ///
    /// # Errors
    /// As there.
    pub fn prepare_from(request: Request, stock: &mut InputCache) -> Result<Self> {
        request.check()?;
        let picture = stock.picture(&request.image).context("--image")?;
        let last = request.last_image.as_deref();
        let last = last.map(|path| stock.picture(path)).transpose();
        let last = last.context("--last-image")?;
        check_writable(&request.output).context("--output")?;
        request.check_output_spares_images()?;
        if let Some(strip) = &request.strip {
            strip::check(strip).context("--strip")?;
            request.check_spares_others("--strip", strip)?;
        }
        let model = stock.model(&request.model, request.bits)?;
        let checkpoint = model.checkpoint();
        let settings = request.resolve(&checkpoint, picture.size())?;
        settings
            .clip_spec()
            .check(OutputKind::from_path(&request.output)?)
            .with_context(|| format!("--output {}", request.output.display()))?;
        check_positions(&settings, &checkpoint)?;
        let prompts = model.tokenize(&request.prompt, &settings)?;
        Ok(Self {
            request,
            checkpoint,
            picture,
            last,
            prompts,
            settings,
            observer: None,
        })
    }

    /// Lets the picture's pixels go until they are wanted, and has `stock` know it.
    pub(crate) fn forget_pixels(&mut self, stock: &mut InputCache) {
        self.picture.forget();
        stock.keep_picture(&self.request.image, &self.picture);
        if let (Some(path), Some(last)) = (&self.request.last_image, &mut self.last) {
            last.forget();
            stock.keep_picture(path, last);
        }
    }

    /// Where the clip goes.
    pub fn output(&self) -> &Path {
        &self.request.output
    }

    /// Where its film strip goes.
    pub fn strip(&self) -> Option<&Path> {
        self.request.strip.as_deref()
    }

    /// Whether its file keeps how it was made.
    pub fn keeps_metadata(&self) -> bool {
        self.request.metadata
    }

    pub(crate) fn checkpoint(&self) -> &Rc<Checkpoint> {
        &self.checkpoint
    }

    /// Tokens of the prompt and the negative prompt.
    pub(crate) fn token_ids(&self) -> (&[u32], Option<&[u32]>) {
        let negative = self.prompts.negative.as_ref();
        (
            &self.prompts.prompt.ids,
            negative.map(|ids| ids.ids.as_slice()),
        )
    }

    /// The most bytes that the clip holds while it waits for its turn: encoded prompts, condition,
    /// latents, and what the solver remembers of three steps.
    pub fn held_bytes(&self) -> u64 {
        let number = |value: i32| value.max(0) as u64;
        let cells: u64 = self
            .settings
            .latent_grid()
            .into_iter()
            .map(number)
            .product();
        let z = number(self.checkpoint.vae.z_dim);
        let (prompt, negative) = self.token_ids();
        let rows = (prompt.len() + negative.map_or(0, <[u32]>::len)) as u64;
        let width = number(self.checkpoint.text_encoder.d_model);
        4 * (cells * (5 * z + 4) + rows * width)
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

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the user should know before the run starts, such as a prompt that was cut.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.prompts.warnings();
        if self.request.options.negative_prompt.is_some()
            && !self.settings.guide_scale.needs_negative()
        {
            warnings.push("--negative-prompt has no effect: a guidance of 1 is none".into());
        }
        if let Some(last) = &self.last {
            let (last, first) = (last.size(), self.picture.size());
            let aspect = |(width, height): (usize, usize)| width as f64 / height as f64;
            // A pixel more or less of a small picture is no stretch that anybody sees.
            if (aspect(last) / aspect(first)).ln().abs() > 0.05 {
                warnings.push(format!(
                    "--last-image is {} x {} pixels, --image {} x {}: it is stretched to the same \
                     shape",
                    last.0, last.1, first.0, first.1
                ));
            }
        }
        warnings
    }

    /// How the clip is computed within `budget`, and what it costs, or why it cannot be; see
    /// [`fit`].
    ///
    /// # Errors
    /// As [`fit`].
    pub fn fit(&self, device: Device, budget: Budget, rates: Option<&Rates>) -> Result<Settled> {
        fit(self.clip(), device, budget, rates)
    }

    /// How the clip is computed within `budget`, and what it costs; see [`settle`].
    ///
    /// # Errors
    /// As [`settle`].
    pub fn settle(&self, device: Device, budget: Budget, rates: Option<&Rates>) -> Result<Settled> {
        settle(self.clip(), device, budget, rates)
    }

    fn clip(&self) -> plan::Clip<'_> {
        plan::Clip {
            request: &self.request,
            checkpoint: &self.checkpoint,
            picture: self.picture.size(),
            settings: &self.settings,
            inputs: Inputs {
                prompt: self.prompts.prompt.ids.len(),
                negative: self.prompts.negative.as_ref().map(|ids| ids.ids.len()),
                last_image: self.last.is_some(),
            },
        }
    }

    /// Takes another seed, and another place for the clip.
    pub fn reseed(&mut self, seed: u64, output: PathBuf) {
        self.settings.seed = seed;
        self.request.options.seed = Some(seed);
        self.request.output = output;
    }

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
        self.run_kept(device, memory, None, None, progress)
    }

    /// As [`Self::run`], with the run's state kept on disk, and going on from one that was; its
    /// identity must be this job's.
    ///
    /// # Errors
    /// As there, and [`Interrupted`] when `progress` asked for it; the keeper has what is kept.
    pub fn run_kept(
        self,
        device: Device,
        memory: MemoryPlan,
        keeper: Option<&mut StateWriter>,
        from: Option<&SavedRun>,
        progress: &mut dyn Progress,
    ) -> Result<Summary> {
        let start = Instant::now();
        let mut recorder = Recorder {
            inner: progress,
            phases: Vec::new(),
        };
        let mut alone = SingleClip {
            keeper,
            from: from.cloned(),
            made: None,
        };
        let making = Scheduler {
            clips: vec![Clip::single(self, device, memory, from.is_some())],
            at_once: 1,
            beside: false,
            shelf: &mut EmbeddingStore::default(),
            host: &mut alone,
        };
        making.run(&mut recorder)?;
        let made = alone.made.context("the clip was not made")??;
        Ok(Summary {
            seconds: start.elapsed().as_secs_f64(),
            phases: recorder.phases,
            ..made
        })
    }

    /// What its file keeps of how it is made.
    ///
    /// # Errors
    /// When a file of the model cannot be read any more.
    pub fn record(&self, device: Device) -> Result<Metadata> {
        let Self {
            request,
            settings,
            picture,
            last,
            checkpoint,
            ..
        } = self;
        let pictures = [Some(picture), last.as_ref()];
        let hashes = pictures.map(|picture| Some(picture?.file_hash()));
        Metadata::new(request, settings, hashes, checkpoint, device)
    }
}

/// The host of a single clip.
struct SingleClip<'a> {
    keeper: Option<&'a mut StateWriter>,
    from: Option<SavedRun>,
    made: Option<Result<Summary>>,
}

impl ClipObserver for SingleClip<'_> {
    fn begin(&mut self, _: &Clip, _: &mut dyn Progress) -> Result<Option<SavedRun>> {
        Ok(self.from.take())
    }

    fn keeper(&mut self, _: &Clip) -> Option<&mut StateWriter> {
        self.keeper.as_deref_mut()
    }

    fn end(&mut self, _: &Clip, made: Result<Summary>, _: &mut dyn Progress) {
        self.made = Some(made);
    }
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
fn check_positions(settings: &Settings, checkpoint: &Checkpoint) -> Result<()> {
    let grid = settings.latent_grid();
    for config in [&checkpoint.high, &checkpoint.low] {
        for tokens in config.token_grid(grid) {
            anyhow::ensure!(
                tokens <= config.rope_max_seq_len,
                "a clip of {} x {} pixels and {} frames has {} tokens along one axis; the model \
                 covers {}; choose fewer --frames or a smaller --size",
                settings.width,
                settings.height,
                settings.frames,
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
            settings.width,
            settings.height,
            settings.frames
        );
    }
    Ok(())
}
