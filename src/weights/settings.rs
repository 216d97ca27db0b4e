//! What a model recommends to be run with.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Family;
use super::files::Files;
use crate::media::preview::LatentRgb;
use crate::text::DEFAULT_NEGATIVE_PROMPT;
use crate::util::limits;

/// The file that holds a model's own settings.
pub const FILE: &str = "wan_i2v.json";

/// Recommended settings of a model. A checkpoint may carry its own in `wan_i2v.json` beside
/// `model_index.json`; otherwise they are those that its [`Family`] was published with.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recommended {
    /// Pixels per frame; the image decides the aspect ratio, unless there is a `size`.
    pub area: u64,
    /// Width and height whose aspect ratio a clip has that no image decides.
    pub shape: (u32, u32),
    /// Whether images are cropped to a clip's shape, the nearest to theirs of whole tokens, instead of
    /// stretched by less than a token.
    pub crop: bool,
    /// Width and height in pixels, for a model that knows one size only.
    pub size: Option<(u32, u32)>,
    /// Pixel frames of a clip.
    pub frames: u32,
    /// Frames per second.
    pub fps: f64,
    /// Denoising steps.
    pub steps: u32,
    /// Shift of the noise schedule.
    pub shift: f64,
    /// Guidance scales of the (low-noise, high-noise) experts.
    pub guide_scale: (f32, f32),
    /// Polynomial that TeaCache estimates the prediction's change with, from that of the time
    /// projection, fitted to the model (`scripts/fit_teacache`), the highest power first. None means
    /// that TeaCache cannot be used, as with the published model: no fit for its experts was found,
    /// and those of Wan2.1 are not theirs (deepbeepmeep/Wan2GP, `models/wan/wan_handler.py`, has
    /// TeaCache off for it; NVIDIA/TensorRT-LLM, pull request 13170, wants one from the user).
    pub teacache: Vec<f64>,
    /// Colours of the latents, fitted to the model's VAE (`scripts/fit_latent_rgb`).
    pub latent_rgb: LatentRgb,
    /// Negative prompt used when none is given.
    pub negative_prompt: String,
}

/// Those of Wan2.2 I2V-A14B.
impl Default for Recommended {
    fn default() -> Self {
        Self {
            area: 1280 * 720,
            shape: (1280, 720),
            crop: false,
            size: None,
            frames: 81,
            fps: 16.0,
            steps: 40,
            shift: 5.0,
            guide_scale: (3.5, 3.5),
            teacache: Vec::new(),
            latent_rgb: LatentRgb::default(),
            negative_prompt: DEFAULT_NEGATIVE_PROMPT.into(),
        }
    }
}

impl Recommended {
    /// Those of `family`, with what `wan_i2v.json` in `root` has of its own, when there is one.
    pub(super) fn read(root: Option<&Files>, family: &Family) -> Result<Self> {
        let defaults = family.recommended();
        let Some(root) = root.filter(|root| root.has(FILE)) else {
            return Ok(defaults);
        };
        // For its errors, which name the line.
        let _: Self = root.json(FILE)?;
        let (mut all, own) = (serde_json::to_value(defaults)?, root.json::<Value>(FILE)?);
        if let (Value::Object(all), Value::Object(own)) = (&mut all, own) {
            all.extend(own);
        }
        let settings: Self = serde_json::from_value(all)?;
        settings
            .validate()
            .with_context(|| format!("{} is not supported", root.name(FILE)))?;
        Ok(settings)
    }

    fn validate(&self) -> Result<()> {
        limits::check_area("area", self.area)?;
        limits::check_frames("frames", self.frames)?;
        limits::check_fps("fps", self.fps)?;
        limits::check_steps("steps", self.steps)?;
        limits::check_shift("shift", self.shift)?;
        limits::check_guide_scale("guide_scale", self.guide_scale.0, self.guide_scale.1)?;
        self.latent_rgb.check_finite().context("latent_rgb")
    }
}
