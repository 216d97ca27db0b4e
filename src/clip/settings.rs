//! A clip's settings: the options that are asked for, and what they resolve to.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::identity::{Item, SEED, Stage};
use crate::media::clip::ClipSpec;
use crate::media::{Fit, Resize};
use crate::model::vae::{TEMPORAL_STRIDE, VaeConfig};
use crate::sampling::{CacheSettings, GuideInterval, GuideScale, Schedule, Sigmas, Solver};
use crate::util::limits::{self, MAX_SIDE};
use crate::weights::Recommended;

/// Declares each setting once: as a field of [`Settings`], and as one of [`Options`] that may be
/// absent.
macro_rules! settings {
    ($($(#[$doc:meta])+ $name:ident: $kind:ty,)+) => {
        /// Everything about a clip that can be chosen, besides its pictures and its prompt.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct Settings {
            /// Pixels per row.
            pub width: u32,
            /// Rows.
            pub height: u32,
            $($(#[$doc])+ pub $name: $kind,)+
        }

        /// The settings that are given explicitly.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Options {
            /// Size of the clip.
            pub size: Option<Size>,
            /// How long it is in seconds, in place of `frames`: the next 4n + 1 of them.
            pub seconds: Option<f64>,
            $($(#[$doc])+ pub $name: Option<$kind>,)+
        }
    };
}

settings! {
    /// Pixel frames, 4n + 1.
    frames: u32,
    /// Frames per second.
    fps: f64,
    /// Denoising steps.
    steps: u32,
    /// The first steps, of the high-noise expert; by default the boundary between the experts
    /// decides.
    switch: Switch,
    /// How noise levels are chosen.
    sigmas: Sigmas,
    /// Solver of the differential equation.
    solver: Solver,
    /// Shift of the noise schedule.
    shift: f64,
    /// Guidance scales.
    guide_scale: GuideScale,
    /// The steps that are guided.
    guide_interval: GuideInterval,
    /// The cache.
    cache: CacheSettings,
    /// Seed of the initial noise, as PyTorch's CPU generator takes it.
    seed: u64,
    /// How pictures are resized.
    resize: Resize,
    /// How pictures of another shape are brought into the clip's.
    fit: Fit,
    /// The negative prompt; empty too when no step needs one.
    negative_prompt: String,
}

/// The steps that the high-noise expert takes, the first ones, where that is not left to the boundary
/// between the experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch(pub Option<u32>);

impl Switch {
    /// Of so many steps in all, as the command line has it: all of them, or `LOW,HIGH`.
    fn of(self, steps: u32) -> String {
        match self.0 {
            None => steps.to_string(),
            Some(high) => format!("{},{high}", steps.saturating_sub(high)),
        }
    }
}

/// How a clip's size is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Exactly this many pixels.
    Exact {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// About this many pixels in all, with the picture's aspect ratio.
    Area(u64),
    /// This many columns, and as many rows as the picture's aspect ratio has.
    Width(u32),
    /// This many rows, and as many columns.
    Height(u32),
}

impl Options {
    /// Checks what needs neither the model nor the picture.
    ///
    /// # Errors
    /// Names the flag, what was given and what is expected.
    pub fn check(&self) -> Result<()> {
        if let Some(frames) = self.frames {
            limits::check_frames("--frames", frames)?;
        }
        if let Some(steps) = self.steps {
            limits::check_steps("--steps", steps)?;
        }
        if let Some(fps) = self.fps {
            limits::check_fps("--fps", fps)?;
        }
        if let (Some(steps), Some(Sigmas::List(list))) = (self.steps, &self.sigmas) {
            ensure!(
                steps as usize == list.len(),
                "--steps is {steps}, and --sigmas has {}\nhint: leave --steps away",
                list.len()
            );
        }
        if let Some(shift) = self.shift {
            limits::check_shift("--shift", shift)?;
        }
        if let Some(GuideScale { low, high }) = self.guide_scale {
            limits::check_guide_scale("--guide-scale", low, high)?;
        }
        if let Some(GuideInterval { start, end }) = self.guide_interval {
            limits::check_interval("--guide-interval", start, end)?;
        }
        if let Some(Size::Area(area)) = self.size {
            limits::check_area("--area", area)?;
        }
        Ok(())
    }

    /// The settings of a clip that starts with a picture of `picture` (width, height) pixels, or with none:
    /// options, then the model's recommendations. One of the model's tokens is `token` pixels wide
    /// and high.
    ///
    /// # Errors
    /// When a size does not fit the model's grid, or the model has no such cache.
    pub fn resolve(
        &self,
        model: &Recommended,
        picture: Option<(usize, usize)>,
        token: u32,
    ) -> Result<Settings> {
        let (width, height) = model.shape;
        let shape = picture.unwrap_or((width as usize, height as usize));

        let recommended = match model.size {
            Some((width, height)) => Size::Exact { width, height },
            None => Size::Area(model.area),
        };
        let size = self.size.unwrap_or(recommended);
        let (width, height) = size.resolve(shape, token, model.crop)?;
        let guide_scale = self.guide_scale.unwrap_or(GuideScale {
            low: model.guide_scale.0,
            high: model.guide_scale.1,
        });
        // As given: cleaning twice resolves one level of escaping too many.
        let negative = self.negative_prompt.as_ref();
        let negative = negative.unwrap_or(&model.negative_prompt);
        // Sizes that follow the picture's shape differ from it by less than a token, which the reference
        // stretches.
        let fit = match size {
            Size::Exact { .. } => Fit::Crop,
            _ if model.crop => Fit::Crop,
            Size::Area(_) | Size::Width(_) | Size::Height(_) => Fit::Stretch,
        };
        let fps = self.fps.unwrap_or(model.fps);
        let frames = match (self.frames, self.seconds) {
            (None, Some(seconds)) => frames_of(seconds, fps)?,
            (frames, _) => frames.unwrap_or(model.frames),
        };
        let sigmas = self.sigmas.clone().unwrap_or_default();
        let steps = match &sigmas {
            Sigmas::List(list) => list.len() as u32,
            _ => self.steps.unwrap_or(model.steps),
        };
        limits::check_steps("--sigmas", steps)?;
        Ok(Settings {
            width,
            height,
            frames,
            fps,
            steps,
            switch: self.switch.unwrap_or_default(),
            sigmas,
            solver: self.solver.unwrap_or_default(),
            shift: self.shift.unwrap_or(model.shift),
            guide_scale,
            guide_interval: self.guide_interval.unwrap_or_default(),
            cache: (self.cache.clone().unwrap_or_default()).for_model(&model.teacache)?,
            seed: self.seed.unwrap_or_default(),
            resize: self.resize.unwrap_or_default(),
            fit: self.fit.unwrap_or(fit),
            negative_prompt: match guide_scale.needs_negative() {
                true => negative.clone(),
                false => String::new(),
            },
        })
    }
}

impl Size {
    /// Width and height, multiples of `multiple`, for a picture of `picture` (width, height) pixels, whose
    /// shape is to be met as nearly as whole tokens can where it is cropped.
    fn resolve(self, picture: (usize, usize), multiple: u32, crops: bool) -> Result<(u32, u32)> {
        match self {
            Size::Exact { width, height } => {
                limits::check_size("--size", width, height, multiple)?;
                Ok((width, height))
            }
            Size::Width(width) => {
                limits::check_side("--width", width, multiple)?;
                let sides = [picture.0, picture.1];
                Ok((width, limits::nearest_side(width, sides, multiple)))
            }
            Size::Height(height) => {
                limits::check_side("--height", height, multiple)?;
                let sides = [picture.1, picture.0];
                Ok((limits::nearest_side(height, sides, multiple), height))
            }
            Size::Area(area) => {
                let (width, height) = match crops {
                    true => nearest_shape(area, picture, multiple),
                    false => fit_area(area, picture, multiple),
                };
                ensure!(
                    width >= multiple && height >= multiple && width.max(height) <= MAX_SIDE,
                    "the picture is {} x {} pixels, which makes a clip of {width} x {height} at \
                     {area} pixels\nhint: choose --size, multiples of {multiple} from {multiple} to \
                     {MAX_SIDE}",
                    picture.0,
                    picture.1
                );
                Ok((width, height))
            }
        }
    }
}

/// The next 4n + 1 frames that last `seconds` or longer.
fn frames_of(seconds: f64, fps: f64) -> Result<u32> {
    // 0.1 s at 30 fps is 3.0000000000000004.
    let shown = (seconds * fps - 1e-6).ceil().max(1.0);
    let stride = TEMPORAL_STRIDE as u32;
    let frames = (shown as u32)
        .saturating_sub(1)
        .div_ceil(stride)
        .saturating_mul(stride)
        + 1;
    limits::check_frames("", frames)
        .with_context(|| format!("--seconds {seconds}: {frames} frames at {fps} fps"))?;
    Ok(frames)
}

impl Settings {
    /// Frames, rows and columns of the latents of `vae`.
    pub fn latent_grid(&self, vae: &VaeConfig) -> [i32; 3] {
        vae.latent_grid([self.frames, self.height, self.width].map(|side| side as i32))
    }

    /// The noise levels of the run.
    pub fn schedule(&self) -> Schedule {
        let steps = self.steps as usize;
        let schedule = Schedule::with_sigmas(&self.sigmas, self.solver, steps, self.shift);
        Schedule {
            high_steps: self.switch.0.map(|high| high as usize),
            ..schedule
        }
    }

    /// Columns and rows of the clip's frames: `vae` may decode to larger ones.
    pub fn frame_size(&self, vae: &VaeConfig) -> (u32, u32) {
        let scale = vae.output_scale().unsigned_abs();
        (self.width * scale, self.height * scale)
    }

    /// The clip's file as its writer needs to know it.
    pub(crate) fn clip_spec(&self, vae: &VaeConfig) -> ClipSpec {
        let (width, height) = self.frame_size(vae);
        ClipSpec {
            width,
            height,
            fps: self.fps,
        }
    }

    /// Every setting but the negative prompt: its flag, its value as the command line takes it, and
    /// the stages that it affects.
    pub fn items(&self) -> Vec<Item> {
        use Stage::{Decode, Denoise, File, Image};
        let Self {
            width,
            height,
            frames,
            fps,
            steps,
            switch,
            sigmas,
            solver,
            shift,
            guide_scale: scale,
            guide_interval: interval,
            cache,
            seed,
            resize,
            fit,
            negative_prompt: _,
        } = self;
        let mut items = vec![
            Item::new(
                "--size",
                &[Image, Denoise, Decode],
                format!("{width}x{height}"),
            ),
            Item::new("--frames", &[Image, Denoise, Decode], frames),
            Item::new("--fps", &[File], fps),
            Item::new("--steps", &[Denoise], switch.of(*steps)),
            Item::new("--solver", &[Denoise], solver),
            Item::new("--shift", &[Denoise], shift),
            Item::new(
                "--guide-scale",
                &[Denoise],
                format!("{},{}", scale.low, scale.high),
            ),
            Item::new(
                "--guide-interval",
                &[Denoise],
                format!("{},{}", interval.start, interval.end),
            ),
            Item::new("--cache", &[Denoise], cache),
            Item::new(SEED, &[Denoise], seed),
            Item::new("--resize", &[Image], resize),
            Item::new("--fit", &[Image], fit),
        ];
        // What was always so needs no word.
        if *sigmas != Sigmas::Wan {
            items.push(Item::new("--sigmas", &[Denoise], sigmas));
        }
        items
    }
}

/// Width and height of about `area` pixels with the picture's aspect ratio, rounded down to whole
/// tokens as `WanI2V.generate` of Wan-Video/Wan2.2 (`wan/image2video.py`) does, but for a side that is
/// a whole number of tokens: there the reference may lose one to rounding (832 x 464 for 832 x 480).
fn fit_area(area: u64, (width, height): (usize, usize), token: u32) -> (u32, u32) {
    let aspect = height as f64 / width as f64;
    let pixels = |length: f64| {
        let tokens = (length * (1.0 + 1e-12) / f64::from(token)).floor();
        tokens as u32 * token
    };
    let area = area as f64;
    (
        pixels((area / aspect).sqrt()),
        pixels((area * aspect).sqrt()),
    )
}

/// Width and height of at most `area` pixels in whole tokens, of the shape nearest to the picture's, as
/// `best_output_size` of Wan-Video/Wan2.2 (`wan/utils/utils.py`) chooses them: the one rounded down first,
/// or the other.
fn nearest_shape(area: u64, (width, height): (usize, usize), token: u32) -> (u32, u32) {
    let (area, ratio) = (area as f64, width as f64 / height as f64);
    let whole =
        |length: f64| (length * (1.0 + 1e-12) / f64::from(token)).floor() * f64::from(token);
    let exact = (area * ratio).sqrt();
    let wide = whole(exact);
    let by_width = (wide, whole(area / wide.max(1.0)));
    let high = whole(area / exact);
    let by_height = (whole(area / high.max(1.0)), high);
    let off = |(width, height): (f64, f64)| {
        let other = width / height;
        (ratio / other).max(other / ratio)
    };
    let (width, height) = match off(by_width) < off(by_height) {
        true => by_width,
        false => by_height,
    };
    (width as u32, height as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the reference's own expression in numpy.
    #[test]
    fn areas_keep_the_aspect_ratio_as_the_reference_does() {
        // Where the reference loses a row of tokens: its root is 479.99999999999994.
        assert_eq!(fit_area(480 * 832, (832, 480), 16), (832, 480));
        assert_eq!(fit_area(480 * 832, (480, 832), 16), (480, 832));
        assert_eq!(fit_area(480 * 832, (1664, 960), 16), (832, 480));
        assert_eq!(fit_area(1280 * 720, (1280, 720), 16), (1280, 720));
        assert_eq!(fit_area(1280 * 720, (720, 1280), 16), (720, 1280));
        assert_eq!(fit_area(480 * 832, (1000, 1000), 16), (624, 624));
        assert_eq!(fit_area(480 * 832, (1920, 800), 16), (976, 400));
    }

    #[test]
    fn seconds_are_the_next_frames_that_there_can_be() {
        for (seconds, fps, frames) in [
            (5.0, 16.0, 81),
            (5.0625, 16.0, 81),
            (5.07, 16.0, 85),
            (1.0, 16.0, 17),
            (0.001, 16.0, 1),
            (5.0, 24.0, 121),
            (0.1, 30.0, 5),
        ] {
            assert_eq!(
                frames_of(seconds, fps).unwrap(),
                frames,
                "{seconds} s at {fps}"
            );
        }
        let error = frames_of(1000.0, 16.0).unwrap_err();
        assert!(
            error.to_string().contains("--seconds 1000: 16001 frames"),
            "{error}"
        );
    }

    #[test]
    fn one_side_brings_the_other() {
        let of = |size: Size, picture| size.resolve(picture, 16, false).unwrap();
        assert_eq!(of(Size::Width(832), (1920, 1080)), (832, 464));
        assert_eq!(of(Size::Height(480), (1920, 1080)), (848, 480));
        assert_eq!(of(Size::Width(480), (480, 832)), (480, 832));
        // Never nothing.
        assert_eq!(of(Size::Width(64), (4000, 10)), (64, 16));
        assert!(Size::Width(100).resolve((4, 4), 16, false).is_err());
    }
}
