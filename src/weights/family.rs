//! The models that this program runs, as data: what goes into the transformer, which experts there are,
//! and what each is published to be run with.

use std::path::Path;

use anyhow::{Result, ensure};

use super::Recommended;
use super::part::OTHER_MODEL;
use crate::media::preview::LatentRgb;
use crate::model::dit::DitConfig;
use crate::model::vae::VaeConfig;
use crate::text::DEFAULT_NEGATIVE_PROMPT;
use crate::util::show::Show;

/// How a transformer is told of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditioning {
    /// Not at all: text alone.
    Text,
    /// By channels beside the noise: a mask of the frames that are given, and their latents.
    Channels,
    /// By these channels, and by CLIP features that it attends to, of so many pictures.
    Features {
        /// One, or the first and the last.
        pictures: usize,
    },
    /// The first latent frame is the picture's, without noise and with a timestep of 0; without a
    /// picture by text alone.
    FirstFrame,
}

/// Channels of the mask: the pixel frames of a latent frame.
pub const MASK_CHANNELS: i32 = 4;

impl Conditioning {
    /// That of a transformer, as far as its dimensions tell.
    ///
    /// # Errors
    /// When it is none of these models'.
    pub fn of(config: &DitConfig) -> Result<Self> {
        let (inputs, outputs) = (config.in_channels, config.out_channels);
        if inputs == outputs {
            return Ok(Self::Text);
        }
        let what = match (inputs, outputs) {
            (52 | 100, 16) => "an expert of a Fun-Control model",
            _ => "the transformer of another model",
        };
        ensure!(
            inputs == 2 * outputs + MASK_CHANNELS,
            "this is {what}: in_channels and out_channels are {inputs} and {outputs}; expected as \
             many in as out (text to video, TI2V), or {} (noise, {MASK_CHANNELS} mask channels, \
             image)\nhint: {OTHER_MODEL}",
            2 * outputs + MASK_CHANNELS
        );
        Ok(match (config.image_dim, config.pos_embed_seq_len) {
            (None, _) => Self::Channels,
            (Some(_), None) => Self::Features { pictures: 1 },
            (Some(_), Some(_)) => Self::Features { pictures: 2 },
        })
    }

    /// Whether a clip can start with a picture.
    pub fn takes_picture(self) -> bool {
        self != Self::Text
    }

    /// Whether a clip has to.
    pub fn needs_picture(self) -> bool {
        matches!(self, Self::Channels | Self::Features { .. })
    }

    /// Pictures whose features the transformer attends to.
    pub fn features(self) -> usize {
        match self {
            Self::Features { pictures } => pictures,
            _ => 0,
        }
    }

    /// Whether a clip can end with one.
    pub fn takes_last(self) -> bool {
        matches!(self, Self::Channels | Self::Features { pictures: 2 })
    }
}

/// A model of the Wan family.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// How it is told of a picture.
    pub conditioning: Conditioning,
    /// Where the high-noise expert ends, as a share of the noise schedule, when there are two.
    pub boundary: Option<f64>,
    /// What a path says that tells it from another with the same tensors: all of these.
    named: &'static [&'static str],
    /// Its transformer's width, where that tells it from another.
    width: Option<i32>,
    /// Pixels per row and rows of a clip without a picture, and as an area of one with it.
    size: (u32, u32),
    frames: u32,
    fps: f64,
    steps: u32,
    shift: f64,
    guide_scale: (f32, f32),
    /// What its negative prompt has in front of the others'.
    negative_prefix: &'static str,
}

/// The original's settings: Wan-Video/Wan2.2, `wan/configs/wan_*.py` and `generate.py`; Wan-Video/Wan2.1,
/// the same places. Of two with the same tensors the one that more is asked of comes first. Those
/// of Fun-InP, which has none there, are as of the model that it was made from.
#[rustfmt::skip]
static FAMILIES: &[Family] = &[
    Family {
        name: "Wan2.2 I2V-A14B", conditioning: Conditioning::Channels, boundary: Some(0.9), named: &[], width: None,
        size: (1280, 720), frames: 81, fps: 16.0, steps: 40, shift: 5.0, guide_scale: (3.5, 3.5),
        negative_prefix: "",
    },
    Family {
        name: "Wan2.2 T2V-A14B", conditioning: Conditioning::Text, boundary: Some(0.875), named: &[], width: None,
        size: (1280, 720), frames: 81, fps: 16.0, steps: 40, shift: 12.0, guide_scale: (3.0, 4.0),
        negative_prefix: "",
    },
    Family {
        name: "Wan2.2 TI2V-5B", conditioning: Conditioning::FirstFrame, boundary: None, named: &[], width: None,
        size: (1280, 704), frames: 121, fps: 24.0, steps: 50, shift: 5.0, guide_scale: (5.0, 5.0),
        negative_prefix: "",
    },
    Family {
        name: "Wan2.1 Fun-InP-1.3B", conditioning: Conditioning::Features { pictures: 1 }, boundary: None, named: &[], width: Some(1536),
        size: (832, 480), frames: 81, fps: 16.0, steps: 40, shift: 5.0, guide_scale: (5.0, 5.0),
        negative_prefix: "镜头晃动，",
    },
    Family {
        name: "Wan2.1 Fun-InP-14B", conditioning: Conditioning::Features { pictures: 1 }, boundary: None, named: &["-fun", "-inp"], width: None,
        size: (1280, 720), frames: 81, fps: 16.0, steps: 40, shift: 5.0, guide_scale: (5.0, 5.0),
        negative_prefix: "镜头晃动，",
    },
    Family {
        name: "Wan2.1 I2V-14B-480P", conditioning: Conditioning::Features { pictures: 1 }, boundary: None, named: &["480p"], width: None,
        size: (832, 480), frames: 81, fps: 16.0, steps: 40, shift: 3.0, guide_scale: (5.0, 5.0),
        negative_prefix: "镜头晃动，",
    },
    Family {
        name: "Wan2.1 I2V-14B", conditioning: Conditioning::Features { pictures: 1 }, boundary: None, named: &[], width: None,
        size: (1280, 720), frames: 81, fps: 16.0, steps: 40, shift: 5.0, guide_scale: (5.0, 5.0),
        negative_prefix: "镜头晃动，",
    },
    Family {
        name: "Wan2.1 FLF2V-14B", conditioning: Conditioning::Features { pictures: 2 }, boundary: None, named: &[], width: None,
        size: (1280, 720), frames: 81, fps: 16.0, steps: 50, shift: 16.0, guide_scale: (5.0, 5.0),
        negative_prefix: "镜头切换，镜头晃动，",
    },
    Family {
        name: "Wan2.1 T2V-1.3B", conditioning: Conditioning::Text, boundary: None, named: &[], width: Some(1536),
        size: (832, 480), frames: 81, fps: 16.0, steps: 50, shift: 8.0, guide_scale: (6.0, 6.0),
        negative_prefix: "",
    },
    Family {
        name: "Wan2.1 T2V", conditioning: Conditioning::Text, boundary: None, named: &[], width: None,
        size: (1280, 720), frames: 81, fps: 16.0, steps: 50, shift: 5.0, guide_scale: (5.0, 5.0),
        negative_prefix: "",
    },
    Family {
        name: "image-to-video in one transformer", conditioning: Conditioning::Channels, boundary: None, named: &[], width: None,
        size: (1280, 720), frames: 81, fps: 16.0, steps: 40, shift: 5.0, guide_scale: (3.5, 3.5),
        negative_prefix: "",
    },
];

/// Each is there once.
impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Family {}

impl Family {
    /// The model of a transformer, one of two experts or the only one, with this VAE, at `path`.
    ///
    /// # Errors
    /// When there is none of these dimensions.
    pub fn of(
        config: &DitConfig,
        vae: &VaeConfig,
        two_experts: bool,
        path: &str,
    ) -> Result<&'static Self> {
        let mut conditioning = Conditioning::of(config)?;
        // A VAE of another model is refused as such, later.
        let is_wan22 = vae.is_residual || vae.patch_size == Some(2);
        let of_5b = is_wan22 && vae.z_dim == config.out_channels;
        if conditioning == Conditioning::Text && of_5b {
            conditioning = Conditioning::FirstFrame;
        }
        let path = path.to_lowercase().replace('_', "-");
        let found = FAMILIES.iter().find(|family| {
            family.conditioning == conditioning
                && family.boundary.is_some() == two_experts
                && family.named.iter().all(|named| path.contains(named))
                && family.width.is_none_or(|width| width == config.dim())
        });
        found.ok_or_else(|| {
            anyhow::anyhow!(
                "no model of the Wan family has {} like these\nhint: {OTHER_MODEL}",
                match two_experts {
                    true => "two experts",
                    false => "one transformer",
                }
            )
        })
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.name == name)
    }

    /// The names of all.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FAMILIES.iter().map(|family| family.name)
    }

    /// That of I2V-A14B.
    pub fn i2v_a14b() -> &'static Self {
        &FAMILIES[0]
    }

    /// What it is published to be run with.
    pub fn recommended(&self) -> Recommended {
        let (width, height) = self.size;
        Recommended {
            area: u64::from(width) * u64::from(height),
            shape: self.size,
            crop: self.conditioning == Conditioning::FirstFrame,
            latent_rgb: match self.conditioning {
                Conditioning::FirstFrame => LatentRgb::wan22(),
                _ => LatentRgb::default(),
            },
            frames: self.frames,
            fps: self.fps,
            steps: self.steps,
            shift: self.shift,
            guide_scale: self.guide_scale,
            negative_prompt: format!("{}{DEFAULT_NEGATIVE_PROMPT}", self.negative_prefix),
            ..Recommended::default()
        }
    }

    /// Refuses pictures that the model cannot take, and that one is missing.
    ///
    /// # Errors
    /// Names the flag.
    pub fn check_pictures(&self, first: Option<&Path>, last: Option<&Path>) -> Result<()> {
        let Self {
            name, conditioning, ..
        } = self;
        if let Some(first) = first {
            ensure!(
                conditioning.takes_picture(),
                "--image {}: {name} makes clips from text alone\nhint: leave --image away, or take a \
                 model that starts with a picture",
                first.shown()
            );
        }
        ensure!(
            first.is_some() || !conditioning.needs_picture(),
            "--image is missing: {name} starts with a picture\nhint: give one, or a model that makes clips \
             from text alone, such as --model 5b"
        );
        if let Some(last) = last {
            ensure!(
                conditioning.takes_last() && first.is_some(),
                "--last-image {}: {name} takes no picture that a clip ends with{}",
                last.shown(),
                match conditioning.takes_last() {
                    true => " without --image, which it starts with",
                    false => "\nhint: leave it away",
                }
            );
        }
        let wants_both = *conditioning == Conditioning::Features { pictures: 2 };
        ensure!(
            last.is_some() || !wants_both,
            "--last-image is missing: {name} fills in between two pictures\nhint: give the one that the \
             clip ends with"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::published;

    /// By its width, or where that is the same by what its path says.
    #[test]
    fn fun_inp_is_told_from_what_it_was_made_from() {
        let i2v = Family::named("Wan2.1 I2V-14B").unwrap();
        let fun = Family::named("Wan2.1 Fun-InP-1.3B").unwrap();
        for (family, path, name) in [
            (i2v, "models/wan2.1_i2v_720p_14B_fp8.safetensors", i2v.name),
            (i2v, "fun/inputs/wan2.1_i2v.safetensors", i2v.name),
            (i2v, "Wan2.1-Fun-V1.1-14B-InP", "Wan2.1 Fun-InP-14B"),
            (
                i2v,
                "Wan2_1-Fun-InP-14B_fp8.safetensors",
                "Wan2.1 Fun-InP-14B",
            ),
            (fun, "model.safetensors", fun.name),
        ] {
            let (config, vae) = (published::expert_of(family), published::vae());
            assert_eq!(
                Family::of(&config, &vae, false, path).unwrap().name,
                name,
                "{path}"
            );
        }
    }

    /// Wan-Video/Wan2.1, `wan/configs/wan_i2v_14B.py` and `generate.py`.
    #[test]
    fn negative_prompts_are_those_of_each_model() {
        for family in FAMILIES {
            let prefix = match family.conditioning {
                Conditioning::Features { pictures: 1 } => "镜头晃动，",
                Conditioning::Features { .. } => "镜头切换，镜头晃动，",
                _ => "",
            };
            let expected = format!("{prefix}{DEFAULT_NEGATIVE_PROMPT}");
            assert_eq!(
                family.recommended().negative_prompt,
                expected,
                "{}",
                family.name
            );
        }
    }
}
