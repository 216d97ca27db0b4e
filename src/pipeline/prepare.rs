//! From a request to a job: every input read and every setting resolved, in one pass.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use ndarray::Array3;

use super::InputCache;
use super::denoise::{Observer, Partner};
use super::file::title;
use super::image::Ends;
use super::plan::{self, Budget, Inputs, PlannedMemory, Rates, plan_memory, plan_memory_or_refuse};
use super::preview::PreviewDecoder;
use super::source_image::SourceImage;
use super::text::PromptIds;
use crate::clip::metadata::Metadata;
use crate::clip::{Request, Settings};
use crate::media::clip::{OutputKind, check_writable, remove_stale};
use crate::media::preview::LatentRgb;
use crate::media::strip::{self, Title};
use crate::media::tags::Tags;
use crate::media::{Fit, Resize, within};
use crate::model::MemoryPlan;
use crate::persist::dump::Dump;
use crate::runtime::{Device, again};
use crate::util::show::Show;
use crate::util::temporary;
use crate::weights::Checkpoint;

/// A request whose every input has been read and checked, short of loading weights.
#[derive(Debug)]
pub struct Job {
    pub(super) request: Request,
    pub(super) checkpoint: Rc<Checkpoint>,
    pub(super) picture: Option<SourceImage>,
    pub(super) last: Option<SourceImage>,
    pub(super) prompts: PromptIds,
    pub(super) settings: Settings,
    pub(super) observer: Option<Box<dyn Observer>>,
    pub(super) partner: Option<Partner>,
    preview: Option<PreviewDecoder>,
}

/// A picture that a clip is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedPicture<'a> {
    /// The flag that names it.
    pub flag: &'static str,
    /// Its file.
    pub path: &'a Path,
    /// Its width and height in pixels.
    pub size: (usize, usize),
    /// What is done to it, where its shape is not the clip's.
    pub fitted: Option<String>,
}

/// Pictures of the clip's size, `[height, width, 3]` in [-1, 1].
pub(super) struct ResizedImages {
    first: Option<Array3<f32>>,
    last: Option<Array3<f32>>,
    squares: Vec<Array3<f32>>,
}

impl ResizedImages {
    /// None where the clip starts with none.
    pub(super) fn ends(&self) -> Option<Ends<'_>> {
        Some(Ends {
            first: self.first.as_ref()?.view(),
            last: self.last.as_ref().map(|last| last.view()),
            squares: &self.squares,
        })
    }
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
    pub fn prepare_from(request: Request, cache: &mut InputCache) -> Result<Self> {
        // 1. What the request says by itself.
        request.check()?;
        let kind = OutputKind::from_path(&request.output).context("--output")?;

        // 2. Pictures.
        let first = request.image.as_deref();
        let picture = first.map(|path| cache.picture(path)).transpose();
        let picture = picture.context("--image")?;
        let last = request.last_image.as_deref();
        let last = last.map(|path| cache.picture(path)).transpose();
        let last = last.context("--last-image")?;

        // 3. Places of what is written.
        check_writable(&request.output).context("--output")?;
        request.check_output_spares_images()?;
        if let Some(strip) = &request.strip {
            strip::check(strip).context("--strip")?;
            request.check_spares_others("--strip", strip)?;
        }

        // 4. The model, and the settings that follow from it and the picture.
        let model = cache.model(&request.model, &request.loading)?;
        let checkpoint = model.checkpoint();
        let (first, last_path) = (request.image.as_deref(), request.last_image.as_deref());
        checkpoint.family.check_pictures(first, last_path)?;
        let settings = request.resolve(&checkpoint, picture.as_ref().map(SourceImage::size))?;
        let output = || format!("--output {}", request.output.shown());
        settings
            .clip_spec(&checkpoint.vae)
            .check(kind)
            .with_context(output)?;
        check_positions(&settings, &checkpoint)?;

        let z_dim = checkpoint.vae.z_dim;
        let preview = request.preview_vae.as_deref();
        let preview = preview
            .map(|path| PreviewDecoder::open(path, z_dim))
            .transpose();
        let preview = preview.context("--preview-vae")?;

        // 5. Prompts.
        let prompts = model.tokenize(&request.prompt, &settings)?;
        Ok(Self {
            request,
            checkpoint,
            picture,
            last,
            prompts,
            settings,
            observer: None,
            partner: None,
            preview,
        })
    }

    /// Drops the pictures' pixels until they are wanted; `cache` keeps the rest for other jobs.
    pub(crate) fn forget_pixels(&mut self, cache: &mut InputCache) {
        if let (Some(path), Some(first)) = (&self.request.image, &mut self.picture) {
            first.forget();
            cache.keep_picture(path, first);
        }
        if let (Some(path), Some(last)) = (&self.request.last_image, &mut self.last) {
            last.forget();
            cache.keep_picture(path, last);
        }
    }

    /// Where the clip goes.
    pub fn output(&self) -> &Path {
        &self.request.output
    }

    /// The picture that it starts with.
    pub fn image(&self) -> Option<&Path> {
        self.request.image.as_deref()
    }

    /// Where its film strip goes.
    pub fn strip(&self) -> Option<&Path> {
        self.request.strip.as_deref()
    }

    /// Removes what runs that were killed have left of its files. None may be writing them now.
    pub(crate) fn remove_stale(&self) {
        remove_stale(self.output());
        self.strip().map(temporary::remove_stale);
    }

    /// Whether it replaces what is in its place, whatever it is.
    pub fn overwrites(&self) -> bool {
        self.request.overwrite
    }

    /// Whether intermediates are wanted.
    pub fn dumps(&self) -> bool {
        self.request.dump.is_some()
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

    /// The most bytes that the clip holds while it waits for its turn: encoded prompts, condition, features,
    /// latents, and what the solver remembers of three steps.
    pub fn held_bytes(&self) -> u64 {
        let number = |value: i32| value.max(0) as u64;
        let cells: u64 = self
            .settings
            .latent_grid(&self.checkpoint.vae)
            .into_iter()
            .map(number)
            .product();
        let z = number(self.checkpoint.vae.z_dim);
        let (prompt, negative) = self.token_ids();
        let rows = (prompt.len() + negative.map_or(0, <[u32]>::len)) as u64;
        let width = number(self.checkpoint.text_encoder.d_model);
        let features = self.checkpoint.image_encoder.as_ref();
        let features = features.map_or(0, |config| number(config.hidden_size));
        let features = features * self.checkpoint.feature_rows();
        4 * (cells * (5 * z + 4) + rows * width + features)
    }

    /// Has the clip watched while it is denoised.
    pub fn observe(&mut self, observer: Box<dyn Observer>) {
        self.observer = Some(observer);
    }

    /// What previews are decoded with, for whoever makes them.
    pub fn take_preview_decoder(&mut self) -> Option<PreviewDecoder> {
        self.preview.take()
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
        let mut warnings = self.checkpoint.warnings();
        warnings.extend(self.prompts.warnings());
        if self.request.options.negative_prompt.is_some()
            && !self.settings.guide_scale.needs_negative()
        {
            warnings
                .push("--negative-prompt has no effect: --guide-scale 1 turns guidance off".into());
        }
        warnings
    }

    /// The pictures, in the order of the clip.
    pub fn pictures(&self) -> impl Iterator<Item = UsedPicture<'_>> {
        let clip = &self.settings;
        let frame = (clip.width as usize, clip.height as usize);
        let last = self.request.last_image.as_ref().zip(self.last.as_ref());
        let first = self.request.image.as_ref().zip(self.picture.as_ref());
        let first = first.map(|(path, picture)| ("--image", path.as_path(), picture));
        let last = last.map(|(path, picture)| ("--last-image", path.as_path(), picture));
        first
            .into_iter()
            .chain(last)
            .map(move |(flag, path, picture)| {
                let size = picture.size();
                // A pixel more or less cannot be seen.
                let is_same = |part: (usize, usize), of: (usize, usize)| {
                    part.0.abs_diff(of.0) * 50 <= of.0 && part.1.abs_diff(of.1) * 50 <= of.1
                };
                let (part, inner) = (within(size, frame), within(frame, size));
                let fitted = (!is_same(part, size)).then(|| match clip.fit {
                    Fit::Crop => format!("cropped to {} x {}", part.0, part.1),
                    Fit::Pad => format!("padded, as {} x {} between black bars", inner.0, inner.1),
                    Fit::Stretch => "stretched".to_owned(),
                });
                UsedPicture {
                    flag,
                    path,
                    size,
                    fitted,
                }
            })
    }

    /// Columns and rows of the clip's frames, which the VAE may make larger than they were asked for.
    pub fn frame_size(&self) -> (u32, u32) {
        self.settings.frame_size(&self.checkpoint.vae)
    }

    /// What is done to pictures of another shape than the clip's.
    pub fn notes(&self) -> Vec<String> {
        let clip = &self.settings;
        let notes = self.pictures().filter_map(|picture| {
            let (width, height) = picture.size;
            Some(format!(
                "{}: {width} x {height} pixels, {} for {} x {} ({})",
                picture.flag,
                picture.fitted.as_ref()?,
                clip.width,
                clip.height,
                self.other_fits()
            ))
        });
        notes.collect()
    }

    /// How else a picture could be fitted.
    pub fn other_fits(&self) -> &'static str {
        match self.settings.fit {
            Fit::Crop => "or --fit pad, stretch",
            Fit::Pad => "or --fit crop, stretch",
            Fit::Stretch => "or --fit crop, pad",
        }
    }

    /// How the clip is computed within `budget`, and what it costs, or why it cannot be; see
    /// [`plan_memory_or_refuse`].
    ///
    /// # Errors
    /// As there.
    pub fn plan_memory_or_refuse(
        &self,
        device: Device,
        budget: Budget,
        rates: Option<&Rates>,
    ) -> Result<PlannedMemory> {
        if again().is_some_and(|again| again.budget.is_some()) {
            // Memory has run out: the smallest parts are what can be tried, and what is done already
            // does not have to fit.
            return self.plan_memory(device, budget, rates);
        }
        plan_memory_or_refuse(self.clip(), device, budget, rates)
    }

    /// How the clip is computed within `budget`, and what it costs; see [`plan_memory`].
    ///
    /// # Errors
    /// As [`plan_memory`].
    pub fn plan_memory(
        &self,
        device: Device,
        budget: Budget,
        rates: Option<&Rates>,
    ) -> Result<PlannedMemory> {
        plan_memory(self.clip(), device, budget, rates)
    }

    /// Seconds that the same clip takes in four steps without guidance, as distilled models need them.
    ///
    /// # Errors
    /// When a file of the checkpoint cannot be read any more.
    pub fn seconds_in_four_steps(
        &self,
        device: Device,
        memory: &MemoryPlan,
        rates: &mut Rates,
    ) -> Result<Option<f64>> {
        let plan::Clip {
            checkpoint, inputs, ..
        } = self.clip();
        let (settings, inputs) = plan::in_four_steps(&self.settings, inputs);
        let few = plan::forecast(checkpoint, &settings, inputs, device, memory, None)?;
        few.measure(rates, checkpoint);
        Ok(few.timed(Some(rates)).seconds)
    }

    fn clip(&self) -> plan::Clip<'_> {
        plan::Clip {
            request: &self.request,
            checkpoint: &self.checkpoint,
            picture: self.picture.as_ref().map(SourceImage::size),
            settings: &self.settings,
            inputs: Inputs {
                prompt: self.prompts.prompt.ids.len(),
                negative: self.prompts.negative.as_ref().map(|ids| ids.ids.len()),
                pictures: usize::from(self.picture.is_some()) + usize::from(self.last.is_some()),
                previews: self.request.preview_vae.is_some(),
            },
        }
    }

    /// Takes another seed.
    pub fn reseed(&mut self, seed: u64) {
        self.settings.seed = seed;
        self.request.options.seed = Some(seed);
    }

    /// Takes another place for the clip.
    pub fn move_to(&mut self, output: PathBuf) {
        self.request.output = output;
    }

    /// The metadata of the clip.
    ///
    /// # Errors
    /// When a file of the model cannot be read any more.
    pub fn metadata(&self, device: Device) -> Result<Metadata> {
        let Self {
            request,
            settings,
            picture,
            last,
            checkpoint,
            ..
        } = self;
        let pictures = [picture.as_ref(), last.as_ref()];
        let hashes = pictures.map(|picture| Some(picture?.file_hash()));
        Metadata::new(request, settings, hashes, checkpoint, device)
    }

    /// What stands above pictures of it.
    pub fn title(&self) -> Title {
        title(&self.request, &self.settings)
    }

    /// Its metadata as the file keeps it, if it does.
    pub(super) fn tags(&self, device: Device) -> Result<Option<Tags>> {
        let wanted = self.request.metadata;
        wanted.then(|| self.metadata(device)?.tags()).transpose()
    }

    /// The folder that intermediates go to, if they are wanted.
    pub(super) fn dump(&self) -> Result<Option<Dump>> {
        self.request.dump.as_deref().map(Dump::create).transpose()
    }

    /// The pictures in the clip's size, and as the image encoder takes them. Their own pixels are dropped.
    pub(super) fn resized(&mut self) -> Result<ResizedImages> {
        let Settings {
            width,
            height,
            resize,
            fit,
            ..
        } = self.settings;
        let encoder = self.checkpoint.image_encoder.as_ref();
        let side = encoder.map(|config| config.image_size as usize);
        let mut squares = Vec::new();
        let mut resized = |image: &mut SourceImage| {
            let picture = image.take()?;
            if let Some(side) = side {
                // At its own size, whatever becomes of it in the clip.
                squares.push(picture.resized(side, side, Resize::Bicubic)?);
            }
            picture.fitted(width as usize, height as usize, resize, fit)
        };
        let first = self.picture.as_mut().map(&mut resized).transpose();
        let last = self.last.as_mut().map(resized).transpose();
        Ok(ResizedImages {
            first: first.context("--image")?,
            last: last.context("--last-image")?,
            squares,
        })
    }
}

/// Refuses grids beyond the rotary tables, which the reference cannot index either.
fn check_positions(settings: &Settings, checkpoint: &Checkpoint) -> Result<()> {
    let grid = settings.latent_grid(&checkpoint.vae);
    for (_, config) in &checkpoint.experts {
        for tokens in config.token_grid(grid) {
            ensure!(
                tokens <= config.rope_max_seq_len,
                "a clip of {} x {} pixels and {} frames has {} tokens along one axis; the model \
                 covers {}\nhint: choose fewer --frames or a smaller --size",
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
        ensure!(
            values <= i64::from(i32::MAX),
            "a clip of {} x {} pixels and {} frames is too large to compute\nhint: choose fewer \
             --frames or a smaller --size",
            settings.width,
            settings.height,
            settings.frames
        );
    }
    Ok(())
}
