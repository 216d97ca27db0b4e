//! What is asked for, checked against what the model and the picture allow.

mod identity;
pub mod metadata;

pub use crate::sampling::{CacheMethod, CacheSettings, GuideInterval, GuideScale};
pub use identity::{Difference, Identity};

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::media::Resize;
use crate::media::clip::is_frame_name;
use crate::model::vae::{SPATIAL_STRIDE, TEMPORAL_STRIDE};
use crate::sampling::Solver;
use crate::tiny;
use crate::util::limits::{self, MAX_SIDE};
use crate::weights::{Checkpoint, LoadBits, Settings, Sources};

/// How the clip's size is chosen.
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
}

/// Which checkpoint is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// The miniature that is part of the program (see [`crate::tiny`]).
    Tiny,
    /// A model on disk.
    Disk(Sources),
}

impl Model {
    /// Reads and checks the checkpoint's configuration and tensor headers.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(&self, bits: LoadBits) -> Result<Checkpoint> {
        match self {
            Model::Tiny => Checkpoint::embedded(tiny::FILES, bits),
            Model::Disk(sources) => Checkpoint::open(sources, bits),
        }
    }
}

/// A clip to be made. Fields that are `None` take what the model recommends.
#[derive(Clone, Debug)]
pub struct Request {
    /// The checkpoint.
    pub model: Model,
    /// Bits that its linear layers are quantized to while it is loaded.
    pub bits: LoadBits,
    /// The start picture.
    pub image: PathBuf,
    /// The picture that the clip is to end with.
    pub last_image: Option<PathBuf>,
    /// What happens in the clip.
    pub prompt: String,
    /// What is steered away from; an empty one means the model's default too.
    pub negative_prompt: Option<String>,
    /// Where the clip goes: `.mp4`, `.gif`, or a folder for PNG frames.
    pub output: PathBuf,
    /// Where a film strip of the clip goes, a PNG.
    pub strip: Option<PathBuf>,
    /// Whether the clip's file keeps how it was made (see [`crate::clip::metadata`]).
    pub metadata: bool,
    /// Size of the clip.
    pub size: Option<Size>,
    /// Pixel frames, 4n + 1.
    pub frames: Option<u32>,
    /// Frames per second.
    pub fps: Option<f64>,
    /// Denoising steps.
    pub steps: Option<u32>,
    /// Solver of the differential equation.
    pub solver: Solver,
    /// Shift of the noise schedule.
    pub shift: Option<f64>,
    /// Guidance scales.
    pub guide_scale: Option<GuideScale>,
    /// The steps that are guided.
    pub guide_interval: GuideInterval,
    /// The cache.
    pub cache: CacheSettings,
    /// Seed of the initial noise, as PyTorch's CPU generator takes it.
    pub seed: u64,
    /// How the picture is resized.
    pub resize: Resize,
    /// Folder for every intermediate tensor.
    pub dump: Option<PathBuf>,
}

/// The settings of a run with every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Pixels per row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Pixel frames, 4n + 1.
    pub frames: u32,
    /// Frames per second.
    pub fps: f64,
    /// Denoising steps.
    pub steps: u32,
    /// Solver of the differential equation.
    pub solver: Solver,
    /// Shift of the noise schedule.
    pub shift: f64,
    /// Guidance scales.
    pub guide_scale: GuideScale,
    /// The steps that are guided.
    pub guide_interval: GuideInterval,
    /// The cache.
    pub cache: CacheSettings,
    /// Seed of the initial noise.
    pub seed: u64,
    /// Whether the clip's last picture is given as well.
    pub last_image: bool,
    /// The negative prompt.
    pub negative_prompt: String,
}

impl Request {
    /// Checks what needs neither the model nor the picture.
    ///
    /// # Errors
    /// Names the flag, what was given and what is expected.
    pub fn check(&self) -> Result<()> {
        ensure!(
            !crate::text::clean(&self.prompt).is_empty(),
            "--prompt is empty; say what happens in the clip"
        );
        if let Some(frames) = self.frames {
            limits::check_frames("--frames", frames)?;
        }
        if let Some(steps) = self.steps {
            limits::check_steps("--steps", steps)?;
        }
        if let Some(fps) = self.fps {
            limits::check_fps("--fps", fps)?;
        }
        if let Some(shift) = self.shift {
            limits::check_shift("--shift", shift)?;
        }
        if let Some(GuideScale { low, high }) = self.guide_scale {
            limits::check_guide_scale("--guide-scale", low, high)?;
        }
        let GuideInterval { start, end } = self.guide_interval;
        ensure!(
            (0.0..=1.0).contains(&start) && (0.0..=1.0).contains(&end) && start < end,
            "--guide-interval {start},{end}: expected two shares of the steps from 0 to 1, the first \
             smaller than the second"
        );
        if let Some(Size::Area(area)) = self.size {
            limits::check_area("--area", area)?;
        }
        Ok(())
    }

    /// Refuses an output that would replace a picture, and a folder of frames that a picture itself
    /// is one of: it would be replaced, or removed as a surplus frame of an older clip.
    ///
    /// # Errors
    /// Names both paths.
    pub fn check_output_spares_images(&self) -> Result<()> {
        let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
        for (what, image) in self.images() {
            let is_frame = image.file_name().is_some_and(is_frame_name);
            ensure!(
                !(same(image, &self.output) || is_frame && same(folder_of(image), &self.output)),
                "--output {}: the clip would replace {what} {}; choose another folder or name",
                self.output.display(),
                image.display()
            );
        }
        Ok(())
    }

    /// The pictures that are given.
    fn images(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let last = self
            .last_image
            .iter()
            .map(|image| ("the last picture", image));
        std::iter::once(("the start picture", &self.image)).chain(last)
    }

    /// Refuses a further output that would replace the picture, the clip, one of its frames or
    /// another output.
    ///
    /// # Errors
    /// Names `flag`, its path and what is there.
    pub fn check_spares_others(&self, flag: &str, path: &Path) -> Result<()> {
        // Where the file will be, though neither it nor the clip may be there yet.
        let place = |path: &Path| {
            Some((
                folder_of(path).canonicalize().ok()?,
                path.file_name()?.to_owned(),
            ))
        };
        let here = place(path);
        let is_frame = path.file_name().is_some_and(is_frame_name)
            && matches!((folder_of(path).canonicalize(), self.output.canonicalize()), (Ok(a), Ok(b)) if a == b);
        let strip = self.strip.as_ref().filter(|_| flag != "--strip");
        let others = [("the clip", Some(&self.output)), ("the film strip", strip)];
        let others = others
            .into_iter()
            .filter_map(|(what, path)| Some((what, path?)));
        for (what, other) in self.images().chain(others) {
            ensure!(
                here.is_none() || here != place(other),
                "{flag} {}: would replace {what}; choose another name",
                path.display()
            );
        }
        ensure!(
            !is_frame,
            "{flag} {}: is a frame of the clip; choose another name",
            path.display()
        );
        Ok(())
    }

    /// Fills in the model's recommendations and settles the size for a picture of `picture`
    /// (width, height) pixels and `patch` latent rows and columns per token.
    ///
    /// # Errors
    /// When a size does not fit the model's grid.
    pub fn plan(&self, settings: &Settings, picture: (usize, usize), patch: i32) -> Result<Plan> {
        let multiple = (SPATIAL_STRIDE * patch) as u32;
        let recommended = match settings.size {
            Some((width, height)) => Size::Exact { width, height },
            None => Size::Area(settings.area),
        };
        let (width, height) = match self.size.unwrap_or(recommended) {
            Size::Exact { width, height } => {
                for (side, pixels) in [("width", width), ("height", height)] {
                    ensure!(
                        pixels % multiple == 0 && (multiple..=MAX_SIDE).contains(&pixels),
                        "--size {width}x{height}: the {side} {pixels} is not a multiple of \
                         {multiple} from {multiple} to {MAX_SIDE}; the nearest is {}",
                        nearest_multiple(pixels, multiple)
                    );
                }
                (width, height)
            }
            Size::Area(area) => {
                let (width, height) = fit_area(area, picture, patch);
                ensure!(
                    width >= multiple && height >= multiple && width.max(height) <= MAX_SIDE,
                    "the picture is {} x {} pixels, which makes a clip of {width} x {height} at \
                     {area} pixels; choose --size, multiples of {multiple} from {multiple} to \
                     {MAX_SIDE}",
                    picture.0,
                    picture.1
                );
                (width, height)
            }
        };
        let frames = self.frames.unwrap_or(settings.frames);
        ensure!(
            self.last_image.is_none() || frames > 1,
            "--last-image needs more --frames than 1"
        );
        let negative = self.negative_prompt.as_deref().unwrap_or_default();
        Ok(Plan {
            width,
            height,
            frames,
            fps: self.fps.unwrap_or(settings.fps),
            steps: self.steps.unwrap_or(settings.steps),
            solver: self.solver,
            shift: self.shift.unwrap_or(settings.shift),
            guide_scale: self.guide_scale.unwrap_or(GuideScale {
                low: settings.guide_scale.0,
                high: settings.guide_scale.1,
            }),
            guide_interval: self.guide_interval,
            cache: self.cache.clone().for_model(&settings.teacache)?,
            seed: self.seed,
            last_image: self.last_image.is_some(),
            // As given: cleaning twice resolves one level of escaping too many.
            negative_prompt: if crate::text::clean(negative).is_empty() {
                settings.negative_prompt.clone()
            } else {
                negative.to_owned()
            },
        })
    }
}

/// The folder that a file is in, or is to be.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

impl Plan {
    /// Latent frames, rows and columns.
    pub fn latent_grid(&self) -> [i32; 3] {
        [
            (self.frames as i32 - 1) / TEMPORAL_STRIDE + 1,
            self.height as i32 / SPATIAL_STRIDE,
            self.width as i32 / SPATIAL_STRIDE,
        ]
    }
}

/// Width and height of about `area` pixels with the picture's aspect ratio, rounded down to whole
/// tokens as `WanI2V.generate` of Wan-Video/Wan2.2 (`wan/image2video.py`) does.
fn fit_area(area: u64, (width, height): (usize, usize), patch: i32) -> (u32, u32) {
    let aspect = height as f64 / width as f64;
    let pixels = |length: f64| {
        let latents = (length / f64::from(SPATIAL_STRIDE)).floor();
        let tokens = (latents / f64::from(patch)).floor();
        (tokens * f64::from(patch * SPATIAL_STRIDE)) as u32
    };
    let area = area as f64;
    (
        pixels((area / aspect).sqrt()),
        pixels((area * aspect).sqrt()),
    )
}

fn nearest_multiple(pixels: u32, multiple: u32) -> u32 {
    let rounded = (u64::from(pixels) + u64::from(multiple) / 2) / u64::from(multiple);
    (rounded * u64::from(multiple)).clamp(
        u64::from(multiple),
        u64::from(MAX_SIDE / multiple * multiple),
    ) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the reference's own expression in numpy.
    #[test]
    fn areas_keep_the_aspect_ratio_as_the_reference_does() {
        // The reference loses a row of tokens here: its root is 479.99999999999994.
        assert_eq!(fit_area(480 * 832, (832, 480), 2), (832, 464));
        assert_eq!(fit_area(1280 * 720, (1280, 720), 2), (1280, 720));
        assert_eq!(fit_area(1280 * 720, (720, 1280), 2), (720, 1280));
        assert_eq!(fit_area(480 * 832, (1000, 1000), 2), (624, 624));
        assert_eq!(fit_area(480 * 832, (1920, 800), 2), (976, 400));
    }

    #[test]
    fn nearest_multiples_stay_in_range() {
        assert_eq!(nearest_multiple(0, 16), 16);
        assert_eq!(nearest_multiple(100, 16), 96);
        assert_eq!(nearest_multiple(u32::MAX, 16), MAX_SIDE);
    }
}
